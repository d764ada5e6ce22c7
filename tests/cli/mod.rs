//! What belongs to no single command: doctor, completions, --verbose, and the JSON that docs/cli.md describes.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value as Json;

use crate::common::{lctl, run_lctl};
use crate::mistakes::workplace;

const DOCS: &str = include_str!("../../docs/cli.md");

fn root() -> &'static Path {
    crate::common::root()
}

/// Returns the second cell of the table's row that begins with `first`.
fn row(first: &str) -> &'static str {
    let begin = format!("| {first} | ");
    let row = DOCS.lines().find_map(|line| line.strip_prefix(&begin));
    row.unwrap_or_else(|| panic!("docs/cli.md has no row `{first}`")).trim_end_matches(" |")
}

/// Returns the names in backticks, without what stands in brackets behind them.
fn named(cell: &str) -> BTreeSet<String> {
    let (mut depth, mut text) = (0, String::new());
    for c in cell.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            c if depth == 0 => text.push(c),
            _ => {}
        }
    }
    text.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches("[]").to_owned()).collect()
}

fn keys(object: &Json) -> BTreeSet<String> {
    object.as_object().unwrap_or_else(|| panic!("{object} is no object")).keys().cloned().collect()
}

fn parsed(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn said(mut command: Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Runs `lctl doctor` with directories that can be written.
fn doctor(dir: &Path, args: &[&str], isa: Option<&str>) -> (i32, String, String) {
    let mut command = lctl(dir, &[&["doctor"], args].concat());
    command.env("HF_HUB_CACHE", dir.join("hub")).env("TMPDIR", dir);
    command.envs(isa.map(|isa| ("LCTL_ISA", isa)));
    said(command)
}

/// Options that another one leaves nothing to do for: refused, not passed over.
#[test]
fn options_without_effect_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        "inspect m.gguf --chat-template --digest",
        "inspect m.gguf --chat-template --ctx 64",
        "inspect m.gguf --diff n.gguf --ctx 64",
        "replay m.json --check --threads 2",
        "replay m.json --check --isa portable",
        "replay m.json --check --work d",
    ] {
        let (code, stdout, stderr) = run_lctl(dir.path(), &args.split(' ').collect::<Vec<_>>());
        assert_eq!((code, stdout.as_str()), (2, ""), "{args}: {stderr}");
        assert!(stderr.contains("cannot be used with"), "{args}: {stderr}");
    }
}

#[test]
fn doctor_says_what_the_documentation_lists() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) = doctor(dir.path(), &["--json"], None);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    let json = parsed(&stdout);
    let section = DOCS.split("## lctl doctor\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let first_cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let first_cells: Vec<&str> = first_cells.filter(|cell| *cell != "key").collect();
    let listed = first_cells.iter().flat_map(|cell| cell.split(", "));
    let listed: BTreeSet<String> = listed.map(|name| name.trim_end_matches("[]").to_owned()).collect();
    assert_eq!(keys(&json), listed);
    let mut n_objects = 0;
    for cell in first_cells {
        let value = &json[cell.trim_end_matches("[]")];
        if let Some(object) =
            value.as_object().map(|_| value).or_else(|| value.get(0)).filter(|v| v.is_object())
        {
            assert_eq!(keys(object), named(row(cell)), "{cell}");
            n_objects += 1;
        }
    }
    assert!(n_objects >= 7, "{n_objects}");
    assert_eq!((&json["arithmetic"]["agrees"], &json["problems"]), (&true.into(), &Json::Array(vec![])));
    assert_eq!(json["places"][0]["path"], dir.path().join("hub").display().to_string());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing stays");

    let (code, stdout, stderr) = doctor(dir.path(), &[], None);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.starts_with(&format!("lctl        {}, commit ", env!("CARGO_PKG_VERSION"))), "{stdout}");
    assert!(stdout.contains("\narithmetic  the bits of every machine, on portable"), "{stdout}");
    assert!(stdout.ends_with("nothing stands in the way\n"), "{stdout}");
}

