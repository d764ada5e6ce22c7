//! Which keys a reader asks for, and what it wants there: the reference of a kind of file is made of this.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::Step;

/// A key that a reader asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFacts {
    /// Keys with dots between; `[]` is an item of a list, `*` a name of the user's own.
    pub path: String,
    /// The file is wrong without it, where the mapping around it is there.
    pub is_required: bool,
    /// What may stand there: `text`, `a number`, ..; empty if nothing stood there.
    pub kinds: BTreeSet<&'static str>,
    /// Names that may stand there, if they are a closed set.
    pub names: Vec<String>,
}

/// What was asked so far.
#[derive(Default)]
pub(super) struct Log {
    keys: RefCell<Vec<KeyFacts>>,
    /// Paths of mappings whose keys are the user's own.
    named_by_user: RefCell<BTreeSet<String>>,
}

impl Log {
    /// Notes that a key was asked for.
    pub fn asked(&self, at: &[Step], is_required: bool) {
        self.with(at, |key| key.is_required |= is_required);
    }

    /// Notes what was wanted there.
    pub fn wanted(&self, at: &[Step], kind: &'static str) {
        self.with(at, |key| {
            key.kinds.insert(kind);
        });
    }

    /// Notes the names that were wanted there.
    pub fn wanted_one_of(&self, at: &[Step], names: &[&str]) {
        self.with(at, |key| {
            for name in names {
                if !key.names.iter().any(|known| known == name) {
                    key.names.push((*name).to_owned());
                }
            }
        });
    }

    /// Notes that the keys of a mapping are the user's own.
    pub fn named_by_user(&self, at: &[Step]) {
        let path = self.path(at);
        self.named_by_user.borrow_mut().insert(path);
    }

    /// Returns what was asked, in the order of asking, keys of a mapping behind it.
    pub fn keys(&self) -> Vec<KeyFacts> {
        self.keys.borrow().clone()
    }

    fn with(&self, at: &[Step], change: impl FnOnce(&mut KeyFacts)) {
        let path = self.path(at);
        if path.is_empty() {
            return;
        }
        let mut keys = self.keys.borrow_mut();
        let index = keys.iter().position(|key| key.path == path).unwrap_or_else(|| {
            keys.push(KeyFacts { path, is_required: false, kinds: BTreeSet::new(), names: Vec::new() });
            keys.len() - 1
        });
        change(&mut keys[index]);
    }

    fn path(&self, at: &[Step]) -> String {
        let named_by_user = self.named_by_user.borrow();
        let mut path = String::new();
        for step in at {
            let is_own = named_by_user.contains(&path);
            match step {
                Step::Item(_) => path.push_str("[]"),
                Step::Key(key) | Step::Name(key) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(if is_own { "*" } else { key });
                }
            }
        }
        path
    }
}
