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
fn empty_texts_name_nothing() {
    let text = "
version: '1'
name: ''
data:
  rows: {path: rows.jsonl, format: '', sha256: ''}
  dev: {path: dev.txt, format: lines}
  twice: {path: a.csv, format: csv, columns: [a, b, a]}
  none: {path: a.csv, format: csv, columns: []}
tasks:
  - {id: a, type: '', data: dev}
  - {id: b, type: perplexity, data: '', text: '{{ t }}', limit: x}
";
    let expected = [
        "2:10: `version` must be a whole number, 0 or more, not text",
        "3:7: a name has only letters, digits, `-`, `_` and `.`, not ``",
        "5:36: unknown `format` ``",
        "5:48: `sha256` must be 64 hexadecimal digits",
        "7:46: two columns are called `a`",
        "8:45: `columns` is empty",
        "10:19: unknown `type` ``",
        "11:37: unknown `data` ``",
        "11:65: `limit` must be a whole number, 0 or more, not text",
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

#[test]
fn a_tasks_digest_is_of_what_it_asks() {
    let task = |ppl: &str| {
        let text = SMALL.replace("{id: ppl, type: perplexity, data: rows, text: '{{ t }}'}", ppl);
        read(&text).map(|mut suite| suite.tasks.remove(1))
    };
    let plain = task("{id: ppl, type: perplexity, data: rows, text: '{{ t }}'}").unwrap();
    assert_eq!(plain.gate, GateKeys { critical: false, margin: None, zero_tolerance: false });
    let keys = "text: '{{ t }}', data: dev, type: perplexity, id: p, limit: 3, critical: true, margin: 0.5, \
                item: '{{ id }}', description: d";
    let same = task(&format!("{{{keys}}}")).unwrap();
    assert_eq!(same.sha256, plain.sha256);
    assert_eq!(same.gate, GateKeys { critical: true, margin: Some(0.5), zero_tolerance: false });
    for other in ["text: '{{ u }}'", "text: '{{ t }}', cluster: '{{ c }}'"] {
        let other = task(&format!("{{id: ppl, type: perplexity, data: rows, {other}}}")).unwrap();
        assert_ne!(other.sha256, plain.sha256);
    }
    for (keys, problem) in [
        ("margin: 0", "`margin` must be above 0, not 0; `zero_tolerance: true` allows no loss"),
        ("margin: x", "`margin` must be a number, not text"),
        ("margin: 0.1, zero_tolerance: true", "a task with `zero_tolerance` has no margin"),
        ("critical: 1", "`critical` must be true or false, not 1"),
    ] {
        let error = task(&format!("{{id: ppl, type: perplexity, data: rows, text: '{{{{ t }}}}', {keys}}}"));
        assert!(error.as_ref().unwrap_err().ends_with(problem), "{error:?}");
    }
}

#[test]
fn data_that_comes_with_the_program_lies_beside_the_suites() {
    let suite = read(&SMALL.replace("path: rows.jsonl", "dataset: rows.jsonl")).unwrap();
    let file = |name: &str| suite.data[name].file(Path::new("evalsuites"));
    assert_eq!(file("rows").unwrap(), Path::new("evalsuites/../datasets/rows.jsonl"));
    assert_eq!(file("dev"), None);
    let outside = read(&SMALL.replace("path: rows.jsonl", "dataset: ../rows.jsonl")).unwrap_err();
    assert!(outside.contains("leads out of"), "{outside}");
    let both = read(&SMALL.replace("path: rows.jsonl", "path: a, dataset: b")).unwrap_err();
    assert!(both.contains("both name the file"), "{both}");
}

const ON_HUB: &str = "hub: {dataset: acme/rows, revision: v1, file: data/a.parquet, \
                      sha256: '2222222222222222222222222222222222222222222222222222222222222222', format: parquet}";

#[test]
fn data_may_be_on_a_hub() {
    let suite = read(&SMALL.replace("path: rows.jsonl", ON_HUB)).unwrap();
    let spec = &suite.data["rows"];
    let hub = spec.on_hub().unwrap();
    assert_eq!(hub.file.to_string(), "datasets/acme/rows@v1: data/a.parquet");
    assert_eq!((hub.file.sha256.as_str(), hub.format.unwrap().name), ("2".repeat(64).as_str(), "parquet"));
    assert_eq!((spec.format.name, spec.file(Path::new("evalsuites"))), ("jsonl", None));
}

#[test]
fn a_place_on_a_hub_is_checked_before_anything_is_asked() {
    let problems = |change: &str, by: &str| {
        let hub = ON_HUB.replace(change, by);
        assert_ne!(hub, ON_HUB);
        read(&SMALL.replace("path: rows.jsonl", &hub)).unwrap_err().to_string()
    };
    assert!(problems("acme/rows", "../rows").contains("is not a hub id"));
    assert!(problems("acme/rows", "rows").contains("`rows` has no `/`"));
    assert!(problems("v1", "../x").contains("is not a hub id"));
    assert!(problems("data/a.parquet", "../a.parquet").contains("`../a.parquet` is no path in a repository"));
    assert!(problems("data/a.parquet", "/a").contains("is no path in a repository"));
    let pickle = problems("data/a.parquet", "data/a.PKL");
    assert!(pickle.contains("`data/a.PKL` may hold a pickle") && pickle.contains(":5:"), "{pickle}");
    assert!(problems("2222", "z222").contains("`sha256` must be 64 hexadecimal digits"));
    assert!(problems("format: parquet", "format: parket").contains("parket"));
    assert!(problems("revision: v1, ", "").contains("revision"));
    let both = read(&SMALL.replace("path: rows.jsonl", &format!("path: a, {ON_HUB}"))).unwrap_err();
    assert!(both.to_string().contains("`path` and `hub` both name the file"), "{both}");
}
