//! Which files of a repository a pull takes.

use regex::Regex;

use super::{Error, RepoKind};

/// Patterns over repository paths, as in `huggingface_hub`: `*` also crosses `/`.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Empty: what a repository of this kind is for.
    include: Vec<Regex>,
    exclude: Vec<Regex>,
}

/// Why a file is left on the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkipReason {
    /// A format that runs code when it is loaded; never downloaded.
    Pickle,
    /// `--exclude` matches it.
    Excluded,
    /// Neither in the default set nor matched by `--include`.
    NotSelected,
    /// A second copy of the weights under Mistral's own names.
    Duplicate,
}

/// Endings of formats that `torch.load`, `joblib` or `pickle` would execute.
const PICKLES: [&str; 9] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle", "pyt", "joblib", "dill"];

/// What running a model needs besides its weights.
const DEFAULT_NAMES: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
];

/// Returns true if a file of that name may hold a pickle.
pub fn is_pickle(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    name.rsplit_once('.').is_some_and(|(_, ending)| PICKLES.contains(&ending))
}

/// Endings of the files of a data set that `lctl` reads, as they are and compressed by nothing.
const DATA_ENDINGS: [&str; 7] = ["jsonl", "json", "csv", "tsv", "parquet", "txt", "ndjson"];

/// Returns true if the file holds rows or text that lctl reads.
pub fn is_data(path: &str) -> bool {
    let ending = path.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    ending.is_some_and(|ending| DATA_ENDINGS.contains(&ending.as_str()))
}

/// Returns true if the file holds weights that lctl reads.
pub fn is_weights(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".gguf")
}

impl Selection {
    /// Returns the selection of `--include` and `--exclude` patterns; no `include` means the default set.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, Error> {
        let compile = |patterns: &[String]| patterns.iter().map(|p| glob(p)).collect::<Result<Vec<_>, _>>();
        Ok(Selection { include: compile(include)?, exclude: compile(exclude)? })
    }

    /// Returns the selection of one file.
    pub fn only(path: &str) -> Result<Self, Error> {
        let pattern = format!("^{}$", regex::escape(path));
        let include = Regex::new(&pattern)
            .map_err(|source| Error::InvalidPattern { pattern: path.to_owned(), source })?;
        Ok(Selection { include: vec![include], exclude: Vec::new() })
    }

    /// Returns true if the user named what to take.
    pub fn is_explicit(&self) -> bool {
        !self.include.is_empty()
    }

    /// Returns the paths to take, and why each of the others is left; both in the order of `paths`.
    pub fn split<'a>(&self, kind: RepoKind, paths: &[&'a str]) -> (Vec<&'a str>, Vec<(&'a str, SkipReason)>) {
        let has_model = paths.iter().any(|path| path.starts_with("model") && path.ends_with(".safetensors"));
        let mut taken = Vec::new();
        let mut left = Vec::new();
        for path in paths {
            match self.reason_to_skip(kind, path, has_model) {
                None => taken.push(*path),
                Some(reason) => left.push((*path, reason)),
            }
        }
        (taken, left)
    }

    fn reason_to_skip(&self, kind: RepoKind, path: &str, has_model: bool) -> Option<SkipReason> {
        if is_pickle(path) {
            return Some(SkipReason::Pickle);
        }
        if self.exclude.iter().any(|pattern| pattern.is_match(path)) {
            return Some(SkipReason::Excluded);
        }
        if self.is_explicit() {
            let chosen = self.include.iter().any(|pattern| pattern.is_match(path));
            return (!chosen).then_some(SkipReason::NotSelected);
        }
        if kind == RepoKind::Dataset {
            let taken = is_data(path) || is_card(path);
            return (!taken).then_some(SkipReason::NotSelected);
        }
        if path.starts_with("consolidated") && path.ends_with(".safetensors") && has_model {
            return Some(SkipReason::Duplicate);
        }
        (!in_default_set(path)).then_some(SkipReason::NotSelected)
    }
}

/// Returns true if the file says what may be done with the others.
fn is_licence(path: &str) -> bool {
    ["LICENSE", "LICENCE", "NOTICE"].iter().any(|name| path.to_uppercase().starts_with(name))
}

/// Returns true if the file says what a data set is.
fn is_card(path: &str) -> bool {
    path == "README.md" || is_licence(path)
}

