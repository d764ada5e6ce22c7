//! Under which licence a file stands, where something beside it says so.

use std::path::Path;

use serde_json::Value as Json;

use crate::read::read_start;
use crate::tensor::Opened;
use crate::tensor::gguf::{Metadata, Value};

/// What is said where nothing is known.
pub const UNKNOWN: &str = "unknown";

/// Of a card this much is read, bytes: its front matter comes first.
const MOST_BYTES: u64 = 1 << 20;

/// Returns the licence of a model or an adapter: what the GGUF's own keys say, or what stands in its directory.
pub fn licence_of_model(path: &Path) -> String {
    if path.is_dir() {
        return licence_in(path);
    }
    match crate::tensor::open(path) {
        Ok(Opened::Gguf(gguf)) => of_metadata(gguf.metadata()).unwrap_or_else(|| UNKNOWN.to_owned()),
        _ => licence_beside(path),
    }
}

/// Returns the licence of a file: what the directory it lies in says.
pub fn licence_beside(path: &Path) -> String {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    licence_in(dir)
}

fn of_metadata(metadata: &Metadata) -> Option<String> {
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    named(text("general.license"), text("general.license.name"))
}

/// A card says `other` for a licence that the hub has no word for, and its name in another field.
fn named(licence: Option<&str>, name: Option<&str>) -> Option<String> {
    match (licence, name) {
        (Some(licence), Some(name)) if licence != name => Some(format!("{licence} ({name})")),
        (Some(text), _) | (None, Some(text)) => Some(text.to_owned()),
        (None, None) => None,
    }
}

/// Returns `license` of README.md's front matter; else the name of the file with the terms.
fn licence_in(dir: &Path) -> String {
    let terms = || {
        let names = ["LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE", "NOTICE.txt"];
        let name = names.into_iter().find(|name| dir.join(name).is_file());
        name.map(|name| format!("see {name}"))
    };
    of_card(&dir.join("README.md")).or_else(terms).unwrap_or_else(|| UNKNOWN.to_owned())
}

fn of_card(path: &Path) -> Option<String> {
    let bytes = read_start(path, MOST_BYTES).ok()??;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if lines.next() != Some("---") {
        return None;
    }
    let yaml: String = lines.take_while(|line| *line != "---").flat_map(|line| [line, "\n"]).collect();
    // tabs are not YAML, but published cards have them
    let card: Json = serde_yaml::from_str(&yaml.replace('\t', "  ")).ok()?;
    let text = |key: &str| match card.get(key)? {
        Json::String(text) if !text.is_empty() => Some(text.clone()),
        Json::Array(several) => {
            let several: Vec<&str> = several.iter().filter_map(Json::as_str).collect();
            (!several.is_empty()).then(|| several.join(", "))
        }
        _ => None,
    };
    named(text("license").as_deref(), text("license_name").as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_says_it_in_its_card_or_by_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let found = |card: &str| {
            std::fs::write(dir.path().join("README.md"), card).unwrap();
            licence_beside(&dir.path().join("data.jsonl"))
        };
        assert_eq!(found("---\nlicense: apache-2.0\ntags: [a]\n---\n# Model"), "apache-2.0");
        assert_eq!(found("---\nlicense: other\nlicense_name: llama3.2\n---\n"), "other (llama3.2)");
        assert_eq!(found("---\nlicense: [mit, cc-by-4.0]\n---\n"), "mit, cc-by-4.0");
        for nothing in
            ["---\nlicense:\n---\n", "---\n: [\n---\n", "# Model\nlicense: mit\n", "---\nlicense: 3\n---"]
        {
            assert_eq!(found(nothing), UNKNOWN, "{nothing:?}");
        }
        std::fs::write(dir.path().join("NOTICE"), "").unwrap();
        assert_eq!(found(""), "see NOTICE");
        assert_eq!(found("---\nlicense: mit\n---\n"), "mit");
    }
}
