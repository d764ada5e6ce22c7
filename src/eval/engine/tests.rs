use super::*;
use crate::eval::request::GenerateRequest;
use crate::eval::testing::{FakeModel, Numbers, PAGE_BYTES};
use crate::eval::{JournalKey, request};

const VOCAB: usize = 40;
const CONTEXT: usize = 30;

fn silent(_: &Progress) {}

fn loglikelihood(context: &[u32], continuation: &[u32]) -> Request {
    let (context, continuation) = (context.to_vec(), continuation.to_vec());
    Request::Loglikelihood(LoglikelihoodRequest { context, continuation })
}

fn options(batch_tokens: usize, pages: usize, prefix_cache: bool) -> EngineOptions {
    EngineOptions { batch_tokens, cache_bytes: pages * PAGE_BYTES, prefix_cache }
}

/// Requests that share beginnings at many depths, in no order, some of them twice, some too long.
fn random_requests(numbers: &mut Numbers) -> Vec<Request> {
    let mut prefixes: Vec<Vec<u32>> = vec![numbers.tokens(1, VOCAB)];
    for _ in 0..6 {
        let from = numbers.below(prefixes.len());
        let more = numbers.below(9);
        let mut prefix = prefixes[from].clone();
        prefix.extend(numbers.tokens(more, VOCAB));
        prefixes.push(prefix);
    }
    let n = 1 + numbers.below(25);
    let mut requests: Vec<Request> = Vec::new();
    for _ in 0..n {
        let context = prefixes[numbers.below(prefixes.len())].clone();
        let len = 1 + numbers.below(6);
        // few ids, so that answers begin alike
        let continuation = numbers.tokens(len, 3);
        requests.push(match numbers.below(8) {
            0 => {
                let len = numbers.below(3 * CONTEXT);
                Request::Rolling(RollingRequest { tokens: numbers.tokens(len, VOCAB), prefix: 1 })
            }
            1 if !requests.is_empty() => requests[numbers.below(requests.len())].clone(),
            _ => loglikelihood(&context, &continuation),
        });
    }
    requests
}

/// Scores tokens one at a time, as lm-eval defines it, without planner or cache.
fn plainly(model: &FakeModel, context: &[u32], continuation: &[u32]) -> Loglikelihood {
    let whole = [context, continuation].concat();
    let whole = &whole[whole.len().saturating_sub(model.context_length + 1)..];
    let mut response = Loglikelihood { log_prob: 0.0, is_greedy: true, n_tokens: continuation.len() };
    for at in whole.len() - continuation.len()..whole.len() {
        let scored = model.score_plainly(&whole[..at], whole[at]);
        response.log_prob += f64::from(scored.log_prob);
        response.is_greedy &= scored.is_greedy;
    }
    response
}

fn expected(model: &FakeModel, request: &Request) -> Response {
    match request {
        Request::Loglikelihood(request) => {
            Response::Loglikelihood(plainly(model, &request.context, &request.continuation))
        }
        Request::Rolling(RollingRequest { tokens, prefix }) => {
            let mut sum = Rolling { log_prob: 0.0, n_tokens: tokens.len() };
            let whole = [&[*prefix], tokens.as_slice()].concat();
            let mut predicted = 0;
            while predicted < tokens.len() {
                let end = tokens.len().min(predicted + model.context_length);
                let begin = (end + 1).saturating_sub(model.context_length + 1);
                let context = &whole[begin.max(usize::from(predicted > 0))..=predicted];
                sum.log_prob += plainly(model, context, &tokens[predicted..end]).log_prob;
                predicted = end;
            }
            Response::Rolling(sum)
        }
        Request::Generate(_) => unreachable!(),
    }
}

#[test]
fn any_plan_equals_one_token_at_a_time() {
    let mut numbers = Numbers(0);
    for _ in 0..300 {
        let model = FakeModel::new(VOCAB, CONTEXT);
        let requests = random_requests(&mut numbers);
        let expected: Vec<Response> = requests.iter().map(|request| expected(&model, request)).collect();
        // A path of CONTEXT tokens in nodes of any length takes at most a page per two of them.
        let pages = CONTEXT + numbers.below(60);
        let most = [3, 20, 200][numbers.below(3)];
        let batch_tokens = 1 + numbers.below(most);
        for prefix_cache in [true, false] {
            let engine = Engine::new(&model, options(batch_tokens, pages, prefix_cache));
            let before = model.n_forwarded.get();
            let outcome = engine.run(&requests, None, &mut silent).unwrap();
            assert_eq!(outcome.responses, expected);
            assert_eq!(model.n_forwarded.get() - before, outcome.usage.computed_tokens);
            assert!(outcome.usage.computed_tokens <= outcome.usage.plain_tokens);
            assert_eq!(model.n_live.get(), 0);
        }
        assert!(model.batches.borrow().iter().all(|n| (1..=batch_tokens).contains(n)));
    }
}

