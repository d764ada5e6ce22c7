//! Attention speed: useful floating-point operations per second (4 per visible pair of positions and head dimension),
//! the best of several passes.
//!
//! usage: cargo bench --bench attention -- [--isa NAME] [--threads N] [--only cache|documents]

use std::time::Instant;

use lctl::kernel::attention::{
    AttentionShape, DocumentGradients, DocumentRows, Saved, Span, attention, document_attention,
    document_attention_backward,
};
use lctl::kernel::{Compute, Isa, KvCache, KvShape, Team};

/// Passes are repeated for at least this long, and the fastest counts: the machine may be shared.
const SECONDS: f64 = 0.6;

fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn best_seconds(mut pass: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed().as_secs_f64() < SECONDS {
        let pass_start = Instant::now();
        pass();
        best = best.min(pass_start.elapsed().as_secs_f64());
    }
    best
}

/// Measures `n_rows` queries at the end of `context` positions.
fn measure(compute: &Compute, heads: (usize, usize), head_dim: usize, context: usize, n_rows: usize) {
    let (n_heads, n_kv_heads) = heads;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale, softcap: None, window: None };
    let kv = KvShape { n_layers: 4, n_kv_heads, head_dim };
    let mut cache = KvCache::new(kv, kv.bytes_for(context));
    let sequence = cache.create();
    cache.extend(sequence, context).expect("the budget is made for it");
    let values = noise(context * n_kv_heads * head_dim);
    for layer in 0..kv.n_layers {
        cache.write(layer, sequence, 0, &values, &values);
    }
    let q = noise(n_rows * n_heads * head_dim);
    let mut out = vec![0.0; q.len()];
    let start = context - n_rows;
    let span = Span { sequence, start, first_row: 0, n_rows };
    let mut layer = 0;
    let seconds = best_seconds(|| {
        attention(compute, &shape, &q, &cache, layer, &[span], &mut out);
        layer = (layer + 1) % kv.n_layers;
    });
    let pairs: usize = (start + 1..=context).sum();
    let operations = (4 * pairs * n_heads * head_dim) as f64;
    let bytes = (2 * context * n_kv_heads * head_dim * size_of::<f32>()) as f64;
    println!(
        "{:>9} {n_heads:>3}/{n_kv_heads:<2} heads of {head_dim:>3}, {n_rows:>4} rows of {context:>5}: {:>9.1} us {:>7.1} GFLOP/s {:>6.1} GB/s of keys and values",
        compute.isa.name(),
        seconds * 1e6,
        operations / seconds / 1e9,
        bytes / seconds / 1e9,
    );
}

/// Measures attention within documents of these lengths, forward and backward; useful operations are 4 and 10 per
/// visible pair of positions and head dimension.
fn measure_documents(compute: &Compute, heads: (usize, usize), head_dim: usize, lens: &[usize]) {
    let (n_heads, n_kv_heads) = heads;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale, softcap: None, window: None };
    let cu: Vec<usize> = (0..=lens.len()).map(|i| lens[..i].iter().sum()).collect();
    let n = cu[lens.len()];
    let (q, dout) = (noise(n * n_heads * head_dim), noise(n * n_heads * head_dim));
    let kv = noise(n * n_kv_heads * head_dim);
    let rows = DocumentRows { q: &q, k: &kv, v: &kv, cu: &cu };
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; n * n_heads]);
    let forward = best_seconds(|| document_attention(compute, &shape, &rows, &mut out, &mut lse));
    let (mut dq, mut dk, mut dv) = (q.clone(), kv.clone(), kv.clone());
    let saved = Saved { out: &out, lse: &lse, dout: &dout };
    let backward = best_seconds(|| {
        let gradients = DocumentGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        document_attention_backward(compute, &shape, &rows, &saved, gradients);
    });
    let pairs: usize = lens.iter().map(|len| len * (len + 1) / 2).sum();
    let products = (2 * pairs * n_heads * head_dim) as f64;
    println!(
        "{:>9} {n_heads:>3}/{n_kv_heads:<2} heads of {head_dim:>3}, {:>2} documents of {:>4}: forward {:>8.1} us {:>6.1} GFLOP/s, backward {:>8.1} us {:>6.1} GFLOP/s",
        compute.isa.name(),
        lens.len(),
        n / lens.len(),
        forward * 1e6,
        2.0 * products / forward / 1e9,
        backward * 1e6,
        5.0 * products / backward / 1e9,
    );
}

/// Attention over a cache.
fn measure_cached(compute: &Compute) {
    for (heads, head_dim, context, n_rows) in [
        ((32, 4), 64, 512, 512),
        ((9, 3), 64, 512, 512),
        ((32, 32), 64, 512, 512),
        ((32, 8), 128, 512, 512),
        ((8, 4), 256, 512, 512),
        ((32, 4), 64, 2048, 512),
        ((32, 4), 64, 2048, 1),
        ((32, 32), 64, 2048, 1),
        ((32, 8), 128, 2048, 1),
        ((9, 3), 64, 512, 5),
    ] {
        measure(compute, heads, head_dim, context, n_rows);
    }
}

fn main() {
    let mut isas: Vec<Isa> = Isa::available().collect();
    let (mut threads, mut only) = (1, String::new());
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let value = args.next().unwrap_or_default();
        match arg.as_str() {
            "--isa" => isas.retain(|isa| isa.name() == value),
            "--only" => only = value,
            "--threads" => threads = value.parse().expect("--threads N"),
            _ => panic!("unknown argument {arg:?}"),
        }
    }
    assert!(!isas.is_empty(), "this machine has no ISA of that name");
    for isa in isas {
        let compute = Compute { isa, team: Team::new(threads).expect("threads") };
        if only != "documents" {
            measure_cached(&compute);
        }
        if only != "cache" {
            for (heads, head_dim) in
                [((32, 4), 64), ((32, 32), 64), ((9, 3), 64), ((32, 8), 128), ((8, 4), 256)]
            {
                for lens in [&[512][..], &[128; 4]] {
                    measure_documents(&compute, heads, head_dim, lens);
                }
            }
            measure_documents(&compute, (32, 4), 64, &[2048]);
        }
    }
}
