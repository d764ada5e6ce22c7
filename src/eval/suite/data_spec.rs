//! The `data` section of a suite.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use crate::eval::data::{FORMATS, Format, Options, format};
use crate::hub::{DatasetFile, RepoId, RepoKind, is_pickle};
use crate::yaml::{Fields, Node};

/// A data set as a suite names it.
#[derive(Clone)]
pub struct DataSpec {
    pub source: Source,
    pub format: &'static Format,
    pub options: Options,
}

/// Where a data set is if the user names no file.
#[derive(Clone, Debug)]
pub enum Source {
    /// The user has to name it.
    Asked,
    /// Relative to the suite's directory and inside it.
    Beside(String),
    /// A file of the directory `datasets` beside the suite's own, where the data that comes with lctl lies.
    Shipped(String),
    Hub(OnHub),
}

/// A file on a hub, and how it stands there if not as a local copy does.
#[derive(Clone, Debug)]
pub struct OnHub {
    pub file: DatasetFile,
    pub format: Option<&'static Format>,
}

impl DataSpec {
    /// Returns the file that comes with a suite in this directory; `None` if it is on a hub or the user has to name it.
    pub fn file(&self, suite_directory: &Path) -> Option<PathBuf> {
        match &self.source {
            Source::Beside(path) => Some(suite_directory.join(path)),
            Source::Shipped(name) => Some(suite_directory.join("..").join("datasets").join(name)),
            Source::Asked | Source::Hub(_) => None,
        }
    }

    /// Returns the format of the file that is read, by the files that the user gives: on a hub it may be another than that of a
    /// local copy.
    pub fn format_of(&self, given: &HashMap<String, PathBuf>, name: &str) -> &'static Format {
        let on_hub = self.on_hub().filter(|_| !given.contains_key(name));
        on_hub.and_then(|hub| hub.format).unwrap_or(self.format)
    }

    /// Returns the file on a hub, if it is there.
    pub fn on_hub(&self) -> Option<&OnHub> {
        match &self.source {
            Source::Hub(hub) => Some(hub),
            _ => None,
        }
    }
}

impl std::fmt::Debug for DataSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ({}) {:?}", self.source, self.format.name, self.options)
    }
}

/// Reads one data set.
pub fn parse(node: &Node) -> Option<DataSpec> {
    if !node.is_mapping() {
        drop(node.fields());
        return None;
    }
    let fields = node.fields();
    let source = parse_source(&fields);
    let format_node = fields.required("format");
    let found = parse_format(&format_node);
    let names = [Some(format_node.text()), source.as_ref().and_then(hub_format)];
    let options = parse_options(&fields, &names.into_iter().flatten().collect::<Vec<_>>());
    Some(DataSpec { source: source?, format: found?, options })
}

fn hub_format(source: &Source) -> Option<String> {
    match source {
        Source::Hub(hub) => hub.format.map(|format| format.name.to_owned()),
        _ => None,
    }
}

fn parse_format(node: &Node) -> Option<&'static Format> {
    let name = node.text();
    let found = format(&name);
    if found.is_none() && node.is_text() {
        node.unknown(&name, &FORMATS.iter().map(|format| format.name).collect::<Vec<_>>());
    }
    found
}

/// Reads the one key that says where the data is; errors if several do.
fn parse_source(fields: &Fields) -> Option<Source> {
    let mut found: Vec<(&str, Option<Source>)> = Vec::new();
    for key in ["path", "dataset", "hub"] {
        let Some(node) = fields.optional(key) else { continue };
        if let Some((other, _)) = found.first() {
            node.note(format!("`{other}` and `{key}` both name the file"));
        }
        let named = match key {
            "hub" => parse_hub(&node).map(Source::Hub),
            _ => {
                let path = node.text();
                check_inside(&node, &path);
                Some(if key == "path" { Source::Beside(path) } else { Source::Shipped(path) })
            }
        };
        found.push((key, named));
    }
    found.into_iter().next().map_or(Some(Source::Asked), |(_, source)| source)
}