#[test]
fn doctor_names_what_stands_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stdout, _) = doctor(dir.path(), &[], Some("nope"));
    assert_eq!(code, 1, "{stdout}");
    assert!(
        stdout.contains("\nproblem: unknown instruction set `nope` (LCTL_ISA); this machine has: "),
        "{stdout}"
    );
    assert!(!stdout.contains("nothing stands in the way"), "{stdout}");
    let (code, stdout, _) = doctor(dir.path(), &["--json"], Some("nope"));
    assert_eq!(code, 1, "{stdout}");
    let json = parsed(&stdout);
    assert_eq!((&json["cpu"]["isa"], json["problems"].as_array().unwrap().len()), (&Json::Null, 1));

    std::fs::write(dir.path().join("file"), "").unwrap();
    let mut command = lctl(dir.path(), &["doctor"]);
    command.env("HF_HUB_CACHE", dir.path().join("file/hub")).env("TMPDIR", dir.path());
    let (code, stdout, _) = said(command);
    assert_eq!(code, 1, "{stdout}");
    assert!(stdout.contains("file is no directory); set HF_HUB_CACHE to a directory"), "{stdout}");
}

#[cfg(target_os = "linux")]
#[test]
fn doctor_says_a_path_that_is_no_text() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().join(std::ffi::OsStr::from_bytes(b"h\xff"));
    std::fs::create_dir(&here).unwrap();
    let mut command = lctl(&here, &["doctor", "--json"]);
    command.env("HF_HUB_CACHE", dir.path()).env("TMPDIR", dir.path());
    let (code, stdout, stderr) = said(command);
    assert_eq!(code, 0, "{stderr}");
    let path = parsed(&stdout)["places"][2]["path"].as_str().unwrap().to_owned();
    assert!(path.ends_with("/h\u{fffd}"), "{path}");
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (code, stdout, stderr) = run_lctl(root(), &["completions", shell]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{shell}");
        for name in ["lctl", "quantize", "finetune", "kl-base"] {
            assert!(stdout.contains(name), "{shell}: {name}");
        }
    }
}

#[test]
fn verbose_says_what_runs_and_what_it_took() {
    let plain = run_lctl(root(), &["recipe", "new"]);
    assert_eq!((plain.0, plain.2.as_str()), (0, ""));
    for args in [["--verbose", "recipe", "new"], ["recipe", "new", "-v"]] {
        let (code, stdout, stderr) = run_lctl(root(), &args);
        assert_eq!((code, &stdout), (0, &plain.1));
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{stderr}");
        assert!(lines[0].starts_with(&format!("lctl {}, commit ", env!("CARGO_PKG_VERSION"))), "{stderr}");
        assert!(lines[0].ends_with(" threads") && lines[1].starts_with("took "), "{stderr}");
    }
}

#[test]
fn validated_recipes_and_suites_are_listed_as_documented() {
    let recipes = [
        "recipe",
        "validate",
        "--schema-only",
        "--json",
        "recipes/demo-queue.yaml",
        "evalsuites/demo-soc.yaml",
    ];
    let (code, stdout, stderr) = run_lctl(root(), &recipes);
    assert_eq!(code, 2, "{stderr}");
    let rows = parsed(&stdout);
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert_eq!((&rows[0]["valid"], &rows[0]["error"]), (&true.into(), &Json::Null), "{rows}");
    assert_eq!(rows[1]["valid"], false);
    assert!(rows[1]["error"].as_str().is_some_and(|error| error.contains("demo-soc.yaml")), "{rows}");
    let suites = ["suite", "validate", "--json", "evalsuites/demo-soc.yaml"];
    let (code, stdout, stderr) = run_lctl(root(), &suites);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let suite = parsed(&stdout);
    assert_eq!((&suite[0]["tasks"], &suite[0]["documents"]), (&1.into(), &217.into()), "{suite}");
    assert_eq!(suite[0]["problems"], Json::Array(vec![]));
    for (command, row_of) in [("`recipe validate`", &rows[0]), ("`suite validate`", &suite[0])] {
        assert_eq!(keys(row_of), named(row(command)), "{command}");
    }
}

#[test]
fn a_report_is_printed_as_it_stands() {
    let dir = workplace();
    let (code, stdout, stderr) = run_lctl(dir.path(), &["report", "a", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let report = parsed(&std::fs::read_to_string(dir.path().join("a/report.json")).unwrap());
    assert_eq!(stdout, format!("{report:#}\n"));
    let alone = parsed(&stdout);
    let (code, stdout, stderr) = run_lctl(dir.path(), &["report", "a", "--baseline", "a", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let both = parsed(&stdout);
    assert_eq!(keys(&both), BTreeSet::from(["report", "verdict"].map(str::to_owned)));
    assert_eq!(both["report"], alone);
    let (_, stdout, _) = run_lctl(dir.path(), &["gate", "a", "a", "--json"]);
    assert_eq!(both["verdict"], parsed(&stdout));
}
