//! `lctl imatrix --device host`: the stand-in for a GPU beside the CPU.

use std::path::Path;

use serde_json::Value as Json;

use lctl::cuda::Device;
use lctl::cuda::host::Options;
use lctl::eval::EngineOptions;
use lctl::eval::collect::{Extent, Observable, collect};
use lctl::kernel::ComputeMode;
use lctl::model::device::DeviceDecoder;
use lctl::model::observe::{SiteSums, sites};
use lctl::model::{Decoder, LoadOptions, Residence};
use lctl::tensor::gguf::{Array, Gguf, Value};

use super::errors::{late_token, poison};
use super::{bytes, golden_dir, succeed, tensors, workplace};
use crate::common::{names_in, run_lctl};
use crate::decoder::models;

fn open(model: &str, mode: ComputeMode) -> Decoder {
    let path = golden_dir().join("decoder").join(model);
    let options = LoadOptions { residence: Residence::Mapped, ..LoadOptions::new(mode, 2) };
    Decoder::open(&path, &options).unwrap_or_else(|error| panic!("{model}: {error}"))
}

/// Returns the sums over three chunks of that many tokens and a rest, in batches of so many.
fn summed<M: Observable>(
    model: &M,
    decoder: &Decoder,
    chunk_len: usize,
    batch_tokens: usize,
) -> Vec<SiteSums> {
    let vocab_size = decoder.config().vocab_size;
    let tokens: Vec<u32> = (0..3 * chunk_len + 5).map(|i| (i * 31 % vocab_size) as u32).collect();
    let chunks = Extent { chunk_len, from_chunk: 0, limit: None }.cut(tokens, Some(1)).unwrap();
    let mut sums = model.new_sums(sites(decoder.config())).unwrap();
    let options = EngineOptions { batch_tokens, ..EngineOptions::new(model) };
    collect(model, &options, &chunks, &mut sums, &mut |_| {}).unwrap();
    model.read_sums(sums).unwrap()
}

fn on_device(decoder: &Decoder, chunk_len: usize, batch_tokens: usize) -> Vec<SiteSums> {
    let device = Device::host(Options::default());
    summed(&DeviceDecoder::new(decoder, &device).unwrap(), decoder, chunk_len, batch_tokens)
}

/// Returns the largest difference of two sums, of squares set against the largest of their tensor and part, of values against the most that
/// so many squares can have.
fn difference(found: &[SiteSums], expected: &[SiteSums]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let mut most = 0.0f64;
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.tensors, expected.tensors);
        let columns = expected.tensors.columns;
        for (part, rows) in expected.counts.iter().enumerate() {
            let of = |all: &[f64]| all[part * columns..(part + 1) * columns].to_vec();
            let largest = of(&expected.squares).into_iter().fold(0.0, f64::max);
            let of_values = (largest * *rows as f64).sqrt();
            let pairs = |found: &[f64], expected: &[f64], scale: f64| {
                let differences = of(found).into_iter().zip(of(expected)).map(|(a, b)| (a - b).abs());
                differences.fold(0.0, f64::max) / scale.max(f64::MIN_POSITIVE)
            };
            most = most.max(pairs(&found.squares, &expected.squares, largest));
            most = most.max(pairs(&found.values, &expected.values, of_values));
        }
    }
    most
}

fn counts(sums: &[SiteSums]) -> Vec<&[u64]> {
    sums.iter().map(|of_site| &of_site.counts[..]).collect()
}

/// Every family, in f32; tied and biased, windows, caps, fused matrices, all ropes, mixtures.
#[test]
fn every_family_is_measured_on_a_device_as_on_the_cpu() {
    let mut n_mixtures = 0;
    for model in models() {
        let decoder = open(&model, ComputeMode::F32);
        let (found, expected) = (on_device(&decoder, 20, 64), summed(&decoder, &decoder, 20, 64));
        assert_eq!(counts(&found), counts(&expected), "{model}");
        let off = difference(&found, &expected);
        println!("{model}: {off:.1e}");
        assert!(off <= 1e-5, "{model}: {off}");
        // rows that fill up the last product are none
        assert!(expected.iter().all(|of_site| of_site.counts.iter().sum::<u64>() % 60 == 0), "{model}");
        n_mixtures += usize::from(expected.iter().any(|of_site| of_site.counts.len() > 1));
    }
    assert!(n_mixtures >= 4, "{n_mixtures}");
}

