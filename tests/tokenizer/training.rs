//! `lctl tokenizer train`.

use std::path::Path;

use lctl::text::Tokenizer;

use crate::common::run_lctl;

#[test]
fn conversations_become_a_tokenizer_and_the_same_one_again() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
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
