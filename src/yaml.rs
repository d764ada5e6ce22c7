//! Configuration files in YAML: every problem at once, each with line:column and the nearest known key.
//!
//! A reader takes what it knows out of [`Fields`]; what is missing or of the wrong kind is noted and a
//! placeholder returned, so that reading goes on; what nobody asked for is an unknown key. Nothing read may
//! be used before [`Document::check`] has said that nothing was noted.

mod keys;
mod locate;
mod set;

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_yaml::{Mapping, Value};

use crate::error::{Diagnostic, nearest, unread_hint};

use set::Override;

pub use keys::KeyFacts;
pub use locate::locate;

/// A configuration file is written by hand: what is larger is some other file.
const LARGEST: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: cannot read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("{path}: more than {LARGEST} bytes, the most that a configuration file has")]
    TooLarge { path: PathBuf },

    #[error("{path}: not UTF-8 at byte {offset}")]
    NotUtf8 { path: PathBuf, offset: usize },

    #[error("{}: not YAML", place(path, source))]
    Syntax {
        path: PathBuf,
        /// Of the line that the parser stopped at.
        has_tabs: bool,
        #[source]
        source: serde_yaml::Error,
    },

    #[error("{path}: {}, not {}", .found.name(), .wanted.name())]
    OtherKind { path: PathBuf, wanted: FileKind, found: FileKind },

    #[error("{}", listed(.problems))]
    Invalid { problems: Vec<Problem> },

    #[error("--set {given}: {what}")]
    Set { given: String, what: String },
}

impl Diagnostic for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::Invalid { problems } => match problems.as_slice() {
                [problem] => problem.hint.clone(),
                // one line's hint would read as if it were about all of them
                _ => None,
            },
            Error::Set { .. } => {
                Some("as in --set train.lr=1e-4 or --set data.train.0.path=rows.jsonl".into())
            }
            Error::TooLarge { .. } => {
                Some("is it a data file? a suite names its data, it does not hold it".into())
            }
            Error::Read { path, source } => shipped(path, source).or_else(|| unread_hint(path, source)),
            Error::NotUtf8 { .. } => {
                Some("a text file in YAML was expected: is this another file, a model perhaps?".into())
            }
            Error::OtherKind { found: FileKind::Suite, .. } => {
                Some("suites are for `lctl eval MODEL --suite FILE` and `lctl suite`".into())
            }
            Error::OtherKind { .. } => Some("recipes are for `lctl finetune` and `lctl recipe`".into()),
            Error::Syntax { has_tabs: true, .. } => Some("YAML is indented by spaces, never by tabs".into()),
            Error::Syntax { .. } => None,
        }
    }
}

/// Returns what to say where the name of a suite or recipe stands for its file.
fn shipped(path: &Path, source: &std::io::Error) -> Option<String> {
    if source.kind() != std::io::ErrorKind::NotFound {
        return None;
    }
    let name = path.file_name()?.to_str()?;
    let file = if name.contains('.') { name.to_owned() } else { format!("{name}.yaml") };
    let mut places =
        ["evalsuites", "recipes", "recipes/presets"].iter().map(|dir| Path::new(dir).join(&file));
    places.find(|place| place.is_file()).map(|place| format!("did you mean {}?", place.display()))
}

/// What a configuration file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Suite,
    /// Of a fine-tuning run.
    Recipe,
    /// Of a gate.
    Policy,
}

impl FileKind {
    fn name(self) -> &'static str {
        match self {
            FileKind::Suite => "a suite of tasks",
            FileKind::Recipe => "a recipe of a fine-tuning run",
            FileKind::Policy => "a gate's policy",
        }
    }
}

/// One thing wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    pub message: String,
    pub hint: Option<String>,
}

/// Where in a file, or in what was set from outside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Line and column from 1.
    File { path: PathBuf, line: usize, column: usize },
    /// As it was given: `--set train.lr=1e-4`.
    Override(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Place::Override(given) => f.write_str(given),
        }
    }
}

fn place(path: &Path, error: &serde_yaml::Error) -> String {
    match error.location() {
        Some(at) => format!("{}:{}:{}", path.display(), at.line(), at.column()),
        None => path.display().to_string(),
    }
}

