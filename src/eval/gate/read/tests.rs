use super::*;
use serde_json::json;

const SAMPLES: &str = r#"{"suite":"s","task":"t","document":0,"line":1,"item":"a","cluster":"x","truncated":false,"target":0,"prediction":1,"scores":{"acc":0.0}}
{"suite":"s","task":"t","document":1,"line":2,"item":"b","cluster":"x","truncated":false,"target":1,"prediction":1,"log_probs":[-1.0],"scores":{"acc":1.0}}
{"suite":"s","task":"t","document":2,"line":3,"item":"c","cluster":"y","truncated":false,"error":"too long","scores":{"acc":0.0}}
"#;

/// Returns a report over `samples`, indented as `lctl eval` writes it.
fn report(samples: &str, change: impl Fn(&mut Json)) -> String {
    let mut report = json!({
        "lctl_report": report::VERSION,
        "lctl": "0.1.0",
        "model": {"name": "m", "sha256": "00", "adapter": null, "tokenizer_sha256": "11", "chat_template": null},
        "settings": {"compute": "f32", "context": 512, "seed": 0, "limit": null, "few_shot": null, "chat_template": "auto"},
        "suites": [{"name": "s", "description": "", "sha256": "22", "tasks": [{
            "id": "t", "type": "multiple_choice", "description": "", "data": {"file": "rows.jsonl", "sha256": "33"},
            "few_shot": null, "chat": false, "documents": 3, "errors": 1, "truncated": 0,
            "gate": {"critical": true, "margin": 0.03, "zero_tolerance": false},
            "task_sha256": "44", "prompts_sha256": "55", "requests_sha256": "66",
            "samples_sha256": hex(&Sha256::digest(samples)),
            "metrics": [{"name": "acc", "value": 1.0 / 3.0, "stderr": null, "n": 3, "higher_is_better": true}],
            "first_prompt": null,
        }]}],
        "run": {},
    });
    change(&mut report);
    format!("{report:#}\n")
}

fn read(report: &str, samples: &str) -> Result<Run, String> {
    Run::read(Path::new("report.json"), report, Path::new("samples.jsonl"), samples)
        .map_err(|error| error.to_string())
}

#[test]
fn a_run_is_read_back() {
    let run = read(&report(SAMPLES, |_| ()), SAMPLES).unwrap();
    let task = &run.tasks[0];
    assert_eq!((task.name().as_str(), run.model.name.as_str(), task.samples.len()), ("s/t", "m", 3));
    assert_eq!(task.facts.gate, GateKeys { critical: true, margin: Some(0.03), zero_tolerance: false });
    let sample = &task.samples[1];
    assert_eq!((sample.line, sample.item.as_deref(), sample.scores["acc"]), (2, Some("b"), 1.0));
    assert_eq!((&sample.target, &task.samples[2].target), (&Some(json!(1)), &None));
}

#[test]
fn bad_reports_are_errors_with_their_line() {
    let task = |report: &mut Json, key: &str, value: Json| report["suites"][0]["tasks"][0][key] = value;
    type Case<'a> = (&'a dyn Fn(&mut Json), &'a str);
    let cases: [Case; 9] = [
        (&|r| r["lctl_report"] = json!(1), "2: a report of version 1; this program reads version 2"),
        (&|r| r["lctl_report"] = json!("2"), "2: a report of version \"2\"; this program reads version 2"),
        (
            &|r| drop(r.as_object_mut().unwrap().remove("lctl_report")),
            "1: no `lctl_report`: this is no report over suites",
        ),
        (&|r| r["suites"] = json!([]), "19: the report has no suites"),
        (&|r| r["suites"][0]["tasks"] = json!([]), "20: the suite `s` has no tasks"),
        (&|r| task(r, "documents", json!(0)), "25: the task `s/t` has no documents"),
        (&|r| task(r, "documents", json!("3")), "35: invalid type: string \"3\", expected usize"),
        (
            &|r| r["suites"][0]["tasks"][0]["metrics"][0]["value"] = Json::Null,
            "25: task `s/t`: the value of `acc` is not a number",
        ),
        (
            &|r| {
                let copy = r["suites"][0]["tasks"][0].clone();
                r["suites"][0]["tasks"].as_array_mut().unwrap().push(copy);
            },
            "58: two tasks are called `s/t`",
        ),
    ];
    for (change, expected) in cases {
        let text = report(SAMPLES, change);
        assert_eq!(read(&text, SAMPLES).unwrap_err(), format!("report.json:{expected}"));
    }
    let whole = report(SAMPLES, |_| ());
    let cut = &whole[..whole.find("\"errors\"").unwrap()];
    assert!(read(cut, SAMPLES).unwrap_err().starts_with("report.json:36: EOF while parsing"));
    let lacking = whole.replace("\"task_sha256\": \"44\",", "");
    assert!(read(&lacking, SAMPLES).unwrap_err().contains("missing field `task_sha256`"));
}

