//! What a user reads when something is wrong: tests/golden/suites/messages.txt.

use super::{SUITE, set_template, workplace, write};
use crate::common::{assert_snapshot, lctl, run_lctl};

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
fn an_option_of_another_measurement_is_refused() {
    let dir = workplace();
    write(&dir, "text.txt", "some text");
    for options in [
        "--suite good.yaml --save-logits base.logits",
        "--suite good.yaml --text text.txt",
        "--perplexity text.txt --text text.txt",
        "--kl-base model --text text.txt --save-logits base.logits",
        "--base-logits base.logits --save-logits other.logits",
    ] {
        let args: Vec<&str> = ["eval", "model"].into_iter().chain(options.split(' ')).collect();
        let (status, _, stderr) = run_lctl(dir.path(), &args);
        assert!(status == 2 && stderr.contains("cannot be used with"), "{options}: {stderr}");
    }
}

#[test]
fn quiet_measurements_of_a_text_print_json_alone() {
    let dir = workplace();
    write(&dir, "text.txt", &"one two three four five six seven eight nine ten ".repeat(20));
    let common = "--context 32 --limit 2 --threads 1";
    for mode in ["--perplexity text.txt", "--kl-base model --text text.txt"] {
        let run = |options: &str| {
            let line = format!("eval model {mode} {common} {options}");
            let (status, stdout, stderr) = run_lctl(dir.path(), &line.split_whitespace().collect::<Vec<_>>());
            assert_eq!(status, 0, "{line}: {stderr}");
            (stdout, stderr)
        };
        assert!(run("").0.contains("chunks of 32"), "{mode}");
        assert_eq!(run("--quiet"), (String::new(), String::new()), "{mode}");
        let (stdout, stderr) = run("--quiet --json");
        assert!(serde_json::from_str::<serde_json::Value>(&stdout).is_ok() && stderr.is_empty(), "{stderr}");
    }
}

#[test]
fn no_result_replaces_what_the_run_reads() {
    let dir = workplace();
    for (options, message) in [
        ("--samples good.yaml", "good.yaml: --samples would replace a file that the run reads (--suite)"),
        (
            "--samples rows.jsonl",
            "rows.jsonl: --samples would replace a file that the run reads (data of a suite)",
        ),
        (
            "--journal ./model/../rows.jsonl",
            "--journal would replace a file that the run reads (data of a suite)",
        ),
        ("--samples other.jsonl --data rows=other.jsonl", "would replace a file that the run reads (--data)"),
        ("--samples model/config.json", "would replace a file that the run reads (the model)"),
        ("--samples s.jsonl --journal s.jsonl", "s.jsonl: --samples and --journal both write it"),
        ("--out out --samples out/report.json", "report.json: --out and --samples both write it"),
        ("--samples absent/s.jsonl", "absent/s.jsonl: the directory `absent` does not exist"),
        ("--samples model", "model: is a directory"),
    ] {
        write(&dir, "other.jsonl", super::ROWS);
        let args = ["eval", "model", "--suite", "good.yaml", "--force"].into_iter().chain(options.split(' '));
        let (status, _, stderr) = run_lctl(dir.path(), &args.collect::<Vec<_>>());
        assert!(status == 2 && stderr.contains(message), "{options}: {stderr}");
        // nothing was computed or written
        assert!(!stderr.contains("tokens in"), "{stderr}");
        assert_eq!(std::fs::read_to_string(dir.path().join("rows.jsonl")).unwrap(), super::ROWS);
    }
    write(&dir, "text.txt", "one two three");
    let (status, _, stderr) = run_lctl(
        dir.path(),
        &["eval", "model", "--perplexity", "text.txt", "--save-logits", "text.txt", "--force"],
    );
    assert!(
        status == 2 && stderr.contains("would replace a file that the run reads (--perplexity)"),
        "{stderr}"
    );
}

#[test]
fn a_suite_is_given_once_and_stays_in_its_directory() {
    let dir = workplace();
    let twice = ["eval", "model", "--suite", "good.yaml", "--suite", "good.yaml"];
    let (status, _, stderr) = run_lctl(dir.path(), &twice);
    assert!(status == 2 && stderr.contains("good.yaml: is called `good`, as good.yaml is"), "{stderr}");
    #[cfg(unix)]
    {
        write(&dir, "suite/good.yaml", SUITE);
        std::os::unix::fs::symlink(dir.path().join("rows.jsonl"), dir.path().join("suite/rows.jsonl"))
            .unwrap();
        let args = ["eval", "model", "--suite", "suite/good.yaml", "--quiet"];
        let (status, _, stderr) = run_lctl(dir.path(), &args);
        assert!(status == 2 && stderr.contains("leads out of the suite's directory, to "), "{stderr}");
        let (status, _, stderr) = run_lctl(dir.path(), &[&args[..], &["--data", "rows=rows.jsonl"]].concat());
        assert_eq!((status, stderr.as_str()), (0, ""));
    }
}

#[test]
#[cfg(unix)]
fn an_interrupted_run_says_how_to_go_on() {
    let dir = workplace();
    let rows: String = (0..20_000)
        .map(|n| format!("{{\"q\": \"question {n}\", \"c\": [\"a\", \"b\"], \"a\": \"a\"}}\n"))
        .collect();
    write(&dir, "rows.jsonl", &rows);
    let args = ["eval", "model", "--suite", "good.yaml", "--out", "out", "--batch-tokens", "20"];
    let mut command = lctl(dir.path(), &args);
    let child =
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let journal = dir.path().join("out/journal.jsonl");
    let lines = || std::fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    while lines() < 3 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("journal.jsonl: the same command with --resume goes on"), "{said}");
    let (status, _, stderr) = run_lctl(dir.path(), &[&args[..6], &["--resume", "--limit", "3"]].concat());
    assert!(status == 0 && stderr.contains("of them from the journal"), "{stderr}");
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
