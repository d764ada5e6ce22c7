use super::*;

fn read(text: &str) -> Result<Suite, String> {
    let document = yaml::Document::parse(Path::new("dir/suite.yaml"), text.to_owned()).unwrap();
    Suite::read(&document).map_err(|error| error.to_string())
}

const SMALL: &str = "
version: 1
name: small
data:
  rows: {path: rows.jsonl, format: jsonl, fields: {question: Q}, where: {split: test}}
  dev: {format: csv, columns: [a, b]}
tasks:
  - id: letter
    type: multiple_choice
    data: rows
    limit: 3
    few_shot: {n: 5, from: dev, mode: seeded, multiturn: true}
    prompt: '{{ question }}'
    choices: [A, B]
    target: {letter: '{{ answer }}'}
    metrics: [acc]
    cluster: '{{ source }}'
  - {id: ppl, type: perplexity, data: rows, text: '{{ t }}'}
";

#[test]
fn a_suite_says_everything_about_its_tasks() {
    let suite = read(SMALL).unwrap();
    assert_eq!((suite.name.as_str(), suite.tasks.len(), suite.data.len()), ("small", 2, 2));
    assert_eq!(suite.data["rows"].options.only, [("split".to_owned(), "test".to_owned())]);
    let task = &suite.tasks[0];
    let prompting = task.prompting.as_ref().unwrap();
    assert_eq!((task.limit, prompting.few_shot.n, prompting.few_shot.mode), (Some(3), 5, ShotMode::Seeded));
    assert_eq!(
        (prompting.framing.target_delimiter.as_str(), prompting.framing.shot_delimiter.as_str()),
        (" ", "\n\n")
    );
    assert!(prompting.framing.multiturn && prompting.chat == ChatUse::Off);
    assert!(suite.tasks[1].prompting.is_none());
    assert_eq!(suite.directory(), Path::new("dir"));
}

#[test]
fn everything_wrong_is_said_at_once() {
    let text = "
version: 2
name: 'two words'
data:
  rows: {path: ../rows.jsonl, format: jsnl}
  dev: {path: /etc/passwd, format: lines, columns: [a], sha256: abc}
tasks:
  - {id: a, type: multiple, data: rows, anything: 1}
  - {id: p, type: perplexity, data: deb, text: '{{ t }}', few_shot: {n: 1, from: dev}}
  - {id: p, type: perplexity, data: dev, text: '{{ t }}', limit: 0}
  - 7
";
    let expected = [
        "2:10: this program reads suites of version 1, not 2",
        "3:7: a name has only letters, digits, `-`, `_` and `.`, not `two words`",
        "5:16: `../rows.jsonl` leads out of the suite's directory",
        "5:39: unknown `format` `jsnl`; did you mean `jsonl`?",
        "6:15: `/etc/passwd` leads out of the suite's directory",
        "6:43: unknown key `columns`",
        "6:65: `sha256` must be 64 hexadecimal digits",
        "8:19: unknown `type` `multiple`",
        "9:37: unknown `data` `deb`; did you mean `dev`?",
        "9:59: unknown key `few_shot`",
        "10:5: two tasks are called `p`",
        "10:66: `limit` is 0; leave it out for no limit",
        "11:5: item 4 must be a mapping of keys to values, not 7",
    ];
    let found = read(text).unwrap_err();
    let found: Vec<&str> = found.lines().map(|line| line.trim_start_matches("dir/suite.yaml:")).collect();
    assert_eq!(found, expected);
}

#[test]
fn nothing_at_all_is_missing_keys() {
    assert_eq!(
        read("{}").unwrap_err().replace("dir/suite.yaml:1:1: ", ""),
        "`version` is missing\n`name` is missing\n`data` is missing\n`tasks` is missing"
    );
}
