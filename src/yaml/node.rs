//! Places in a document: what stands there is taken out by kind, and what is wrong is noted.

use std::cell::{Cell, RefCell};

use serde_yaml::{Mapping, Value};

use super::{Document, Noted, Step};
use crate::error::nearest;

/// A place in a document and what stands there, if anything does.
#[derive(Clone)]
pub struct Node<'a> {
    document: &'a Document,
    at: Vec<Step>,
    value: Option<&'a Value>,
}

impl<'a> Node<'a> {
    pub(super) fn root(document: &'a Document, value: &'a Value) -> Node<'a> {
        Node { document, at: Vec::new(), value: Some(value) }
    }

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

    /// Returns true if what stands here was set from outside the file.
    pub fn is_set(&self) -> bool {
        self.value.is_some() && self.document.overrides.iter().any(|set| set.made(&self.at))
    }

    /// Returns true if what stands here was taken away from outside: a `null` that was set.
    fn is_unset(&self) -> bool {
        self.value.is_some_and(Value::is_null)
            && self.document.overrides.iter().any(|set| set.is_at(&self.at))
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
            let node = Node { document: self.document, at, value: Some(value) };
            if !node.is_unset() {
                entries.push((key.to_owned(), node));
            }
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
        Some(child).filter(|node| node.value.is_some() && !node.is_unset())
    }

    /// Returns the value of a key that must be there.
    pub fn required(&self, key: &'static str) -> Node<'a> {
        let child = self.child(key);
        self.node.document.log.asked(&child.at, true);
        if child.is_unset() {
            child.note(format!("`{key}` is missing"));
            return Node { value: None, ..child };
        }
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