fn listed(problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| format!("{}: {}", problem.place, problem.message));
    lines.collect::<Vec<_>>().join("\n")
}

/// A step from a node to one of its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Item(usize),
    /// To a key itself rather than its value; the last step.
    Name(String),
}

/// A parsed file, and what is wrong with it.
pub struct Document {
    path: PathBuf,
    text: String,
    root: Value,
    overrides: Vec<Override>,
    problems: RefCell<Vec<Noted>>,
    log: keys::Log,
}

struct Noted {
    at: Vec<Step>,
    message: String,
    hint: Option<String>,
}

impl Document {
    /// Reads a file.
    pub fn open(path: &Path) -> Result<Document, Error> {
        let read_error = |source| Error::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(read_error)?;
        file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(read_error)?;
        if bytes.len() as u64 > LARGEST {
            return Err(Error::TooLarge { path: path.to_owned() });
        }
        let text = String::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
            path: path.to_owned(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        Document::parse(path, text)
    }

    /// Reads text as if it were the file `path`.
    pub fn parse(path: &Path, text: String) -> Result<Document, Error> {
        let root = serde_yaml::from_str(&text).map_err(|source: serde_yaml::Error| {
            let line = source.location().and_then(|at| text.lines().nth(at.line().saturating_sub(1)));
            let has_tabs = line.is_some_and(|line| line.trim_start_matches(' ').starts_with('\t'));
            Error::Syntax { path: path.to_owned(), has_tabs, source }
        })?;
        Ok(Document {
            path: path.to_owned(),
            text,
            root,
            overrides: Vec::new(),
            problems: RefCell::default(),
            log: keys::Log::default(),
        })
    }

    /// Returns the keys that were asked for so far, and what was wanted there.
    pub fn keys(&self) -> Vec<KeyFacts> {
        self.log.keys()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the top-level mapping's fields.
    pub fn fields(&self) -> Fields<'_> {
        Node { document: self, at: Vec::new(), value: Some(&self.root) }.fields()
    }

    /// Errors if the file is evidently one of another kind: a list of complaints about every key would not say so.
    pub fn expect(&self, wanted: FileKind) -> Result<(), Error> {
        let has = |key: &str| self.root.get(key).is_some();
        let found = match () {
            () if has("kind") && has("model") => FileKind::Recipe,
            () if self.root.get("tasks").is_some_and(Value::is_sequence) => FileKind::Suite,
            () => return Ok(()),
        };
        match found == wanted {
            true => Ok(()),
            false => Err(Error::OtherKind { path: self.path.clone(), wanted, found }),
        }
    }

    /// Errors with everything noted so far, in the file's order.
    pub fn check(&self) -> Result<(), Error> {
        let noted = self.problems.borrow();
        if noted.is_empty() {
            return Ok(());
        }
        let mut problems: Vec<Problem> = noted.iter().map(|noted| self.problem(noted)).collect();
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        problems.dedup();
        Err(Error::Invalid { problems })
    }

    fn problem(&self, noted: &Noted) -> Problem {
        let place = match self.overrides.iter().rev().find(|set| set.made(&noted.at)) {
            Some(set) => Place::Override(set.given.clone()),
            None => {
                let (line, column) = locate::locate(&self.text, &noted.at);
                Place::File { path: self.path.clone(), line, column }
            }
        };
        Problem { place, message: noted.message.clone(), hint: noted.hint.clone() }
    }
}

/// A place in a document and what stands there, if anything does.
#[derive(Clone)]
pub struct Node<'a> {
    document: &'a Document,
    at: Vec<Step>,
    value: Option<&'a Value>,
}

impl<'a> Node<'a> {
    /// Notes a problem at this place.
    pub fn note(&self, message: impl Into<String>) {
        self.note_with_hint(message, None);
    }

    pub fn note_with_hint(&self, message: impl Into<String>, hint: Option<String>) {
        let noted = Noted { at: self.at.clone(), message: message.into(), hint };
        self.document.problems.borrow_mut().push(noted);
    }

