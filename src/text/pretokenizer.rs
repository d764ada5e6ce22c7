//! The name of a byte-level BPE's pre-tokenizer, decided from its own structure: the splits that
//! tokenizer.json describes are brought to one spelling and compared with a table of known ones.

use std::path::PathBuf;

use serde_json::Value as Json;

use super::error::Error;
use super::files::Files;
use super::pre_table::{GPT2, KNOWN, OTHER_NAMES, PUNCTUATION_RUNS};
use crate::error::nearest;

/// A pre-tokenizer that GGUF readers know by name.
pub struct Known {
    pub name: &'static str,
    /// Regular expressions applied in turn, each isolating its matches.
    pub splits: &'static [&'static str],
    /// The reader takes a whole word that is in the vocabulary before merging.
    pub ignore_merges: bool,
    /// The reader removes spaces before punctuation when it decodes.
    pub cleans_spaces: bool,
    /// The text is normalized to NFC first (readers do not; it tells families apart).
    pub nfc: bool,
    /// GGUF architectures of the models with that name; empty if any.
    pub archs: &'static [&'static str],
}

impl Known {
    pub const fn of(name: &'static str, splits: &'static [&'static str]) -> Self {
        Known { name, splits, ignore_merges: false, cleans_spaces: true, nfc: false, archs: &[] }
    }
}

/// Returns every name that can be forced.
pub fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.name).chain(OTHER_NAMES.iter().copied())
}

/// Returns the name if GGUF readers know it.
pub fn check_forced(name: &str) -> Result<&'static str, Error> {
    if let Some(known) = names().find(|known| *known == name) {
        return Ok(known);
    }
    let nearest = nearest(name, names()).map(str::to_owned);
    Err(Error::UnknownPre { name: name.to_owned(), nearest })
}

/// What tells one pre-tokenizer from another.
struct Structure {
    splits: Vec<String>,
    ignore_merges: bool,
    cleans_spaces: bool,
    nfc: bool,
}

/// Returns the name of the checkpoint's pre-tokenizer. Without a tokenizer.json the tokenizer's
/// class decides.
///
/// Errors if none known makes the same splits; the error shows the nearest.
pub fn detect(files: &Files, arch: &str) -> Result<&'static str, Error> {
    let Some(tokenizer) = &files.tokenizer else { return by_class(files, arch) };
    let clean = files.config_value("clean_up_tokenization_spaces").and_then(Json::as_bool);
    let structure = Structure {
        splits: splits_of(&tokenizer.pre_tokenizer),
        ignore_merges: tokenizer.model.ignore_merges.unwrap_or(false),
        cleans_spaces: clean.unwrap_or(false),
        nfc: has_nfc(&tokenizer.normalizer),
    };
    match structure.best(arch) {
        Some(known) => Ok(known.name),
        None => Err(unrecognized(files.path("tokenizer.json"), &structure.splits)),
    }
}

impl Structure {
    /// Returns the known pre-tokenizer with these splits that agrees best in the other respects;
    /// the first in the table of several that agree alike.
    fn best(&self, arch: &str) -> Option<&'static Known> {
        let agreement = |known: &Known| {
            (
                known.ignore_merges == self.ignore_merges,
                known.nfc == self.nfc,
                known.cleans_spaces == self.cleans_spaces,
            )
        };
        let mut best: Option<&'static Known> = None;
        for known in KNOWN {
            let fits = known.archs.is_empty() || known.archs.contains(&arch);
            if fits && canonical_splits(known) == self.splits {
                match best {
                    Some(best) if agreement(best) >= agreement(known) => {}
                    _ => best = Some(known),
                }
            }
        }
        best
    }
}

/// Returns the class's pre-tokenizer, for checkpoints with vocab.json and merges.txt alone.
fn by_class(files: &Files, arch: &str) -> Result<&'static str, Error> {
    let class = files.config_value("tokenizer_class").and_then(Json::as_str).unwrap_or_default();
    match (class.strip_suffix("Fast").unwrap_or(class), arch) {
        ("Qwen2Tokenizer", _) | ("", "qwen2" | "qwen3" | "qwen3moe") => Ok("qwen2"),
        ("GPT2Tokenizer", _) => Ok("gpt-2"),
        _ => Err(Error::UnknownClass { path: files.path("tokenizer_config.json"), class: class.to_owned() }),
    }
}