#[test]
fn bf16_on_a_device_is_within_its_rounding() {
    for model in models() {
        let exact = open(&model, ComputeMode::F32);
        let exact = summed(&exact, &exact, 20, 64);
        let decoder = open(&model, ComputeMode::Bf16);
        let on_cpu = difference(&summed(&decoder, &decoder, 20, 64), &exact);
        let found = on_device(&decoder, 20, 64);
        let off = difference(&found, &exact);
        println!("{model}: {off:.1e}, the CPU's {on_cpu:.1e}");
        let rows = |sums: &[SiteSums]| -> Vec<u64> { sums.iter().map(|s| s.counts.iter().sum()).collect() };
        assert_eq!(rows(&found), rows(&exact), "{model}");
        // the CPU rounds the operands of products alone; a token that goes to another expert is another token
        let allowed = if counts(&exact).iter().any(|of_site| of_site.len() > 1) { 0.25 } else { 0.05 };
        assert!(off > 0.0 && off < allowed, "{model}: {off}");
    }
}

#[test]
fn neither_batches_nor_the_order_of_threads_change_a_bit_on_a_device() {
    let backwards = Device::host(Options { descending: true, ..Options::default() });
    // in the last one a sequence outgrows the original context of its rope within a chunk
    for (model, chunk_len) in
        [("llama", 20), ("mixtral", 20), ("qwen3moe", 20), ("gemma3", 20), ("phi3-longrope", 60)]
    {
        for mode in [ComputeMode::F32, ComputeMode::Bf16] {
            let decoder = open(model, mode);
            assert_eq!(decoder.starts_anew_within(chunk_len), model == "phi3-longrope", "{model}");
            let whole = on_device(&decoder, chunk_len, chunk_len);
            for batch_tokens in [1, 7, 2 * chunk_len, 1000] {
                let other = on_device(&decoder, chunk_len, batch_tokens);
                assert_eq!(other, whole, "{model} {mode:?} {batch_tokens}");
            }
            let again = DeviceDecoder::new(&decoder, &backwards).unwrap();
            assert_eq!(summed(&again, &decoder, chunk_len, 1000), whole, "{model} {mode:?}");
        }
    }
}

#[test]
fn a_file_of_a_device_has_the_cpu_s_entries_and_says_where_it_is_from() {
    for checkpoint in ["Mixtral-8x7B-Instruct-v0.1", "gemma-2-2b-it", "Phi-3-mini-4k-instruct"] {
        let dir = workplace(checkpoint);
        let dir = dir.path();
        let imatrix = "imatrix model text.txt --compute f32 --context 32 --chunks 4 --process-output --quiet";
        succeed(dir, &format!("{imatrix} -o cpu.gguf --device cpu"));
        let json: Json =
            serde_json::from_str(&succeed(dir, &format!("{imatrix} -o host.gguf --device host --json")))
                .unwrap();
        let on = serde_json::json!({"name": "the host's stand-in", "precision": "f32"});
        assert_eq!((&json["device"]["name"], &json["device"]["precision"]), (&on["name"], &on["precision"]));
        for ((name, shape, found), (expected_name, expected_shape, expected)) in
            tensors(&dir.join("host.gguf")).into_iter().zip(tensors(&dir.join("cpu.gguf")))
        {
            assert_eq!((&name, shape), (&expected_name, expected_shape), "{checkpoint}");
            if name.ends_with(".counts") {
                assert_eq!(found, expected, "{checkpoint} {name}");
            } else if name.ends_with(".in_sum2") {
                let largest = expected.iter().fold(0f32, |most, value| most.max(*value));
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * largest;
                assert!(found.iter().zip(&expected).all(near), "{checkpoint} {name}");
            }
        }
        let keys = |name: &str| Gguf::open(&dir.join(name)).unwrap().metadata().clone();
        let (mut of_host, of_cpu) = (keys("host.gguf"), keys("cpu.gguf"));
        let devices = Value::Array(Array::String(vec!["the host's stand-in, f32".to_owned()]));
        assert_eq!(of_host.shift_remove("lctl.imatrix.devices"), Some(devices.clone()));
        assert_eq!(of_host, of_cpu);
        let manifest = |name: &str| -> Json { serde_json::from_slice(&bytes(dir, name)).unwrap() };
        let (of_host, of_cpu) = (manifest("host.gguf.manifest.json"), manifest("cpu.gguf.manifest.json"));
        let settings = &of_host["job"]["settings"];
        assert_eq!(settings["device"], json["device"]);
        assert!(settings["device"]["driver"].is_string());
        assert!(of_cpu["job"]["settings"].get("device").is_none());

        // no CPU has its bits
        let (code, _, stderr) = run_lctl(dir, &["replay", "host.gguf.manifest.json", "--quiet"]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("was made on the host's stand-in"), "{stderr}");
        succeed(dir, "replay host.gguf.manifest.json --quiet --device host");
        // what is made of it says so, too, and is made without a device
        succeed(
            dir,
            "imatrix -o sum.gguf --in-file cpu.gguf --in-file host.gguf --in-file host.gguf --quiet",
        );
        assert_eq!(keys("sum.gguf").get("lctl.imatrix.devices"), Some(&devices));
        assert!(succeed(dir, "replay sum.gguf.manifest.json").ends_with("the bits agree\n"));
        succeed(dir, "quantize model -t Q4_0 -o q.gguf --imatrix host.gguf --quiet --no-manifest");
    }
    let dir = workplace("Qwen3-0.6B");
    let dir = dir.path();
    let said = succeed(dir, "imatrix model text.txt -o i.dat --context 32 --device host --json --quiet");
    assert_eq!(serde_json::from_str::<Json>(&said).unwrap()["device"]["precision"], "bf16");
}