    /// Returns the place of a key, whether anything stands there or not: for what is wrong with several keys at once.
    pub fn part(&self, key: &str) -> Node<'a> {
        let value = match self.value {
            Some(Value::Mapping(mapping)) => mapping.get(key),
            _ => None,
        };
        let mut at = self.at.clone();
        at.push(Step::Key(key.to_owned()));
        Node { document: self.document, at, value }
    }

    /// Returns true if something stands here.
    pub fn is_present(&self) -> bool {
        self.value.is_some_and(|value| !value.is_null())
    }

    /// Returns true if text stands here, be it empty.
    pub fn is_text(&self) -> bool {
        self.value.is_some_and(Value::is_string)
    }

    /// Returns true if a whole number, 0 or more, stands here.
    pub fn is_count(&self) -> bool {
        self.value.is_some_and(Value::is_u64)
    }

    /// Returns true if true or false stands here.
    pub fn is_flag(&self) -> bool {
        self.value.is_some_and(Value::is_bool)
    }

    /// Returns true if a mapping stands here.
    pub fn is_mapping(&self) -> bool {
        self.value.is_some_and(Value::is_mapping)
    }

    /// Returns true if a number stands here.
    pub fn is_number(&self) -> bool {
        self.value.is_some_and(Value::is_number)
    }

    /// Returns true if a list stands here.
    pub fn is_list(&self) -> bool {
        self.value.is_some_and(Value::is_sequence)
    }

    fn wanted(&self, kind: &'static str) {
        self.document.log.wanted(&self.at, kind);
    }

    fn expected<T: Default>(&self, what: &str) -> T {
        if let Some(value) = self.value {
            let given = match value {
                Value::Number(number) => number.to_string(),
                value => kind_of(value).to_owned(),
            };
            self.note(format!("{} must be {what}, not {given}", self.name()));
        }
        T::default()
    }

    /// Returns how the place is called in messages.
    pub fn name(&self) -> String {
        match self.at.last() {
            None => "the file".to_owned(),
            Some(Step::Key(key) | Step::Name(key)) => format!("`{key}`"),
            Some(Step::Item(index)) => format!("item {}", index + 1),
        }
    }

    /// Returns the text that stands here. A number or a bool is not taken for text: `answer: no` is a slip.
    pub fn text(&self) -> String {
        self.wanted("text");
        match self.value {
            Some(Value::String(text)) => text.clone(),
            _ => self.expected("text"),
        }
    }

    pub fn count(&self) -> u64 {
        self.wanted("a whole number");
        match self.value.and_then(Value::as_u64) {
            Some(count) => count,
            None => self.expected("a whole number, 0 or more"),
        }
    }

    /// Returns a finite number.
    pub fn number(&self) -> f64 {
        self.wanted("a number");
        match self.value.and_then(Value::as_f64).filter(|number| number.is_finite()) {
            Some(number) => number,
            None => self.expected("a number"),
        }
    }

    pub fn flag(&self) -> bool {
        self.wanted("true or false");
        match self.value.and_then(Value::as_bool) {
            Some(flag) => flag,
            None => self.expected("true or false"),
        }
    }

    /// Returns the value of one of `names`.
    pub fn one_of<T: Copy + Default>(&self, names: &[(&str, T)]) -> T {
        // YAML reads on and off as text, but yes and no depend on the version: only text is taken
        let text = self.text();
        let known: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        self.document.log.wanted_one_of(&self.at, &known);
        if let Some((_, value)) = names.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        if matches!(self.value, Some(Value::String(_))) {
            self.unknown(&text, &known);
        }
        T::default()
    }

    /// Notes that `given` is none of the names known here.
    pub fn unknown(&self, given: &str, known: &[&str]) {
        let place = self.name();
        let message = match nearest(given, known.iter().copied()) {
            Some(name) => format!("unknown {place} `{given}`; did you mean `{name}`?"),
            None => format!("unknown {place} `{given}`"),
        };
        self.note_with_hint(message, Some(format!("{place} is one of: {}", known.join(", "))));
    }

    /// Returns the items of the list that stands here.
    pub fn items(&self) -> Vec<Node<'a>> {
        self.wanted("a list");
        let Some(Value::Sequence(items)) = self.value else { return self.expected("a list") };
        let node = |(index, value)| {
            let mut at = self.at.clone();
            at.push(Step::Item(index));
            Node { document: self.document, at, value: Some(value) }
        };
        items.iter().enumerate().map(node).collect()
    }

    /// Returns what stands here as JSON, keys in alphabetical order: equal if and only if the values are.
    pub fn json(&self) -> serde_json::Value {
        self.wanted("any value");
        // a key that is no text, or a number that JSON lacks
        let unnamed = |value: &Value| serde_json::Value::from(format!("{value:?}"));
        let json = |value| serde_json::to_value(value).unwrap_or_else(|_| unnamed(value));
        let mut json = self.value.map_or(serde_json::Value::Null, json);
        json.sort_all_objects();
        json
    }

    /// Returns the list of texts that stands here.
    pub fn texts(&self) -> Vec<String> {
        self.items().iter().map(Node::text).collect()
    }

    /// Returns the mapping that stands here; its unknown keys are noted when the fields are dropped.
    pub fn fields(&self) -> Fields<'a> {
        self.wanted("a mapping");
        let mapping = match self.value {
            Some(Value::Mapping(mapping)) => Some(mapping),
            _ => {
                self.expected::<()>("a mapping of keys to values");
                None
            }
        };
        Fields { node: self.clone(), mapping, asked: RefCell::default(), is_open: Cell::new(false) }
    }

    /// Returns the keys and values of a mapping whose keys are the user's own.
    pub fn entries(&self) -> Vec<(String, Node<'a>)> {
        self.wanted("a mapping");
        self.document.log.named_by_user(&self.at);
        let Some(Value::Mapping(mapping)) = self.value else {
            return self.expected("a mapping of keys to values");
        };
        let mut entries = Vec::new();
        for (key, value) in mapping {
            let Some(key) = key.as_str() else {
                self.note(format!("a key of {} is {}, not text", self.name(), kind_of(key)));
                continue;
            };
            let mut at = self.at.clone();
            at.push(Step::Key(key.to_owned()));
            entries.push((key.to_owned(), Node { document: self.document, at, value: Some(value) }));
        }
        entries
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "a mapping",
        Value::Tagged(_) => "a tagged value",
    }
}

