//! Responses are the same to the bit whatever the batch, the prefix cache, the threads and the instruction set.

use lctl::eval::request::{LoglikelihoodRequest, Request, Response, RollingRequest};
use lctl::eval::{Engine, EngineOptions, Journal, JournalKey};
use lctl::kernel::{ComputeMode, Isa};
use lctl::model::{Decoder, LoadOptions};

use crate::common::test_data;

/// Token ids that are the same in every run, below the vocabulary of stories260K.
fn tokens(state: &mut u32, n: usize) -> Vec<u32> {
    let mut next = || {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        3 + (*state >> 16) % 500
    };
    (0..n).map(|_| next()).collect()
}

/// Documents behind shared examples, each with answers that begin alike; a long text.
fn requests() -> Vec<Request> {
    let mut state = 1;
    let shots = tokens(&mut state, 75);
    let mut requests = Vec::new();
    for document in 0..4 {
        let question = tokens(&mut state, 11 + document);
        let context = [&[1], shots.as_slice(), &question].concat();
        let first = tokens(&mut state, 2);
        for _ in 0..3 {
            let rest = tokens(&mut state, 3);
            let continuation = [first.as_slice(), &rest].concat();
            requests.push(Request::Loglikelihood(LoglikelihoodRequest {
                context: context.clone(),
                continuation,
            }));
        }
        let letter = LoglikelihoodRequest { context, continuation: tokens(&mut state, 1) };
        requests.push(Request::Loglikelihood(letter));
    }
    requests.push(Request::Rolling(RollingRequest { tokens: tokens(&mut state, 300), prefix: 1 }));
    requests
}

fn decoder(data: &std::path::Path, isa: Isa, threads: usize) -> Decoder {
    let options = LoadOptions { isa, threads, context: Some(128), ..LoadOptions::new(ComputeMode::F32, 1) };
    Decoder::open(&data.join("models/stories260K-hf"), &options).unwrap()
}

fn respond(decoder: &Decoder, batch_tokens: usize, prefix_cache: bool) -> Vec<Response> {
    let options = EngineOptions { batch_tokens, prefix_cache, ..EngineOptions::new(decoder) };
    Engine::new(decoder, options).run(&requests(), None, &mut |_| {}).unwrap().responses
}

#[test]
fn no_setting_changes_a_bit() {
    let Some(data) = test_data() else { return };
    let expected = respond(&decoder(&data, Isa::Portable, 1), 1, false);
    let settings = [(1, true), (3, true), (64, false), (64, true), (1000, false), (1000, true)];
    for isa in Isa::ALL {
        if !Isa::available().any(|available| available == isa) {
            println!("skipped: this machine has no {}", isa.name());
            continue;
        }
        for threads in [1, 2, 7] {
            let decoder = decoder(&data, isa, threads);
            for (batch_tokens, prefix_cache) in settings {
                let found = respond(&decoder, batch_tokens, prefix_cache);
                assert_eq!(found, expected, "{isa:?}, {threads} threads, {batch_tokens}, {prefix_cache}");
            }
        }
    }
}

#[test]
fn a_small_cache_and_a_resumed_run_change_no_bit() {
    let Some(data) = test_data() else { return };
    let decoder = decoder(&data, Isa::detect(), 2);
    let expected = respond(&decoder, 256, true);
    let requests = requests();
    // the longest path and the copies of partial pages
    let least = EngineOptions { batch_tokens: 64, cache_bytes: 1, prefix_cache: true };
    let Err(lctl::eval::Error::CacheTooSmall { needed, .. }) =
        Engine::new(&decoder, least).run(&requests, None, &mut |_| {})
    else {
        panic!("one byte is no cache");
    };
    let small = EngineOptions { cache_bytes: needed as usize, ..least };
    assert_eq!(Engine::new(&decoder, small).run(&requests, None, &mut |_| {}).unwrap().responses, expected);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    let key = JournalKey::new([("model", "stories260K".to_owned())]);
    let engine = Engine::new(&decoder, EngineOptions::new(&decoder));
    for n in [0, 5, 6, requests.len()] {
        let mut journal = Journal::resume(&path, &key).unwrap();
        let outcome = engine.run(&requests[..n], Some(&mut journal), &mut |_| {}).unwrap();
        assert_eq!(outcome.responses, expected[..n]);
    }
    let lines = std::fs::read_to_string(&path).unwrap();
    assert_eq!(lines.lines().count(), 1 + requests.len());
}
