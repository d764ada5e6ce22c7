//! The command and the options: what is written where, and what is refused.

use super::{read, workplace};
use crate::common::{assert_snapshot, names_in, run_lctl};

#[test]
fn a_saved_run_is_shown_again() {
    let dir = workplace();
    let (status, stdout, stderr) = run_lctl(dir.path(), &["report", "base", "--markdown", "r.md"]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert!(stdout.starts_with("task    shots  metric"), "{stdout}");
    assert_snapshot("report/report.md", &read(&dir, "r.md"));
    // with a baseline the verdict stands first, and does not decide the exit status
    let args = ["report", "worse/report.json", "--baseline", "base", "--markdown", "r.md", "--force"];
    let (status, stdout, stderr) = run_lctl(dir.path(), &args);
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert!(stdout.ends_with("\nFAIL\n"), "{stdout}");
    let markdown = read(&dir, "r.md");
    assert!(markdown.starts_with("## Regression gate: FAIL\n"), "{markdown}");
    assert!(markdown.contains("\n## Evaluation of worse\n"), "{markdown}");
    assert!(!markdown.contains('<') || !markdown.contains("<script"), "{markdown}");
}

#[test]
fn the_same_run_gives_the_same_bytes() {
    let dir = workplace();
    for out in ["a", "b"] {
        let files = ["html", "xml", "md"].map(|end| format!("{out}.{end}"));
        let args = [
            "gate",
            "base",
            "worse",
            "-q",
            "--html",
            &files[0],
            "--junit",
            &files[1],
            "--markdown",
            &files[2],
        ];
        assert_eq!(run_lctl(dir.path(), &args).0, 3);
    }
    for end in ["html", "xml", "md"] {
        assert!(read(&dir, &format!("a.{end}")) == read(&dir, &format!("b.{end}")), "{end}");
    }
}

#[test]
fn files_of_a_run_are_not_replaced_nor_others_by_accident() {
    let dir = workplace();
    let before = names_in(&dir.path().join("base"));
    let check = |args: &str, message: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        let (status, stdout, stderr) = run_lctl(dir.path(), &args);
        assert_eq!((status, stdout.as_str()), (2, ""), "{args:?}");
        assert!(stderr.contains(message), "{args:?}: {stderr}");
    };
    for option in ["--html", "--markdown", "--junit"] {
        for command in ["report base", "report worse --baseline base", "gate base worse", "gate worse base"] {
            for file in ["base/report.json", "base/samples.jsonl"] {
                check(
                    &format!("{command} --force {option} {file}"),
                    "would replace a file that the run reads",
                );
            }
        }
    }
    check("report base --html x --junit x", "--html and --junit both write it");
    check("report base --html base/absent/x.html", "absent");
    std::fs::write(dir.path().join("there.html"), "").unwrap();
    check("report base --html there.html", "there.html: exists already");
    check("gate base worse --html there.html", "--force replaces it");
    check("report base --junit-cases documents", "--junit <FILE>");
    check("gate --power base --html x.html", "cannot be used with");
    check("report absent", "absent: cannot read");
    check("report base --policy p.yaml", "--baseline");
    assert_eq!(names_in(&dir.path().join("base")), before);
}

/// `eval` writes what `report` writes of its results.
#[test]
fn eval_and_report_write_the_same() {
    let dir = crate::suites::workplace();
    let eval = |args: &str| {
        let args: Vec<&str> =
            "eval model --suite good.yaml --quiet".split(' ').chain(args.split(' ')).collect();
        run_lctl(dir.path(), &args)
    };
    let (status, _, stderr) =
        eval("--out a --html a.html --junit a.xml --markdown a.md --junit-cases documents");
    assert_eq!((status, stderr.as_str()), (0, ""));
    let args = "report a --quiet --html b.html --junit b.xml --markdown b.md --junit-cases documents";
    let (status, _, stderr) = run_lctl(dir.path(), &args.split(' ').collect::<Vec<_>>());
    assert_eq!((status, stderr.as_str()), (0, ""));
    for end in ["html", "xml", "md"] {
        assert!(read(&dir, &format!("a.{end}")) == read(&dir, &format!("b.{end}")), "{end}");
    }
    let samples = read(&dir, "a/samples.jsonl");
    let first: serde_json::Value = serde_json::from_str(samples.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["question"], &first["choices"]),
        (&"Q: one\nA:".into(), &serde_json::json!(["a", "b"]))
    );
    // the baseline is read: it is not written over, even where the results are to go
    let (status, _, stderr) = eval("--out a --force --baseline a");
    assert!(status == 2 && stderr.contains("would replace a file that the run reads"), "{stderr}");
    let (status, _, stderr) = eval("--out c --html a/report.json --force --baseline a");
    assert!(status == 2 && stderr.contains("would replace a file that the run reads"), "{stderr}");
    let (status, _, stderr) =
        run_lctl(dir.path(), &["eval", "model", "--perplexity", "rows.jsonl", "--html", "x.html"]);
    assert!(status == 2 && stderr.contains("cannot be used with"), "{stderr}");
}
