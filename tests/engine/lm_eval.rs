//! Log-likelihoods of lm-eval 0.4.13 (hf backend, torch in f32) on sec-llama-21m: shared data golden/lm-eval.

use std::path::Path;

use lctl::eval::request::{LoglikelihoodRequest, Request, Response, RollingRequest};
use lctl::eval::{Engine, EngineOptions, Outcome};
use lctl::kernel::ComputeMode;
use lctl::model::{Decoder, LoadOptions};
use serde_json::Value as Json;

use crate::common::test_data;

/// The goldens were made with lm-eval's `max_length=512`.
const MAX_LENGTH: usize = 512;

/// Both sides round their sums of products in f32, in another order.
const TOLERANCE: f64 = 1e-4;

struct Golden {
    requests: Vec<Request>,
    log_probs: Vec<f64>,
    /// Absent for rolling requests.
    is_greedy: Vec<Option<bool>>,
}

fn ids(value: &Json) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn golden(data: &Path, name: &str) -> Golden {
    let text = std::fs::read_to_string(data.join("golden/lm-eval").join(name)).unwrap();
    let mut golden = Golden { requests: Vec::new(), log_probs: Vec::new(), is_greedy: Vec::new() };
    for line in text.lines() {
        let document: Json = serde_json::from_str(line).unwrap();
        for request in document["requests"].as_array().unwrap() {
            golden.requests.push(match request.get("ids") {
                // tokenizer_config.json adds a BOS, which is the prefix token, too
                Some(tokens) => Request::Rolling(RollingRequest { tokens: ids(tokens), prefix: 1 }),
                None => Request::Loglikelihood(LoglikelihoodRequest {
                    context: ids(&request["context_ids"]),
                    continuation: ids(&request["continuation_ids"]),
                }),
            });
            golden.log_probs.push(request["ll"].as_f64().unwrap());
            golden.is_greedy.push(request["is_greedy"].as_bool());
        }
    }
    golden
}

fn decoder(data: &Path) -> Decoder {
    let mut options = LoadOptions::new(ComputeMode::F32, 2);
    options.context = Some(MAX_LENGTH);
    Decoder::open(&data.join("models/sec-llama-21m"), &options).unwrap()
}

/// Returns the outcome and the greatest difference of a log-likelihood.
fn check(decoder: &Decoder, golden: &Golden) -> (Outcome, f64) {
    let engine = Engine::new(decoder, EngineOptions::new(decoder));
    let outcome = engine.run(&golden.requests, None, &mut |_| {}).unwrap();
    let mut worst = 0.0f64;
    for (i, response) in outcome.responses.iter().enumerate() {
        let (log_prob, is_greedy) = match response {
            Response::Loglikelihood(response) => (response.log_prob, Some(response.is_greedy)),
            Response::Rolling(response) => (response.log_prob, None),
            Response::Generated(_) => unreachable!(),
        };
        let difference = (log_prob - golden.log_probs[i]).abs();
        assert!(difference <= TOLERANCE, "request {i}: {log_prob}, lm-eval {}", golden.log_probs[i]);
        assert_eq!(is_greedy, golden.is_greedy[i], "request {i}");
        worst = worst.max(difference);
    }
    (outcome, worst)
}

fn run(name: &str, n_requests: usize) {
    let Some(data) = test_data() else { return };
    let golden = golden(&data, name);
    assert_eq!(golden.requests.len(), n_requests);
    let (outcome, worst) = check(&decoder(&data), &golden);
    let usage = outcome.usage;
    println!(
        "{name}: {n_requests} requests, greatest difference {worst:.1e}, {} tokens computed of {}, {} truncated",
        usage.computed_tokens, usage.plain_tokens, usage.truncated
    );
}

#[test]
fn letter_without_examples() {
    run("letter_0shot.jsonl", 320);
}

#[test]
fn letter_behind_five_examples() {
    run("letter_5shot.jsonl", 320);
}

#[test]
fn cloze_without_examples() {
    run("cloze_0shot.jsonl", 320);
}

#[test]
fn cloze_behind_five_examples() {
    run("cloze_5shot.jsonl", 320);
}

#[test]
fn rolling() {
    run("rolling_0shot.jsonl", 20);
}