#[test]
fn the_least_cache_will_do_and_less_is_an_error() {
    let mut numbers = Numbers(7);
    for _ in 0..100 {
        let model = FakeModel::new(VOCAB, CONTEXT);
        let requests = random_requests(&mut numbers);
        let run = |pages| Engine::new(&model, options(16, pages, true)).run(&requests, None, &mut silent);
        let needed = match run(0) {
            Err(Error::CacheTooSmall { needed, budget: 0 }) => needed as usize / PAGE_BYTES,
            Ok(outcome) => return assert!(outcome.usage.computed_tokens == 0),
            Err(error) => panic!("{error}"),
        };
        assert!(matches!(run(needed - 1), Err(Error::CacheTooSmall { .. })));
        assert_eq!(run(needed).unwrap(), run(1000).unwrap());
    }
}

#[test]
fn letters_take_no_tokens_and_one_row() {
    let model = FakeModel::new(VOCAB, CONTEXT);
    let mut numbers = Numbers(1);
    let shots = numbers.tokens(12, VOCAB);
    let mut requests = Vec::new();
    for document in 0..5 {
        let question = [shots.as_slice(), &[document], &numbers.tokens(6, VOCAB)].concat();
        requests.extend((30..34).map(|letter| loglikelihood(&question, &[letter])));
    }
    let outcome = Engine::new(&model, options(100, 100, true)).run(&requests, None, &mut silent).unwrap();
    assert_eq!(outcome.usage.computed_tokens, 12 + 5 * 7);
    assert_eq!(outcome.usage.plain_tokens, 5 * 19);
    assert_eq!(model.n_rows.get(), 5);
}

#[test]
fn a_shared_question_and_a_shared_beginning_of_answers_are_computed_once() {
    let model = FakeModel::new(VOCAB, CONTEXT);
    let question = [1, 2, 3, 4, 5];
    let answers: [&[u32]; 4] = [&[6, 7, 8], &[6, 7, 9, 10], &[6], &[11, 12]];
    let requests: Vec<Request> = answers.iter().map(|answer| loglikelihood(&question, answer)).collect();
    let outcome = Engine::new(&model, options(100, 100, true)).run(&requests, None, &mut silent).unwrap();
    assert_eq!(outcome.usage.computed_tokens, 5 + 2 + 1 + 1); // question; 6 7; 9; 11
    assert_eq!(outcome.usage.plain_tokens, 7 + 8 + 5 + 6);
    assert_eq!(model.n_rows.get(), 5); // behind 5, 6, 7, 9, 11
}

#[test]
fn a_cut_run_resumes_with_the_same_responses() {
    let dir = tempfile::tempdir().unwrap();
    let key = JournalKey::new([("model", "fake".to_owned())]);
    let mut numbers = Numbers(3);
    for round in 0..20 {
        let path = dir.path().join(format!("{round}.jsonl"));
        let model = FakeModel::new(VOCAB, CONTEXT);
        let requests = random_requests(&mut numbers);
        let whole = Engine::new(&model, options(9, 60, true)).run(&requests, None, &mut silent).unwrap();
        let mut resumed = 0;
        for cut in [1, 2, 3, usize::MAX] {
            model.batches.borrow_mut().clear();
            model.fail_after.set(cut);
            let mut journal = Journal::resume(&path, &key).unwrap();
            let engine = Engine::new(&model, options(7 + cut % 5, 40, cut != 2));
            match engine.run(&requests, Some(&mut journal), &mut silent) {
                Ok(outcome) => {
                    assert_eq!(outcome.responses, whole.responses);
                    assert!(outcome.usage.resumed >= resumed);
                    resumed = outcome.usage.resumed;
                }
                Err(error) => assert!(matches!(error, Error::Model(_)) && cut != usize::MAX, "{error}"),
            }
        }
        // what is known is not computed again
        model.batches.borrow_mut().clear();
        let mut journal = Journal::resume(&path, &key).unwrap();
        let again = Engine::new(&model, options(7, 40, true)).run(&requests, Some(&mut journal), &mut silent);
        assert_eq!(again.unwrap().responses, whole.responses);
        assert!(model.batches.borrow().is_empty());
    }
}