/// The fields of one mapping.
pub struct Fields<'a> {
    node: Node<'a>,
    mapping: Option<&'a Mapping>,
    /// Keys someone asked for: all that are known.
    asked: RefCell<Vec<&'static str>>,
    is_open: Cell<bool>,
}

impl<'a> Fields<'a> {
    /// Returns the place of the mapping itself.
    pub fn node(&self) -> &Node<'a> {
        &self.node
    }

    fn child(&self, key: &'static str) -> Node<'a> {
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&key) {
            asked.push(key);
        }
        let value = self.mapping.and_then(|mapping| mapping.get(key));
        let mut at = self.node.at.clone();
        at.push(Step::Key(key.to_owned()));
        Node { document: self.node.document, at, value }
    }

    /// Takes any other key for known: which are depends on something that is wrong.
    pub fn accept_rest(&self) {
        self.is_open.set(true);
    }

    /// Returns the value of a key that may be left out.
    pub fn optional(&self, key: &'static str) -> Option<Node<'a>> {
        let child = self.child(key);
        self.node.document.log.asked(&child.at, false);
        Some(child).filter(|node| node.value.is_some())
    }

    /// Returns the value of a key that must be there.
    pub fn required(&self, key: &'static str) -> Node<'a> {
        let child = self.child(key);
        self.node.document.log.asked(&child.at, true);
        if child.value.is_none() && self.mapping.is_some() {
            self.node.note(format!("`{key}` is missing"));
        }
        child
    }
}

impl Drop for Fields<'_> {
    /// Notes the keys that nobody asked for.
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        if self.is_open.get() {
            return;
        }
        for key in self.mapping.into_iter().flat_map(Mapping::keys) {
            let Some(key) = key.as_str() else {
                self.node.note(format!("a key is {}, not text", kind_of(key)));
                continue;
            };
            if asked.contains(&key) {
                continue;
            }
            let message = match nearest(key, asked.iter().copied()) {
                Some(name) => format!("unknown key `{key}`; did you mean `{name}`?"),
                None => format!("unknown key `{key}`"),
            };
            let mut at = self.node.at.clone();
            at.push(Step::Name(key.to_owned()));
            let hint = Some(format!("known keys here: {}", asked.join(", ")));
            Node { document: self.node.document, at, value: None }.note_with_hint(message, hint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str, read: impl Fn(&Fields)) -> Vec<String> {
        let document = Document::parse(Path::new("s.yaml"), text.to_owned()).unwrap();
        read(&document.fields());
        match document.check() {
            Err(Error::Invalid { problems }) => listed(&problems).lines().map(str::to_owned).collect(),
            Ok(()) => Vec::new(),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn problems_come_all_at_once_in_order_with_their_places() {
        let text = "version: 1\ntasks:\n  - id: 3\n    tpye: x\n  - {id: a, n: -2}\nextra: [1]\n";
        let found = problems(text, |fields| {
            fields.required("version").count();
            fields.required("name").text();
            for item in fields.required("tasks").items() {
                let task = item.fields();
                task.required("id").text();
                task.optional("type");
                if let Some(n) = task.optional("n") {
                    n.count();
                }
            }
        });
        assert_eq!(
            found,
            [
                "s.yaml:1:1: `name` is missing",
                "s.yaml:3:9: `id` must be text, not 3",
                "s.yaml:4:5: unknown key `tpye`; did you mean `type`?",
                "s.yaml:5:16: `n` must be a whole number, 0 or more, not -2",
                "s.yaml:6:1: unknown key `extra`",
            ]
        );
    }

    #[test]
    fn the_wrong_kind_of_node_is_noted_once() {
        let read = |fields: &Fields| {
            let inner = fields.required("inner").fields();
            inner.required("a").text();
            inner.required("b").count();
        };
        assert_eq!(
            problems("inner: [1]", read),
            ["s.yaml:1:8: `inner` must be a mapping of keys to values, not a list"]
        );
        let file = problems("- 1", |fields| assert_eq!(fields.required("version").count(), 0));
        assert_eq!(file, ["s.yaml:1:1: the file must be a mapping of keys to values, not a list"]);
    }

    #[test]
    fn names_are_matched_or_the_nearest_is_offered() {
        let names = [("first_n", 1), ("seeded", 2)];
        let read = |fields: &Fields| assert!(fields.required("mode").one_of(&names) < 3);
        assert!(problems("mode: seeded", read).is_empty());
        assert_eq!(
            problems("mode: first-n", read),
            ["s.yaml:1:7: unknown `mode` `first-n`; did you mean `first_n`?"]
        );
    }

    #[test]
    fn anchors_and_multi_byte_text_keep_positions() {
        let text = "a: &x {é: 1}\nb: *x\nc: \"\u{4e2d}\u{6587}\" \nd: {ü: 1, zz: 2}\n";
        let found = problems(text, |fields| {
            for key in ["a", "b", "c"] {
                assert!(fields.optional(key).unwrap().is_present());
            }
            drop(fields.required("d").fields());
        });
        assert_eq!(found, ["s.yaml:4:5: unknown key `ü`", "s.yaml:4:11: unknown key `zz`"]);
    }

    #[test]
    fn duplicate_keys_and_bombs_are_syntax_errors() {
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                    d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]";
        for text in ["a: 1\na: 2\n", "a: [", "a: 1\n---\nb: 2\n", bomb] {
            let error = Document::parse(Path::new("s.yaml"), text.to_owned());
            assert!(matches!(error, Err(Error::Syntax { .. })), "{text}");
        }
        let error = Document::parse(Path::new("s.yaml"), "a: 1\nb: [\n".into()).err().unwrap();
        assert_eq!(error.to_string(), "s.yaml:3:1: not YAML");
        // a file without an end
        #[cfg(unix)]
        assert!(matches!(Document::open(Path::new("/dev/zero")), Err(Error::TooLarge { .. })));
    }
}