/// Returns what a command says that must fail.
fn refused(dir: &Path, args: &str) -> String {
    let before = names_in(dir);
    let (code, _, stderr) = run_lctl(dir, &args.split(' ').collect::<Vec<_>>());
    assert_eq!(code, 2, "{args}: {stderr}");
    assert_eq!(names_in(dir), before, "{args}");
    stderr
}

/// The same words as of the CPU: chunk, tensor, sum and column.
#[test]
fn inputs_that_are_no_numbers_are_refused_on_a_device_as_on_the_cpu() {
    /// Stands for a token that the first chunks do not have.
    const LATE: usize = usize::MAX;
    for (checkpoint, tensor, row, value) in [
        ("Mistral-7B-v0.1", "blk.0.ffn_up.weight", 5, f32::NAN),
        ("Mistral-7B-v0.1", "blk.1.attn_norm.weight", 0, 3e37),
        ("Mistral-7B-v0.1", "output_norm.weight", 0, f32::INFINITY),
        ("Mistral-7B-v0.1", "token_embd.weight", LATE, f32::INFINITY),
        ("Mixtral-8x7B-Instruct-v0.1", "blk.0.ffn_up_exps.weight", 40, f32::NAN),
        ("Mixtral-8x7B-Instruct-v0.1", "blk.0.ffn_gate_inp.weight", 2, f32::NAN),
        ("Mixtral-8x7B-Instruct-v0.1", "blk.1.ffn_norm.weight", 0, 3e37),
    ] {
        let dir = workplace(checkpoint);
        let dir = dir.path();
        succeed(dir, "quantize model -t F32 -o model.gguf --quiet --no-manifest");
        let row = if row == LATE { late_token(dir).1 } else { row };
        poison(&dir.join("model.gguf"), tensor, row, value);
        for options in ["--context 32", "--context 64 --from-chunk 1"] {
            let args =
                format!("imatrix model.gguf text.txt -o i.gguf --quiet --process-output {options} --device");
            let expected = refused(dir, &format!("{args} cpu"));
            assert!(expected.contains("add up to"), "{tensor}: {expected}");
            assert_eq!(refused(dir, &format!("{args} host")), expected, "{tensor}");
        }
    }
}

#[test]
fn what_a_device_cannot_do_is_said() {
    let dir = workplace("Mistral-7B-v0.1");
    let dir = dir.path();
    let imatrix = "imatrix model text.txt -o i.gguf --context 32 --quiet --device";
    let lost = refused(dir, &format!("{imatrix} host:40"));
    assert!(lost.contains("the host's stand-in") || lost.contains("lost"), "{lost}");
    let int8 = refused(dir, &format!("{imatrix} host --compute int8"));
    assert!(int8.contains("--compute int8: not on a GPU yet"), "{int8}");
    succeed(dir, &format!("{imatrix} host"));
    let files = refused(dir, "imatrix -o j.gguf --in-file i.gguf --device host");
    assert!(files.contains("`lctl imatrix --in-file` cannot compute on host"), "{files}");
}
