//! Encoder and decoder speed, one thread: million weights per second, the best of several passes.
//!
//! usage: cargo bench --bench encode -- [TYPE]... [--isa NAME]

use std::time::Instant;

use lctl::kernel::Isa;
use lctl::tensor::format::{BlockFormat, REGISTRY};

const ROW_LEN: usize = 2048;
const ROWS: usize = 32;
const WEIGHTS: usize = ROWS * ROW_LEN;
/// Passes are repeated for at least this long, and the fastest counts: the machine may be shared.
const SECONDS: f64 = 0.6;

/// Bell-shaped values about 0.02 wide, as in a trained linear layer.
fn rows() -> Vec<f32> {
    let mut state = 0x2545_f491_u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..WEIGHTS).map(|_| 0.04 * (uniform() + uniform() + uniform() + uniform())).collect()
}

fn mega_weights_per_second(mut pass: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed().as_secs_f64() < SECONDS {
        let pass_start = Instant::now();
        pass();
        best = best.min(pass_start.elapsed().as_secs_f64());
    }
    WEIGHTS as f64 / best / 1e6
}

fn measure(format: &dyn BlockFormat, isa: Isa, rows: &[f32], importance: &[f32]) -> [f64; 3] {
    let mut bytes = vec![0u8; WEIGHTS / format.block_len() * format.block_bytes()];
    let mut decoded = vec![0f32; WEIGHTS];
    let plain = mega_weights_per_second(|| format.encode(isa, rows, ROW_LEN, None, &mut bytes));
    let weighted =
        mega_weights_per_second(|| format.encode(isa, rows, ROW_LEN, Some(importance), &mut bytes));
    let decode = mega_weights_per_second(|| format.decode(isa, &bytes, &mut decoded));
    [plain, weighted, decode]
}

fn main() {
    let mut names = Vec::new();
    let mut isas: Vec<Isa> = Isa::available().collect();
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        if arg == "--isa" {
            let name = args.next().unwrap_or_default();
            isas.retain(|isa| isa.name() == name);
            assert!(!isas.is_empty(), "--isa {name:?}: this machine has none of that name");
        } else {
            assert!(REGISTRY.iter().any(|f| f.name() == arg), "no format is called {arg:?}");
            names.push(arg);
        }
    }
    let rows = rows();
    let importance: Vec<f32> = rows[..ROW_LEN].iter().map(|x| 0.01 + x * x).collect();
    println!(
        "{:8} {:9} {:>8} {:>11} {:>8}   Mweights/s, one thread",
        "type", "isa", "plain", "importance", "decode"
    );
    let wanted =
        |f: &&&dyn BlockFormat| f.can_encode() && (names.is_empty() || names.iter().any(|n| n == f.name()));
    for format in REGISTRY.iter().filter(wanted) {
        for isa in &isas {
            let [plain, weighted, decode] = measure(*format, *isa, &rows, &importance);
            println!("{:8} {:9} {plain:8.1} {weighted:11.1} {decode:8.1}", format.name(), isa.name());
        }
    }
}
