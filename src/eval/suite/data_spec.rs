//! The `data` section of a suite.

use std::path::{Component, Path, PathBuf};

use crate::eval::data::{FORMATS, Format, Options, format};
use crate::yaml::{Fields, Node};

/// A data set as a suite names it.
#[derive(Clone)]
pub struct DataSpec {
    /// Relative to the suite's directory and inside it; `None` if the user has to name the file.
    pub path: Option<String>,
    /// A file of the directory `datasets` beside the suite's own, where the data that comes with lctl lies.
    pub dataset: Option<String>,
    pub format: &'static Format,
    pub options: Options,
}

impl DataSpec {
    /// Returns the file that a suite in this directory reads; `None` if the user has to name it.
    pub fn file(&self, suite_directory: &Path) -> Option<PathBuf> {
        if let Some(path) = &self.path {
            return Some(suite_directory.join(path));
        }
        self.dataset.as_ref().map(|name| suite_directory.join("..").join("datasets").join(name))
    }
}

impl std::fmt::Debug for DataSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} ({}) {:?}", self.path, self.dataset, self.format.name, self.options)
    }
}

/// Reads one data set.
pub fn parse(node: &Node) -> Option<DataSpec> {
    if !node.is_mapping() {
        drop(node.fields());
        return None;
    }
    let fields = node.fields();
    let path = fields.optional("path").map(|node| {
        let path = node.text();
        check_inside(&node, &path);
        path
    });
    let dataset = fields.optional("dataset").map(|node| {
        let name = node.text();
        check_inside(&node, &name);
        if path.is_some() {
            node.note("`path` and `dataset` both name the file");
        }
        name
    });
    let format_node = fields.required("format");
    let name = format_node.text();
    let found = format(&name);
    if found.is_none() && format_node.is_text() {
        format_node.unknown(&name, &FORMATS.iter().map(|format| format.name).collect::<Vec<_>>());
    }
    let options = parse_options(&fields, &name);
    Some(DataSpec { path, dataset, format: found?, options })
}

fn parse_options(fields: &Fields, format_name: &str) -> Options {
    let mut options = Options {
        fields: fields.optional("fields").map(|node| pairs(&node)).unwrap_or_default(),
        only: fields.optional("where").map(|node| pairs(&node)).unwrap_or_default(),
        ..Options::default()
    };
    if format_name == "json" {
        options.records = fields.optional("records").map(|node| node.text());
    }
    if matches!(format_name, "csv" | "tsv") {
        options.columns = fields.optional("columns").map(|node| columns(&node));
    }
    options.sha256 = fields.optional("sha256").map(|node| {
        let digest = node.text().to_ascii_lowercase();
        if node.is_text() && (digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            node.note("`sha256` must be 64 hexadecimal digits");
        }
        digest
    });
    options
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
            "put the file beside the suite, or leave `path` out and give the file with --data NAME=FILE";
        node.note_with_hint(format!("`{path}` leads out of the suite's directory"), Some(hint.to_owned()));
    }
}
