//! Evaluation: attention over pages, products of a fixed number of rows, scores, and a tiny model beside the CPU; timed on the shapes of
//! an 8B model.

use std::time::Instant;

use half::bf16;

use super::reference;
use super::report::Evaluation;
use super::run::{Against, Checker, allowed, download, noise, upload, widened};
use super::train::{LARGE, TINY, moved};
use crate::cuda::CudaError;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::attention::Family;
use crate::cuda::op::paged::{PageShape, PagedRows, PagedSpan, Pages};
use crate::cuda::op::score::score;
use crate::cuda::product::{Product, Sizes};
use crate::error::Failure;
use crate::eval::request::{LoglikelihoodRequest, Request};
use crate::eval::{Engine, EngineOptions, LanguageModel};
use crate::kernel::ComputeMode;
use crate::kernel::attention::{AttentionShape, DocumentRows, document_attention};
use crate::kernel::kv_cache::PAGE;
use crate::kernel::softmax::log_softmax_rows;
use crate::model::device::{DeviceDecoder, TOGETHER};
use crate::model::train::{BaseFormat, LowRankSpec};
use crate::model::{Decoder, Segment, Wanted};

pub fn run(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    for (shape, cu) in super::attention::cases(checker) {
        attention::<f32>(checker, shape, &cu, Family::Plain)?;
        attention::<bf16>(checker, shape, &cu, Family::Plain)?;
        if [64, 96, 128, 256].contains(&shape.head_dim) {
            attention::<bf16>(checker, shape, &cu, Family::Mma)?;
        }
    }
    for &(n, k) in checker.shapes(&[(7, 5), (300, 128), (64, 1000)], 1) {
        rows_apart::<f32>(checker, n, k)?;
        rows_apart::<bf16>(checker, n, k)?;
    }
    for &(n_classes, cap) in checker.shapes(&[(11, None), (4099, Some(30.0)), (128_256, None)], 2) {
        scores(checker, n_classes, cap)?;
    }
    Ok(())
}

/// Rows of products on the shapes of Llama 3.1 8B: cuBLAS chooses by them.
pub fn check_large(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    for (n, k) in [(4096, 4096), (1024, 4096), (14_336, 4096), (4096, 14_336), (32_000, 4096)] {
        rows_apart::<f32>(checker, n, k)?;
        rows_apart::<bf16>(checker, n, k)?;
    }
    Ok(())
}

/// Documents as sequences whose pages lie in another order, whole and in calls.
fn attention<T: Float>(
    checker: &mut Checker<'_>,
    shape: AttentionShape,
    cu: &[usize],
    family: Family,
) -> Result<(), CudaError> {
    const LAYER: usize = 1;
    let device = checker.device;
    let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = shape;
    let (n, q_len, kv_len) = (cu[cu.len() - 1], n_heads * head_dim, n_kv_heads * head_dim);
    let (q, k, v) =
        (noise::<T>(n * q_len, 1, 3.0), noise::<T>(n * kv_len, 2, 3.0), noise::<T>(n * kv_len, 3, 3.0));
    let (q_on, k_on, v_on) = (upload::<T>(device, &q)?, upload::<T>(device, &k)?, upload::<T>(device, &v)?);
    let pages_of = |ends: &[usize]| (ends[1] - ends[0]).div_ceil(PAGE);
    let n_pages = cu.windows(2).map(pages_of).sum::<usize>();
    let mut pages =
        Pages::new(PageShape { n_layers: 3, row_len: kv_len, value_bytes: size_of::<T>() }, n_pages);
    pages.grow(device, n_pages)?;
    let mut next = n_pages;
    let slots: Vec<Vec<usize>> = cu
        .windows(2)
        .map(|ends| {
            let own = (0..pages_of(ends)).map(|i| next - 1 - i).collect();
            next -= pages_of(ends);
            own
        })
        .collect();
    // every document in calls of that many positions
    let rows = |together: usize| {
        let mut spans = Vec::new();
        for (ends, slots) in cu.windows(2).zip(&slots) {
            for position in (0..ends[1] - ends[0]).step_by(together) {
                let n_rows = together.min(ends[1] - ends[0] - position);
                spans.push(PagedSpan { first_row: ends[0] + position, n_rows, position, slots });
            }
        }
        PagedRows::with_family(device, &pages, head_dim, &spans, family)
    };
    let whole = rows(n)?;
    whole.store(device, LAYER, &k_on, &v_on)?;
    let name = format!("paged attention {family:?} {}", T::NAME).to_lowercase();
    let text = format!("{shape:?} {cu:?}");
    let mut out = Buffer::<T>::zeros(device, n * q_len)?;
    let found = checker.twice(&name, &text, &mut || {
        whole.attention(device, LAYER, &shape, &q_on, &mut out)?;
        download(device, &out)
    })?;
    let dout = vec![0.0; n * q_len];
    let want = reference::attention(&shape, [&widened(&q), &widened(&k), &widened(&v), &dout], cu);
    checker.near(&name, &text, &found, &want.out, allowed::<T>(), Against::Value);
    let (mut cpu, mut lse) = (vec![0.0; n * q_len], vec![0.0; n * n_heads]);
    document_attention(
        &checker.compute,
        &shape,
        &DocumentRows { q: &q, k: &k, v: &v, cu },
        &mut cpu,
        &mut lse,
    );
    checker.near_cpu(&name, &text, &found, &cpu, allowed::<T>(), Against::Value);
    // single rows of what is short
    for together in [if n <= 100 { 1 } else { 40 }, 9] {
        let calls = rows(together)?;
        let mut out = Buffer::<T>::zeros(device, n * q_len)?;
        calls.attention(device, LAYER, &shape, &q_on, &mut out)?;
        let calls = download(device, &out)?;
        checker.same(&format!("{name} in calls"), "itself", &text, &calls, &found);
    }
    Ok(())
}

