//! What a replay made against what the manifest says.

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value as Json, json};

use crate::cli::term;
use crate::error::Failure;
use crate::provenance::{Content, Manifest, Output, OutputRole, merkle_root_of_lines, sha256_of_file};
use crate::read::{read_bytes, refuse_endless};

/// Outputs then and now.
pub struct Comparison {
    pairs: Vec<Pair>,
    samples: Option<SamplesNow>,
    /// What the user should know, a sentence each.
    notes: Vec<String>,
}

struct Pair {
    role: OutputRole,
    /// Of the first run.
    path: String,
    /// SHA-256; absent for a file that was or is not there.
    then: Option<String>,
    now: Option<String>,
}

struct SamplesNow {
    lines: usize,
    merkle_root: String,
    agrees: bool,
    first: Option<FirstDifference>,
}

/// The first line that differs, from 1; absent text is a line that was or is not there.
struct FirstDifference {
    line: usize,
    then: Option<String>,
    now: Option<String>,
}

impl Comparison {
    /// Compares role by role, in order: names do not matter.
    pub fn of_outputs(then: &[Output], now: &[Output]) -> Comparison {
        let mut pairs: Vec<Pair> = Vec::new();
        let mut left: Vec<&Output> = now.iter().collect();
        for output in then {
            let at =
                left.iter().position(|other| other.role == output.role && other.content == output.content);
            let now = at.map(|at| left.remove(at).sha256.clone());
            let (role, path) = (output.role, output.path.clone());
            pairs.push(Pair { role, path, then: Some(output.sha256.clone()), now });
        }
        for output in left {
            let (role, path) = (output.role, output.path.clone());
            pairs.push(Pair { role, path, then: None, now: Some(output.sha256.clone()) });
        }
        Comparison { pairs, samples: None, notes: Vec::new() }
    }

    /// Returns true if every bit is the same.
    pub fn agrees(&self) -> bool {
        self.pairs.iter().all(|pair| pair.then == pair.now)
            && self.samples.as_ref().is_none_or(|samples| samples.agrees)
    }

    /// Returns what people read.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for pair in &self.pairs {
            let shown = |digest: &Option<String>| digest.clone().unwrap_or_else(|| "not there".into());
            let path = term::printable(&pair.path);
            let _ = match pair.then == pair.now {
                true => writeln!(out, "same     {} {path}", shown(&pair.now)),
                false => {
                    writeln!(
                        out,
                        "differs  {} {path}, in the manifest {}",
                        shown(&pair.now),
                        shown(&pair.then)
                    )
                }
            };
        }
        if let Some(samples) = &self.samples {
            let word = if samples.agrees { "same   " } else { "differs" };
            let _ = writeln!(out, "{word}  {} samples, Merkle root {}", samples.lines, samples.merkle_root);
            if let Some(FirstDifference { line, then, now }) = &samples.first {
                let _ = writeln!(out, "the first sample that differs is line {line}");
                let _ = writeln!(out, "  then {}", shown_line(then));
                let _ = writeln!(out, "  now  {}", shown_line(now));
            }
        }
        for note in &self.notes {
            let _ = writeln!(out, "note: {}", term::printable(note));
        }
        out.push_str(if self.agrees() { "the bits agree\n" } else { "the bits differ\n" });
        out
    }

    /// Returns what programs read.
    pub fn json(&self, manifest: &Manifest, is_check: bool) -> Json {
        let pair = |pair: &Pair| {
            let Pair { role, path, then, now } = pair;
            json!({"role": role, "path": path, "then": then, "now": now, "agrees": then == now})
        };
        let first =
            |first: &FirstDifference| json!({"line": first.line, "then": first.then, "now": first.now});
        let samples = self.samples.as_ref().map(|samples| {
            json!({
                "lines": samples.lines,
                "merkle_root": samples.merkle_root,
                "agrees": samples.agrees,
                "first_difference": samples.first.as_ref().map(first),
            })
        });
        json!({
            "lctl_replay": 1,
            "command": manifest.job.command(),
            "rerun": !is_check,
            "agrees": self.agrees(),
            "manifest_sha256": manifest.digest(),
            "outputs": self.pairs.iter().map(pair).collect::<Vec<_>>(),
            "samples": samples,
            "notes": self.notes,
        })
    }
}

fn shown_line(line: &Option<String>) -> String {
    const LONGEST: usize = 300;
    let Some(line) = line else { return "no such line".to_owned() };
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", term::printable(&line[..at])),
        None => term::printable(line),
    }
}

