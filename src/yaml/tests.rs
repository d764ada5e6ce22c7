//! How configuration files are read, and what is said of wrong ones.

use std::path::Path;

use super::error::listed;
use super::*;
use crate::error::Diagnostic;

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
fn a_key_that_comes_twice_is_told_where_it_comes_again() {
    for (text, expected) in [
        ("a: 1\nb: 2\na: 3\n", "s.yaml:3:1: the key `a` comes twice in one mapping"),
        ("x: [1, {b: 2,\n c: 1, b: 3}]\n", "s.yaml:2:8: the key `b` comes twice in one mapping"),
        ("x:\n  'a`b': 2\n  a`b: 3\n", "s.yaml:3:3: the key `a`b` comes twice in one mapping"),
        ("\u{feff}a: 1\na: 3\n", "s.yaml:2:1: the key `a` comes twice in one mapping"),
    ] {
        let error = Document::parse(Path::new("s.yaml"), text.to_owned()).err().unwrap();
        assert_eq!(error.to_string(), expected);
        assert!(error.hint().is_some());
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let read = |fields: &Fields| {
        fields.required("a").count();
        fields.required("b").count();
    };
    assert!(problems("\u{feff}a: 1\nb: 2\n", read).is_empty());
    assert_eq!(
        problems("\u{feff}a: x\nb: y\n", read),
        [
            "s.yaml:1:4: `a` must be a whole number, 0 or more, not text",
            "s.yaml:2:4: `b` must be a whole number, 0 or more, not text"
        ]
    );
    // what was read is the file's, for its digest
    let text = "\u{feff}a: 1\nb: 2\n";
    assert_eq!(Document::parse(Path::new("s.yaml"), text.to_owned()).unwrap().text(), text);
}

#[test]
fn bombs_and_several_documents_are_syntax_errors() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]";
    for text in ["a: [", "a: 1\n---\nb: 2\n", bomb] {
        let error = Document::parse(Path::new("s.yaml"), text.to_owned());
        assert!(matches!(error, Err(Error::Syntax { .. })), "{text}");
    }
    let error = Document::parse(Path::new("s.yaml"), "a: 1\nb: [\n".into()).err().unwrap();
    assert_eq!(error.to_string(), "s.yaml:3:1: not YAML");
    // a file without an end
    #[cfg(unix)]
    {
        let error = Document::open(Path::new("/dev/zero")).err().unwrap();
        assert_eq!(error.to_string(), "/dev/zero: not a regular file");
        assert!(error.hint().unwrap().starts_with("devices and pipes have no end"));
    }
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large.yaml");
    std::fs::write(&large, vec![b' '; LARGEST as usize + 1]).unwrap();
    assert!(matches!(Document::open(&large), Err(Error::TooLarge { .. })));
}
