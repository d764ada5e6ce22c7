use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::eval::perplexity::perplexity;
use crate::eval::testing::{FakeModel, Numbers, PAGE_BYTES};
use crate::eval::{LogitsWriter, SavedLogits};

const VOCAB: usize = 30;

fn models() -> (FakeModel, FakeModel) {
    let mut other = FakeModel::new(VOCAB, 64);
    other.salt = 5;
    (FakeModel::new(VOCAB, 64), other)
}

fn text(chunk_len: usize, bos: Option<u32>) -> Chunks {
    Chunks::new(Numbers(2).tokens(301, VOCAB), chunk_len, bos, None).unwrap()
}

fn options(batch_tokens: usize, pages: usize) -> EngineOptions {
    EngineOptions { batch_tokens, cache_bytes: pages * PAGE_BYTES, prefix_cache: true }
}

fn run(
    model: &FakeModel,
    base: &mut dyn BaseLogits,
    options: &EngineOptions,
    text: &Chunks,
) -> (Divergence, Vec<DivergenceSoFar>) {
    let mut seen = Vec::new();
    let team = Team::new(2).unwrap();
    let mut on_chunk = |done: &ChunkDone<DivergenceSoFar>| seen.push(done.so_far);
    (divergence(model, base, options, text, &team, &mut on_chunk).unwrap(), seen)
}

fn live(
    model: &FakeModel,
    base: &FakeModel,
    options: &EngineOptions,
    text: &Chunks,
) -> (Divergence, Vec<DivergenceSoFar>) {
    run(model, &mut LiveBase::new(base, text, options).unwrap(), options, text)
}

/// The definition: probabilities by the C library, one token at a time.
fn plainly(model: &FakeModel, base: &FakeModel, text: &Chunks) -> Vec<Token> {
    let ln_p = |model: &FakeModel, prefix: &[u32]| {
        let logits: Vec<f64> =
            model.logits_of(FakeModel::state_of(prefix)).iter().map(|l| f64::from(*l)).collect();
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        logits.iter().map(|logit| logit - sum.ln()).collect::<Vec<f64>>()
    };
    let top = |ln_p: &[f64]| (0..ln_p.len()).rev().max_by(|a, b| ln_p[*a].total_cmp(&ln_p[*b])).unwrap();
    let mut tokens = Vec::new();
    for chunk in text.tokens().chunks_exact(text.chunk_len()) {
        let mut chunk = chunk.to_vec();
        chunk[0] = text.bos().unwrap_or(chunk[0]);
        for at in chunk.len() / 2 + 1..chunk.len() {
            let (q, p) = (ln_p(model, &chunk[..at]), ln_p(base, &chunk[..at]));
            let target = chunk[at] as usize;
            tokens.push(Token {
                nll: -q[target],
                nll_base: -p[target],
                kld: p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum(),
                delta_p: q[target].exp() - p[target].exp(),
                same_top: top(&q) == top(&p),
            });
        }
    }
    tokens
}

fn save(path: &std::path::Path, model: &FakeModel, text: &Chunks, what: &serde_json::Value) -> u64 {
    let mut writer = LogitsWriter::create(path, true, text, VOCAB, what).unwrap();
    perplexity(model, &options(9, 6), text, Some(&mut writer), &mut |_| {}).unwrap();
    writer.finish().unwrap().0
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{found} {expected}");
}

