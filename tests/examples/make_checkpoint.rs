//! Writes a random Llama checkpoint in the Hugging Face layout: config.json, tokenizer.json, model.safetensors.
//!
//!     cargo run --release --example make_checkpoint -- --out DIR [--shape demo|probe|smollm-135m|tinyllama-1.1b|tinyllama-4.4b]
//!         [--dtype bf16|f16|f32] [--seed N] [--tokenizer tokenizer.model]
//!
//! The weights depend on the seed alone, so everyone gets the same files. `demo` is for a first try (3.4M
//! parameters); the larger shapes are for benchmarks. `--tokenizer` copies a SentencePiece model in place of the
//! built-in byte-level BPE, for tools that only know published vocabularies.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use lctl::kernel::Isa;
use lctl::tensor::safetensors::SafeTensorsWriter;
use lctl::tensor::{Dtype, TensorDecl, format};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

#[derive(Parser)]
pub struct Args {
    /// Directory to create.
    #[arg(long)]
    out: PathBuf,
    #[arg(long, value_enum, default_value = "demo")]
    shape: ShapeName,
    /// Type of the stored weights.
    #[arg(long, default_value = "bf16")]
    dtype: String,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A SentencePiece model to use instead of the built-in tokenizer.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ShapeName {
    Demo,
    Probe,
    #[value(name = "smollm-135m")]
    SmolLm135M,
    #[value(name = "tinyllama-1.1b")]
    TinyLlama1B,
    #[value(name = "tinyllama-4.4b")]
    TinyLlama4B,
}

struct Shape {
    n_layers: usize,
    d_model: usize,
    d_ff: usize,
    n_heads: usize,
    n_kv_heads: usize,
    vocab_size: usize,
    context: usize,
    /// Whether the output projection is the embedding.
    tied: bool,
}

impl ShapeName {
    fn shape(self) -> Shape {
        let tiny_llama = Shape {
            n_layers: 22,
            d_model: 2048,
            d_ff: 5632,
            n_heads: 32,
            n_kv_heads: 4,
            vocab_size: 32000,
            context: 2048,
            tied: false,
        };
        match self {
            ShapeName::Demo => Shape {
                n_layers: 4,
                d_model: 256,
                d_ff: 768,
                n_heads: 4,
                n_kv_heads: 2,
                vocab_size: 512,
                context: 512,
                tied: false,
            },
            ShapeName::SmolLm135M => Shape {
                n_layers: 30,
                d_model: 576,
                d_ff: 1536,
                n_heads: 9,
                n_kv_heads: 3,
                vocab_size: 49152,
                context: 2048,
                tied: true,
            },
            // The least in which every block format applies to every matrix, for tests of bits.
            ShapeName::Probe => Shape {
                n_layers: 2,
                d_model: 256,
                d_ff: 256,
                n_heads: 4,
                n_kv_heads: 2,
                vocab_size: 512,
                context: 512,
                tied: false,
            },
            ShapeName::TinyLlama1B => tiny_llama,
            // Four times the parameters of the 1.1B shape: 97 layers hold 4.27e9, the embeddings the rest.
            ShapeName::TinyLlama4B => Shape { n_layers: 97, ..tiny_llama },
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    run(Args::parse())
}

/// Writes the checkpoint.
pub fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let shape = args.shape.shape();
    let dtype = format::by_name(&args.dtype)
        .filter(|dtype| dtype.can_encode() && dtype.block_len() == 1)
        .ok_or_else(|| format!("--dtype {}: expected f32, f16 or bf16", args.dtype))?;
    fs::create_dir_all(&args.out)?;
    write_json(&args.out.join("config.json"), &config(&shape, dtype))?;
    match &args.tokenizer {
        Some(path) => {
            fs::copy(path, args.out.join("tokenizer.model"))?;
        }
        None => {
            write_json(&args.out.join("tokenizer.json"), &tokenizer())?;
            write_json(&args.out.join("tokenizer_config.json"), &tokenizer_config())?;
        }
    }
    let path = args.out.join("model.safetensors");
    let n_parameters = write_weights(&path, &shape, dtype, args.seed)?;
    eprintln!("{}: {n_parameters} parameters, {dtype}", args.out.display());
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<(), Box<dyn Error>> {
    fs::write(path, serde_json::to_string_pretty(value)?)?;
    Ok(())
}

fn config(shape: &Shape, dtype: Dtype) -> Value {
    let torch_dtype = match dtype.name() {
        "F16" => "float16",
        "BF16" => "bfloat16",
        _ => "float32",
    };
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": torch_dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
    })
}

const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// Common English letter pairs, the only merges of the built-in vocabulary.
const MERGES: [(char, char); 20] = [
    ('t', 'h'),
    ('h', 'e'),
    ('i', 'n'),
    ('e', 'r'),
    ('a', 'n'),
    ('r', 'e'),
    ('o', 'n'),
    ('a', 't'),
    ('e', 'n'),
    ('n', 'd'),
    ('t', 'i'),
    ('e', 's'),
    ('o', 'r'),
    ('t', 'e'),
    ('o', 'f'),
    ('e', 'd'),
    ('i', 's'),
    ('i', 't'),
    ('a', 'l'),
    ('a', 'r'),
];

/// Returns the printable stand-in for each byte in byte-level BPE (GPT-2): printable Latin-1 bytes stand for
/// themselves, the others for U+0100 upwards.
fn byte_symbols() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    (0..256)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
        })
        .collect()
}

