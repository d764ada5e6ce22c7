//! What holds in every family: gradients reach every parameter, and nothing but the documents counts.

use lctl::finetune::{Group, Optimizer, Update};
use lctl::kernel::ComputeMode;
use lctl::model::train::{
    Checkpointing, Document, Error, LowRankSpec, Method, Parameters, StepKey, TargetModules, Trainable,
};
use lctl::model::{Decoder, LoadOptions, Segment, Wanted};

use super::{golden_dir, key, names, open, trainable};

/// One model of each family, and of each way a family differs.
pub const FAMILIES: [&str; 12] = [
    "llama",
    "llama3-scaled-tied",
    "mistral-window",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "qwen3moe-plain-stacked",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
];

pub fn model(name: &str, threads: usize, method: &Method) -> Trainable {
    let path = golden_dir().join("decoder").join(name);
    Trainable::new(open(&path, ComputeMode::F32, threads), method).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Documents of several lengths, some of whose tokens are targets.
pub fn documents() -> Vec<(Vec<u32>, Vec<bool>)> {
    let document = |i: u32| {
        let n = [17, 5, 26, 9, 12, 1, 30, 7][i as usize];
        let tokens: Vec<u32> = (0..n).map(|t| 3 + (7 * t * t + 13 * i + t) % 61).collect();
        let flags = (0..n).map(|t| i.is_multiple_of(2) || t > 3).collect();
        (tokens, flags)
    };
    (0..8).map(document).collect()
}

pub fn borrowed(documents: &[(Vec<u32>, Vec<bool>)]) -> Vec<Document<'_>> {
    documents.iter().map(|(tokens, is_target)| Document { tokens, is_target }).collect()
}

/// Returns the gradients of one step, and its loss; `together` documents share a micro-batch.
pub fn gradients(model: &Trainable, params: &Parameters, together: usize) -> (Vec<f32>, f64) {
    let documents = documents();
    let documents = borrowed(&documents);
    let n_targets: usize = documents.iter().map(Document::n_targets).sum();
    let mut grads = vec![0.0; model.gradient_len()];
    let (mut nll, mut first, mut tokens) = (vec![], 0, 0);
    for documents in documents.chunks(together) {
        let scale = 1.0 / n_targets as f32;
        let sum = model.forward_backward(params, documents, scale, key(3, first), &mut grads).unwrap();
        nll.push(sum.nll);
        tokens += sum.tokens;
        first += documents.len();
    }
    assert_eq!(tokens, n_targets);
    model.finish_gradients(&mut grads);
    grads.truncate(model.n_parameters());
    (grads, nll.iter().sum::<f64>() / n_targets as f64)
}

pub fn low_rank() -> LowRankSpec {
    LowRankSpec { target_modules: TargetModules::AllLinear, ..LowRankSpec::new(3) }
}