/// A row of a product of [`TOGETHER`] rows has the same bits wherever it stands and whatever else is there.
fn rows_apart<T: Float>(checker: &mut Checker<'_>, n: usize, k: usize) -> Result<(), CudaError> {
    let device = checker.device;
    let sizes = Sizes { m: TOGETHER, n, k };
    let weight = upload::<T>(device, &noise::<T>(n * k, 2, 1.0))?;
    let row = noise::<T>(k, 3, 1.0);
    let mut first: Option<Vec<f32>> = None;
    for at in [0, 1, 17, 64, 130, TOGETHER - 1] {
        // zeros around it once, as behind a last row, and other numbers
        for seed in [0, at as u64 + 5] {
            let mut x = if seed == 0 { vec![0.0; TOGETHER * k] } else { noise::<T>(TOGETHER * k, seed, 9.0) };
            x[at * k..(at + 1) * k].copy_from_slice(&row);
            let x = upload::<T>(device, &x)?;
            let mut y = Buffer::<T>::zeros(device, TOGETHER * n)?;
            device.product(Product::Forward, sizes, (&weight, &x), (1.0, 0.0), &mut y)?;
            let found = download(device, &y)?[at * n..(at + 1) * n].to_vec();
            let first = first.get_or_insert_with(|| found.clone());
            let (name, shape) = (format!("cublas row anywhere {}", T::NAME), format!("{n}x{k} row {at}"));
            checker.same(&name, "itself", &shape, &found, first);
        }
    }
    Ok(())
}

fn scores(checker: &mut Checker<'_>, n_classes: usize, cap: Option<f32>) -> Result<(), CudaError> {
    const ROWS: usize = 5;
    let device = checker.device;
    let mut logits = noise::<f32>(ROWS * n_classes, 4, 12.0);
    // the same largest value twice
    logits[n_classes + n_classes / 2] = 13.0;
    logits[2 * n_classes - 1] = 13.0;
    // rows are few, and classes below 2^32
    let targets: Vec<[u32; 2]> = (0..2 * ROWS)
        .map(|i| {
            [(i / 2) as u32, if i % 2 == 0 { (i * 7 % n_classes) as u32 } else { (n_classes - 1) as u32 }]
        })
        .collect();
    let on_device = upload::<f32>(device, &logits)?;
    let mut best = Vec::new();
    let (name, shape) = ("scores f32", format!("{ROWS}x{n_classes} cap {cap:?}"));
    let found = checker.twice(name, &shape, &mut || {
        let scores = score(device, &on_device, (ROWS, n_classes), &targets, cap)?;
        best = scores.best.read(device)?;
        scores.log_probs.read(device)
    })?;
    let wide = widened(&logits);
    let want: Vec<f64> = targets
        .iter()
        .map(|[row, token]| {
            let row = &wide[*row as usize * n_classes..][..n_classes];
            -reference::cross_entropy(row, *token as usize, cap.map(f64::from)).0
        })
        .collect();
    checker.near(name, &shape, &found, &want, 1e-5, Against::Value);
    let pieces = log_softmax_rows(&checker.compute, &logits, n_classes);
    let differ = pieces.iter().zip(&best).filter(|(pieces, best)| pieces.argmax != **best as usize).count();
    checker.note("largest logit", "cpu", &shape, differ as f64, 0.0);
    Ok(())
}

