//! Speed of the products: GFLOP/s, and GB/s of weights read, the best of several passes over weights in memory.
//!
//! usage: cargo bench --bench matmul -- [FORMAT]... [M]... [--compute auto|f32|bf16|int8] [--isa NAME] [--threads N]
//!     [--n ROWS] [--k COLUMNS] [--mib N] [--mapped] [--transposed]
//!
//! `--transposed` times the gradient of the input, `y[M][K] = x[M][N] W`, over mapped weights.
//! `--n 128 --mib 0` keeps the weights in the second cache: what is left is the kernel's own time.

use std::sync::Arc;
use std::time::Instant;

use lctl::kernel::product::{Operand, SharedBytes, matmul, matmul_transposed};
use lctl::kernel::{Arena, Arithmetic, Compute, ComputeMode, Isa, Matrix};
use lctl::tensor::format::by_name;
use lctl::tensor::{Dtype, RowMap};

/// The shape of an up projection of a model of 1.1 billion weights.
const K: usize = 2048;
const N: usize = 5632;
/// Copies of the matrix of so many bytes are visited in turn, so that no cache holds them.
const MIB: usize = 256;
/// Passes are repeated for at least this long, and the fastest counts: the machine may be shared.
const SECONDS: f64 = 1.0;

struct Options {
    formats: Vec<Dtype>,
    rows: Vec<usize>,
    mode: Option<ComputeMode>,
    isa: Isa,
    threads: usize,
    n: usize,
    k: usize,
    mib: usize,
    mapped: bool,
    transposed: bool,
}

fn options() -> Options {
    let (isa, threads) = (Isa::detect(), 1);
    let (formats, rows, mode) = (vec![], vec![], None);
    let (n, k, mib, mapped, transposed) = (N, K, MIB, false, false);
    let mut options = Options { formats, rows, mode, isa, threads, n, k, mib, mapped, transposed };
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_default();
        match arg.as_str() {
            "--compute" => options.mode = Some(ComputeMode::by_name(&value()).expect("a mode of --compute")),
            "--isa" => options.isa = Isa::by_name(&value()).expect("a name of an ISA level"),
            "--threads" => options.threads = value().parse().expect("a number of threads"),
            "--n" => options.n = value().parse().expect("a number of rows of weights"),
            "--k" => options.k = value().parse().expect("a number of columns of weights"),
            "--mib" => options.mib = value().parse().expect("a number of MiB"),
            "--mapped" => options.mapped = true,
            "--transposed" => (options.transposed, options.mapped) = (true, true),
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

fn matrices(dtype: Dtype, arithmetic: Arithmetic, compute: &Compute, options: &Options) -> Vec<Matrix> {
    let (n, k) = (options.n, options.k);
    let bytes = n * k / dtype.block_len() * dtype.block_bytes();
    let mut one = vec![0; bytes];
    dtype.encode(options.isa, &noise(n * k), k, None, &mut one);
    let copies = (options.mib << 20).div_ceil(bytes).max(1);
    let all: SharedBytes = Arc::new(one.repeat(copies));
    let mapped = (0..copies).map(|i| Matrix::new(all.clone(), i * bytes, dtype, n, k, RowMap::Identity));
    let mapped: Vec<Matrix> = mapped.collect();
    if options.mapped || !mapped[0].packs_for(arithmetic) {
        return mapped;
    }
    let size = mapped[0].packed_bytes().next_multiple_of(64) * copies;
    let mut arena = Arena::new(size).expect("memory");
    mapped.iter().map(|w| w.packed(compute, &mut arena)).collect()
}

/// Returns the seconds of the fastest product.
fn seconds(compute: &Compute, ws: &[Matrix], arithmetic: Arithmetic, m: usize, transposed: bool) -> f64 {
    let (n, k) = (ws[0].rows(), ws[0].cols());
    let (x, mut y) = (noise(m * n.max(k)), vec![0.0; m * n.max(k)]);
    let mut best = f64::INFINITY;
    let start = Instant::now();
    for w in ws.iter().cycle() {
        let pass = Instant::now();
        match transposed {
            false => matmul(compute, &x[..m * k], w, arithmetic, &mut y[..m * n]),
            true => {
                let w = [(Operand::Matrix(w), arithmetic)];
                matmul_transposed(compute, &[&x[..m * n]], &w, &mut y[..m * k]);
            }
        }
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
    println!("{}, {} threads, k {}, n {}", options.isa.name(), options.threads, options.k, options.n);
    println!("{:8} {:10} {:>5} {:>9} {:>7}", "format", "arithmetic", "m", "GFLOP/s", "GB/s");
    for &dtype in &options.formats {
        let modes = options
            .mode
            .map_or(vec![ComputeMode::Auto, ComputeMode::F32, ComputeMode::Bf16], |mode| vec![mode]);
        let mut arithmetics: Vec<Arithmetic> = modes.into_iter().map(|mode| mode.arithmetic(dtype)).collect();
        arithmetics.dedup();
        for arithmetic in arithmetics {
            let ws = matrices(dtype, arithmetic, &compute, &options);
            for &m in &options.rows {
                let seconds = seconds(&compute, &ws, arithmetic, m, options.transposed);
                let gflops = 2e-9 * (m * options.k * options.n) as f64 / seconds;
                let gigabytes = 1e-9 * (options.n * ws[0].row_bytes()) as f64 / seconds;
                let arithmetic = format!("{arithmetic:?}");
                println!("{:8} {arithmetic:10} {m:5} {gflops:9.1} {gigabytes:7.1}", dtype.name());
            }
        }
    }
}
