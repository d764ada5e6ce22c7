//! Speed of the products: GFLOP/s, and GB/s of weights read, the best of several passes over weights in memory.
//!
//! usage: cargo bench --bench matmul -- [FORMAT]... [M]... [--compute auto|f32|bf16|int8] [--isa NAME] [--threads N]

use std::sync::Arc;
use std::time::Instant;

use lctl::kernel::product::{SharedBytes, matmul};
use lctl::kernel::{Arithmetic, Compute, ComputeMode, Isa, Matrix};
use lctl::tensor::format::by_name;
use lctl::tensor::{Dtype, RowMap};

/// The shape of an up projection of a model of 1.1 billion weights.
const K: usize = 2048;
const N: usize = 5632;
/// Copies of the matrix are visited in turn, so that no cache holds them.
const BYTES: usize = 256 << 20;
/// Passes are repeated for at least this long, and the fastest counts: the machine may be shared.
const SECONDS: f64 = 1.0;

struct Options {
    formats: Vec<Dtype>,
    rows: Vec<usize>,
    mode: Option<ComputeMode>,
    isa: Isa,
    threads: usize,
}

fn options() -> Options {
    let mut options = Options { formats: vec![], rows: vec![], mode: None, isa: Isa::detect(), threads: 1 };
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_default();
        match arg.as_str() {
            "--compute" => options.mode = Some(ComputeMode::by_name(&value()).expect("a mode of --compute")),
            "--isa" => options.isa = Isa::by_name(&value()).expect("a name of an ISA level"),
            "--threads" => options.threads = value().parse().expect("a number of threads"),
            _ => match arg.parse() {
                Ok(m) => options.rows.push(m),
                Err(_) => options.formats.push(by_name(&arg).expect("a format's name or a number of rows")),
            },
        }
    }
    assert!(Isa::available().any(|isa| isa == options.isa), "this machine lacks {}", options.isa.name());
    if options.formats.is_empty() {
        options.formats = ["F32", "F16", "BF16", "Q8_0", "Q4_K"].into_iter().filter_map(by_name).collect();
    }
    if options.rows.is_empty() {
        options.rows = vec![1, 8, 512];
    }
    options
}

/// Values between -1 and 1.
fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn matrices(dtype: Dtype, isa: Isa, weights: &[f32]) -> Vec<Matrix> {
    let bytes = N * K / dtype.block_len() * dtype.block_bytes();
    let mut one = vec![0; bytes];
    dtype.encode(isa, weights, K, None, &mut one);
    let copies = BYTES.div_ceil(bytes);
    let all: SharedBytes = Arc::new(one.repeat(copies));
    (0..copies).map(|i| Matrix::new(all.clone(), i * bytes, dtype, N, K, RowMap::Identity)).collect()
}

/// Returns the seconds of the fastest product.
fn seconds(compute: &Compute, ws: &[Matrix], arithmetic: Arithmetic, m: usize) -> f64 {
    let x = noise(m * K);
    let mut y = vec![0.0; m * N];
    let mut best = f64::INFINITY;
    let start = Instant::now();
    for w in ws.iter().cycle() {
        let pass = Instant::now();
        matmul(compute, &x, w, arithmetic, &mut y);
        best = best.min(pass.elapsed().as_secs_f64());
        if start.elapsed().as_secs_f64() > SECONDS {
            break;
        }
    }
    best
}

fn main() {
    let options = options();
    let compute = Compute::new(options.isa, options.threads).expect("threads");
    println!("{}, {} threads, k {K}, n {N}", options.isa.name(), options.threads);
    println!("{:8} {:10} {:>5} {:>9} {:>7}", "format", "arithmetic", "m", "GFLOP/s", "GB/s");
    let weights = noise(N * K);
    for dtype in options.formats {
        let ws = matrices(dtype, options.isa, &weights);
        let modes = options
            .mode
            .map_or(vec![ComputeMode::Auto, ComputeMode::F32, ComputeMode::Bf16], |mode| vec![mode]);
        let mut arithmetics: Vec<Arithmetic> = modes.into_iter().map(|mode| mode.arithmetic(dtype)).collect();
        arithmetics.dedup();
        for arithmetic in arithmetics {
            for &m in &options.rows {
                let seconds = seconds(&compute, &ws, arithmetic, m);
                let gflops = 2e-9 * (m * K * N) as f64 / seconds;
                let gigabytes = 1e-9 * (N * ws[0].row(0).len()) as f64 / seconds;
                let arithmetic = format!("{arithmetic:?}");
                println!("{:8} {arithmetic:10} {m:5} {gflops:9.1} {gigabytes:7.1}", dtype.name());
            }
        }
    }
}
