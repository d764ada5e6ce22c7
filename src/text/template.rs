//! Chat templates: where a checkpoint keeps them, and the keys they become.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use crate::tensor::gguf::{Array, Metadata, Value};

use super::error::Error;
use super::files::{Files, kind_of, read_json, read_text, shape_error};

/// A checkpoint's chat template, or its several by name.
#[derive(Debug)]
pub enum ChatTemplate {
    One(String),
    /// Name and text; `default` is the one used when none is asked for.
    Named(Vec<(String, String)>),
}

impl ChatTemplate {
    /// Returns the template of tokenizer_config.json, else that of chat_template.jinja (and
    /// additional_chat_templates/), else that of chat_template.json.
    ///
    /// An entry `"chat_template": null` in tokenizer_config.json means none, whatever files there are.
    pub fn load(
        files: &Files,
        config: &Map<String, Json>,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>, Error> {
        let path = files.path("tokenizer_config.json");
        if let Some(entry) = config.get("chat_template") {
            return Self::from_json(&path, entry, notes);
        }
        let jinja = files.path("chat_template.jinja");
        if let Some(text) = read_text(&jinja)? {
            let additional = additional_templates(&files.path("additional_chat_templates"))?;
            if additional.is_empty() {
                return Ok(Some(ChatTemplate::One(text)));
            }
            let mut named = vec![("default".to_owned(), text)];
            named.extend(additional);
            return Ok(Some(ChatTemplate::Named(named)));
        }
        let path = files.path("chat_template.json");
        match read_json::<Json>(&path)? {
            Some(json) => Self::from_json(&path, json.get("chat_template").unwrap_or(&Json::Null), notes),
            None => Ok(None),
        }
    }

    fn from_json(path: &Path, entry: &Json, notes: &mut Vec<String>) -> Result<Option<Self>, Error> {
        match entry {
            Json::Null => Ok(None),
            Json::String(text) => Ok(Some(ChatTemplate::One(text.clone()))),
            Json::Array(items) => {
                let mut named = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    let field = || format!("chat_template[{index}]");
                    let name = item.get("name").and_then(Json::as_str);
                    let text = item.get("template").and_then(Json::as_str);
                    let (Some(name), Some(text)) = (name, text) else {
                        let expected = "an object with the strings `name` and `template`";
                        return Err(shape_error(path, field(), expected, item));
                    };
                    named.push((name.to_owned(), text.to_owned()));
                }
                Ok(Some(ChatTemplate::Named(named)))
            }
            other => {
                notes.push(format!(
                    "{}: the chat template is {}, neither text nor a list; left out",
                    path.display(),
                    kind_of(other)
                ));
                Ok(None)
            }
        }
    }

    /// Writes `tokenizer.chat_template`, and for named templates `tokenizer.chat_template.NAME`
    /// and the list of names. Empty templates are not written.
    pub fn write(&self, metadata: &mut Metadata) {
        let default = match self {
            ChatTemplate::One(text) => Some(text.as_str()),
            ChatTemplate::Named(named) => write_named(named, metadata),
        };
        if let Some(text) = default.filter(|text| !text.is_empty()) {
            metadata.insert("tokenizer.chat_template".to_owned(), text.into());
        }
    }
}

fn write_named<'a>(named: &'a [(String, String)], metadata: &mut Metadata) -> Option<&'a str> {
    let mut default = None;
    let mut names: Vec<String> = Vec::new();
    for (name, text) in named {
        // a key is a dotted path: keep anything else out of it
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if name == "default" {
            default = Some(text.as_str());
        } else if !name.is_empty() {
            if !text.is_empty() {
                metadata.insert(format!("tokenizer.chat_template.{name}"), text.as_str().into());
            }
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    if !names.is_empty() {
        metadata.insert("tokenizer.chat_templates".to_owned(), Value::Array(Array::String(names)));
    }
    default
}

/// Returns the templates of the folder by file stem, sorted by name.
fn additional_templates(dir: &Path) -> Result<Vec<(String, String)>, Error> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let fail = |source| Error::Io { path: dir.to_owned(), action: "list it", source };
    let mut paths = Vec::<PathBuf>::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|extension| extension == "jinja") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut templates = Vec::new();
    for path in paths {
        let Some(text) = read_text(&path)? else { continue };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        templates.push((stem, text));
    }
    Ok(templates)
}
