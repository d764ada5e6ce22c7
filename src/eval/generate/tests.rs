use std::ops::ControlFlow;

use super::*;
use crate::eval::request::Sampling;
use crate::eval::request::{LoglikelihoodRequest, Request, Response};
use crate::eval::testing::{FakeModel, Numbers, PAGE_BYTES};
use crate::eval::{Engine, EngineOptions, SequenceCache};
use crate::tensor::gguf::{Array, Metadata, Value};

const VOCAB: usize = 40;
const EOS: u32 = 2;

/// `<unk>`, `<s>`, `</s>`, then letters.
fn tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..VOCAB as u32 - 3).map(|i| char::from_u32('A' as u32 + i).unwrap().to_string()));
    let mut metadata = Metadata::new();
    let mut set = |key: &str, value: Value| metadata.insert(format!("tokenizer.ggml.{key}"), value);
    set("model", "llama".into());
    set("scores", Value::Array(Array::F32(vec![0.0; VOCAB])));
    let mut types = vec![1; VOCAB];
    types[..3].copy_from_slice(&[2, 3, 3]);
    set("token_type", Value::Array(Array::I32(types)));
    set("tokens", Value::Array(Array::String(tokens)));
    set("bos_token_id", Value::U32(1));
    set("eos_token_id", Value::U32(EOS));
    Tokenizer::from_gguf("test.gguf".as_ref(), &metadata).unwrap()
}

fn letters(tokens: &[u32]) -> String {
    tokens.iter().map(|token| char::from_u32('A' as u32 + token - 3).unwrap()).collect()
}

fn request(prompt: Vec<u32>, index: u64) -> GenerateRequest {
    let sampling = Sampling { temperature: 1.5, top_k: 30, top_p: 0.95, min_p: 0.01 };
    GenerateRequest { prompt, max_tokens: 12, stop: Vec::new(), sampling, seed: 5, index }
}

/// One token after another, without a cache, in the words of the documentation.
fn plainly(model: &FakeModel, request: &GenerateRequest) -> Generated {
    let mut prefix = request.prompt.clone();
    let mut tokens: Vec<u32> = Vec::new();
    let finish_reason = loop {
        if tokens.len() == request.max_tokens || prefix.len() > model.context_length {
            break FinishReason::Length;
        }
        let draw =
            Philox::new(request.seed, Purpose::Sampling).uniform_f64(tokens.len() as u32, request.index);
        let logits = model.logits_of(FakeModel::state_of(&prefix));
        let token = sample(&request.sampling, &logits, draw).unwrap();
        tokens.push(token);
        prefix.push(token);
        if token == EOS {
            break FinishReason::EndOfGeneration;
        }
        if request.stop.iter().any(|stop| letters(&tokens).contains(stop.as_str())) {
            break FinishReason::Stop;
        }
    };
    let written = if finish_reason == FinishReason::EndOfGeneration {
        &tokens[..tokens.len() - 1]
    } else {
        &tokens[..]
    };
    let mut text = letters(&written.iter().copied().filter(|token| *token >= 3).collect::<Vec<_>>());
    if finish_reason == FinishReason::Stop {
        text.truncate(request.stop.iter().filter_map(|stop| text.find(stop.as_str())).min().unwrap());
    }
    Generated { text, tokens, finish_reason }
}

/// Requests whose logits never favour `<unk>` and `<s>`, which have no letters.
fn requests(n: usize) -> Vec<GenerateRequest> {
    let mut numbers = Numbers(3);
    let mut requests = Vec::new();
    for index in 0..n {
        let len = 1 + numbers.below(30);
        let prompt = numbers.tokens(len, VOCAB);
        let mut request = request(prompt, index as u64);
        request.max_tokens = numbers.below(20);
        if index % 3 == 0 {
            request.stop = vec![letters(&[3 + numbers.below(30) as u32]), "XYZ".into()];
        }
        if index % 4 == 0 {
            request.sampling = Sampling::GREEDY;
        }
        requests.push(request);
    }
    requests
}

fn run(
    model: &FakeModel,
    requests: &[GenerateRequest],
    options: EngineOptions,
) -> Result<Vec<Generated>, Error> {
    let tokenizer = tokenizer();
    let indexed: Vec<_> = requests.iter().enumerate().collect();
    let mut responses = vec![None; requests.len()];
    let mut n_tokens = 0;
    generate(model, &tokenizer, &indexed, &options, &mut |index, generated, computed| {
        assert!(responses[index].replace(generated).is_none(), "answered once");
        n_tokens += computed;
        Ok(())
    })?;
    assert_eq!(n_tokens, model.n_forwarded.get(), "every token computed is reported");
    Ok(responses.into_iter().map(Option::unwrap).collect())
}

fn options(batch_tokens: usize, pages: usize) -> EngineOptions {
    EngineOptions { batch_tokens, cache_bytes: pages * PAGE_BYTES, prefix_cache: true }
}