/// Adds the samples; of those that differ the first, if the first run's still lie beside the manifest.
pub fn with_samples(
    mut comparison: Comparison,
    manifest: &Manifest,
    manifest_path: &Path,
    now: &str,
) -> Comparison {
    let Some(then) = &manifest.samples else { return comparison };
    let (lines, merkle_root) = merkle_root_of_lines(now);
    let agrees = lines == then.lines && merkle_root == then.merkle_root;
    let mut first = None;
    if !agrees {
        let output = manifest.outputs_of(OutputRole::Samples).next();
        let path = output.map(|output| beside(manifest_path, output));
        let is_first_runs = |text: &str| merkle_root_of_lines(text) == (then.lines, then.merkle_root.clone());
        let lost = match path.as_deref().and_then(text_of) {
            Some(text) if is_first_runs(&text) => {
                first = first_difference(&text, now);
                None
            }
            Some(_) => Some("the samples beside the manifest are not the first run's"),
            None => Some("the first run's samples do not lie beside the manifest"),
        };
        let note = lost.map(|lost| format!("{lost}: which one differs first cannot be said"));
        comparison.notes.extend(note);
    }
    comparison.samples = Some(SamplesNow { lines, merkle_root, agrees, first });
    comparison
}

fn first_difference(then: &str, now: &str) -> Option<FirstDifference> {
    let (mut then, mut now) = (then.lines(), now.lines());
    (1..).find_map(|line| match (then.next(), now.next()) {
        (None, None) => Some(None),
        (a, b) if a == b => None,
        (a, b) => Some(Some(FirstDifference { line, then: a.map(str::to_owned), now: b.map(str::to_owned) })),
    })?
}

/// Returns where an output lies: by its name beside the manifest, whatever directories it once had; in a manifest of a
/// directory by its path in that directory.
fn beside(manifest_path: &Path, output: &Output) -> PathBuf {
    let manifest_name = manifest_path.file_name().unwrap_or_default().to_string_lossy();
    if let Some(directory) = manifest_name.strip_suffix(".manifest.json") {
        let parts: Vec<Component> = Path::new(&output.path).components().collect();
        let inside = parts.iter().rposition(|part| part.as_os_str() == directory).map(|at| &parts[at..]);
        let is_plain = |part: &Component| matches!(part, Component::Normal(_));
        if let Some(inside) = inside.filter(|inside| inside.len() > 1 && inside.iter().all(is_plain)) {
            return manifest_path.with_file_name(inside.iter().collect::<PathBuf>());
        }
    }
    // the reader has checked that there is a name
    let name = Path::new(&output.path).file_name().unwrap_or_default();
    manifest_path.with_file_name(name)
}

/// Returns a file's text; none if it cannot be read.
fn text_of(path: &Path) -> Option<String> {
    String::from_utf8(read_bytes(path).ok()?).ok()
}

/// Compares the outputs that lie beside the manifest.
pub fn on_disk(manifest: &Manifest, manifest_path: &Path) -> Result<Comparison, Failure> {
    let mut comparison = Comparison { pairs: Vec::new(), samples: None, notes: Vec::new() };
    for output in &manifest.outputs {
        let path = beside(manifest_path, output);
        if path.exists() {
            refuse_endless(&path)?;
        }
        let now = match output.content {
            _ if !path.exists() => None,
            Content::File => Some(sha256_of_file(&path)?),
            // a file that is no JSON is not what was written
            Content::JsonWithoutRun => std::fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Json>(&bytes).ok())
                .map(|json| Output::of_report(&path, &json).sha256),
        };
        let (role, then) = (output.role, Some(output.sha256.clone()));
        comparison.pairs.push(Pair { role, path: path.display().to_string(), then, now });
    }
    let samples = manifest.outputs_of(OutputRole::Samples).next().map(|output| beside(manifest_path, output));
    Ok(match samples.and_then(|path| text_of(&path)) {
        Some(text) => with_samples(comparison, manifest, manifest_path, &text),
        None => comparison,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_found() {
        let first = |then, now| first_difference(then, now).map(|first| (first.line, first.then, first.now));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(first("a\nb\n", "a\nb\n"), None);
        assert_eq!(first("a\nb\nc\n", "a\nx\ny\n"), Some((2, some("b"), some("x"))));
        assert_eq!(first("a\n", "a\nb\n"), Some((2, None, some("b"))));
        assert_eq!(first("a\nb\n", ""), Some((1, some("a"), None)));
    }

    #[test]
    fn outputs_are_paired_by_role_and_order() {
        let output = |role, text| Output::of_text(role, Path::new("p"), text);
        let then = [output(OutputRole::Model, "1"), output(OutputRole::Model, "2")];
        assert!(Comparison::of_outputs(&then, &then).agrees());
        let swapped = [then[1].clone(), then[0].clone()];
        assert!(!Comparison::of_outputs(&then, &swapped).agrees());
        assert!(!Comparison::of_outputs(&then, &then[..1]).agrees());
        assert!(!Comparison::of_outputs(&then[..1], &then).agrees());
        let text = Comparison::of_outputs(&then, &then[..1]).text();
        assert!(
            text.contains("differs  not there p, in the manifest") && text.ends_with("the bits differ\n")
        );
    }
}
