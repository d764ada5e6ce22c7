use super::super::testing::{document, generated, parse as parse_yaml};
use super::*;
use crate::eval::score::Valid;
use serde_json::Value as Json;

const CYBERMETRIC: &str = r"
prompt: '{{ q }}'
target: '{{ a }}'
generation: {max_tokens: 8, stop: ['\n']}
metrics:
  - {name: compat, kind: exact_match, normalize: [lower], extract: {regex: '(?i)ANSWER:?\s*([A-D])', group: 1}}
  - {name: strict, kind: exact_match, extract: {regex: '^\s*ANSWER: ([A-D])\s*$', group: 1}}
  - exact_match
  - f1
";

fn scores(task: &dyn Task, target: &str, text: &str) -> Vec<f64> {
    let row = document(json!({"q": "?", "a": target}));
    let outcome = task.score(&row, &[generated(text)]).unwrap();
    ["compat", "strict", "exact_match", "f1"].iter().map(|name| outcome.scores[*name]).collect()
}

#[test]
fn each_metric_extracts_on_its_own() {
    let task = parse_yaml(&TYPE, CYBERMETRIC).unwrap();
    assert_eq!(scores(&*task, "D", "ANSWER: D"), [1.0, 1.0, 0.0, 2.0 / 3.0]);
    assert_eq!(scores(&*task, "D", "the answer depends"), [1.0, 0.0, 0.0, 0.0]);
    assert_eq!(scores(&*task, "B", "answer:b"), [1.0, 0.0, 0.0, 0.0]);
    assert_eq!(scores(&*task, "D", "d"), [0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn invalid_answers_count_and_are_counted() {
    let task = parse_yaml(&TYPE, CYBERMETRIC).unwrap();
    let row = document(json!({"q": "?", "a": "A"}));
    let outcomes: Vec<Scores> = ["ANSWER: A", "ANSWER: B", "no idea"]
        .iter()
        .map(|text| task.score(&row, &[generated(text)]).unwrap().scores)
        .chain([task.failed(&row).unwrap()])
        .collect();
    let metrics = task.aggregate(&outcomes.iter().collect::<Vec<_>>());
    assert_eq!((metrics[0].value, metrics[0].n), (0.25, 4));
    assert_eq!(metrics[0].valid, Some(Valid { value: Some(0.5), n: 2 }));
    assert_eq!(metrics[2].valid, None);
}

#[test]
fn the_best_of_several_targets_and_the_last_match_count() {
    let yaml = "prompt: q\ntarget: {field: answers}\ngeneration: {max_tokens: 4}\nmetrics:\n  - kind: exact_match\n    \
                normalize: [number]\n    extract: {regex: '[0-9.,]+', take: last}\n  - {kind: contains, normalize: [lower]}\n  \
                - {kind: matches, extract: {regex: 'x'}}\n";
    let task = parse_yaml(&TYPE, yaml).unwrap();
    let row = document(json!({"answers": ["1,000", "1.5"]}));
    let outcome = task.score(&row, &[generated("3 or 1000.0 x")]).unwrap();
    assert_eq!(
        outcome.prediction,
        json!({"exact_match": "1000.0", "contains": "3 or 1000.0 x", "matches": "x"})
    );
    assert_eq!(
        [outcome.scores["exact_match"], outcome.scores["contains"], outcome.scores["matches"]],
        [1.0, 0.0, 1.0]
    );
    assert_eq!(task.solution(&row).unwrap(), "1,000");
    assert!(matches!(task.inquire(&document(json!({"answers": []}))), Err(Error::NoTarget)));
}

#[test]
fn what_is_wrong_with_the_keys_is_said_at_once() {
    let yaml = "prompt: q\ntarget: t\ngeneration: {max_tokens: 0, top_p: 2, stop: ['']}\nmetrics:\n  - exact\n  - matches\n  \
                - {kind: f1, normalize: [lowr], extract: {regex: '(', group: 1}}\n  - {kind: f1, extract: {regex: 'x', group: 1, take: any}}\n";
    let message = parse_yaml(&TYPE, yaml).unwrap_err();
    let expected = "suite.yaml:3:13: an empty stop string would end every answer at once\n\
        suite.yaml:3:26: `max_tokens` is 0\n\
        suite.yaml:3:36: `top_p` must be between 0 and 1, not 2\n\
        suite.yaml:3:36: `top_p` needs a `temperature` above 0\n\
        suite.yaml:5:5: unknown item 1 `exact`\n\
        suite.yaml:6:5: `matches` needs `extract`\n\
        suite.yaml:7:28: unknown item 1 `lowr`; did you mean `lower`?\n\
        suite.yaml:7:52: not a regular expression: unclosed group\n\
        suite.yaml:8:45: the pattern has 0 groups, not 1\n\
        suite.yaml:8:54: unknown `take` `any`";
    assert_eq!(message, expected);
}

#[test]
fn numbers_are_equal_whatever_their_spelling_and_measures_have_targets_of_their_own() {
    let yaml = "prompt: q\ntarget: '{{ n }}'\ngeneration: {max_tokens: 4}\nmetrics:\n  - numeric\n  \
                - {name: near, kind: numeric, tolerance: 0.5}\n  - {name: said, kind: contains, target: {field: words}}\n";
    let task = parse_yaml(&TYPE, yaml).unwrap();
    let row = document(json!({"n": "1,200.0", "words": ["about", "circa"]}));
    let scores = |text| {
        let outcome = task.score(&row, &[generated(text)]).unwrap();
        ["numeric", "numeric.valid", "near", "said"].map(|name| outcome.scores[name])
    };
    assert_eq!(scores("7 of about $1200"), [1.0, 1.0, 1.0, 1.0]);
    assert_eq!(scores("1200.4"), [0.0, 1.0, 1.0, 0.0]);
    assert_eq!(scores("many"), [0.0, 0.0, 0.0, 0.0]);
    let error = task.inquire(&document(json!({"n": "many", "words": ["x"]}))).unwrap_err();
    assert_eq!(error.to_string(), "the target `many` is no number");
    assert!(matches!(task.inquire(&document(json!({"n": "1", "words": []}))), Err(Error::NoTarget)));
    let negative = parse_yaml(&TYPE, &yaml.replace("tolerance: 0.5", "tolerance: -1")).unwrap_err();
    assert_eq!(negative, "suite.yaml:6:5: `tolerance` must be 0 or more, not -1");
}

#[test]
fn a_tolerance_is_of_decimal_numbers() {
    let score = |tolerance: &str, target: &str, text: &str| {
        let yaml = format!(
            "prompt: q\ntarget: '{{{{ n }}}}'\ngeneration: {{max_tokens: 4}}\nmetrics: [{{kind: numeric, tolerance: {tolerance}}}]"
        );
        let task = parse_yaml(&TYPE, &yaml).unwrap();
        task.score(&document(json!({"n": target})), &[generated(text)]).unwrap().scores["numeric"]
    };
    for (target, text) in [("0.3", "0.4"), ("0.3", "0.2"), ("5.3", "5.4"), ("-1000.05", "-999.95")] {
        assert_eq!(score("0.1", target, text), 1.0, "{target} {text}");
    }
    for (target, text) in [("0.3", "0.4000001"), ("5.3", "5.19999999"), ("1e6", "1000000.1000001")] {
        assert_eq!(score("0.1", target, text), 0.0, "{target} {text}");
    }
    // no tolerance is none
    assert_eq!((score("0", "0.3", "0.30000000000000004"), score("0", ".5", "0.5")), (0.0, 1.0));
    assert_eq!((score("0", "-5", "it is \u{2212}5"), score("0", "\u{2212}0.5", "-.5")), (1.0, 1.0));
}

#[test]
fn a_text_that_every_answer_contains_is_refused() {
    let yaml = "prompt: q\ntarget: '{{ t }}'\ngeneration: {max_tokens: 4}\n\
                metrics: [exact_match, {kind: contains, normalize: [strip]}]";
    let task = parse_yaml(&TYPE, yaml).unwrap();
    let error = task.inquire(&document(json!({"t": " "}))).unwrap_err();
    assert_eq!(error.to_string(), "target of `contains` 1 is empty");
    assert!(task.inquire(&document(json!({"t": "x"}))).is_ok());
}

#[test]
fn names_that_scores_have_of_their_own_are_refused() {
    let yaml = "prompt: q\ntarget: t\ngeneration: {max_tokens: 4}\nmetrics:\n  - {name: x, kind: numeric}\n  \
                - {name: x.valid, kind: f1}\n  - {name: '', kind: contains}\n";
    let expected = "suite.yaml:6:12: a metric cannot be called `x.valid`: scores that end in `.valid` say which answers are valid\n\
                    suite.yaml:7:12: a metric's name is empty";
    assert_eq!(parse_yaml(&TYPE, yaml).unwrap_err(), expected);
}

#[test]
fn a_document_that_was_not_asked_has_the_scores_of_a_wrong_answer() {
    let task = parse_yaml(&TYPE, CYBERMETRIC).unwrap();
    let row = document(json!({"q": "?", "a": "A"}));
    let wrong = task.score(&row, &[generated("no")]).unwrap().scores;
    assert_eq!(Vec::from_iter(task.failed(&row).unwrap()), Vec::from_iter(wrong));
}

#[test]
fn the_first_of_many_names_counts() {
    let yaml = "prompt: q\ntarget: {field: same}\ngeneration: {max_tokens: 4}\nmetrics:\n  \
                - {name: right, kind: first_name, names: {field: names}}\n  \
                - {name: near, kind: first_name, names: {field: names}, target: [Gray Fox, owl]}\n";
    let task = parse_yaml(&TYPE, yaml).unwrap();
    let row = document(json!({"same": ["gray fox", "t-11"], "names": ["gray", "Gray Fox", "owl", "t-11"]}));
    let found = |text| {
        let outcome = task.score(&row, &[generated(text)]).unwrap();
        let scores = ["right", "near", "right.valid"].map(|name| outcome.scores[name]);
        (outcome.prediction["right"].clone(), scores)
    };
    assert_eq!(found("It was GRAY FOX, not Owl."), (json!("gray fox"), [1.0, 1.0, 1.0]));
    assert_eq!(found("Owl; t-11 is likely, too"), (json!("owl"), [0.0, 1.0, 1.0]));
    assert_eq!(found("t-112, grayish"), (Json::Null, [0.0, 0.0, 0.0]));
    let bare = parse_yaml(&TYPE, "prompt: q\ntarget: t\ngeneration: {max_tokens: 4}\nmetrics: [first_name]");
    assert_eq!(bare.unwrap_err(), "suite.yaml:4:11: `first_name` needs `names`");
}