/// Returns the logits of every token, of calls of that many tokens.
fn logits(model: &DeviceDecoder<'_>, tokens: &[u32], together: usize) -> Result<Vec<f32>, Failure> {
    let mut cache = model.new_cache(model.cache_bytes(tokens.len()));
    let sequence = cache.create();
    let mut all = Vec::new();
    for tokens in tokens.chunks(together) {
        let hidden = model.forward(&mut cache, &[Segment { sequence, tokens, wanted: Wanted::All }])?;
        all.append(&mut model.logits(&hidden, 0..tokens.len())?);
    }
    Ok(all)
}

fn logits_of_cpu(model: &Decoder, tokens: &[u32]) -> Result<Vec<f32>, Failure> {
    let mut cache = model.new_cache(usize::MAX);
    let segment = Segment { sequence: cache.create(), tokens, wanted: Wanted::All };
    let hidden = LanguageModel::forward(model, &mut cache, &[segment])?;
    Ok(LanguageModel::logits(model, &hidden, 0..tokens.len())?)
}

/// Compares a tiny model with adapters with the CPU's in f32.
pub fn check(checker: &mut Checker<'_>) -> Result<(), Failure> {
    let tokens = TINY.tokens(1, 90).concat();
    for &(base, use_dora) in checker.shapes(&[(None, false), (Some(BaseFormat::Nf4), false), (None, true)], 1)
    {
        let spec = || LowRankSpec { use_dora, ..LowRankSpec::new(4) };
        let adapted = |mode| {
            let model = TINY.model(spec(), base, mode)?;
            let params = moved(&model);
            model.adapted(&params)
        };
        let exact = adapted(ComputeMode::F32)?;
        let want = logits_of_cpu(&exact, &tokens)?;
        let adapter = if use_dora { "dora" } else { "lora" };
        let shape = format!("{adapter} {}", base.map_or("dense".to_owned(), BaseFormat::name));
        for (mode, type_name, allowed) in [(ComputeMode::F32, "f32", 1e-4), (ComputeMode::Bf16, "bf16", 5e-2)]
        {
            let decoder = adapted(mode)?;
            let model = DeviceDecoder::new(&decoder, checker.device)?;
            let name = format!("logits {type_name}");
            let found = checker.twice(&name, &shape, &mut || logits(&model, &tokens, tokens.len()))?;
            checker.near_cpu(&name, &shape, &found, &want, allowed, Against::Largest);
            for together in [1, 40] {
                let calls = logits(&model, &tokens, together)?;
                checker.same(&format!("{name} in calls"), "itself", &shape, &calls, &found);
            }
        }
    }
    Ok(())
}