#[test]
fn bad_samples_are_errors_with_their_line() {
    let lines: Vec<&str> = SAMPLES.split_inclusive('\n').collect();
    let with = |number: usize, from: &str, to: &str| {
        assert!(lines[number - 1].contains(from));
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        lines[number - 1] = lines[number - 1].replace(from, to);
        lines.concat()
    };
    let cases = [
        (SAMPLES.trim_end().to_owned(), "3: the file breaks off in this line"),
        (lines[..2].concat(), "2: the file ends with 2 samples of `s/t`, but report.json says 3"),
        (String::new(), "1: the file ends with 0 samples of `s/t`, but report.json says 3"),
        (
            with(2, "\"document\":1", "\"document\":0"),
            "2: document 0 of `s/t` is there twice; the first is line 1",
        ),
        (
            with(3, "\"item\":\"c\"", "\"item\":\"a\""),
            "3: item `a` of `s/t` is there twice; the first is line 1",
        ),
        (with(2, "\"acc\":1.0", "\"acc\":null"), "2: the score `acc` of `s/t` is not a number"),
        (with(2, "\"acc\":1.0", "\"acc\":NaN"), "2: expected value"),
        (with(2, "\"task\":\"t\"", "\"task\":\"u\""), "2: report.json has no task `s/u`"),
        (with(2, "\"document\":1,", ""), "2: missing field `document`"),
        (with(3, "\"cluster\":\"y\",", ""), "1: 2 of the 3 samples of `s/t` have a cluster"),
        (with(2, "}\n", "\n"), "2: EOF while parsing an object"),
    ];
    for (samples, expected) in cases {
        // the digest fits: what is wrong must be found without it
        let found = read(&report(&samples, |_| ()), &samples).unwrap_err();
        assert_eq!(found, format!("samples.jsonl:{expected}"));
    }
    let edited = with(1, "\"acc\":0.0", "\"acc\":1.0");
    let found = read(&report(SAMPLES, |_| ()), &edited).unwrap_err();
    assert!(found.starts_with("samples.jsonl:1: SHA-256 of the lines of `s/t` is "), "{found}");
}

#[test]
fn figures_that_are_not_the_samples_are_errors() {
    let with = |change: &dyn Fn(&mut Json)| {
        let text = report(SAMPLES, |report| change(&mut report["suites"][0]["tasks"][0]));
        read(&text, SAMPLES).map(|_| ())
    };
    // the digest is right: what was edited is the report alone
    for (change, what) in [
        (
            &(|task: &mut Json| task["metrics"][0]["value"] = json!(0.9)) as &dyn Fn(&mut Json),
            "`acc` is 0.9, but its samples come to 0.3333333333333333",
        ),
        (&|task| task["metrics"][0]["n"] = json!(4), "`acc` is of 4 documents, but 3 samples have it"),
        (&|task| task["errors"] = json!(0), "0 documents could not be asked about, but 1 of its samples"),
    ] {
        assert_eq!(with(change).unwrap_err(), format!("report.json:46: task `s/t`: {what}"));
    }
    assert_eq!(with(&|task| task["metrics"][0]["value"] = json!(1.0 / 3.0 + 1e-13)), Ok(()));
    // a figure of other scores than its own, and one that nothing is known about
    let named = |name: &str| with(&|task: &mut Json| task["metrics"][0]["name"] = json!(name));
    assert_eq!(named("other"), Ok(()));
}

#[test]
fn figures_that_are_no_means_are_made_again() {
    let line = |document: usize, scores: &str| {
        format!(
            "{{\"suite\":\"s\",\"task\":\"t\",\"document\":{document},\"line\":1,\"target\":0,\"prediction\":1,\"scores\":{{{scores}}}}}\n"
        )
    };
    let said = |task_type: &str, metric: &str, value: f64, scores: [&str; 2]| {
        let samples = line(0, scores[0]) + &line(1, scores[1]);
        let text = report(&samples, |report| {
            let task = &mut report["suites"][0]["tasks"][0];
            task["type"] = task_type.into();
            (task["documents"], task["errors"]) = (2.into(), 0.into());
            task["metrics"][0] =
                json!({"name": metric, "value": value, "stderr": null, "n": 2, "higher_is_better": true});
        });
        read(&text, &samples).map(|_| ())
    };
    let labels = [r#""label.target":0,"label.prediction":2"#, r#""label.target":2,"label.prediction":2"#];
    let items = [r#""n.right":1,"n.answered":2,"n.target":1"#, r#""n.right":1,"n.answered":1,"n.target":2"#];
    let texts = [r#""log_prob":-2,"words":1,"bytes":4"#, r#""log_prob":-4,"words":2,"bytes":2"#];
    let bits = 1.0 / std::f64::consts::LN_2;
    for (task_type, metric, value, scores) in [
        ("classification", "macro_f1", 1.0 / 3.0, labels),
        ("extraction", "micro_f1", 2.0 / 3.0, items),
        ("perplexity", "bits_per_byte", bits, texts),
        ("perplexity", "word_perplexity", 2.0f64.exp(), texts),
    ] {
        assert_eq!(said(task_type, metric, value, scores), Ok(()), "{metric}");
        let edited = said(task_type, metric, value + 0.01, scores).unwrap_err();
        assert!(edited.contains(&format!("task `s/t`: `{metric}` is ")), "{edited}");
    }
}
