//! The numeric contract: the same logits, to the bit, however they are computed (docs/architecture.md).

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Parser;
use lctl::kernel::{ComputeMode, Isa};
use lctl::model::{Decoder, LoadOptions, Residence, Segment, Wanted};
use sha2::{Digest, Sha256};

use crate::common::{make_checkpoint, run_lctl};

/// Tokens that every sequence begins with.
const N_SHARED: usize = 5;
const CACHE_BYTES: usize = 64 << 20;

/// How logits are computed; none of it may show in them.
#[derive(Clone, Copy, Debug)]
struct Way {
    isa: Isa,
    threads: usize,
    /// Sequences per forward.
    batch: usize,
    /// The shared tokens are computed once, and every sequence is a fork of them.
    prefix_cache: bool,
    /// Tokens per forward: the rest of a sequence goes on from the cache.
    cut: usize,
    residence: Residence,
}

/// Returns 16 sequences of 6 to 21 tokens that begin alike.
fn sequences() -> Vec<Vec<u32>> {
    let token = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 509) as u32;
    (0..16)
        .map(|i| (0..N_SHARED + 1 + i).map(|j| token(if j < N_SHARED { 0 } else { i }, j)).collect())
        .collect()
}

/// Returns the SHA-256 over the f32 logits of every token of every sequence.
fn digest(model: &Path, mode: ComputeMode, way: Way) -> String {
    let options =
        LoadOptions { isa: way.isa, residence: way.residence, ..LoadOptions::new(mode, way.threads) };
    let decoder = Decoder::open(model, &options).unwrap();
    let mut cache = decoder.new_cache(CACHE_BYTES);
    let logits_of = |cache: &mut _, segments: &[Segment]| {
        let hidden = decoder.forward(cache, segments).unwrap();
        decoder.logits(&hidden).unwrap().to_vec2::<f32>().unwrap()
    };
    let sequences = sequences();
    let root = cache.create();
    let shared = match way.prefix_cache {
        true => {
            let tokens = &sequences[0][..N_SHARED];
            logits_of(&mut cache, &[Segment { sequence: root, tokens, wanted: Wanted::All }])
        }
        false => Vec::new(),
    };
    let mut sha256 = Sha256::new();
    for group in sequences.chunks(way.batch) {
        let ids: Vec<_> = group.iter().map(|_| cache.fork(root, shared.len()).unwrap()).collect();
        let mut rows: Vec<Vec<Vec<f32>>> = group.iter().map(|_| shared.clone()).collect();
        while rows.iter().zip(group).any(|(rows, sequence)| rows.len() < sequence.len()) {
            let next: Vec<(usize, &[u32])> = (0..group.len())
                .map(|i| {
                    (i, &group[i][rows[i].len()..group[i].len().min(rows[i].len().saturating_add(way.cut))])
                })
                .filter(|(_, tokens)| !tokens.is_empty())
                .collect();
            let segments: Vec<Segment> = next
                .iter()
                .map(|(i, tokens)| Segment { sequence: ids[*i], tokens, wanted: Wanted::All })
                .collect();
            let mut logits = logits_of(&mut cache, &segments).into_iter();
            for (i, tokens) in &next {
                rows[*i].extend(logits.by_ref().take(tokens.len()));
            }
        }
        for logit in rows.iter().flatten().flatten() {
            sha256.update(logit.to_le_bytes());
        }
        ids.into_iter().for_each(|id| cache.free(id));
    }
    sha256.finalize().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// Every way: ISA levels x {1, 2, 7} threads x {1, 3, 16} sequences at once x prefix cache x whole or cut, half of them
/// with packed weights.
fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    for isa in Isa::available() {
        for threads in [1, 2, 7] {
            for batch in [1, 3, 16] {
                for (prefix_cache, cut) in [(false, usize::MAX), (true, usize::MAX), (false, 4), (true, 3)] {
                    // cuts are about the cache, not about threads
                    if cut == usize::MAX || threads == 2 {
                        let residence =
                            if ways.len() % 2 == 0 { Residence::Packed } else { Residence::Mapped };
                        ways.push(Way { isa, threads, batch, prefix_cache, cut, residence });
                    }
                }
            }
        }
    }
    for isa in Isa::ALL.into_iter().filter(|isa| *isa > Isa::detect()) {
        println!("skipped: {} is not on this machine", isa.name());
    }
    ways
}

/// Writes a checkpoint and a GGUF of each of `types`.
fn models(dir: &Path, types: &[&str]) -> Vec<PathBuf> {
    let checkpoint = dir.join("model");
    let args = ["make_checkpoint", "--out", checkpoint.to_str().unwrap(), "--shape", "probe"];
    make_checkpoint::run(make_checkpoint::Args::parse_from(args)).unwrap();
    let gguf = |name: &&str| {
        let path = dir.join(format!("{name}.gguf"));
        let (checkpoint, path_text) = (checkpoint.to_str().unwrap(), path.to_str().unwrap());
        let mut args = vec!["quantize", checkpoint, "--type", name, "-o", path_text];
        if !matches!(*name, "f32" | "f16" | "bf16") {
            args.push("--pure");
        }
        let (status, _, stderr) = run_lctl(dir, &args);
        assert_eq!(status, 0, "{stderr}");
        path
    };
    types.iter().map(gguf).collect()
}

fn assert_same_bits(type_name: &str, mode: ComputeMode) {
    let dir = tempfile::tempdir().unwrap();
    let model = &models(dir.path(), &[type_name])[0];
    let ways = ways();
    let first = digest(model, mode, ways[0]);
    for way in &ways[1..] {
        assert_eq!(digest(model, mode, *way), first, "{type_name} {}: {way:?}", mode.name());
    }
}

#[test]
fn f32_weights_give_the_same_bits_every_way() {
    assert_same_bits("f32", ComputeMode::Auto);
}

#[test]
fn bf16_weights_give_the_same_bits_every_way() {
    assert_same_bits("bf16", ComputeMode::Auto);
}

#[test]
fn q8_0_weights_give_the_same_bits_every_way() {
    assert_same_bits("q8_0", ComputeMode::Auto);
}

#[test]
fn q4_k_weights_give_the_same_bits_every_way() {
    assert_same_bits("q4_k", ComputeMode::Auto);
}

#[test]
fn q6_k_weights_give_the_same_bits_every_way() {
    assert_same_bits("q6_k", ComputeMode::Auto);
}

#[test]
fn quantized_weights_in_float_arithmetic_give_the_same_bits_every_way() {
    assert_same_bits("q4_k", ComputeMode::F32);
    assert_same_bits("q6_k", ComputeMode::Bf16);
}

/// Digests seen on x86-64: other architectures must give them too.
#[test]
fn logits_are_those_of_every_other_machine() {
    let golden = include_str!("../golden/reproduce/logits.txt");
    let dir = tempfile::tempdir().unwrap();
    let types = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k"];
    let way = Way {
        isa: Isa::detect(),
        threads: 2,
        batch: 16,
        prefix_cache: false,
        cut: usize::MAX,
        residence: Residence::Auto,
    };
    let mut found = String::new();
    for (name, path) in types.iter().zip(models(dir.path(), &types)) {
        writeln!(found, "{name} {}", digest(&path, ComputeMode::Auto, way)).unwrap();
    }
    assert_eq!(found, golden);
}
