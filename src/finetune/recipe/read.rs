//! Reading single values: ranges and defaults.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::yaml::{Fields, Node};

/// Reads a path, which must not be empty.
pub fn path(node: &Node) -> PathBuf {
    name(node).into()
}

/// Reads text that must not be empty.
pub fn name(node: &Node) -> String {
    let text = node.text();
    if node.is_text() && text.trim().is_empty() {
        node.note(format!("{} must not be empty", node.name()));
    }
    text
}

/// Reads a whole number in a range.
pub fn count(node: &Node, range: RangeInclusive<u64>) -> u64 {
    let found = node.count();
    if node.is_count() && !range.contains(&found) {
        let (least, most) = (range.start(), range.end());
        let name = node.name();
        node.note(match *most {
            u64::MAX => format!("{name} must be {least} or more, not {found}"),
            most => format!("{name} must be from {least} to {most}, not {found}"),
        });
    }
    found
}

/// Reads a whole number in a range, or takes a default.
pub fn count_or(fields: &Fields, key: &'static str, range: RangeInclusive<u64>, default: u64) -> u64 {
    fields.optional(key).map_or(default, |node| count(&node, range))
}

/// Reads a number that must pass; `what` says what it must be, as in "above 0".
pub fn number(node: &Node, what: &str, passes: impl Fn(f64) -> bool) -> f64 {
    let found = node.number();
    if node.is_number() && !passes(found) {
        node.note(format!("{} must be {what}, not {found}", node.name()));
    }
    found
}

/// Reads a number that must pass, or takes a default.
pub fn number_or(
    fields: &Fields,
    key: &'static str,
    what: &str,
    passes: impl Fn(f64) -> bool,
    default: f64,
) -> f64 {
    fields.optional(key).map_or(default, |node| number(&node, what, passes))
}

/// Returns two keys that say the same in two ways. One that was set from outside takes the place of the file's other; else
/// both are returned, which is the caller's to note.
pub fn either<'a>(
    fields: &Fields<'a>,
    one: &'static str,
    other: &'static str,
) -> (Option<Node<'a>>, Option<Node<'a>>) {
    match (fields.optional(one), fields.optional(other)) {
        (Some(a), Some(b)) if a.is_set() && !b.is_set() => (Some(a), None),
        (Some(a), Some(b)) if !a.is_set() && b.is_set() => (None, Some(b)),
        both => both,
    }
}

/// Reads one of several names, or takes the default.
pub fn one_of_or<T: Copy + Default>(
    fields: &Fields,
    key: &'static str,
    names: &[(&str, T)],
    default: T,
) -> T {
    fields.optional(key).map_or(default, |node| node.one_of(names))
}

/// Reads a list of names without repetitions.
pub fn names(node: &Node) -> Vec<String> {
    let items = node.items();
    let mut names: Vec<String> = Vec::new();
    for item in &items {
        let name = name(item);
        if names.contains(&name) {
            item.note(format!("`{name}` comes twice"));
        }
        names.push(name);
    }
    names
}