/// Returns a byte-level BPE with the pre-tokenizer of Llama 3.
fn tokenizer() -> Value {
    let mut vocab = Map::new();
    let tokens = SPECIAL.iter().map(|special| special.to_string());
    let bytes = byte_symbols().into_iter().map(String::from);
    let pairs = MERGES.iter().map(|(left, right)| format!("{left}{right}"));
    for (id, token) in tokens.chain(bytes).chain(pairs).enumerate() {
        vocab.insert(token, json!(id));
    }
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let split = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*\
                 |\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": MERGES.iter().map(|(l, r)| format!("{l} {r}")).collect::<Vec<_>>()},
    })
}

fn tokenizer_config() -> Value {
    json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "add_bos_token": true})
}

/// Returns every tensor of a Llama checkpoint as (name, shape), in the order of the file.
fn tensors(shape: &Shape) -> Vec<(String, Vec<usize>)> {
    let (d_model, d_ff) = (shape.d_model, shape.d_ff);
    let d_kv = d_model / shape.n_heads * shape.n_kv_heads;
    let mut list = Vec::new();
    if !shape.tied {
        list.push(("lm_head.weight".to_owned(), vec![shape.vocab_size, d_model]));
    }
    list.push(("model.embed_tokens.weight".to_owned(), vec![shape.vocab_size, d_model]));
    for layer in 0..shape.n_layers {
        let rows = [
            ("input_layernorm", vec![d_model]),
            ("mlp.down_proj", vec![d_model, d_ff]),
            ("mlp.gate_proj", vec![d_ff, d_model]),
            ("mlp.up_proj", vec![d_ff, d_model]),
            ("post_attention_layernorm", vec![d_model]),
            ("self_attn.k_proj", vec![d_kv, d_model]),
            ("self_attn.o_proj", vec![d_model, d_model]),
            ("self_attn.q_proj", vec![d_model, d_model]),
            ("self_attn.v_proj", vec![d_kv, d_model]),
        ];
        list.extend(rows.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    list.push(("model.norm.weight".to_owned(), vec![d_model]));
    list
}

/// SplitMix64 (Steele et al., OOPSLA 2014): a value per counter, no state.
fn split_mix(seed: u64, counter: u64) -> u64 {
    let mut z = seed.wrapping_add(counter.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns a nearly normal value of standard deviation 1: the centred sum of four 16-bit uniforms.
fn normal(seed: u64, counter: u64) -> f32 {
    let bits = split_mix(seed, counter);
    let sum: i32 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as i32).sum();
    (sum - 2 * 0xffff) as f32 / 37837.0
}

/// Writes the weights and returns the number of parameters.
fn write_weights(path: &Path, shape: &Shape, dtype: Dtype, seed: u64) -> Result<usize, Box<dyn Error>> {
    const CHUNK: usize = 1 << 20;
    let decls: Vec<TensorDecl> =
        tensors(shape).into_iter().map(|(name, shape)| TensorDecl { name, dtype, shape }).collect();
    let mut writer = SafeTensorsWriter::create(path, [("format", "pt")], &decls, false)?;
    let isa = Isa::detect();
    let mut counter = 0_u64;
    let mut bytes = Vec::new();
    for decl in &decls {
        let is_norm = decl.shape.len() == 1;
        let n: usize = decl.shape.iter().product();
        for start in (0..n).step_by(CHUNK) {
            let len = CHUNK.min(n - start);
            let values: Vec<f32> = (0..len as u64)
                .into_par_iter()
                .map(|i| {
                    let value = 0.02 * normal(seed, counter + i);
                    if is_norm { 1.0 + value } else { value }
                })
                .collect();
            bytes.resize(len * dtype.block_bytes(), 0);
            dtype.encode(isa, &values, len, None, &mut bytes);
            writer.write(&bytes)?;
            counter += len as u64;
        }
    }
    writer.finish()?;
    Ok(counter as usize)
}