#[test]
fn statistics_are_those_of_the_definition() {
    let (model, base) = models();
    for (chunk_len, bos) in [(10, None), (31, Some(3))] {
        let text = text(chunk_len, bos);
        let expected = plainly(&model, &base, &text);
        let (found, seen) = live(&model, &base, &options(50, 100), &text);
        assert_eq!((found.n_tokens, seen.len()), (expected.len(), text.n_chunks()));
        let n = expected.len() as f64;
        let mean = |of: fn(&Token) -> f64| expected.iter().map(of).sum::<f64>() / n;
        // sample variance over n: the standard error of a mean, squared
        let error = |of: fn(&Token) -> f64| {
            let mean = mean(of);
            (expected.iter().map(|token| (of(token) - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
        };
        near(found.ppl.value, mean(|t| t.nll).exp());
        near(found.ppl.uncertainty, mean(|t| t.nll).exp() * error(|t| t.nll));
        near(found.ppl_base.value, mean(|t| t.nll_base).exp());
        near(found.ln_ppl_ratio.value, mean(|t| t.nll - t.nll_base));
        // with the covariance in, the error of the difference is that of the differences
        near(found.ln_ppl_ratio.uncertainty, error(|t| t.nll - t.nll_base));
        near(found.ppl_ratio.value, mean(|t| t.nll - t.nll_base).exp());
        near(found.ppl_difference.value, mean(|t| t.nll).exp() - mean(|t| t.nll_base).exp());
        near(found.kld.mean.value, mean(|t| t.kld));
        near(found.kld.mean.uncertainty, error(|t| t.kld));
        near(found.kld.max, expected.iter().map(|t| t.kld).fold(0.0, f64::max));
        near(found.delta_p.mean.value, mean(|t| t.delta_p));
        near(found.delta_p.min, expected.iter().map(|t| t.delta_p).fold(1.0, f64::min));
        near(found.delta_p_rms.value, mean(|t| t.delta_p * t.delta_p).sqrt());
        near(found.same_top.value, mean(|t| f64::from(u8::from(t.same_top))));
        let squares: f64 =
            expected.iter().map(|t| (t.nll - mean(|t| t.nll)) * (t.nll_base - mean(|t| t.nll_base))).sum();
        near(
            found.ln_ppl_correlation.unwrap(),
            squares / n / (n - 1.0) / error(|t| t.nll) / error(|t| t.nll_base),
        );
        let last = seen.last().unwrap();
        assert_eq!((last.ppl, last.kld, last.same_top), (found.ppl, found.kld.mean, found.same_top));
    }
}

#[test]
fn batches_do_not_change_a_bit() {
    let (model, base) = models();
    let text = text(21, Some(0));
    let whole = live(&model, &base, &options(1000, 1000), &text);
    for (batch_tokens, pages) in [(1, 5), (7, 5), (33, 9), (64, 1000)] {
        assert_eq!(live(&model, &base, &options(batch_tokens, pages), &text), whole);
    }
    assert_eq!((model.n_live.get(), base.n_live.get()), (0, 0));
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let (model, _) = models();
    let (found, _) = live(&model, &model, &options(50, 100), &text(20, None));
    assert_eq!((found.kld.max, found.kld.mean.value, found.delta_p.max), (0.0, 0.0, 0.0));
    assert_eq!((found.same_top.value, found.ppl_ratio.value), (1.0, 1.0));
    near(found.ln_ppl_correlation.unwrap(), 1.0);
}

#[test]
fn saved_logits_are_as_good_as_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.logits");
    let (model, base) = models();
    for bos in [None, Some(7)] {
        let text = text(16, bos);
        let expected = live(&model, &base, &options(50, 100), &text);
        let what = serde_json::json!({"model": "größe"});
        let size = save(&path, &base, &text, &what);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
        let mut saved = SavedLogits::open(&path).unwrap();
        assert_eq!((saved.text(), saved.description()), (&text, &what));
        assert_eq!(run(&model, &mut saved, &options(33, 12), &text), expected);
    }
    let again = LogitsWriter::create(&path, false, &text(16, None), VOCAB, &"".into());
    assert!(matches!(again, Err(Error::LogitsExist { .. })));
}

#[test]
fn damaged_files_of_logits_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.logits");
    let (model, _) = models();
    let text = Chunks::new(vec![1; 8], 4, None, None).unwrap();
    save(&path, &model, &text, &"m".into());
    let whole = std::fs::read(&path).unwrap();
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        SavedLogits::open(&path)
    };
    for len in 0..whole.len() {
        let refused = open(&whole[..len]);
        assert!(matches!(refused, Err(Error::NotLogits { .. } | Error::LogitsSize { .. })), "{len}");
    }
    assert!(matches!(open(&[&whole[..], &[0]].concat()), Err(Error::LogitsSize { .. })));
    // 64 + 7 bytes are the header: any other value in it is noticed, or is one of the description
    for at in 0..71 + 32 {
        for flip in [1, 0x80] {
            let mut damaged = whole.clone();
            damaged[at] ^= flip;
            let description = 68..71;
            assert!(open(&damaged).is_err() || description.contains(&at), "byte {at}");
        }
    }
    // what the logits and the description are is known when all of it is read
    for at in (68..71).chain(71 + 32..whole.len()) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        let Ok(mut saved) = open(&damaged) else { continue };
        let team = Team::new(1).unwrap();
        let found = divergence(&model, &mut saved, &options(50, 100), &text, &team, &mut |_| {});
        assert!(matches!(found, Err(Error::LogitsDamaged { .. })), "byte {at}: {found:?}");
    }
    let mut newer = whole.clone();
    newer[8] = 3;
    let error = open(&newer).unwrap_err().to_string();
    assert!(error.ends_with("saved logits of version 3, this program reads version 2"), "{error}");
}

