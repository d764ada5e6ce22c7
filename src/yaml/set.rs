//! Values set from outside: `--set train.lr=1e-4`.

use serde_yaml::{Mapping, Value};

use super::{Document, Error, Step};

/// A value that took the place of a file's, or stands where the file has none.
pub(super) struct Override {
    /// As messages name it: `--set train.lr=1e-4`.
    pub given: String,
    at: Vec<Step>,
    /// Steps of `at` from which on nothing stood in the file.
    first: usize,
}

impl Override {
    /// Returns whether the node at a path exists, or is as it is, because of this value.
    pub fn made(&self, path: &[Step]) -> bool {
        let is_same = |(ours, theirs): (&Step, &Step)| match (ours, theirs) {
            (Step::Key(a), Step::Key(b) | Step::Name(b)) => a == b,
            (ours, theirs) => ours == theirs,
        };
        let n = self.first;
        path.len() >= n && self.at[..n].iter().zip(path).all(is_same)
    }

    /// Returns whether it was set at that very path.
    pub fn is_at(&self, path: &[Step]) -> bool {
        self.at == path
    }
}

impl Document {
    /// Sets a value: `PATH=VALUE`, the path's keys and positions (from 0) separated by dots, the value as YAML has it; `null`
    /// for a key of a mapping takes what the file has there away.
    /// What is wrong with the value is said of `--set` as it is of a line of the file.
    ///
    /// Errors if that is no path and no value, or if the path leads through something that has no such parts.
    pub fn set(&mut self, given: &str) -> Result<(), Error> {
        let fail = |what: String| Error::Set { given: given.to_owned(), what };
        let (path, text) = given.split_once('=').ok_or_else(|| fail("expected PATH=VALUE".into()))?;
        if path.split('.').any(str::is_empty) {
            return Err(fail(format!("`{path}` is no path")));
        }
        let value: Value = serde_yaml::from_str(text).map_err(|error| fail(format!("not YAML: {error}")))?;
        let mut set = Override { given: format!("--set {given}"), at: Vec::new(), first: 0 };
        let mut node = &mut self.root;
        let mut is_new = false;
        for name in path.split('.') {
            let (step, child) = child(node, name).map_err(fail)?;
            set.at.push(step);
            if !is_new {
                set.first = set.at.len();
            }
            is_new |= child.1;
            node = child.0;
        }
        *node = value;
        self.overrides.push(set);
        Ok(())
    }
}

/// Returns the step to a part of a node, the part, and whether it was not there.
fn child<'a>(node: &'a mut Value, name: &str) -> Result<(Step, (&'a mut Value, bool)), String> {
    if node.is_null() {
        *node = Value::Mapping(Mapping::new());
    }
    match node {
        Value::Mapping(mapping) => {
            let is_new = !mapping.contains_key(name);
            let entry = mapping.entry(Value::String(name.to_owned()));
            Ok((Step::Key(name.to_owned()), (entry.or_insert(Value::Null), is_new)))
        }
        Value::Sequence(items) => {
            let n = items.len();
            let index = name.parse::<usize>().ok().filter(|index| *index < n);
            let index = index.ok_or_else(|| format!("`{name}` is no position in a list of {n}"))?;
            Ok((Step::Item(index), (&mut items[index], false)))
        }
        _ => Err(format!("there is nothing to hold `{name}`: what stands before it is a single value")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TEXT: &str = "version: 1\ntrain:\n  lr: 0.1\nfiles:\n  - {path: a}\n";

    fn document(sets: &[&str]) -> Document {
        let mut document = Document::parse(Path::new("r.yaml"), TEXT.to_owned()).unwrap();
        sets.iter().for_each(|set| document.set(set).unwrap());
        document
    }

    #[test]
    fn values_replace_and_add() {
        let document = document(&["train.lr=1e-4", "train.steps=3", "files.0.path=b c", "new.part={x: [1]}"]);
        let json = document.fields().node().json();
        assert_eq!(
            json,
            serde_json::json!({
                "version": 1, "train": {"lr": 1e-4, "steps": 3}, "files": [{"path": "b c"}], "new": {"part": {"x": [1]}}
            })
        );
        document.fields().accept_rest();
    }

    #[test]
    fn problems_with_what_was_set_name_it() {
        let document = document(&["train.lr=fast", "trian.steps=3", "train.momentum=1", "files.0.path=7"]);
        {
            let fields = document.fields();
            fields.required("version").count();
            fields.required("seed").count();
            let train = fields.required("train").fields();
            train.required("lr").number();
            train.required("decay").number();
            for item in fields.required("files").items() {
                let item = item.fields();
                item.required("path").text();
                item.required("weight").number();
            }
        }
        let error = document.check().unwrap_err().to_string();
        let expected = "r.yaml:1:1: `seed` is missing\n\
            r.yaml:3:3: `decay` is missing\n\
            r.yaml:5:5: `weight` is missing\n\
            --set files.0.path=7: `path` must be text, not 7\n\
            --set train.lr=fast: `lr` must be a number, not text\n\
            --set train.momentum=1: unknown key `momentum`\n\
            --set trian.steps=3: unknown key `trian`; did you mean `train`?";
        assert_eq!(error, expected);
    }

    #[test]
    fn a_path_that_leads_nowhere_is_an_error() {
        for (set, what) in [
            ("train.lr", "expected PATH=VALUE"),
            ("train..lr=1", "`train..lr` is no path"),
            ("train.lr.x=1", "there is nothing to hold `x`"),
            ("files.1.path=b", "`1` is no position in a list of 1"),
            ("train.lr=[", "not YAML"),
        ] {
            let mut document = Document::parse(Path::new("r.yaml"), TEXT.to_owned()).unwrap();
            let error = document.set(set).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--set {set}: {what}")), "{error}");
        }
    }
}