/// Returns parameters none of which is as it began.
pub fn moved(model: &Trainable) -> Parameters {
    let mut params = model.initial_parameters(5);
    for (i, value) in params.iter_mut().enumerate() {
        *value += ((i * 48_271) % 1009) as f32 / 20_000.0 - 0.025;
    }
    params
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_parameter_gets_a_gradient() {
    for name in FAMILIES {
        let lora = Method::LowRank(low_rank());
        let dora = Method::LowRank(LowRankSpec {
            use_dora: true,
            modules_to_save: vec!["lm_head".to_owned(), "norm".to_owned(), "embed_tokens".to_owned()],
            ..low_rank()
        });
        for (method, what) in [(Method::Full, "full"), (lora, "lora"), (dora, "dora")] {
            let model = model(name, 1, &method);
            for step in 1..=2 {
                let params = if step == 1 { model.initial_parameters(1) } else { moved(&model) };
                let (grads, _) = gradients(&model, &params, 8);
                for info in model.parameters() {
                    let own = &grads[info.range.clone()];
                    assert!(own.iter().all(|g| g.is_finite()), "{name}, {what}: {}", info.name);
                    // B is zero at first, so nothing reaches A
                    let is_none = own.iter().all(|g| *g == 0.0);
                    let expected = step == 1 && info.name.ends_with("lora_A.weight");
                    assert_eq!(is_none, expected, "{name}, {what}, step {step}: {}", info.name);
                }
            }
        }
    }
}

#[test]
fn packing_accumulation_threads_and_recomputation_change_no_bit() {
    for name in FAMILIES {
        let spec = LowRankSpec { lora_dropout: 0.25, ..low_rank() };
        for method in [Method::LowRank(spec.clone()), Method::Full] {
            let one = model(name, 1, &method);
            let params = moved(&one);
            let (grads, loss) = gradients(&one, &params, 8);
            let expected = bits(&grads);
            for together in [1, 3] {
                let (grads, same) = gradients(&one, &params, together);
                assert!(bits(&grads) == expected, "{name}: {together} documents a micro-batch");
                assert!((same - loss).abs() < 1e-12, "{name}: sums of f64 in another order");
            }
            let again = one.with_checkpointing(Checkpointing::Blocks);
            assert!(bits(&gradients(&again, &params, 8).0) == expected, "{name}: computed anew");
            for threads in [2, 7] {
                let many = model(name, threads, &method);
                assert!(bits(&gradients(&many, &params, 4).0) == expected, "{name}: {threads} threads");
            }
        }
    }
}

#[test]
fn products_in_bf16_have_the_same_properties() {
    let path = golden_dir().join("decoder/llama");
    let of = |threads, checkpointing| {
        let model =
            trainable(&path, ComputeMode::Auto, threads, &low_rank()).with_checkpointing(checkpointing);
        let params = moved(&model);
        bits(&gradients(&model, &params, if threads == 2 { 3 } else { 8 }).0)
    };
    let expected = of(1, Checkpointing::None);
    assert!(expected == of(2, Checkpointing::None));
    assert!(expected == of(7, Checkpointing::Blocks));
    let exact = trainable(&path, ComputeMode::F32, 1, &low_rank());
    let exact = gradients(&exact, &moved(&exact), 8).0;
    let (mut off, mut size) = (0.0, 0.0);
    for (bits, exact) in expected.iter().zip(&exact) {
        off += f64::from(f32::from_bits(*bits) - exact).powi(2);
        size += f64::from(*exact).powi(2);
    }
    let off = (off / size).sqrt();
    println!("gradients of bf16 products are off by {off:.1e}");
    assert!(off > 0.0 && off < 0.03, "{off}");
}

/// The derivative of the loss along a direction, by differences of the loss itself.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let documents = documents();
    let documents = borrowed(&documents);
    let dora = LowRankSpec { use_dora: true, ..low_rank() };
    for name in FAMILIES {
        // DoRA's norms are constants of its gradient, so that slopes along A and B are others: magnitudes alone move
        for method in [Method::Full, Method::LowRank(low_rank()), Method::LowRank(dora.clone())] {
            let is_dora = matches!(&method, Method::LowRank(spec) if spec.use_dora);
            let model = model(name, 2, &method);
            let params = moved(&model);
            let (grads, loss) = gradients(&model, &params, 8);
            let moves = |i: usize| {
                let of = |info: &&lctl::model::train::ParameterInfo| info.range.contains(&i);
                !is_dora || model.parameters().iter().find(of).unwrap().name.ends_with("magnitude_vector")
            };
            let direction: Vec<f32> = (0..params.len())
                .map(|i| if moves(i) { [1.0, -1.0, 0.5][i * i % 7 % 3] } else { 0.0 })
                .collect();
            let n_targets: usize = documents.iter().map(Document::n_targets).sum();
            let at = |by: f32| {
                let moved: Vec<f32> = params.iter().zip(&direction).map(|(p, d)| p + by * d).collect();
                let params = Parameters::from(moved);
                model.loss(Some(&params), &documents).unwrap().nll / n_targets as f64
            };
            assert!((at(0.0) - loss).abs() < 1e-6, "{name}: the loss without gradients is the same");
            let h = 1e-4;
            let [below, here, above] = [-h, 0.0, h].map(at);
            // a token that changes its experts is a step of the loss: on one side at most
            let slopes = [(above - below) / 2.0, above - here, here - below].map(|rise| rise / f64::from(h));
            let found: f64 = grads.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let off = slopes.iter().fold(f64::INFINITY, |least, slope| least.min((found - slope).abs()));
            println!("{name}: {found:.6} {slopes:.6?}");
            // f32 sums, and the second derivative times h
            assert!(off < 0.03 * found.abs() + 4e-3, "{name}: {found} {slopes:?}");
        }
    }
}

