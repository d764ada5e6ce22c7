//! Hub ids: `ORG/NAME[@REVISION]` of a model, `datasets/ORG/NAME[@REVISION]` of a data set, checked before they become
//! paths or URLs.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RepoKind {
    Model,
    Dataset,
}

impl RepoKind {
    /// Returns what stands before ORG/NAME in ids and in a hub's addresses.
    pub fn prefix(self) -> &'static str {
        match self {
            RepoKind::Model => "",
            RepoKind::Dataset => "datasets/",
        }
    }

    /// Returns the word that the cache's folder names begin with, and the hub's interface uses.
    pub fn plural(self) -> &'static str {
        match self {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        }
    }
}

/// A repository on a hub and the revision asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoId {
    pub kind: RepoKind,
    pub org: String,
    pub name: String,
    /// Branch, tag or 40-digit commit; `None` stands for `main`.
    pub revision: Option<String>,
}

/// Length limit of an organization's or a repository's name on the hub.
const MAX_NAME: usize = 96;
const MAX_REVISION: usize = 200;

/// Files a user may name that would otherwise read as `ORG/NAME`.
const FILE_ENDINGS: [&str; 8] = [".gguf", ".safetensors", ".json", ".bin", ".pt", ".pth", ".model", ".dat"];

/// Returns true if `text` has the form of a model's hub id and not of a file name.
///
/// Purely by its letters: the caller checks first that no such path exists.
pub fn looks_like_id(text: &str) -> bool {
    let lower = text.to_lowercase();
    let is_model = text.parse::<RepoId>().is_ok_and(|id| id.kind == RepoKind::Model);
    is_model && !FILE_ENDINGS.iter().any(|ending| lower.ends_with(ending))
}

/// Returns true if `revision` is a full commit id.
pub fn is_commit(revision: &str) -> bool {
    is_hex(revision, 40)
}

/// Returns true if `text` is `digits` lower-case hexadecimal digits.
pub fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Returns lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl RepoId {
    /// Returns the revision asked for, `main` if none was.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Returns `ORG/NAME`, of a data set `datasets/ORG/NAME`.
    pub fn repository(&self) -> String {
        format!("{}{}/{}", self.kind.prefix(), self.org, self.name)
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}/{}", self.kind.prefix(), self.org, self.name)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}

impl FromStr for RepoId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad =
            |reason: &str| Error::InvalidId { id: text.escape_debug().to_string(), reason: reason.into() };
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (text, None),
        };
        let (kind, repository) = match repository.strip_prefix(RepoKind::Dataset.prefix()) {
            Some(rest) if rest.contains('/') => (RepoKind::Dataset, rest),
            _ => (RepoKind::Model, repository),
        };
        let (org, name) =
            repository.split_once('/').ok_or_else(|| bad("it has no `/` between organization and name"))?;
        for part in [org, name] {
            check_name(part).map_err(bad)?;
        }
        if let Some(revision) = revision {
            check_revision(revision).map_err(bad)?;
        }
        Ok(RepoId { kind, org: org.into(), name: name.into(), revision: revision.map(str::to_owned) })
    }
}

fn check_name(part: &str) -> Result<(), &'static str> {
    if part.is_empty() {
        return Err("a part is empty");
    }
    if part.len() > MAX_NAME {
        return Err("a part is longer than 96 characters");
    }
    if !part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(
            "only letters, digits, `-`, `_` and `.` may appear in a part, and one `/` between the parts",
        );
    }
    // The cache joins parts with `--`, and `..` would climb out of it.
    if part.contains("..")
        || part.contains("--")
        || part.starts_with(['-', '.'])
        || part.ends_with(['-', '.'])
    {
        return Err("a part may not hold `..` or `--`, nor start or end with `-` or `.`");
    }
    Ok(())
}

fn check_revision(revision: &str) -> Result<(), &'static str> {
    if revision.is_empty() || revision.len() > MAX_REVISION {
        return Err("the revision after `@` must have 1 to 200 characters");
    }
    if !revision.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b'+')) {
        return Err("a revision holds letters, digits, `-`, `_`, `.`, `+` and `/` only");
    }
    // A revision names a file under refs/.
    if revision.split('/').any(|part| part.is_empty() || part.starts_with(['.', '-']) || part.contains(".."))
    {
        return Err("a part of the revision is empty, starts with `.` or `-`, or holds `..`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_parse_and_print_back() {
        for text in [
            "meta-llama/Llama-3.2-1B",
            "Qwen/Qwen3-0.6B@main",
            "a/b@refs/pr/1",
            "x_y/z.1@v1.0+b",
            "datasets/cais/wmdp@main",
        ] {
            assert_eq!(text.parse::<RepoId>().unwrap().to_string(), text);
        }
        let id: RepoId = "org/name".parse().unwrap();
        assert_eq!((id.revision(), id.repository()), ("main", "org/name".to_string()));
        let id: RepoId = "datasets/org/name@v2".parse().unwrap();
        assert_eq!(
            (id.kind, id.org.as_str(), id.repository()),
            (RepoKind::Dataset, "org", "datasets/org/name".into())
        );
        let id: RepoId = "datasets/name".parse().unwrap();
        assert_eq!(id.kind, RepoKind::Model, "an organization may be called so");
    }

    #[test]
    fn traversal_and_absurd_characters_are_refused() {
        let long = format!("a/{}", "b".repeat(97));
        let refused = [
            "",
            "name",
            "/name",
            "org/",
            "../name",
            "org/..",
            "org/a..b",
            "org/a/b",
            "datasets/org/a/b",
            "datasets/../x",
            "org/na me",
            "org/näme",
            "org/a--b",
            "-org/name",
            "org/.name",
            "org/name-",
            "org/name@",
            "org/name@../x",
            "org/name@a//b",
            "org/name@/etc",
            "org/n\0",
            "org/name@-x",
            "org/name@a b",
            "org\\name/x",
            "https://huggingface.co/a/b",
            &long,
        ];
        for text in refused {
            assert!(matches!(text.parse::<RepoId>(), Err(Error::InvalidId { .. })), "{text:?} was accepted");
        }
    }

    #[test]
    fn file_names_do_not_look_like_ids() {
        assert!(looks_like_id("Qwen/Qwen3-0.6B"));
        for text in [
            "models/x.gguf",
            "models/X.GGUF",
            "dir/model.safetensors",
            "./a/b",
            "a/b/c",
            "datasets/a/b",
            "/a/b",
            "plain",
        ] {
            assert!(!looks_like_id(text), "{text}");
        }
    }
}
