//! Tests every encodable format of the registry against digests of the reference's bytes.
//!
//! The inputs are the ones tests/scripts/block_goldens.py makes: `integer * 2^exponent` with integers from a counter-based hash.
//! A new format needs its entry in tests/golden/blocks.json (one line in the script), and no code here.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{BlockFormat, REGISTRY};
use crate::kernel::Isa;

const GOLDENS: &str = include_str!("../../../tests/golden/blocks.json");
const ROWS: usize = 3;
const COLS: usize = 768;

/// Every kind of input: the name in the goldens, and the value at a flat index as (integer, exponent).
type Kind = (&'static str, fn(u64) -> (i64, i32));
const KINDS: [Kind; 19] = [
    ("gaussian", |i| (bell(1, i), -25)),
    ("heavy_tailed", |i| (bell(2, i), trailing_zeros(mix(3, i), 10) - 30)),
    ("zero", |_| (0, 0)),
    ("constant", |_| (5033165, -24)),
    ("negative_constant", |_| (-5033165, -24)),
    ("outlier", |i| (bell(4, i), if is_outlier(i) { -17 } else { -25 })),
    ("sparse", |i| (if mix(5, i).is_multiple_of(37) { bell(6, i) } else { 0 }, -25)),
    ("uneven_blocks", |i| (bell(7, i), -25 - (mix(8, i / 16) % 16) as i32)),
    ("ramp", |i| (2 * (i % COLS as u64) as i64 - (COLS as i64 - 1), -11)),
    ("negative", |i| (-bell(9, i).abs() - 1, -25)),
    ("positive", |i| (bell(10, i).abs() + 1, -25)),
    ("grid", |i| (i64::from(mix(11, i) % 15) - 7, -6)),
    ("signs", |i| (1 - 2 * i64::from(mix(12, i) & 1), -6)),
    ("bf16", |i| (top_bits(bell(13, i), 8), -25)),
    ("half_subnormal", |i| (bell(14, i), -35)),
    ("half_underflow", |i| (bell(15, i), -45)),
    ("denormal", |i| (bell(16, i) >> 8, -149)),
    ("large", |i| (bell(17, i), -8)),
    ("half_overflow", |i| (bell(18, i), 8)),
];

/// 32-bit hash of a counter: the finalizer of MurmurHash3 over index * golden ratio + seed.
fn mix(seed: u32, index: u64) -> u32 {
    let mut x = (index as u32).wrapping_mul(0x9e37_79b9).wrapping_add(seed);
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// Sum of four 20-bit uniform integers, centred.
fn bell(seed: u32, index: u64) -> i64 {
    (0..4).map(|k| i64::from(mix(seed, 4 * index + k) & 0xfffff)).sum::<i64>() - 2 * 0xfffff
}

fn trailing_zeros(hash: u32, limit: u32) -> i32 {
    hash.trailing_zeros().min(limit) as i32
}

fn top_bits(value: i64, bits: u32) -> i64 {
    let shift = (64 - value.unsigned_abs().leading_zeros()).saturating_sub(bits);
    (value.abs() >> shift << shift) * value.signum()
}

fn is_outlier(index: u64) -> bool {
    let (row, col) = (index / COLS as u64, index % COLS as u64);
    col == u64::from(mix(77, row)) % COLS as u64
}

/// `integer * 2^exponent`, exact for every input here.
fn scaled(integer: i64, exponent: i32) -> f32 {
    (integer as f64 * 2f64.powi(exponent)) as f32
}

/// Returns `len` weights: heavy-tailed, about one in 19 zero.
pub(super) fn importance_row(seed: u32, len: usize) -> Vec<f32> {
    let weight = |c| scaled(i64::from(mix(seed, c) & 0xffff) + 1, trailing_zeros(mix(seed + 2, c), 10) - 16);
    (0..len as u64).map(|c| if mix(seed + 1, c).is_multiple_of(19) { 0.0 } else { weight(c) }).collect()
}

fn importance() -> Vec<f32> {
    let mut weights = importance_row(21, COLS);
    weights[256..320].fill(0.0);
    weights
}

/// Returns the 19 inputs of the goldens by name, each `ROWS` rows of `COLS`.
pub(crate) fn inputs() -> Vec<(&'static str, Vec<f32>)> {
    let flat = 0..(ROWS * COLS) as u64;
    let value = |at: fn(u64) -> (i64, i32), i| {
        let (integer, exponent) = at(i);
        scaled(integer, exponent)
    };
    KINDS.iter().map(|(name, at)| (*name, flat.clone().map(|i| value(*at, i)).collect())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn float_bytes(x: &[f32]) -> Vec<u8> {
    // sign and payload of a NaN are not promised
    x.iter().flat_map(|v| if v.is_nan() { f32::NAN.to_le_bytes() } else { v.to_le_bytes() }).collect()
}

/// Encodes rows of `row_len` and returns the bytes.
pub(super) fn encode(
    format: &dyn BlockFormat,
    isa: Isa,
    rows: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
) -> Vec<u8> {
    let mut out = vec![0xaa; rows.len() / format.block_len() * format.block_bytes()];
    format.encode(isa, rows, row_len, importance, &mut out);
    out
}

fn goldens() -> Value {
    let goldens: Value = serde_json::from_str(GOLDENS).unwrap();
    assert_eq!((goldens["rows"].as_u64(), goldens["cols"].as_u64()), (Some(ROWS as u64), Some(COLS as u64)));
    goldens
}

#[test]
fn inputs_are_the_scripts_inputs() {
    let goldens = goldens();
    assert_eq!(goldens["inputs"].as_object().unwrap().len(), KINDS.len() + 1);
    for (name, x) in inputs() {
        assert_eq!(goldens["inputs"][name], digest(&float_bytes(&x)), "{name}");
    }
    assert_eq!(goldens["inputs"]["importance"], digest(&float_bytes(&importance())));
}

#[test]
fn every_encoder_and_decoder_gives_the_references_bytes_on_every_isa() {
    let goldens = goldens();
    let mut encodable = 0;
    let mut failures = Vec::new();
    for format in REGISTRY.iter().filter(|f| f.can_encode()) {
        let name = format.name();
        let golden = &goldens["types"][name];
        assert!(golden.is_object(), "{name} has no golden: add it to tests/scripts/block_goldens.py");
        encodable += 1;
        for (kind, x) in inputs() {
            for isa in Isa::available() {
                failures.extend(differences(*format, isa, kind, &x, golden));
            }
        }
    }
    assert!(encodable > 0);
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

/// Returns a line for each of plain, importance and decoded that differs from the golden.
fn differences(format: &dyn BlockFormat, isa: Isa, kind: &str, x: &[f32], golden: &Value) -> Vec<String> {
    let plain = encode(format, isa, x, COLS, None);
    let weighted = encode(format, isa, x, COLS, Some(&importance()));
    let mut decoded = vec![f32::INFINITY; x.len()];
    format.decode(isa, &plain, &mut decoded);

    let mut lines = Vec::new();
    let case = &golden["cases"][kind];
    let results = [("plain", plain.clone()), ("importance", weighted), ("decoded", float_bytes(&decoded))];
    for (what, bytes) in results {
        if case[what] != digest(&bytes) {
            lines.push(format!("{} {kind} {what} on {}", format.name(), isa.name()));
        }
    }
    let first = hex(&plain[..256 / format.block_len() * format.block_bytes()]);
    if kind == "gaussian" && golden["first_256_gaussian"] != first {
        lines.push(format!("  first 256 weights: {first}"));
    }
    lines
}