fn unrecognized(path: PathBuf, splits: &[String]) -> Error {
    let found = shown(splits);
    let score = |known: &&Known| strsim::normalized_levenshtein(&found, &shown(&canonical_splits(known)));
    let nearest = KNOWN.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
    // KNOWN is a non-empty constant
    let nearest = nearest.unwrap_or(&KNOWN[0]);
    Error::UnrecognizedPre { path, known: shown(&canonical_splits(nearest)), nearest: nearest.name, found }
}

fn shown(splits: &[String]) -> String {
    if splits.is_empty() { "(no split at all)".to_owned() } else { splits.join("  then  ") }
}

fn canonical_splits(known: &Known) -> Vec<String> {
    let mut splits: Vec<String> = known.splits.iter().map(|split| canonical(split)).collect();
    splits.push(BYTE_LEVEL.to_owned());
    splits
}

/// The step that turns bytes into GPT-2's characters; GGUF's `gpt2` vocabularies need it.
const BYTE_LEVEL: &str = "<bytes>";

/// Returns the splits that a tokenizer.json's `pre_tokenizer` makes, in one spelling.
fn splits_of(pre_tokenizer: &Json) -> Vec<String> {
    let mut splits = Vec::new();
    push_splits(pre_tokenizer, &mut splits);
    splits
}

fn push_splits(step: &Json, splits: &mut Vec<String>) {
    let flag = |name: &str, default| step.get(name).and_then(Json::as_bool).unwrap_or(default);
    match step.get("type").and_then(Json::as_str) {
        None => {}
        Some("Sequence") => {
            for inner in step.get("pretokenizers").and_then(Json::as_array).into_iter().flatten() {
                push_splits(inner, splits);
            }
        }
        Some("ByteLevel") => {
            if flag("use_regex", true) {
                splits.push(canonical(GPT2));
            }
            splits.push(BYTE_LEVEL.to_owned());
        }
        Some("Digits") if flag("individual_digits", false) => splits.push(r"\p{N}".to_owned()),
        Some("Digits") => splits.push(r"\p{N}+".to_owned()),
        Some("Punctuation") if step.get("behavior").and_then(Json::as_str) == Some("Contiguous") => {
            splits.push(PUNCTUATION_RUNS.to_owned());
        }
        Some("Split") => splits.push(split_regex(step)),
        Some(other) => splits.push(format!("<{other}>")),
    }
}

/// Returns the regular expression of a `Split`; one that does not isolate its matches is marked.
fn split_regex(step: &Json) -> String {
    let pattern = |kind: &str| step.get("pattern").and_then(|pattern| pattern.get(kind)?.as_str());
    let regex = match (pattern("Regex"), pattern("String")) {
        (Some(regex), _) => canonical(regex),
        (None, Some(text)) => regex::escape(text),
        (None, None) => "<no pattern>".to_owned(),
    };
    let behavior = step.get("behavior").and_then(Json::as_str).unwrap_or_default();
    match (behavior, step.get("invert").and_then(Json::as_bool).unwrap_or(false)) {
        ("Isolated", _) => regex,
        // keeps the matches, drops what is between: nothing, as the known patterns match all text
        ("Removed", true) => regex,
        (behavior, _) => format!("{regex} <{behavior}>"),
    }
}

/// Returns the regular expression in the spelling of the table: control characters as escapes,
/// contractions in one form, no possessive marks (these patterns never gain by backtracking).
fn canonical(regex: &str) -> String {
    const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    let spellings = [
        ("\r", r"\r"),
        ("\n", r"\n"),
        ("\t", r"\t"),
        ("'(?i:[sdmt]|ll|ve|re)", CONTRACTIONS),
        ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", CONTRACTIONS),
        ("]?+", "]?"),
        ("]++", "]+"),
        ("{1}", ""),
    ];
    spellings.iter().fold(regex.to_owned(), |regex, (from, to)| regex.replace(from, to))
}

fn has_nfc(normalizer: &Json) -> bool {
    let inner = normalizer.get("normalizers").and_then(Json::as_array);
    normalizer.get("type").and_then(Json::as_str) == Some("NFC") || inner.into_iter().flatten().any(has_nfc)
}
