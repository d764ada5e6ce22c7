//! What a user reads when something is wrong: tests/golden/suites/messages.txt.

use super::{SUITE, set_template, workplace, write};
use crate::common::{assert_snapshot, run_lctl};

const BAD: &str = "version: 1
name: bad
data:
  rows: {path: ../rows.jsonl, format: jsnl}
tasks:
  - id: choice
    type: multiple_choise
    data: row
  - {id: ppl, type: perplexity, data: rows, txt: \"{{ q }}\"}
";

#[test]
fn every_refusal_says_where_and_what_to_do() {
    let dir = workplace();
    let variant = |name: &str, from: &str, to: &str| {
        assert!(SUITE.contains(from), "{from}");
        write(&dir, name, &SUITE.replace(from, to));
    };
    write(&dir, "bad.yaml", BAD);
    write(&dir, "syntax.yaml", "a: [1\n");
    variant("typo.yaml", "target:", "tagret:");
    variant("given.yaml", "data: rows\n", "data: given\n");
    variant("broken.yaml", "rows.jsonl", "broken.jsonl");
    write(&dir, "broken.jsonl", "{\"q\": \"one\", \"c\": [\"a\", \"b\"], \"a\": \"a\"}\n{\"q\": \"two\"\n");
    variant("missing.yaml", "rows.jsonl", "missing.jsonl");
    variant("field.yaml", "{{ q }}\\n", "{{ question }}\\n");
    variant("target.yaml", "{{ a }}\"\n    m", "x\"\n    m");
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    variant("loop.yaml", "{{ q }}\\n", loops);
    let digest = format!("format: jsonl, sha256: \"{}\"}}", "0".repeat(64));
    variant("digest.yaml", "format: jsonl}", &digest);
    write(&dir, "taken/report.json", "");

    let mut text = String::new();
    let mut show = |args: &str| {
        let words: Vec<&str> = ["eval", "model", "--suite"].into_iter().chain(args.split(' ')).collect();
        // the notes of the model's tokenizer are not the matter here
        let quiet: Vec<&str> = words.iter().copied().chain(["--quiet"]).collect();
        let (status, stdout, stderr) = run_lctl(dir.path(), &quiet);
        assert_eq!((status, stdout.as_str()), (2, ""), "{args}: {stderr}");
        text.push_str(&format!("$ lctl {}\n{stderr}\n", words.join(" ")));
    };
    for name in
        ["bad", "syntax", "absent", "typo", "given", "broken", "missing", "field", "target", "loop", "digest"]
    {
        show(&format!("{name}.yaml"));
    }
    for options in [
        "--data row=rows.jsonl",
        "--data rows",
        "--data rows=a --data rows=b",
        "--few-shot 3",
        "--chat-template on",
        "--date yesterday",
        "--out taken",
        "--resume",
    ] {
        show(&format!("good.yaml {options}"));
    }
    set_template(&dir, "{% for m in messages %}{{ raise_exception('no ' ~ m.role) }}{% endfor %}");
    show("good.yaml --chat-template on");
    set_template(&dir, "{% for m in messages %}");
    show("good.yaml --chat-template on");
    assert_snapshot("suites/messages.txt", &text);
}

#[test]
fn a_vocabulary_of_another_size_is_refused() {
    let dir = workplace();
    let path = dir.path().join("model/config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, config.replace("\"vocab_size\": 352", "\"vocab_size\": 340")).unwrap();
    let (status, _, stderr) = run_lctl(dir.path(), &["eval", "model", "--suite", "good.yaml"]);
    assert_eq!(status, 2, "{stderr}");
    assert!(stderr.contains("[352, 32]") && stderr.contains("[340, 32]"), "{stderr}");
}