#[test]
fn texts_do_not_depend_on_the_batch() {
    let requests = requests(40);
    let plain = FakeModel::new(VOCAB, 40);
    let expected: Vec<Generated> = requests.iter().map(|request| plainly(&plain, request)).collect();
    for reason in [FinishReason::EndOfGeneration, FinishReason::Stop, FinishReason::Length] {
        assert!(expected.iter().any(|generated| generated.finish_reason == reason), "{reason:?}");
    }
    for (batch_tokens, pages) in [(1, 20), (3, 20), (16, 33), (512, 1000)] {
        let model = FakeModel::new(VOCAB, 40);
        let got = run(&model, &requests, options(batch_tokens, pages)).unwrap();
        for ((got, expected), request) in got.iter().zip(&expected).zip(&requests) {
            assert_eq!(got, expected, "{request:?}");
        }
        assert!(model.batches.borrow().iter().all(|n| *n <= batch_tokens));
    }
}

#[test]
fn a_session_goes_on_where_prompts_are_the_same() {
    let model = FakeModel::new(VOCAB, 64);
    let tokenizer = tokenizer();
    let mut session = Session::new(&model, &tokenizer, 4).unwrap();
    let mut prompt = Numbers(1).tokens(10, VOCAB);
    let mut shown = String::new();
    let first = request(prompt.clone(), 0);
    let (generated, timings) = session
        .generate(&first, &mut |text| {
            shown.push_str(text);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((&generated, &shown), (&plainly(&model, &first), &generated.text));
    assert_eq!((timings.prompt_tokens, timings.reused_tokens), (10, 0));
    assert_eq!(timings.generated_tokens, generated.tokens.len());
    prompt.extend(&generated.tokens);
    prompt.extend([7, 8, 9]);
    let second = request(prompt.clone(), 0);
    let (generated, timings) = session.generate(&second, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(generated, plainly(&model, &second));
    // the last token written was never put in
    assert_eq!((timings.prompt_tokens, timings.reused_tokens), (4, prompt.len() - 4));
    // the same prompt again: its last token is computed anew
    let (again, timings) = session.generate(&second, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((again, timings.prompt_tokens), (generated, 1));
}

#[test]
fn a_listener_can_end_a_text() {
    let model = FakeModel::new(VOCAB, 64);
    let tokenizer = tokenizer();
    let mut session = Session::new(&model, &tokenizer, 4).unwrap();
    let mut request = request(vec![5, 6, 7, 8, 9, 10], 0);
    request.max_tokens = 30;
    request.sampling = Sampling::GREEDY;
    let whole = plainly(&model, &request);
    assert!(whole.tokens.len() > 3, "{whole:?}");
    let mut n_calls = 0;
    let (generated, _) = session
        .generate(&request, &mut |_| {
            n_calls += 1;
            // two calls for the prompt's batches, then one per token
            if n_calls == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(generated.tokens, whole.tokens[..2]);
    let before = model.n_forwarded.get();
    let (generated, _) = session.generate(&request, &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((generated.tokens.len(), model.n_forwarded.get()), (0, before), "ended before the prompt");
}

#[test]
fn bad_requests_are_errors() {
    let model = FakeModel::new(VOCAB, 16);
    let fails =
        |request: GenerateRequest, pages: usize| run(&model, &[request], options(8, pages)).unwrap_err();
    assert!(matches!(fails(request(vec![], 0), 99), Error::Empty { part: "prompt", .. }));
    assert!(matches!(fails(request(vec![3; 17], 0), 99), Error::TooLong { found: 17, max: 16, .. }));
    assert!(matches!(fails(request(vec![40], 0), 99), Error::TokenOutOfRange { token: 40, .. }));
    let error = fails(request(vec![3; 9], 0), 3);
    assert!(matches!(error, Error::CacheTooSmall { needed: 400, budget: 300 }), "{error:?}");
    assert_eq!(<FakeModel as LanguageModel>::Cache::PAGE, 4);
    // the context's last position still gives a token
    let full = request(vec![3; 16], 0);
    assert_eq!(run(&FakeModel::new(VOCAB, 16), &[full], options(8, 99)).unwrap()[0].tokens.len(), 1);
}

#[test]
fn the_engine_answers_texts_among_other_requests() {
    let tokenizer = tokenizer();
    let model = FakeModel::new(VOCAB, 40);
    let texts = requests(9);
    let mut mixed: Vec<Request> = texts.iter().cloned().map(Request::Generate).collect();
    let likely = LoglikelihoodRequest { context: vec![3, 4], continuation: vec![5] };
    mixed.insert(4, Request::Loglikelihood(likely));
    let mut last = None;
    let engine = Engine::new(&model, options(16, 60)).with_tokenizer(&tokenizer);
    let outcome = engine.run(&mixed, None, &mut |progress| last = Some(*progress)).unwrap();
    let mut generated = Vec::new();
    for (index, response) in outcome.responses.into_iter().enumerate() {
        match response {
            Response::Generated(text) => generated.push(text),
            Response::Loglikelihood(_) => assert_eq!(index, 4),
            Response::Rolling(_) => unreachable!(),
        }
    }
    let expected: Vec<Generated> = texts.iter().map(|request| plainly(&model, request)).collect();
    assert_eq!(generated, expected);
    let last = last.unwrap();
    assert_eq!((last.responses_done, last.responses_total), (10, 10));
    assert_eq!(outcome.usage.computed_tokens, model.n_forwarded.get());
    assert!(last.tokens_done == outcome.usage.computed_tokens && last.tokens_done <= last.tokens_total);
}