#[test]
fn what_cannot_be_compared_is_an_error() {
    let (model, _) = models();
    let text = text(20, None);
    let small = FakeModel::new(VOCAB + 1, 64);
    let options = options(50, 100);
    let team = Team::new(1).unwrap();
    let mut base = LiveBase::new(&small, &text, &options).unwrap();
    let error = divergence(&model, &mut base, &options, &text, &team, &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "the models differ in vocabulary size: 30, the base model 31");
    assert_eq!(Token::new(&[0.0, f32::INFINITY], &[0.0, 0.0], 0), Err(f32::INFINITY));
    assert!(Token::new(&[0.0, 0.0], &[f32::NAN, 0.0], 0).is_err());
}

#[test]
fn percentiles_are_interpolated() {
    // numpy.percentile([4, 1, 3, 2], [25, 50, 75, 99.9]) = 1.75, 2.5, 3.25, 3.997
    let found = distribution(&Moments::default(), &mut [4.0, 1.0, 3.0, 2.0]);
    assert_eq!((found.p25, found.median, found.p75, found.min, found.max), (1.75, 2.5, 3.25, 1.0, 4.0));
    near(found.p99_9, 3.997);
}

#[test]
fn models_in_turns_diverge_as_side_by_side() {
    let (model, base) = models();
    for (chunk_len, bos) in [(16, None), (20, Some(3))] {
        let text = text(chunk_len, bos);
        let (expected, seen) = live(&model, &base, &options(7, 100), &text);
        let a_chunk = (text.n_scored() * VOCAB * 4) as u64;
        // one chunk at a time, some, a part of one more, all
        for kept_bytes in [0, a_chunk, 4 * a_chunk + 1, u64::MAX] {
            // what is open has it
            let (is_open, n_turns) = (Rc::new(Cell::new(0)), Cell::new(0));
            let open = |salt| {
                assert_eq!(Rc::strong_count(&is_open), 1, "two models at a time");
                let n_live = is_open.clone();
                Ok::<_, Error>(FakeModel { salt, n_live, ..FakeModel::new(VOCAB, 64) })
            };
            let of_base = || {
                n_turns.set(n_turns.get() + 1);
                open(base.salt)
            };
            let models = InTurns {
                model: &|| open(model.salt),
                base: &of_base,
                options: &|_: &FakeModel| options(7, 100),
                kept_bytes,
            };
            let team = Team::new(2).unwrap();
            let mut in_turns = Vec::new();
            let mut on_chunk = |done: &ChunkDone<DivergenceSoFar>| in_turns.push(done.so_far);
            let found = divergence_in_turns(&models, &text, &team, &mut on_chunk).unwrap();
            assert_eq!((&found, &in_turns), (&expected, &seen), "{kept_bytes}");
            let at_once = usize::try_from(kept_bytes / a_chunk).unwrap().clamp(1, text.n_chunks());
            assert_eq!(n_turns.get(), text.n_chunks().div_ceil(at_once));
        }
    }
}
