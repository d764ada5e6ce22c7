//! The decoder against transformers, and against itself: goldens of tests/scripts/make_decoder_goldens.py.

mod adapter;
mod bits;
mod config;
#[cfg(feature = "cuda-host")]
mod device;
mod files;
pub mod merge;
mod merge_faults;

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use lctl::kernel::{ComputeMode, Isa};
use lctl::model::{Checkpoint, Decoder, LoadOptions, Segment, Wanted, map_checkpoint};
use lctl::tensor::format::by_name;
use lctl::tensor::gguf::{Array, GgufWriter, Value, WriteOptions};
use lctl::tensor::safetensors::SafeTensors;
use lctl::tensor::{Dtype, TensorDecl, TensorSource};

const BUDGET: usize = 64 << 20;

fn golden_dir() -> PathBuf {
    crate::common::root().join("tests/golden/decoder")
}

/// Returns the names of all models.
pub fn models() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(golden_dir())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 25, "{}", names.len());
    names
}

/// What transformers computed.
struct Golden {
    tokens: Vec<u32>,
    /// A row per token.
    logits: Vec<f32>,
    /// A row per token from the last of the prompt on, computed one by one.
    steps: Vec<f32>,
    n_prompt: usize,
    /// A GGUF holds all of the config.
    gguf: bool,
}

impl Golden {
    fn read(name: &str) -> Golden {
        let file = SafeTensors::open_file(&golden_dir().join(format!("{name}.safetensors"))).unwrap();
        let bytes = |name: &str| file.bytes(file.find(name).unwrap()).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            bytes(name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let tokens = bytes("tokens").chunks_exact(8);
        Golden {
            tokens: tokens.map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect(),
            logits: floats("logits"),
            steps: floats("steps"),
            n_prompt: file.metadata(0)["n_prompt"].parse().unwrap(),
            gguf: file.metadata(0)["gguf"] == "true",
        }
    }
}

fn options(mode: ComputeMode, threads: usize) -> LoadOptions {
    LoadOptions::new(mode, threads)
}

fn open(path: &Path) -> Decoder {
    Decoder::open(path, &options(ComputeMode::F32, 2)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn logits(model: &Decoder, hidden: &Tensor) -> Vec<f32> {
    let logits = model.logits(hidden).unwrap();
    lctl::nn::with_values(&logits, <[f32]>::to_vec).unwrap()
}

/// Returns the logits of every token, from one forward of a sequence of its own.
fn all_logits(model: &Decoder, tokens: &[u32]) -> Vec<f32> {
    let mut cache = model.new_cache(BUDGET);
    let sequence = cache.create();
    let hidden = model.forward(&mut cache, &[Segment { sequence, tokens, wanted: Wanted::All }]).unwrap();
    logits(model, &hidden)
}

/// Returns the logits of the prompt's last token, and of each token after it, one forward each.
fn step_logits(model: &Decoder, tokens: &[u32], n_prompt: usize) -> Vec<f32> {
    let mut cache = model.new_cache(BUDGET);
    let sequence = cache.create();
    let (prompt, rest) = tokens.split_at(n_prompt);
    let mut all = Vec::new();
    for tokens in std::iter::once(prompt).chain(rest.chunks(1)) {
        let hidden =
            model.forward(&mut cache, &[Segment { sequence, tokens, wanted: Wanted::Last }]).unwrap();
        all.extend(logits(model, &hidden));
    }
    all
}

/// Returns the greatest difference relative to the greatest expected magnitude.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    found
        .iter()
        .zip(expected)
        .fold(0.0f32, |max, (a, b)| if (a - b).abs() <= max { max } else { (a - b).abs() })
        / scale
}

/// Two f32 implementations of a few dozen operations each; measured: 1.6e-6.
const TOLERANCE: f32 = 1e-4;

#[test]
fn every_family_computes_what_transformers_computes() {
    let mut worst = (0.0, String::new());
    for name in models() {
        let golden = Golden::read(&name);
        let model = open(&golden_dir().join(&name));
        let at_once = difference(&all_logits(&model, &golden.tokens), &golden.logits);
        let in_steps = difference(&step_logits(&model, &golden.tokens, golden.n_prompt), &golden.steps);
        println!("{name}: {at_once:.1e} {in_steps:.1e}");
        assert!(at_once <= TOLERANCE, "{name}: {at_once} at once");
        assert!(in_steps <= TOLERANCE, "{name}: {in_steps} in steps");
        if at_once.max(in_steps) > worst.0 {
            worst = (at_once.max(in_steps), name);
        }
    }
    println!("worst: {:.1e} ({})", worst.0, worst.1);
}

/// Writes the GGUF that `lctl quantize` makes of a checkpoint, its matrices as `dtype`, without a tokenizer.
pub fn write_gguf(dir: &Path, dtype: Dtype, path: &Path) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let float_type = if dtype.block_len() == 1 { dtype } else { by_name("F32").unwrap() };
    let mapped = map_checkpoint(&checkpoint, float_type).unwrap();
    let mut keys = mapped.metadata.clone();
    let tokens = vec![String::new(); checkpoint.model_config().unwrap().vocab_size];
    keys.insert("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::String(tokens)));
    let decls: Vec<TensorDecl> = mapped
        .tensors
        .iter()
        .map(|tensor| TensorDecl {
            name: tensor.name.clone(),
            dtype: tensor.fixed_dtype.unwrap_or(dtype),
            shape: tensor.shape.clone(),
        })
        .collect();
    let mut writer = GgufWriter::create(path, &keys, &decls, &WriteOptions::default()).unwrap();
    for (tensor, decl) in mapped.tensors.iter().zip(&decls) {
        let row_len = decl.shape.last().copied().unwrap_or(1);
        let n_rows = decl.shape.iter().product::<usize>() / row_len;
        let mut values = vec![0.0; n_rows * row_len];
        let isa = Isa::detect();
        tensor.rows.read(checkpoint.source.as_ref(), isa, 0..n_rows, &mut Vec::new(), &mut values).unwrap();
        let mut bytes = vec![0; values.len() / decl.dtype.block_len() * decl.dtype.block_bytes()];
        decl.dtype.encode(isa, &values, row_len, None, &mut bytes);
        writer.write(&bytes).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn a_gguf_gives_the_bits_of_its_checkpoint() {
    let tmp = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for name in models() {
        let golden = Golden::read(&name);
        let dir = golden_dir().join(&name);
        for dtype in ["F32", "BF16"] {
            let path = tmp.path().join(format!("{name}-{dtype}.gguf"));
            write_gguf(&dir, by_name(dtype).unwrap(), &path);
            let same = all_logits(&open(&path), &golden.tokens) == all_logits(&open(&dir), &golden.tokens);
            // where GGUF has no key for a setting, the file is another model past a few tokens
            assert_eq!(same, golden.gguf, "{name} as {dtype}");
        }
        if golden.gguf {
            let path = tmp.path().join(format!("{name}-BF16.gguf"));
            let [a, b] = [path.as_path(), &dir].map(|path| {
                let model = Decoder::open(path, &options(ComputeMode::Auto, 1)).unwrap();
                step_logits(&model, &golden.tokens, golden.n_prompt)
            });
            assert!(a == b, "{name}: products in bf16");
        }
        checked += 1;
    }
    assert!(checked >= 25);
}