#[test]
fn rolling_windows_are_lm_evals() {
    // (context, continuation) of make_disjoint_window over get_rolling_token_windows, lm-eval 0.4.13, for
    // list(range(n)), prefix_token 99, max_seq_len 4, context_len 1
    type Windows = &'static [(&'static [u32], &'static [u32])];
    let golden: [(usize, Windows); 4] = [
        (1, &[(&[99], &[0])]),
        (4, &[(&[99], &[0, 1, 2, 3])]),
        (6, &[(&[99], &[0, 1, 2, 3]), (&[1, 2, 3], &[4, 5])]),
        (9, &[(&[99], &[0, 1, 2, 3]), (&[3], &[4, 5, 6, 7]), (&[4, 5, 6, 7], &[8])]),
    ];
    for (n, windows) in golden {
        let request = RollingRequest { tokens: (0..n as u32).collect(), prefix: 99 };
        let found: Vec<(Vec<u32>, usize)> = rolling_windows(&request, 4)
            .iter()
            .map(|path| {
                let mut tokens = Vec::new();
                path.extend(0..path.len(), &mut tokens);
                (tokens, path.n_scored())
            })
            .collect();
        let expected: Vec<(Vec<u32>, usize)> =
            windows.iter().map(|(context, scored)| ([*context, *scored].concat(), scored.len())).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn bad_requests_are_named() {
    let model = FakeModel::new(VOCAB, CONTEXT);
    let engine = Engine::new(&model, EngineOptions::new(&model));
    let fine = loglikelihood(&[1], &[2]);
    let error = |bad: Request| engine.run(&[fine.clone(), bad], None, &mut silent).unwrap_err().to_string();
    assert_eq!(error(loglikelihood(&[], &[1])), "request 1: the context has no tokens");
    assert_eq!(error(loglikelihood(&[1], &[])), "request 1: the continuation has no tokens");
    assert_eq!(
        error(loglikelihood(&[1], &[2; CONTEXT + 1])),
        "request 1: the continuation has 31 tokens, the model's context has room for 30"
    );
    assert_eq!(
        error(loglikelihood(&[1], &[40])),
        "request 1: token 40 is outside the model's vocabulary of 40"
    );
    let generate = GenerateRequest {
        prompt: vec![1],
        max_tokens: 1,
        stop: Vec::new(),
        sampling: request::Sampling::GREEDY,
        seed: 0,
        index: 0,
    };
    assert_eq!(
        error(Request::Generate(generate)),
        "request 1 asks for generated text, and there is no tokenizer"
    );
    // the longest there is
    let longest = [loglikelihood(&[1], &[2; CONTEXT]), loglikelihood(&[1; 90], &[2; CONTEXT])];
    let outcome = engine.run(&longest, None, &mut silent).unwrap();
    assert_eq!((outcome.usage.truncated, &outcome.responses[0]), (1, &outcome.responses[1]));
}

#[test]
fn a_model_without_probabilities_is_an_error_not_a_figure() {
    let model = FakeModel { is_broken: true, ..FakeModel::new(VOCAB, CONTEXT) };
    let engine = Engine::new(&model, EngineOptions::new(&model));
    let rolling = Request::Rolling(RollingRequest { tokens: vec![4, 5], prefix: 1 });
    for (request, token) in [(loglikelihood(&[1], &[7]), 7), (rolling, 4)] {
        let error = engine.run(&[request], None, &mut silent).unwrap_err();
        assert!(matches!(error, Error::NoProbability { token: found } if found == token), "{error}");
    }
}

#[test]
fn progress_reaches_its_totals() {
    let model = FakeModel::new(VOCAB, CONTEXT);
    let requests = random_requests(&mut Numbers(11));
    let mut seen = Vec::new();
    let engine = Engine::new(&model, options(5, 60, true));
    let outcome = engine.run(&requests, None, &mut |progress| seen.push(*progress)).unwrap();
    let last = seen.last().unwrap();
    assert_eq!((last.tokens_done, last.tokens_total), (outcome.usage.computed_tokens, last.tokens_done));
    assert_eq!((last.responses_done, last.responses_total), (requests.len(), requests.len()));
    assert!(seen.is_sorted_by_key(|progress| progress.tokens_done));
}