/// Times requests as MMLU asks them, and text, on the shapes of Llama 3.1 8B with random weights.
pub fn bench(checker: &mut Checker<'_>) -> Result<(), Failure> {
    for (what, base) in [("bf16", None), ("nf4", Some(BaseFormat::Nf4))] {
        let model = LARGE.model(LowRankSpec::new(1), base, ComputeMode::Bf16)?;
        match timed(checker, model.decoder(), what) {
            Ok(evaluations) => checker.evaluations.extend(evaluations),
            // a smaller device has no room for each
            Err(crate::model::Error::Device(error @ CudaError::OutOfMemory { .. })) => {
                crate::cli::term::say(&format!("evaluation, {what}: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A nineteenth of MMLU's 57 subjects and 14,042 questions.
const SUBJECTS: usize = 3;
const QUESTIONS: usize = 246;

/// Returns four answers of a token to each of some questions, in subjects whose questions share their examples; of about the lengths that
/// five examples (400, 600, 800 tokens) and a question (40 to 160) have in MMLU. benches/gpu_peers.py makes the same ones.
fn questions(n_subjects: usize, n_questions: usize) -> Vec<Request> {
    const LONGEST: (usize, usize) = (800, 160);
    let shots = LARGE.tokens(n_subjects, LONGEST.0);
    let questions = LARGE.tokens(n_subjects * n_questions, LONGEST.1);
    let mut requests = Vec::new();
    for (i, question) in questions.iter().enumerate() {
        let subject = i / n_questions;
        let mut context = shots[subject][..400 + subject % 3 * 200].to_vec();
        // so that no two begin alike
        context.push(i as u32 + 1);
        context.extend(&question[..40 + i * 37 % 121]);
        for answer in 32..36 {
            let (context, continuation) = (context.clone(), vec![answer]);
            requests.push(Request::Loglikelihood(LoglikelihoodRequest { context, continuation }));
        }
    }
    requests
}

fn timed(
    checker: &Checker<'_>,
    decoder: &Decoder,
    what: &str,
) -> Result<Vec<Evaluation>, crate::model::Error> {
    let device = checker.device;
    device.reset_peak();
    let begun = Instant::now();
    let model = DeviceDecoder::new(decoder, device)?;
    device.synchronize()?;
    let upload_seconds = begun.elapsed().as_secs_f64();
    let evaluation =
        |shape: String, [n_tokens, plain_tokens, requests]: [usize; 3], seconds: f64| Evaluation {
            what: what.to_owned(),
            shape,
            seconds,
            tokens_per_second: n_tokens as f64 / seconds,
            requests,
            requests_per_second: requests as f64 / seconds,
            plain_tokens,
            peak_bytes: device.peak_bytes(),
            upload_seconds,
        };
    let mut evaluations = Vec::new();
    let engine = Engine::new(&model, EngineOptions::new(&model));
    let run = |requests: &[Request]| match engine.run(requests, None, &mut |_| {}) {
        Ok(outcome) => Ok((outcome.usage.computed_tokens, outcome.usage.plain_tokens)),
        Err(crate::eval::Error::Model(error)) => Err(*error),
        // requests of our own, within context and vocabulary
        Err(error) => panic!("{error}"),
    };
    run(&questions(1, 4))?;
    let requests = questions(SUBJECTS, QUESTIONS);
    let begun = Instant::now();
    let (n_tokens, plain_tokens) = run(&requests)?;
    let seconds = begun.elapsed().as_secs_f64();
    let n = requests.len() / 4;
    let shape = format!("8B, {n} questions of MMLU's shape");
    evaluations.push(evaluation(shape, [n_tokens, plain_tokens, n], seconds));
    for n_sequences in [1, 64] {
        const STEPS: usize = 16;
        let prompts = LARGE.tokens(n_sequences, 256);
        let mut cache = model.new_cache(usize::MAX);
        let sequences: Vec<_> = prompts.iter().map(|_| cache.create()).collect();
        for (sequence, tokens) in sequences.iter().zip(&prompts) {
            let segment = Segment { sequence: *sequence, tokens, wanted: Wanted::None };
            model.forward(&mut cache, &[segment])?;
        }
        let mut begun = Instant::now();
        // the first step warms up
        for step in 0..=STEPS {
            if step == 1 {
                begun = Instant::now();
            }
            let segment = |sequence| Segment { sequence, tokens: &[7], wanted: Wanted::Last };
            let segments: Vec<_> = sequences.iter().copied().map(segment).collect();
            let hidden = model.forward(&mut cache, &segments)?;
            model.logits(&hidden, 0..n_sequences)?;
        }
        let shape = format!("8B, {n_sequences} texts, a token each");
        evaluations.push(evaluation(shape, [STEPS * n_sequences; 3], begun.elapsed().as_secs_f64()));
    }
    Ok(evaluations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::FakeModel;

    #[test]
    fn questions_are_those_that_peers_are_asked() {
        let requests = questions(SUBJECTS, QUESTIONS);
        let of = |request: &Request| match request {
            Request::Loglikelihood(request) => request.clone(),
            other => panic!("{other:?}"),
        };
        let contexts: Vec<Vec<u32>> = requests.iter().step_by(4).map(|request| of(request).context).collect();
        assert_eq!(contexts.len(), 738);
        let n_tokens: usize = contexts.iter().map(Vec::len).sum();
        let sum: u64 = contexts.iter().flatten().map(|token| u64::from(*token)).sum();
        // `QUESTION_TOKENS` and `QUESTION_SUM` of benches/gpu_peers.py
        assert_eq!((n_tokens, sum), (517_245, 30_945_237_765));
        let model = FakeModel::new(128_256, 1024);
        let engine = Engine::new(&model, EngineOptions::new(&model));
        let usage = engine.run(&requests, None, &mut |_| {}).unwrap().usage;
        let examples = 400 + 600 + 800;
        assert_eq!(usage.plain_tokens, n_tokens);
        assert_eq!(usage.computed_tokens, n_tokens - (QUESTIONS - 1) * examples);
        let answers: Vec<Vec<u32>> = requests[..4].iter().map(|request| of(request).continuation).collect();
        assert_eq!(answers, [[32], [33], [34], [35]]);
    }
}