#[test]
fn a_model_without_its_parameters_is_the_base() {
    let documents = documents();
    let documents = borrowed(&documents);
    let model = model("llama", 1, &Method::LowRank(low_rank()));
    let start = model.initial_parameters(1);
    let base = model.loss(None, &documents).unwrap();
    assert_eq!(model.loss(Some(&start), &documents).unwrap(), base, "B is zero");
    assert_ne!(model.loss(Some(&moved(&model)), &documents).unwrap(), base);
    assert!(model.initial_parameters(1) == start && model.initial_parameters(2) != start);
}

#[test]
fn dropout_depends_on_the_step_and_the_seed() {
    let spec = LowRankSpec { lora_dropout: 0.5, ..low_rank() };
    let model = model("llama", 1, &Method::LowRank(spec));
    let params = moved(&model);
    let documents = documents();
    let documents = borrowed(&documents);
    let of = |seed, step| {
        let step = StepKey { seed, step, first_document: 0 };
        let mut grads = vec![0.0; model.gradient_len()];
        model.forward_backward(&params, &documents, 1.0, step, &mut grads).unwrap();
        bits(&grads)
    };
    assert!(of(1, 1) == of(1, 1));
    assert!(of(1, 1) != of(1, 2) && of(1, 1) != of(2, 1));
}

