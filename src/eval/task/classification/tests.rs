use super::super::testing::{document, generated, parse as parse_yaml};
use super::*;
use crate::eval::request::Loglikelihood;
use crate::eval::score::Valid;
use crate::eval::stats::figure_interval;

const TRIAGE: &str = "
prompt: '{{ q }}'
labels: [{name: malicious, aliases: [bad, not benign]}, benign, {name: T1059, aliases: [command line]}]
target: '{{ a }}'
generation: {max_tokens: 8}
";

fn predicted(yaml: &str, text: &str) -> Json {
    let row = document(json!({"q": "?", "a": "benign"}));
    parse_yaml(&TYPE, yaml).unwrap().score(&row, &[generated(text)]).unwrap().prediction
}

#[test]
fn a_label_is_found_as_a_whole_or_as_a_word() {
    for (text, label) in [
        (" **Benign**.\n", Some("benign")),
        ("It looks BAD to me", Some("malicious")),
        ("this is not benign", Some("malicious")),
        ("benign, or malicious?", None),
        ("benign. I repeat: benign", Some("benign")),
        ("T1059.", Some("T1059")),
        ("T10591 or a badge", None),
        ("badbad bad", Some("malicious")),
        ("non-malicious", None),
        ("un\u{2011}malicious, so benign", Some("benign")),
        ("benign-looking", None),
        ("- benign", Some("benign")),
        ("verdict: -benign-", Some("benign")),
        ("benign--as expected", Some("benign")),
        ("", None),
    ] {
        assert_eq!(predicted(TRIAGE, text), json!(label), "{text}");
    }
    let first = format!("{TRIAGE}take: first\n");
    assert_eq!(predicted(&first, "benign, or malicious?"), json!("benign"));
    let last = format!("{TRIAGE}take: last\nextract: {{regex: 'so: (.*)', group: 1}}\n");
    assert_eq!(predicted(&last, "bad, so: benign, malicious"), json!("malicious"));
    assert_eq!(predicted(&last, "malicious"), Json::Null);
}

#[test]
fn labels_may_have_hyphens_themselves() {
    let yaml = TRIAGE
        .replace("benign, {name: T1059, aliases: [command line]}", "[false-positive, positive, CWE-79]");
    let yaml = yaml.replace("aliases: [bad, not benign]}, [", "aliases: [benign]}, ").replace("79]]", "79]");
    for (text, label) in [
        ("a false-positive", Some("false-positive")),
        ("it is positive", Some("positive")),
        ("a true-positive", None),
        ("(CWE-79: cross-site scripting)", Some("CWE-79")),
        ("CWE-790", None),
    ] {
        assert_eq!(predicted(&yaml, text), json!(label), "{text}");
    }
}

#[test]
fn figures_are_scikit_learns() {
    let task = parse_yaml(&TYPE, TRIAGE).unwrap();
    let pairs = [
        ("malicious", "malicious"),
        ("malicious", "malicious"),
        ("malicious", "benign"),
        ("bad", "?"),
        ("benign", "benign"),
        ("benign", "T1059"),
    ];
    let outcome = |(target, answer): &(&str, &str)| {
        let row = document(json!({"q": "", "a": target}));
        task.score(&row, &[generated(answer)]).unwrap().scores
    };
    let scores: Vec<Scores> = pairs.iter().map(outcome).collect();
    let scores: Vec<&Scores> = scores.iter().collect();
    let metrics = task.aggregate(&scores);
    assert_eq!((metrics[0].name.as_str(), metrics[0].value), ("acc", 0.5));
    assert_eq!(metrics[0].valid, Some(Valid { value: Some(0.6), n: 5 }));
    // f1_score(y, p, labels=[malicious, benign], average="macro"): (2*2/(4+2) + 2*1/(2+2)) / 2
    assert_eq!((metrics[1].name.as_str(), metrics[1].value), ("macro_f1", (2.0 / 3.0 + 0.5) / 2.0));
    let (key, confusion) = task.explain(&scores).unwrap();
    assert_eq!(key, "confusion");
    assert_eq!(confusion["matrix"], json!([[2, 1, 0], [0, 1, 1], [0, 0, 0]]));
    assert_eq!(confusion["no_label"], json!([1, 0, 0]));
    assert_eq!(confusion["per_label"][0]["recall"], json!(0.5));
    // a document that could not be asked about is a miss of its label
    let failed = task.failed(&document(json!({"q": "", "a": "benign"}))).unwrap();
    assert_eq!(task.aggregate(&[scores[0], &failed])[0].value, 0.5);
}