fn parse_hub(node: &Node) -> Option<OnHub> {
    if !node.is_mapping() {
        drop(node.fields());
        return None;
    }
    let fields = node.fields();
    let (dataset, revision) = (fields.required("dataset"), fields.required("revision"));
    let id = parse_id(&dataset, &revision);
    let file = fields.required("file");
    let path = file.text();
    if file.is_text() && !DatasetFile::is_path(&path) {
        file.note(format!("`{path}` is no path in a repository"));
    } else if file.is_text() && is_pickle(&path) {
        let hint =
            "lctl never downloads a file of such a name; is the data there in another format, e.g. Parquet?";
        file.note_with_hint(
            format!("`{path}` may hold a pickle, which runs code when it is loaded"),
            Some(hint.to_owned()),
        );
    }
    let sha256 = digest(&fields.required("sha256"));
    let format = fields.optional("format").map(|node| parse_format(&node));
    let format = match format {
        Some(format) => Some(format?),
        None => None,
    };
    Some(OnHub { file: DatasetFile { id: id?, path, sha256 }, format })
}

/// Returns the repository at its revision; notes what is wrong with either.
fn parse_id(dataset: &Node, revision: &Node) -> Option<RepoId> {
    let hint = Some("a data set is ORG/NAME, its revision a commit (40 digits) or a tag".to_owned());
    if !dataset.is_text() || !revision.is_text() {
        // asking for the texts says what is expected
        let _ = (dataset.text(), revision.text());
        return None;
    }
    let id = format!("datasets/{}", dataset.text());
    match id.parse::<RepoId>() {
        Ok(id) if id.kind == RepoKind::Dataset => {}
        Ok(_) => {
            dataset.note_with_hint(format!("`{}` has no `/`", dataset.text()), hint);
            return None;
        }
        Err(error) => {
            dataset.note_with_hint(error.to_string(), hint);
            return None;
        }
    }
    match format!("{id}@{}", revision.text()).parse::<RepoId>() {
        Ok(id) => Some(id),
        Err(error) => {
            revision.note_with_hint(error.to_string(), hint);
            None
        }
    }
}

/// Reads what only some formats have, if one of the names is of these.
fn parse_options(fields: &Fields, format_names: &[String]) -> Options {
    let is_one_of = |names: &[&str]| format_names.iter().any(|name| names.contains(&name.as_str()));
    let mut options = Options {
        fields: fields.optional("fields").map(|node| pairs(&node)).unwrap_or_default(),
        only: fields.optional("where").map(|node| pairs(&node)).unwrap_or_default(),
        ..Options::default()
    };
    if is_one_of(&["json"]) {
        options.records = fields.optional("records").map(|node| node.text());
    }
    if is_one_of(&["csv", "tsv"]) {
        options.columns = fields.optional("columns").map(|node| columns(&node));
    }
    options.sha256 = fields.optional("sha256").map(|node| digest(&node));
    options
}

fn digest(node: &Node) -> String {
    let digest = node.text().to_ascii_lowercase();
    if node.is_text() && (digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        node.note("`sha256` must be 64 hexadecimal digits");
    }
    digest
}

fn pairs(node: &Node) -> Vec<(String, String)> {
    node.entries().into_iter().map(|(name, node)| (name, node.text())).collect()
}

fn columns(node: &Node) -> Vec<String> {
    let columns = node.texts();
    if node.is_list() && columns.is_empty() {
        node.note("`columns` is empty");
    }
    for (index, name) in columns.iter().enumerate() {
        if columns[..index].contains(name) {
            node.note(format!("two columns are called `{name}`"));
        }
    }
    columns
}

/// A suite from elsewhere must not read what lies outside its own directory.
fn check_inside(node: &Node, path: &str) {
    let goes_out =
        Path::new(path).components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
    if goes_out || path.contains('\\') {
        let hint =
            "put the file beside the suite, or leave the key out and give the file with --data NAME=FILE";
        node.note_with_hint(format!("`{path}` leads out of the suite's directory"), Some(hint.to_owned()));
    }
}
