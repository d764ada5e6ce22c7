//! `lctl tokenizer train`.

use std::path::Path;

use lctl::text::Tokenizer;

use crate::common::{names_in, run_lctl};

#[test]
fn conversations_become_a_tokenizer_and_the_same_one_again() {
    let root = crate::common::root();
    let dir = tempfile::tempdir().unwrap();
    let train = |name: &str, files: [&str; 2]| {
        let out = dir.path().join(name);
        let args = ["tokenizer", "train", files[0], files[1], "--vocab-size", "400", "--json", "-o"];
        let (code, stdout, stderr) = run_lctl(root, &[&args[..], &[out.to_str().unwrap()]].concat());
        assert_eq!((code, stderr.as_str()), (0, ""));
        let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((&json["vocab_size"], &json["merges"]), (&400.into(), &141.into()));
        std::fs::read(out.join("tokenizer.json")).unwrap()
    };
    let files = ["datasets/demo-queue-train.jsonl", "datasets/phish-triage-train.jsonl"];
    assert_eq!(train("a", files), train("b", [files[1], files[0]]), "whatever the order of files");
    let tokenizer = Tokenizer::open(&dir.path().join("a")).unwrap();
    assert_eq!(tokenizer.eos(), Some(2));
    assert!(tokenizer.chat_template().is_some());
}

#[test]
fn what_cannot_be_is_said() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.txt"), "low lower lowest\n").unwrap();
    let run = |args: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        run_lctl(dir.path(), &[&["tokenizer", "train"], &args[..]].concat())
    };
    let (code, _, stderr) = run("a.txt --vocab-size 100 -o out");
    assert_eq!(
        (code, stderr.as_str()),
        (
            2,
            "error: a vocabulary of 100 tokens has no room for 3 special tokens and 256 bytes\nhint: take at least 259\n"
        )
    );
    let (code, _, stderr) = run("a.txt --vocab-size 300 -o out --pre falcon");
    assert_eq!(code, 2);
    assert!(stderr.contains("hint: there are: qwen2 (digits stand alone)"), "{stderr}");
    let (code, _, stderr) = run("missing.txt --vocab-size 300 -o out");
    assert_eq!(code, 2);
    assert!(stderr.starts_with("error: missing.txt: cannot read"), "{stderr}");
    // a recipe has a key for it, this command has not
    std::fs::write(dir.path().join("x.raw"), "low lower lowest\n").unwrap();
    let (code, _, stderr) = run("x.raw --vocab-size 300 -o out");
    assert_eq!(code, 2);
    let hint = "hint: a file's kind is told by its name: rename it to end in one of .";
    assert!(stderr.starts_with("error: x.raw: ") && stderr.contains(hint), "{stderr}");
    assert!(!stderr.contains("`type`"), "{stderr}");
    // no template is as long as that
    std::fs::File::create(dir.path().join("t.jinja")).unwrap().set_len(6 << 30).unwrap();
    let (code, _, stderr) = run("a.txt --vocab-size 300 -o out --chat-template t.jinja");
    let error = "error: t.jinja: 6442450944 bytes; at most 16777216 are read of such a file\n";
    assert!(code == 2 && stderr.starts_with(error), "{stderr}");
    // too little text for so many tokens is no error
    let (code, _, stderr) = run("a.txt --vocab-size 300 -o out");
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.starts_with("note: 263 tokens, not 300:"), "{stderr}");
    let (code, _, stderr) = run("a.txt --vocab-size 300 -o out");
    assert_eq!(
        (code, stderr.as_str()),
        (2, "error: out/tokenizer.json is there already\nhint: --force replaces it\n")
    );
    assert_eq!(run("a.txt --vocab-size 300 -o out --force --quiet").0, 0);
}

/// Runs `tokenizer train` over a small text, into `out`; returns the exit status and what was said.
fn train_in(dir: &Path, options: &[&str]) -> (i32, String) {
    std::fs::write(dir.join("a.txt"), "low lower lowest\n").unwrap();
    let args = ["tokenizer", "train", "a.txt", "--vocab-size", "300", "--quiet", "-o", "out"];
    let (code, stdout, stderr) = run_lctl(dir, &[&args[..], options].concat());
    assert_eq!(stdout, "");
    (code, stderr)
}

#[test]
fn a_special_token_that_spells_an_ordinary_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let chatml = ["--special", "<|im_start|>", "--special", "<|im_end|>", "--special"];
    // a byte, and a pair that is merged because it stands in the text three times
    for token in ["!", "lo"] {
        let (code, stderr) = train_in(dir.path(), &[&chatml[..], &[token]].concat());
        let expected =
            format!("error: the special token `{token}` is spelled as an ordinary token is\nhint: ");
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.starts_with(&expected), "{stderr}");
        assert_eq!(names_in(dir.path()), ["a.txt"]);
    }
}

#[test]
fn a_tokenizer_is_replaced_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir_all(out.join("tokenizer_config.json/x")).unwrap();
    std::fs::write(out.join("tokenizer.json"), "the old one").unwrap();
    let (code, stderr) = train_in(dir.path(), &["--force"]);
    assert_eq!(code, 2);
    assert!(stderr.starts_with("error: out/tokenizer_config.json: is a directory\nhint: "), "{stderr}");
    assert_eq!(std::fs::read_to_string(out.join("tokenizer.json")).unwrap(), "the old one");
    assert_eq!(names_in(&out), ["tokenizer.json", "tokenizer_config.json"]);
    std::fs::remove_dir_all(out.join("tokenizer_config.json")).unwrap();
    assert_eq!(train_in(dir.path(), &["--force"]), (0, String::new()));
    Tokenizer::open(&out).unwrap();
    assert_eq!(names_in(&out), ["tokenizer.json", "tokenizer_config.json"]);
}

#[test]
fn a_chat_template_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat.jinja"), "{% for message in messages %}\n{{ message.content }}")
        .unwrap();
    let (code, stderr) = train_in(dir.path(), &["--chat-template", "chat.jinja"]);
    assert_eq!(code, 2, "{stderr}");
    let expected = "error: chat.jinja: no chat template\n  caused by: chat template, line ";
    assert!(stderr.starts_with(expected), "{stderr}");
    assert_eq!(names_in(dir.path()), ["a.txt", "chat.jinja"]);
    std::fs::write(dir.path().join("chat.jinja"), "{% for m in messages %}{{ m.content }}{% endfor %}")
        .unwrap();
    assert_eq!(train_in(dir.path(), &["--chat-template", "chat.jinja"]), (0, String::new()));
    let tokenizer = Tokenizer::open(&dir.path().join("out")).unwrap();
    assert_eq!(tokenizer.chat_template(), Some("{% for m in messages %}{{ m.content }}{% endfor %}"));
}

#[test]
fn chatml_needs_its_markers() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["--special", "<s>", "--eos", "<s>"];
    let expected = "error: the chat template chatml writes `<|im_start|>`, which is none of the special tokens: <s>\n\
                    hint: add --special '<|im_start|>', or choose --chat-template none or a file\n";
    assert_eq!(train_in(dir.path(), &options), (2, expected.to_owned()));
    assert_eq!(names_in(dir.path()), ["a.txt"]);
    let (code, stderr) = train_in(dir.path(), &[&options[..], &["--chat-template", "none"]].concat());
    assert_eq!((code, stderr.as_str()), (0, ""));
}
