//! Every request, log-likelihood and figure of lm-eval 0.4.13 on sec-llama-21m (shared data golden/lm-eval).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lctl::eval::encode::Encoder;
use lctl::eval::request::{Loglikelihood, Request, Response, Rolling};
use lctl::eval::run::{ModelSide, Plan, RunOptions, TaskResult};
use lctl::eval::suite::Suite;
use lctl::text::Tokenizer;
use serde_json::Value as Json;

use crate::common::test_data;

/// One request of lm-eval.
struct Expected {
    context: Vec<u32>,
    continuation: Vec<u32>,
    log_prob: f64,
    is_greedy: bool,
}

fn suite() -> Suite {
    Suite::open(&crate::common::root().join("tests/suites/golden.yaml")).unwrap()
}

fn options(data: &Path, few_shot: usize) -> RunOptions {
    let file = |name: &str| data.join("golden/lm-eval").join(name);
    let files: [(&str, PathBuf); 3] =
        [("test", file("test.jsonl")), ("dev", file("dev.jsonl")), ("texts", file("ppl.jsonl"))];
    let data: HashMap<_, _> = files.into_iter().map(|(name, path)| (name.to_owned(), path)).collect();
    RunOptions { few_shot: Some(few_shot), data, ..RunOptions::default() }
}

/// Returns lm-eval's requests of one task, in order.
fn expected(data: &Path, task: &str, few_shot: usize) -> Vec<Expected> {
    let path = data.join(format!("golden/lm-eval/{task}_{few_shot}shot.jsonl"));
    let text = std::fs::read_to_string(path).unwrap();
    let ids = |value: &Json| value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let mut requests = Vec::new();
    for line in text.lines() {
        let line: Json = serde_json::from_str(line).unwrap();
        for request in line["requests"].as_array().unwrap() {
            requests.push(Expected {
                context: if task == "rolling" { Vec::new() } else { ids(&request["context_ids"]) },
                continuation: ids(&request[if task == "rolling" { "ids" } else { "continuation_ids" }]),
                log_prob: request["ll"].as_f64().unwrap(),
                is_greedy: request["is_greedy"].as_bool().unwrap_or(false),
            });
        }
    }
    requests
}

fn expected_of(data: &Path, few_shot: usize) -> Vec<Expected> {
    let mut all = expected(data, "letter", few_shot);
    all.extend(expected(data, "cloze", few_shot));
    all.extend(expected(data, "rolling", 0));
    all
}

fn with_plan(few_shot: usize, check: impl Fn(&Path, &Plan, &[Expected])) {
    let Some(data) = test_data() else { return };
    let tokenizer = Tokenizer::open(&data.join("models/sec-llama-21m")).unwrap();
    let suites = [suite()];
    let model = ModelSide { encoder: Encoder::new(&tokenizer), chat: None, context_length: 512 };
    let plan = Plan::new(&suites, &options(&data, few_shot), &model).unwrap();
    check(&data, &plan, &expected_of(&data, few_shot));
}

#[test]
fn token_ids_are_lm_evals() {
    for few_shot in [0, 5] {
        with_plan(few_shot, |_, plan, expected| {
            assert_eq!(plan.requests.len(), 80 * 4 * 2 + 20);
            assert_eq!(plan.requests.len(), expected.len());
            for (index, (request, expected)) in plan.requests.iter().zip(expected).enumerate() {
                match request {
                    Request::Loglikelihood(request) => {
                        assert_eq!(request.context, expected.context, "{few_shot} shots, request {index}");
                        assert_eq!(
                            request.continuation, expected.continuation,
                            "{few_shot} shots, request {index}"
                        );
                    }
                    Request::Rolling(request) => {
                        assert_eq!(request.tokens, expected.continuation, "request {index}")
                    }
                    Request::Generate(_) => panic!("request {index} generates"),
                }
            }
        });
    }
}

/// lm-eval's figures follow from its log-likelihoods, to the last bit where they are means.
#[test]
fn figures_are_lm_evals() {
    for few_shot in [0, 5] {
        with_plan(few_shot, |data, plan, expected| {
            let response = |(request, expected): (&Request, &Expected)| {
                let (log_prob, is_greedy) = (expected.log_prob, expected.is_greedy);
                let n_tokens = expected.continuation.len();
                match request {
                    Request::Rolling(_) => Response::Rolling(Rolling { log_prob, n_tokens }),
                    _ => Response::Loglikelihood(Loglikelihood { log_prob, is_greedy, n_tokens }),
                }
            };
            let responses: Vec<Response> = plan.requests.iter().zip(expected).map(response).collect();
            let results = plan.finish(&responses).unwrap();
            compare(data, few_shot, &results);
        });
    }
}

fn compare(data: &Path, few_shot: usize, results: &[TaskResult]) {
    let summary = std::fs::read_to_string(data.join("golden/lm-eval/summary.json")).unwrap();
    let summary: Json = serde_json::from_str(&summary).unwrap();
    for (task, result) in ["letter", "cloze", "rolling"].iter().zip(results) {
        let shots = if *task == "rolling" { 0 } else { few_shot };
        let expected = &summary["results"][format!("{task}/{shots}")];
        assert_eq!(result.metrics.len(), 3);
        for metric in &result.metrics {
            let value = expected[format!("{},none", metric.name)].as_f64().unwrap();
            match metric.stderr {
                Some(stderr) => {
                    assert_eq!(metric.value, value, "{task}/{shots} {}", metric.name);
                    let expected = expected[format!("{}_stderr,none", metric.name)].as_f64().unwrap();
                    assert_eq!(stderr, expected, "{task}/{shots} {}", metric.name);
                }
                // exp of a mean; our own exp may differ from the C library's in the last bit
                None => assert!((metric.value / value - 1.0).abs() < 1e-14, "{task} {}", metric.name),
            }
        }
    }
}
