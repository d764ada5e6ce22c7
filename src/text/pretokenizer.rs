//! The name of a byte-level BPE's pre-tokenizer, decided from its own structure: the splits that
//! tokenizer.json describes are brought to one spelling and compared with a table of known ones.

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

    fn fits(&self, arch: &str) -> bool {
        self.archs.is_empty() || self.archs.contains(&arch)
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
        None => {
            let (path, nearest) = (files.path("tokenizer.json"), structure.nearest(arch));
            let known = shown(&canonical_splits(nearest));
            Err(Error::UnrecognizedPre {
                path,
                found: shown(&structure.splits),
                nearest: nearest.name,
                known,
            })
        }
    }
}

impl Structure {
    /// Returns in how much `known` agrees beside the splits; more is larger.
    fn agreement(&self, known: &Known) -> (bool, bool, bool) {
        (
            known.ignore_merges == self.ignore_merges,
            known.nfc == self.nfc,
            known.cleans_spaces == self.cleans_spaces,
        )
    }

    /// Returns the known pre-tokenizer with these splits that agrees best in the other respects;
    /// the first in the table of several that agree alike.
    fn best(&self, arch: &str) -> Option<&'static Known> {
        let same = KNOWN.iter().filter(|known| known.fits(arch) && canonical_splits(known) == self.splits);
        // `max_by_key` keeps the last of equals
        same.rev().max_by_key(|known| self.agreement(known))
    }

    /// Returns the known pre-tokenizer whose splits read most like these.
    fn nearest(&self, arch: &str) -> &'static Known {
        let found = shown(&self.splits);
        let score = |known: &Known| {
            let likeness = strsim::normalized_levenshtein(&found, &shown(&canonical_splits(known)));
            // in millionths, to have an order; a name of another architecture only if nothing is near
            (known.fits(arch), (likeness * 1e6) as u64, self.agreement(known))
        };
        // KNOWN is a non-empty constant
        KNOWN.iter().rev().max_by_key(|known| score(known)).unwrap_or(&KNOWN[0])
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
    // readers split text, then turn all of it to bytes; Falcon's file has the bytes in between
    let n_steps = splits.len();
    splits.retain(|split| split != BYTE_LEVEL);
    if splits.len() < n_steps {
        splits.push(BYTE_LEVEL.to_owned());
    }
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
pub fn canonical(regex: &str) -> String {
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

/// Returns whether the pre-tokenizer puts a space before the text.
pub fn adds_space(files: &Files) -> bool {
    fn any(step: &Json) -> bool {
        let inner = step.get("pretokenizers").and_then(Json::as_array);
        step.get("add_prefix_space").and_then(Json::as_bool) == Some(true)
            || inner.into_iter().flatten().any(any)
    }
    files.tokenizer.as_ref().is_some_and(|tokenizer| any(&tokenizer.pre_tokenizer))
}

fn has_nfc(normalizer: &Json) -> bool {
    let inner = normalizer.get("normalizers").and_then(Json::as_array);
    normalizer.get("type").and_then(Json::as_str) == Some("NFC") || inner.into_iter().flatten().any(has_nfc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn splits(pre_tokenizer: Json) -> Vec<String> {
        splits_of(&pre_tokenizer)
    }

    fn split(regex: &str) -> Json {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
    }

    fn bytes(use_regex: bool) -> Json {
        json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex})
    }

    fn name(
        pre_tokenizer: Json,
        arch: &str,
        ignore_merges: bool,
        cleans_spaces: bool,
        nfc: bool,
    ) -> Option<&'static str> {
        let splits = splits(pre_tokenizer);
        Structure { splits, ignore_merges, cleans_spaces, nfc }.best(arch).map(|known| known.name)
    }

    #[test]
    fn every_known_structure_is_found_by_its_own_splits_and_flags() {
        for known in KNOWN {
            let arch = known.archs.first().copied().unwrap_or("gpt2");
            let structure = Structure {
                splits: canonical_splits(known),
                ignore_merges: known.ignore_merges,
                cleans_spaces: known.cleans_spaces,
                nfc: known.nfc,
            };
            assert_eq!(structure.best(arch).unwrap().name, known.name);
        }
    }

    #[test]
    fn names_are_listed_once() {
        let mut names: Vec<&str> = names().collect();
        let n_names = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), n_names);
    }

    /// The `pre_tokenizer` of Meta-Llama-3-8B, Qwen2.5, GPT-2, StarCoder2 / SmolLM, DeepSeek-Coder, Falcon and
    /// Phi-4 as their tokenizer.json files spell them.
    #[test]
    fn published_structures_have_their_names() {
        let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let sequence = |steps: &[Json]| json!({"type": "Sequence", "pretokenizers": steps});
        let steps = sequence(&[split(llama3), bytes(false)]);
        assert_eq!(name(steps.clone(), "llama", true, true, false), Some("llama-bpe"));
        assert_eq!(name(steps.clone(), "llama", false, true, false), Some("smaug-bpe"));
        assert_eq!(name(steps, "phi3", false, false, false), Some("dbrx"));
        let removed =
            json!({"type": "Split", "pattern": {"Regex": llama3}, "behavior": "Removed", "invert": true});
        assert_eq!(name(sequence(&[removed, bytes(false)]), "phi3", false, false, false), Some("dbrx"));
        let qwen2 = llama3.replace("{1,3}", "");
        let steps = sequence(&[split(&qwen2), bytes(false)]);
        assert_eq!(name(steps.clone(), "qwen2", false, false, true), Some("qwen2"));
        // a re-saved checkpoint may have gained or lost either flag
        assert_eq!(name(steps, "qwen3", false, true, false), Some("qwen2"));
        assert_eq!(name(bytes(true), "llama", false, true, false), Some("gpt-2"));
        assert_eq!(name(json!({"type": "ByteLevel"}), "llama", false, false, true), Some("olmo"));
        let digits = json!({"type": "Digits", "individual_digits": true});
        let steps = sequence(&[digits.clone(), bytes(true)]);
        assert_eq!(name(steps.clone(), "llama", false, false, false), Some("smollm"));
        assert_eq!(name(steps.clone(), "llama", false, true, false), Some("refact"));
        assert_eq!(name(steps, "starcoder2", false, true, false), Some("starcoder"));
        let steps = [
            split("[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split("[一-龥ࠀ-一가-퟿]+"),
            digits,
            bytes(false),
        ];
        assert_eq!(name(sequence(&steps), "llama", false, false, false), Some("deepseek-coder"));
        let punctuation = json!({"type": "Punctuation", "behavior": "Contiguous"});
        let runs = json!({"type": "Digits", "individual_digits": false});
        let steps = sequence(&[punctuation, bytes(true), runs, split("[0-9][0-9][0-9]")]);
        assert_eq!(name(steps, "falcon", false, true, false), Some("falcon"));
    }

    #[test]
    fn spellings_of_one_regex_are_one_structure() {
        let written =
            "'(?i:[sdmt]|ll|ve|re)|[^\r\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}]++[\r\n]*";
        let expected =
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*";
        assert_eq!(canonical(written), expected);
    }

    #[test]
    fn what_is_not_isolated_or_not_bytes_is_not_mistaken_for_it() {
        let merged = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
        assert_eq!(splits(merged), [r"  <MergedWithPrevious>"]);
        assert_eq!(name(split(GPT2), "llama", false, false, false), None);
        assert_eq!(splits(Json::Null), Vec::<String>::new());
        assert_eq!(splits(json!({"type": "Metaspace"})), ["<Metaspace>"]);
    }
}