#[test]
fn macro_f1_is_a_figure_of_sums_and_has_an_interval() {
    let task = parse_yaml(&TYPE, TRIAGE).unwrap();
    let labels = ["malicious", "benign", "T1059"];
    let outcome = |index: usize| {
        let (target, answer) =
            (labels[index % 2], if index.is_multiple_of(5) { "?" } else { labels[index % 7 % 3] });
        let row = document(json!({"q": "", "a": target}));
        task.score(&row, &[generated(answer)]).unwrap().scores
    };
    let scores: Vec<Scores> = (0..60).map(outcome).collect();
    let scores: Vec<&Scores> = scores.iter().collect();
    let value = |scores: &[&Scores]| task.aggregate(scores)[1].value;
    let Some(Addition::Sums { rows, figure }) = task.addition("macro_f1", &scores) else { panic!("no sums") };
    for range in [0..60, 0..1, 7..19] {
        let mut sums = vec![0.0; rows[0].len()];
        rows[range.clone()]
            .iter()
            .for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, part)| *sum += part));
        assert_eq!(figure(&sums), value(&scores[range]));
    }
    assert!(task.addition("acc", &scores).is_none(), "a mean has its own interval");
    let alone: Vec<usize> = (0..60).collect();
    let found = figure_interval(&Addition::Sums { rows, figure }, &alone, 0.95).unwrap();
    assert!(0.0 < found.lower && found.lower < value(&scores) && value(&scores) < found.upper, "{found:?}");
}

#[test]
fn the_likeliest_label_answers_where_nothing_is_written() {
    let yaml = "by: likelihood\nprompt: '{{ q }}'\nlabels: [yes, no]\ntarget: '{{ a }}'";
    let task = parse_yaml(&TYPE, &yaml.replace("[yes, no]", "['yes', 'no']")).unwrap();
    let row = document(json!({"q": "?", "a": "no"}));
    let asks = task.inquire(&row).unwrap().asks;
    assert_eq!(asks, [Ask::Likelihood("yes".into()), Ask::Likelihood("no".into())]);
    let response =
        |log_prob| Response::Loglikelihood(Loglikelihood { log_prob, is_greedy: false, n_tokens: 1 });
    let outcome = task.score(&row, &[response(-2.0), response(-1.0)]).unwrap();
    assert_eq!((outcome.prediction, outcome.scores["acc"]), (json!("no"), 1.0));
    assert_eq!(task.solution(&row).unwrap(), "no");
}

#[test]
fn targets_that_are_no_label_and_unfit_labels_are_refused() {
    let task = parse_yaml(&TYPE, TRIAGE).unwrap();
    let error = task.inquire(&document(json!({"q": "", "a": "benin"}))).unwrap_err();
    assert_eq!(error.to_string(), "the target `benin` is none of the 3 labels");
    assert_eq!(error.hint().unwrap(), "did you mean `benign`?");
    let yaml = "prompt: p\ntarget: t\nlabels: [a, {name: B, aliases: [A, '']}]\ntake: most\ngeneration: {max_tokens: 1}";
    assert_eq!(
        parse_yaml(&TYPE, yaml).unwrap_err(),
        "suite.yaml:3:13: two labels are spelled `a` (case does not count)\n\
         suite.yaml:3:13: a label or alias is empty\n\
         suite.yaml:4:7: unknown `take` `most`"
    );
}