#[test]
fn rows_without_a_target_change_no_bit_of_the_others() {
    let documents = documents();
    let all: Vec<Vec<bool>> = documents.iter().map(|(tokens, _)| vec![true; tokens.len()]).collect();
    let whole: Vec<Document> =
        documents.iter().zip(&all).map(|((tokens, _), is_target)| Document { tokens, is_target }).collect();
    for name in FAMILIES {
        let spec = LowRankSpec { lora_dropout: 0.25, ..low_rank() };
        for method in [Method::LowRank(spec.clone()), Method::Full] {
            let model = model(name, 2, &method);
            let params = moved(&model);
            // of every row that is computed, what it is when all are
            let some = model.log_probs(Some(&params), &borrowed(&documents)).unwrap();
            let every = model.log_probs(Some(&params), &whole).unwrap();
            for (((_, flags), some), every) in documents.iter().zip(&some).zip(&every) {
                let at = (1..flags.len()).filter(|i| flags[*i]).map(|i| every[i - 1]);
                assert!(at.eq(some.iter().copied()), "{name}");
            }
            // a row with a gradient of zero, and one that is not there
            let none: Vec<Vec<bool>> =
                documents.iter().map(|(tokens, _)| vec![false; tokens.len()]).collect();
            let half = |i: usize| if i.is_multiple_of(3) { &all[i] } else { &none[i] };
            let half: Vec<Document> =
                (0..whole.len()).map(|i| Document { tokens: whole[i].tokens, is_target: half(i) }).collect();
            let gradients = |documents: &[Document]| {
                let slopes = |each: &[Vec<f32>]| {
                    (0..each.len()).map(|i| if i.is_multiple_of(3) { 0.3 } else { 0.0 }).collect()
                };
                let mut grads = vec![0.0; model.gradient_len()];
                model.log_probs_backward(&params, documents, key(3, 0), slopes, &mut grads).unwrap();
                grads
            };
            // zeros have a sign here and there
            let (expected, found) = (gradients(&whole), gradients(&half));
            assert!(expected == found, "{name}");
            assert!(found.iter().any(|g| *g != 0.0));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    use lctl::error::Diagnostic;
    let path = golden_dir().join("decoder/llama");
    let refused = |spec: LowRankSpec| {
        let error = Trainable::new(open(&path, ComputeMode::F32, 1), &Method::LowRank(spec)).err().unwrap();
        (error.to_string(), error.hint().unwrap_or_default())
    };
    let with = |target_modules| LowRankSpec { target_modules, ..low_rank() };
    let (error, hint) = refused(with(names(&["q_proj", "q_prok"])));
    assert!(error.contains("`q_prok`") && hint.contains("`q_proj`"), "{error} {hint}");
    let (error, hint) = refused(with(names(&["embed_tokens"])));
    assert!(error.contains("no linear layer") && !hint.is_empty(), "{error} {hint}");
    let (error, _) = refused(with(TargetModules::Matching("nothing".to_owned())));
    assert!(error.contains("`nothing`"), "{error}");
    let (error, hint) = refused(with(names(&["lm_head"])));
    assert!(error.contains("lm_head") && hint.contains("modules_to_save"), "{error} {hint}");
    let save = |name: &str| LowRankSpec { modules_to_save: vec![name.to_owned()], ..low_rank() };
    let (error, _) = refused(save("score"));
    assert!(error.contains("`score`"), "{error}");
    let int8 = Trainable::new(open(&path, ComputeMode::Int8, 1), &Method::Full).err();
    assert!(matches!(int8, Some(Error::IntegerProducts)));

    let model = trainable(&path, ComputeMode::F32, 1, &low_rank());
    let params = model.initial_parameters(0);
    let loss =
        |tokens: &[u32], is_target: &[bool]| model.loss(Some(&params), &[Document { tokens, is_target }]);
    assert!(matches!(loss(&[3, 64], &[true; 2]), Err(Error::Model(_))));
    assert!(matches!(loss(&[3; 65], &[true; 65]), Err(Error::TooLong { length: 65, context: 64, .. })));
    assert!(matches!(loss(&[3, 4], &[true]), Err(Error::Flags { found: 1, expected: 2, .. })));
    assert_eq!(loss(&[3, 4], &[true, false]).unwrap().tokens, 0, "the first token is never a target");
}

/// Returns the log-probabilities that a decoder gives the targets of a document.
fn decoded(decoder: &Decoder, tokens: &[u32], is_target: &[bool]) -> Vec<f32> {
    let mut cache = decoder.new_cache(16 << 20);
    let sequence = cache.create();
    let hidden = decoder.forward(&mut cache, &[Segment { sequence, tokens, wanted: Wanted::All }]).unwrap();
    let targets: Vec<(usize, u32)> =
        (1..tokens.len()).filter(|i| is_target[*i]).map(|i| (i - 1, tokens[i])).collect();
    decoder.score(&hidden, &targets).unwrap().iter().map(|scored| scored.log_prob).collect()
}

#[test]
fn the_decoder_with_trained_values_computes_what_was_trained() {
    let documents = documents();
    let dora = LowRankSpec { use_dora: true, ..low_rank() };
    for name in FAMILIES {
        for method in [Method::Full, Method::LowRank(low_rank()), Method::LowRank(dora.clone())] {
            let model = model(name, 1, &method);
            let params = moved(&model);
            let trained = model.log_probs(Some(&params), &borrowed(&documents)).unwrap();
            let decoder = model.adapted(&params).unwrap();
            let mut off = 0.0f32;
            for ((tokens, is_target), trained) in documents.iter().zip(&trained) {
                let decoded = decoded(&decoder, tokens, is_target);
                assert_eq!(decoded.len(), trained.len());
                off = decoded.iter().zip(trained).fold(off, |off, (a, b)| off.max((a - b).abs()));
            }
            let is_merged = matches!(&method, Method::LowRank(spec) if spec.use_dora);
            // a merged matrix rounds once more
            assert!(off <= if is_merged { 1e-4 } else { 0.0 }, "{name}, {method:?}: {off}");
        }
    }
}

#[test]
fn a_model_that_has_learned_nothing_learns() {
    for name in ["llama", "qwen2", "qwen3moe", "gemma2", "phi3"] {
        let config = golden_dir().join("decoder").join(name).join("config.json");
        let options = LoadOptions::new(ComputeMode::F32, 2);
        let random = |seed| Trainable::random(&config, seed, &options).unwrap();
        let model = random(1);
        let mut params = model.initial_parameters(0);
        assert!(random(1).initial_parameters(0) == params && random(2).initial_parameters(0) != params);
        // the embedding comes first: 2048 numbers of a standard deviation of 0.02
        let spread = params[..2048].iter().map(|p| f64::from(p * p)).sum::<f64>() / 2048.0;
        assert!((spread.sqrt() / 0.02 - 1.0).abs() < 0.1, "{name}: {spread}");
        let optimizer = Optimizer::adamw();
        let mut state = optimizer.state(params.len());
        let groups = [Group { range: 0..params.len(), lr_factor: 1.0, weight_decay: 0.0 }];
        let mut losses = Vec::new();
        for _ in 0..30 {
            let (grads, loss) = gradients(&model, &params, 8);
            losses.push(loss);
            let update = Update { lr: 5e-3, gradient_factor: 1.0, groups: &groups };
            optimizer.step(model.decoder().compute(), &mut state, &mut params, &grads, &update);
        }
        println!("{name}: {:.3} to {:.3}", losses[0], losses[29]);
        assert!((losses[0] - 64f64.ln()).abs() < 0.2, "{name} begins at chance: {}", losses[0]);
        assert!(losses[29] < losses[0] - 1.0, "{name}: {}", losses[29]);
    }
}
