//! The decoder on a device, the stand-in or a GPU (`under_test`), beside the CPU, and beside itself.

use std::path::Path;

use lctl::cuda::host::Options;
use lctl::cuda::{CudaError, Device, under_test};
use lctl::error::Diagnostic;
use lctl::kernel::ComputeMode;
use lctl::model::device::{DeviceDecoder, Precision, TOGETHER, memory};
use lctl::model::{Decoder, Error, LoadOptions, Residence, Scored, Segment, Wanted};
use lctl::tensor::format::by_name;

use super::adapter::{ADAPTERS, adapter_dir, golden};
use super::{BUDGET, Golden, TOLERANCE, difference, golden_dir, models, options, write_gguf};

/// Opens a model as a device takes it: its weights stay mapped.
fn open(path: &Path, mode: ComputeMode) -> Decoder {
    let options = LoadOptions { residence: Residence::Mapped, ..options(mode, 2) };
    Decoder::open(path, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn all_logits(model: &DeviceDecoder<'_>, tokens: &[u32]) -> Vec<f32> {
    let mut cache = model.new_cache(BUDGET);
    let sequence = cache.create();
    let hidden = model.forward(&mut cache, &[Segment { sequence, tokens, wanted: Wanted::All }]).unwrap();
    model.logits(&hidden, 0..tokens.len()).unwrap()
}

/// Returns the logits of every token, of calls of that many tokens each.
fn logits_in_calls(model: &DeviceDecoder<'_>, tokens: &[u32], together: usize) -> Vec<f32> {
    let mut cache = model.new_cache(BUDGET);
    let sequence = cache.create();
    let mut all = Vec::new();
    for tokens in tokens.chunks(together) {
        let hidden = model.forward(&mut cache, &[Segment { sequence, tokens, wanted: Wanted::All }]).unwrap();
        all.extend(model.logits(&hidden, 0..tokens.len()).unwrap());
    }
    all
}

fn has_bits_of(found: &[f32], expected: &[f32]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Every family, and a token at a time: sliding windows, caps, norms of heads, biases, fused and stacked matrices, mixtures, all ropes.
#[test]
fn every_family_computes_on_a_device_what_transformers_computes() {
    let device = under_test::device();
    for name in models() {
        let golden = Golden::read(&name);
        let decoder = open(&golden_dir().join(&name), ComputeMode::F32);
        let model = DeviceDecoder::new(&decoder, &device).unwrap();
        assert_eq!(model.precision(), Precision::F32);
        let off = difference(&all_logits(&model, &golden.tokens), &golden.logits);
        let vocab_size = decoder.config().vocab_size;
        let mut cache = model.new_cache(BUDGET);
        let sequence = cache.create();
        let (prompt, rest) = golden.tokens.split_at(golden.n_prompt);
        let mut steps = Vec::new();
        for tokens in std::iter::once(prompt).chain(rest.chunks(1)) {
            let segment = Segment { sequence, tokens, wanted: Wanted::Last };
            let hidden = model.forward(&mut cache, &[segment]).unwrap();
            steps.extend(model.logits(&hidden, 0..1).unwrap());
        }
        assert_eq!(steps.len(), (rest.len() + 1) * vocab_size);
        let in_steps = difference(&steps, &golden.steps);
        println!("{name}: {off:.1e} at once, {in_steps:.1e} in steps");
        assert!(off <= TOLERANCE && in_steps <= TOLERANCE, "{name}: {off} {in_steps}");
    }
}

#[test]
fn bf16_on_a_device_is_within_its_rounding() {
    let device = under_test::device();
    for name in models() {
        let tokens = Golden::read(&name).tokens;
        let path = golden_dir().join(&name);
        let exact = super::all_logits(&super::open(&path), &tokens);
        let decoder = open(&path, ComputeMode::Bf16);
        let on_cpu = difference(&super::all_logits(&decoder, &tokens), &exact);
        let model = DeviceDecoder::new(&decoder, &device).unwrap();
        assert_eq!(model.precision(), Precision::Bf16);
        let off = difference(&all_logits(&model, &tokens), &exact);
        println!("{name}: {off:.1e}, the CPU's {on_cpu:.1e}");
        // the CPU rounds the operands of products alone; a token that goes to another expert is another token
        let most = if name.contains("moe") || name.contains("mixtral") { 25.0 } else { 5.0 };
        assert!(off > 0.0 && off < most * on_cpu && on_cpu < 0.1, "{name}: {off} {on_cpu}");
    }
}

#[test]
fn blocks_are_what_they_stand_for_on_a_device() {
    let device = under_test::device();
    let tmp = tempfile::tempdir().unwrap();
    let base = tmp.path().join("base");
    crate::finetune::write_base_of(&base, 256, 256);
    let tokens: Vec<u32> = (0..40).map(|t| 3 + (11 * t * t + 5 * t) % 200).collect();
    for format in ["Q8_0", "Q4_0", "Q4_K", "Q6_K"] {
        let path = tmp.path().join(format!("{format}.gguf"));
        write_gguf(&base, by_name(format).unwrap(), &path);
        let exact = super::all_logits(&super::open(&path), &tokens);
        // the CPU rounds the operands of products alone
        let in_bf16 = difference(&super::all_logits(&open(&path, ComputeMode::Bf16), &tokens), &exact);
        for (mode, allowed) in [(ComputeMode::F32, TOLERANCE), (ComputeMode::Auto, 5.0 * in_bf16)] {
            let decoder = open(&path, mode);
            let model = DeviceDecoder::new(&decoder, &device).unwrap();
            assert_eq!(model.precision() == Precision::F32, mode == ComputeMode::F32);
            let off = difference(&all_logits(&model, &tokens), &exact);
            println!("{format} {mode:?}: {off:.1e} of {allowed:.1e}");
            assert!(off <= allowed, "{format} {mode:?}: {off}");
        }
    }
}

#[test]
fn adapters_compute_on_a_device_what_peft_computes() {
    let device = under_test::device();
    for name in ADAPTERS {
        let (base, expected) = golden(name);
        let tokens = Golden::read(&base).tokens;
        let of = |mode| {
            let adapter = Some(adapter_dir().join(name));
            let options = LoadOptions { adapter, residence: Residence::Mapped, ..options(mode, 1) };
            Decoder::open(&golden_dir().join(&base), &options).unwrap()
        };
        let (exact, rounded) = (of(ComputeMode::F32), of(ComputeMode::Bf16));
        let off = difference(&all_logits(&DeviceDecoder::new(&exact, &device).unwrap(), &tokens), &expected);
        let model = DeviceDecoder::new(&rounded, &device).unwrap();
        let off_bf16 = difference(&all_logits(&model, &tokens), &expected);
        let on_cpu = difference(&super::all_logits(&rounded, &tokens), &expected);
        println!("{name}: {off:.1e}, in bf16 {off_bf16:.1e}, the CPU's {on_cpu:.1e}");
        // pairs are products of f32 on both
        assert!(off <= TOLERANCE && off_bf16 < 5.0 * on_cpu, "{name}: {off} {off_bf16} {on_cpu}");
    }
}

/// A token's logits have the same bits however its sequence is cut into calls, whatever else is computed, and in descending order of
/// threads.
#[test]
fn neither_calls_nor_neighbours_nor_forks_change_a_bit_on_a_device() {
    let device = under_test::device();
    let backwards = under_test::is_stand_in("threads in descending order")
        .then(|| Device::host(Options { descending: true, ..Options::default() }));
    for name in ["llama", "gemma2", "gemma3", "mistral-window", "qwen3moe", "phi3"] {
        for mode in [ComputeMode::F32, ComputeMode::Bf16] {
            let tokens = Golden::read(name).tokens;
            let decoder = open(&golden_dir().join(name), mode);
            let model = DeviceDecoder::new(&decoder, &device).unwrap();
            let vocab_size = decoder.config().vocab_size;
            let expected = all_logits(&model, &tokens);
            let at = |from: usize, to: usize| &expected[from * vocab_size..to * vocab_size];
            for together in [1, 7, 16] {
                assert!(
                    has_bits_of(&logits_in_calls(&model, &tokens, together), &expected),
                    "{name} {together}"
                );
            }
            if let Some(backwards) = &backwards {
                let again = DeviceDecoder::new(&decoder, backwards).unwrap();
                assert!(
                    has_bits_of(&all_logits(&again, &tokens), &expected),
                    "{name}: threads in descending order"
                );
            }

            // a fork inside a page goes on beside its parent and a stranger; only some outputs are wanted
            let mut cache = model.new_cache(BUDGET);
            let parent = cache.create();
            let segment = |sequence, tokens, wanted| Segment { sequence, tokens, wanted };
            model.forward(&mut cache, &[segment(parent, &tokens[..25], Wanted::None)]).unwrap();
            let child = cache.fork(parent, 21).unwrap();
            let whole = cache.fork(parent, 16).unwrap();
            let stranger = cache.create();
            let wanted = [0, 3];
            let hidden = model
                .forward(
                    &mut cache,
                    &[
                        segment(stranger, &tokens[3..20], Wanted::Last),
                        segment(child, &tokens[21..], Wanted::At(&wanted)),
                        segment(parent, &tokens[25..27], Wanted::All),
                        segment(whole, &tokens[16..], Wanted::Last),
                    ],
                )
                .unwrap();
            let found = model.logits(&hidden, 0..6).unwrap();
            let alone = all_logits(&model, &tokens[3..20]);
            let rows = [
                &alone[16 * vocab_size..],
                at(21, 22),
                at(24, 25),
                at(25, 27),
                at(tokens.len() - 1, tokens.len()),
            ];
            assert!(has_bits_of(&found, &rows.concat()), "{name} {mode:?}");

            // shortened inside a page that is shared, it goes on in one of its own
            cache.truncate(child, 18);
            let hidden = model.forward(&mut cache, &[segment(child, &tokens[18..], Wanted::All)]).unwrap();
            let found = model.logits(&hidden, 0..tokens.len() - 18).unwrap();
            assert!(has_bits_of(&found, at(18, tokens.len())), "{name}: shortened");
        }
    }
}

/// More rows than one product has: chunks, and a last one that is not full.
#[test]
fn a_row_has_the_same_bits_in_any_chunk() {
    let device = under_test::device();
    let decoder = open(&golden_dir().join("llama"), ComputeMode::F32);
    let decoder_context = decoder.context_length();
    let model = DeviceDecoder::new(&decoder, &device).unwrap();
    let tokens = Golden::read("llama").tokens;
    let n = (TOGETHER + 40).div_ceil(tokens.len());
    assert!(tokens.len() <= decoder_context);
    let expected = all_logits(&model, &tokens);
    let mut cache = model.new_cache(BUDGET);
    let segments: Vec<Segment<'_>> =
        (0..n).map(|_| Segment { sequence: cache.create(), tokens: &tokens, wanted: Wanted::All }).collect();
    let hidden = model.forward(&mut cache, &segments).unwrap();
    let found = model.logits(&hidden, 0..n * tokens.len()).unwrap();
    for (i, found) in found.chunks_exact(expected.len()).enumerate() {
        assert!(has_bits_of(found, &expected), "sequence {i} of {n}");
    }
}

#[test]
fn longrope_is_computed_anew_on_a_device_where_its_factors_change() {
    let device = under_test::device();
    let tokens = Golden::read("phi3-longrope").tokens;
    let decoder = open(&golden_dir().join("phi3-longrope"), ComputeMode::F32);
    let model = DeviceDecoder::new(&decoder, &device).unwrap();
    let vocab_size = decoder.config().vocab_size;
    let mut cache = model.new_cache(BUDGET);
    let (first, second) = (cache.create(), cache.create());
    let segment = |sequence, tokens, wanted| Segment { sequence, tokens, wanted };
    for sequence in [first, second] {
        model.forward(&mut cache, &[segment(sequence, &tokens[..10], Wanted::None)]).unwrap();
    }
    // one sequence outgrows the original context of 16 in this call, its neighbour does not
    let segments =
        [segment(first, &tokens[10..], Wanted::All), segment(second, &tokens[10..12], Wanted::Last)];
    let hidden = model.forward(&mut cache, &segments).unwrap();
    let found = model.logits(&hidden, 0..21).unwrap();
    assert!(has_bits_of(&found[..20 * vocab_size], &all_logits(&model, &tokens)[10 * vocab_size..]));
    assert!(has_bits_of(&found[20 * vocab_size..], &all_logits(&model, &tokens[..12])[11 * vocab_size..]));
    assert_eq!((cache.ledger().len(first), cache.ledger().len(second)), (30, 12));
}

#[test]
fn scores_on_a_device_are_the_cpu_s() {
    let device = under_test::device();
    for name in ["gemma2", "qwen2"] {
        let path = golden_dir().join(name);
        let tokens = Golden::read(name).tokens;
        let on_cpu = super::open(&path);
        let mut cache = on_cpu.new_cache(BUDGET);
        let segment = Segment { sequence: cache.create(), tokens: &tokens, wanted: Wanted::All };
        let hidden = on_cpu.forward(&mut cache, &[segment]).unwrap();
        let logits = super::logits(&on_cpu, &hidden);
        let vocab_size = on_cpu.config().vocab_size;
        // of every row the best, and two more tokens
        let mut targets = Vec::new();
        for (row, logits) in logits.chunks_exact(vocab_size).enumerate() {
            let best = (0..vocab_size).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            targets.extend([best, row, vocab_size - 1].map(|token| (row, token as u32)));
        }
        let expected = on_cpu.score(&hidden, &targets).unwrap();
        let decoder = open(&path, ComputeMode::F32);
        let model = DeviceDecoder::new(&decoder, &device).unwrap();
        let mut cache = model.new_cache(BUDGET);
        let segment = Segment { sequence: cache.create(), tokens: &tokens, wanted: Wanted::All };
        let hidden = model.forward(&mut cache, &[segment]).unwrap();
        let found = model.score(&hidden, &targets).unwrap();
        assert_eq!(found.len(), expected.len());
        for (Scored { log_prob, is_greedy }, expected) in found.iter().zip(&expected) {
            assert!((log_prob - expected.log_prob).abs() < 1e-4, "{name}: {log_prob} {}", expected.log_prob);
            assert_eq!(*is_greedy, expected.is_greedy, "{name}");
        }
        assert!(found.iter().filter(|scored| scored.is_greedy).count() >= tokens.len());
        let error = model.score(&hidden, &[(0, u32::MAX)]).unwrap_err();
        assert!(matches!(error, Error::TokenOutOfRange { token: u32::MAX, .. }), "{error}");
    }
}

#[test]
fn what_does_not_fit_on_a_device_leaves_the_cache_as_it_was() {
    let device = under_test::device();
    let tokens = Golden::read("llama").tokens;
    let decoder = open(&golden_dir().join("llama"), ComputeMode::F32);
    let model = DeviceDecoder::new(&decoder, &device).unwrap();
    // two pages
    let mut cache = model.new_cache(model.cache_bytes(32));
    let sequence = cache.create();
    let segment = |tokens| [Segment { sequence, tokens, wanted: Wanted::Last }];
    model.forward(&mut cache, &segment(&tokens[..20])).unwrap();
    let long: Vec<u32> = tokens.iter().copied().cycle().take(20).collect();
    let error = model.forward(&mut cache, &segment(&long)).err().unwrap();
    assert!(matches!(error, Error::Cache(_)), "{error}");
    assert_eq!(cache.ledger().len(sequence), 20);
    assert!(matches!(cache.fork(sequence, 20).and_then(|_| cache.fork(sequence, 19)), Err(Error::Cache(_))));
    let error = model.forward(&mut cache, &segment(&[u32::MAX])).err().unwrap();
    assert!(matches!(error, Error::TokenOutOfRange { .. }), "{error}");
    let hidden = model.forward(&mut cache, &segment(&tokens[20..25])).unwrap();
    let vocab_size = decoder.config().vocab_size;
    let expected = all_logits(&model, &tokens[..25]);
    assert!(has_bits_of(&model.logits(&hidden, 0..1).unwrap(), &expected[24 * vocab_size..]));
}

#[test]
fn a_device_that_cannot_take_a_model_says_so() {
    let decoder = open(&golden_dir().join("llama"), ComputeMode::F32);
    let small = Device::host(Options { memory_bytes: 40_000, ..Options::default() });
    let error = DeviceDecoder::new(&decoder, &small).err().unwrap();
    assert!(matches!(error, Error::Device(CudaError::OutOfMemory { total: 40_000, .. })), "{error}");
    // all buffers were given back
    assert_eq!(small.memory().unwrap().0, 40_000);

    let device = under_test::device();
    let integers = open(&golden_dir().join("llama"), ComputeMode::Int8);
    let error = DeviceDecoder::new(&integers, &device).err().unwrap();
    assert!(matches!(error, Error::NotOnDevice { .. }) && error.exit_code() == 2, "{error}");
    assert!(
        error.to_string().contains("--compute int8") && error.hint().unwrap().contains("bf16"),
        "{error}"
    );

    let lost = Device::host(Options { lost_after: Some(100), ..Options::default() });
    let model = DeviceDecoder::new(&decoder, &lost).unwrap();
    let mut cache = model.new_cache(BUDGET);
    let sequence = cache.create();
    let mut step = || model.forward(&mut cache, &[Segment { sequence, tokens: &[5], wanted: Wanted::Last }]);
    let error = (0..20).find_map(|_| step().err()).unwrap();
    assert!(matches!(error, Error::Device(CudaError::Lost { .. })), "{error}");
}

/// What is said before a model is loaded is no less than what it takes, and not many times more.
#[test]
fn memory_is_estimated() {
    let device = under_test::device();
    let tokens = Golden::read("llama").tokens;
    for name in ["llama", "qwen3moe"] {
        for mode in [ComputeMode::F32, ComputeMode::Bf16] {
            let decoder = open(&golden_dir().join(name), mode);
            device.reset_peak();
            assert_eq!(device.peak_bytes(), 0, "all buffers were given back");
            let model = DeviceDecoder::new(&decoder, &device).unwrap();
            let mut cache = model.new_cache(BUDGET);
            let sequence = cache.create();
            let segment = Segment { sequence, tokens: &tokens, wanted: Wanted::All };
            let hidden = model.forward(&mut cache, &[segment]).unwrap();
            let targets: Vec<(usize, u32)> = (0..tokens.len()).map(|row| (row, 1)).collect();
            model.score(&hidden, &targets).unwrap();
            let (said, took) = (memory(&decoder, tokens.len(), 256), device.peak_bytes());
            println!("{name} {mode:?}: {said} said, {took} taken");
            assert!(took <= said && said < 4 * took, "{name}: {said} said, {took} taken");
            drop((hidden, cache, model));
        }
    }
}