fn in_default_set(path: &str) -> bool {
    let top_level = !path.contains('/');
    let index = path.ends_with(".safetensors.index.json");
    top_level
        && (path.ends_with(".safetensors") || index || is_licence(path) || DEFAULT_NAMES.contains(&path))
}

/// Compiles a shell pattern (Python's fnmatch, case kept) that must match a whole path.
fn glob(pattern: &str) -> Result<Regex, Error> {
    let mut regex = String::from("(?s)^");
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        match c {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '[' if rest.as_str().contains(']') => push_set(&mut regex, &mut rest),
            other => regex.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    // A folder stands for what is in it.
    regex.push_str(if pattern.ends_with('/') { ".*$" } else { "$" });
    Regex::new(&regex).map_err(|source| Error::InvalidPattern { pattern: pattern.to_owned(), source })
}

/// Translates the inside of `[…]`, whose `]` is known to follow.
fn push_set(regex: &mut String, rest: &mut std::str::Chars<'_>) {
    regex.push('[');
    let mut first = true;
    for c in rest.by_ref() {
        match c {
            ']' if !first => break,
            '!' if first => regex.push('^'),
            '\\' | '[' | ']' | '^' | '&' | '~' => regex.extend(['\\', c]),
            other => regex.push(other),
        }
        first = false;
    }
    regex.push(']');
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: [&str; 12] = [
        ".gitattributes",
        "LICENSE.txt",
        "README.md",
        "config.json",
        "consolidated.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "modeling_x.py",
        "original/model.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
    ];

    fn split(include: &[&str], exclude: &[&str]) -> (Vec<&'static str>, Vec<(&'static str, SkipReason)>) {
        let own = |patterns: &[&str]| patterns.iter().map(|p| p.to_string()).collect::<Vec<_>>();
        Selection::new(&own(include), &own(exclude)).unwrap().split(RepoKind::Model, &REPOSITORY)
    }

    #[test]
    fn default_set_is_what_running_needs() {
        let (taken, left) = split(&[], &[]);
        let expected = [
            "LICENSE.txt",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
        ];
        assert_eq!(taken, expected);
        assert!(left.contains(&("pytorch_model.bin", SkipReason::Pickle)));
        assert!(left.contains(&("consolidated.safetensors", SkipReason::Duplicate)));
        assert!(left.contains(&("original/model.safetensors", SkipReason::NotSelected)));
    }

    #[test]
    fn patterns_choose_and_pickles_stay_out() {
        let (taken, left) = split(&["*"], &["*.md", "original/"]);
        assert!(!taken.contains(&"pytorch_model.bin") && taken.contains(&"modeling_x.py"));
        assert!(left.contains(&("original/model.safetensors", SkipReason::Excluded)));
        assert_eq!(split(&["model-0000[!2]*"], &[]).0, ["model-00001-of-00002.safetensors"]);
        assert_eq!(split(&["config.jso?", "*/model.safetensors"], &[]).0.len(), 2);
        assert_eq!(split(&["pytorch*"], &[]).0.len(), 0);
    }

    #[test]
    fn of_a_data_set_its_data_and_its_card_are_taken() {
        let paths = [
            ".gitattributes",
            "LICENSE",
            "README.md",
            "data/a.parquet",
            "b.TSV",
            "image.png",
            "load.py",
            "x.bin",
        ];
        let (taken, left) = Selection::default().split(RepoKind::Dataset, &paths);
        assert_eq!(taken, ["LICENSE", "README.md", "data/a.parquet", "b.TSV"]);
        assert!(left.contains(&("x.bin", SkipReason::Pickle)));
        assert!(left.contains(&("load.py", SkipReason::NotSelected)));
    }

    #[test]
    fn a_file_is_selected_by_its_name_alone() {
        let paths = ["a[1].csv", "a1.csv", "b/a[1].csv"];
        let (taken, _) = Selection::only("a[1].csv").unwrap().split(RepoKind::Dataset, &paths);
        assert_eq!(taken, ["a[1].csv"]);
    }

    #[test]
    fn every_pickle_ending_is_known_in_any_case() {
        for path in ["a.bin", "x/y.PT", "w.pth", "m.ckpt", "o.pkl"] {
            assert!(is_pickle(path), "{path}");
        }
        assert!(!is_pickle("model.safetensors") && !is_pickle("bin"));
    }
}
