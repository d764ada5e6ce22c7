//! Every operation as the tests run it: its gradients, and an obvious forward in f64.

use std::sync::Arc;

use candle_core::Tensor;
use lctl::kernel::attention::AttentionShape;
use lctl::kernel::rope::{RopeTable, inv_freq};
use lctl::kernel::{Compute, Isa};
use lctl::nn::{self, Activation, MaskKey, RowPlace, Turns};

use super::{compute, tensor, values};

pub type Run = Box<dyn Fn(&Arc<Compute>, &[Tensor], &Tensor) -> Vec<Vec<f32>>>;
pub type Exact = Box<dyn Fn(&[Vec<f64>]) -> Vec<f64>>;

pub struct Op {
    pub name: String,
    /// Of the operands that have gradients.
    pub shapes: Vec<Vec<usize>>,
    pub y_shape: Vec<usize>,
    /// Operands are uniform in +- this.
    pub scale: f32,
    /// Returns the result, then the gradients of the operands, given that of the result.
    pub run: Run,
    pub exact: Exact,
}

/// Returns every operation on about `n_rows` rows of about `width` values.
pub fn ops(n_rows: usize, width: usize) -> Vec<Op> {
    let mut ops = vec![
        rms_norm(n_rows, width, 1),
        rms_norm(n_rows, 8, 3),
        rope(n_rows),
        gated(n_rows, width, Activation::Silu),
        gated(n_rows, width, Activation::GeluTanh),
        softmax(n_rows, width),
        softcap(n_rows, width),
        embedding(n_rows, width),
        gather(n_rows, width),
        scatter(n_rows, width),
        expert_weights(n_rows, false),
        expert_weights(n_rows, true),
        dropout(n_rows, width),
    ];
    for (softcap, window) in [(None, None), (Some(0.8), None), (None, Some(4)), (Some(1.5), Some(5))] {
        ops.push(attention(n_rows, softcap, window));
    }
    ops
}

fn op(
    name: impl Into<String>,
    shapes: &[&[usize]],
    y_shape: &[usize],
    run: impl Fn(&Arc<Compute>, &[Tensor], &Tensor) -> Vec<Vec<f32>> + 'static,
    exact: impl Fn(&[Vec<f64>]) -> Vec<f64> + 'static,
) -> Op {
    Op {
        name: name.into(),
        shapes: shapes.iter().map(|shape| shape.to_vec()).collect(),
        y_shape: y_shape.to_vec(),
        scale: 2.0,
        run: Box::new(run),
        exact: Box::new(exact),
    }
}

fn rms_norm(n_rows: usize, n: usize, heads: usize) -> Op {
    let shape = [n_rows, heads * n];
    let run = |compute: &Arc<Compute>, x: &[Tensor], dy: &Tensor| {
        let weight: Arc<[f32]> = values(&x[1]).into();
        let y = nn::rms_norm(compute, &x[0], &weight, 1e-3).unwrap();
        let mut dweight = vec![0.0; weight.len()];
        let dx = nn::rms_norm_backward(compute, &x[0], &weight, 1e-3, dy, Some(&mut dweight)).unwrap();
        assert_eq!(
            values(&dx),
            values(&nn::rms_norm_backward(compute, &x[0], &weight, 1e-3, dy, None).unwrap())
        );
        vec![values(&y), values(&dx), dweight]
    };
    let exact = move |x: &[Vec<f64>]| {
        let rows = x[0].chunks_exact(n).flat_map(|row| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / n as f64;
            row.iter().zip(&x[1]).map(move |(x, w)| x / (mean + f64::from(1e-3f32)).sqrt() * w)
        });
        rows.collect()
    };
    op(format!("rms_norm of {heads} heads"), &[&shape, &[n]], &shape, run, exact)
}

fn rope(n_rows: usize) -> Op {
    let (head_dim, n_first) = (10, n_rows / 2);
    let tables = [RopeTable::new(&inv_freq(100.0, 8), 1.25), RopeTable::new(&inv_freq(30.0, 10), 1.0)];
    let positions: Vec<u32> = (0..n_rows as u32).map(|i| i * 7 % 11).collect();
    let [first, second] = tables.map(Arc::new);
    let turns = Turns {
        positions: positions.clone().into(),
        tables: vec![(n_first, first), (n_rows - n_first, second)],
    };
    let shape = [n_rows, 2 * head_dim];
    let run = move |compute: &Arc<Compute>, x: &[Tensor], dy: &Tensor| {
        let y = nn::rope(compute, &x[0], head_dim, &turns).unwrap();
        vec![values(&y), values(&nn::rope_backward(compute, dy, head_dim, &turns).unwrap())]
    };
    let exact = move |x: &[Vec<f64>]| {
        let mut y = x[0].clone();
        for (i, head) in y.chunks_exact_mut(head_dim).enumerate() {
            let row = i / 2;
            let (theta, dim, factor) = if row < n_first { (100.0, 8, 1.25) } else { (30.0, 10, 1.0) };
            for (pair, freq) in inv_freq(theta, dim).iter().enumerate() {
                // the angle is a product in f32
                let (sin, cos) = f64::from(positions[row] as f32 * freq).sin_cos();
                let (a, b) = (head[pair], head[pair + dim / 2]);
                head[pair] = factor * (a * cos - b * sin);
                head[pair + dim / 2] = factor * (b * cos + a * sin);
            }
        }
        y
    };
    op("rope", &[&shape], &shape, run, exact)
}

fn gated(n_rows: usize, width: usize, activation: Activation) -> Op {
    let shape = [n_rows, width];
    let run = move |compute: &Arc<Compute>, x: &[Tensor], dy: &Tensor| {
        let y = nn::gated(compute, activation, &x[0], &x[1]).unwrap();
        let (dgate, dup) = nn::gated_backward(compute, activation, &x[0], &x[1], dy).unwrap();
        vec![values(&y), values(&dgate), values(&dup)]
    };
    let function = move |x: f64| match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
    };
    let exact = move |x: &[Vec<f64>]| x[0].iter().zip(&x[1]).map(|(g, u)| function(*g) * u).collect();
    Op { scale: 4.0, ..op(format!("{activation:?}"), &[&shape, &shape], &shape, run, exact) }
}

fn softmax_exact(x: &[f64]) -> Vec<f64> {
    let sum: f64 = x.iter().map(|x| x.exp()).sum();
    x.iter().map(|x| x.exp() / sum).collect()
}

fn softmax(n_rows: usize, width: usize) -> Op {
    let shape = [n_rows, width];
    let run = |compute: &Arc<Compute>, x: &[Tensor], dy: &Tensor| {
        let y = nn::softmax(compute, &x[0]).unwrap();
        vec![values(&y), values(&nn::softmax_backward(compute, &y, dy).unwrap())]
    };
    let exact = move |x: &[Vec<f64>]| x[0].chunks_exact(width).flat_map(softmax_exact).collect();
    op("softmax", &[&shape], &shape, run, exact)
}

fn softcap(n_rows: usize, width: usize) -> Op {
    let shape = [n_rows, width];
    let run = |compute: &Arc<Compute>, x: &[Tensor], dy: &Tensor| {
        let y = nn::softcap(compute, &x[0], 1.5).unwrap();
        vec![values(&y), values(&nn::softcap_backward(compute, &x[0], 1.5, dy).unwrap())]
    };
    op("softcap", &[&shape], &shape, run, |x| x[0].iter().map(|x| 1.5 * (x / 1.5).tanh()).collect())
}

fn embedding(n_rows: usize, width: usize) -> Op {
    const VOCAB: usize = 6;
    let ids: Vec<u32> = (0..n_rows as u32).map(|i| i * i % 5).collect();
    let wanted = ids.clone();
    let run = move |_: &Arc<Compute>, x: &[Tensor], dy: &Tensor| {
        let table = values(&x[0]);
        let rows = ids.iter().flat_map(|id| &table[*id as usize * width..][..width]);
        let y = rows.map(|x| 1.7 * x).collect();
        let mut gradient = vec![0.0; VOCAB * width];
        nn::embedding_backward(&ids, dy, 1.7, &mut gradient).unwrap();
        vec![y, gradient]
    };
    let exact = move |x: &[Vec<f64>]| {
        let rows = wanted.iter().flat_map(|id| &x[0][*id as usize * width..][..width]);
        rows.map(|x| f64::from(1.7f32) * x).collect()
    };
    op("embedding", &[&[VOCAB, width]], &[n_rows, width], run, exact)
}

fn gather(n_rows: usize, width: usize) -> Op {
    let rows: Vec<usize> = (0..n_rows).map(|i| i * 5 % 7 % n_rows).collect();
    let wanted = rows.clone();
    let run = move |_: &Arc<Compute>, x: &[Tensor], dy: &Tensor| {
        let mut dx = vec![0.0; x[0].elem_count()];
        nn::gather_backward(dy, &rows, &mut dx).unwrap();
        vec![values(&nn::gather(&x[0], &rows).unwrap()), dx]
    };
    let exact =
        move |x: &[Vec<f64>]| wanted.iter().flat_map(|row| x[0][row * width..][..width].to_vec()).collect();
    op("gather", &[&[n_rows, width]], &[n_rows, width], run, exact)
}

fn scatter(n_rows: usize, width: usize) -> Op {
    let n = n_rows.div_ceil(2);
    let place = move |i: usize| i * 3 % n_rows;
    let run = move |compute: &Arc<Compute>, x: &[Tensor], dy: &Tensor| {
        let rows: Vec<(usize, f32)> =
            values(&x[1]).iter().enumerate().map(|(i, factor)| (place(i), *factor)).collect();
        let mut y = vec![0.0; n_rows * width];
        nn::scatter_scaled(&x[0], &rows, &mut y).unwrap();
        let (dx, dfactors) = nn::scatter_scaled_backward(compute, &x[0], &rows, &values(dy)).unwrap();
        vec![y, values(&dx), dfactors]
    };
    let exact = move |x: &[Vec<f64>]| {
        let mut y = vec![0.0; n_rows * width];
        for (i, row) in x[0].chunks_exact(width).enumerate() {
            for (y, value) in y[place(i) * width..].iter_mut().zip(row) {
                *y += x[1][i] * value;
            }
        }
        y
    };
    op("scatter_scaled", &[&[n, width], &[n]], &[n_rows, width], run, exact)
}

/// Router logits to the weights of the two experts that a row's index chooses; the others' are 0.
fn expert_weights(n_rows: usize, renormalized: bool) -> Op {
    const N: usize = 5;
    let experts = |row: usize| [row % 3, 3 + row % 2];
    let run = move |compute: &Arc<Compute>, x: &[Tensor], dy: &Tensor| {
        let probabilities = nn::softmax(compute, &x[0]).unwrap();
        let (p, dy) = (values(&probabilities), values(dy));
        let (mut y, mut dp) = (vec![0.0; n_rows * N], vec![0.0; n_rows * N]);
        for row in 0..n_rows {
            let p = &p[row * N..][..N];
            let by = if renormalized { experts(row).iter().map(|e| p[*e]).sum() } else { 1.0 };
            let chosen = experts(row).map(|e| (e, p[e] / by));
            chosen.iter().for_each(|(e, w)| y[row * N + e] = *w);
            let dw = experts(row).map(|e| dy[row * N + e]);
            nn::expert_weights_backward(p, &chosen, &dw, renormalized, &mut dp[row * N..][..N]);
        }
        let dp = tensor(dp, &[n_rows, N]);
        vec![y, values(&nn::softmax_backward(compute, &probabilities, &dp).unwrap())]
    };
    let exact = move |x: &[Vec<f64>]| {
        let mut y = vec![0.0; n_rows * N];
        for (row, logits) in x[0].chunks_exact(N).enumerate() {
            let p = softmax_exact(logits);
            let by = if renormalized { experts(row).iter().map(|e| p[*e]).sum() } else { 1.0 };
            experts(row).iter().for_each(|e| y[row * N + e] = p[*e] / by);
        }
        y
    };
    let shape = [n_rows, N];
    op(format!("expert_weights, renormalized {renormalized}"), &[&shape], &shape, run, exact)
}

fn dropout(n_rows: usize, width: usize) -> Op {
    let rows: Vec<RowPlace> =
        (0..n_rows as u32).map(|i| RowPlace { document: 3 + i / 4, position: i % 4 }).collect();
    let ones = tensor(vec![1.0; n_rows * width], &[n_rows, width]);
    let key = MaskKey { seed: 5, step: 9, module: 2, rows: &rows };
    let kept = values(&nn::dropout(&compute(Isa::detect(), 1), &ones, 0.3, &key).unwrap());
    let run = move |compute: &Arc<Compute>, x: &[Tensor], dy: &Tensor| {
        let key = MaskKey { seed: 5, step: 9, module: 2, rows: &rows };
        let y = nn::dropout(compute, &x[0], 0.3, &key).unwrap();
        vec![values(&y), values(&nn::dropout_backward(compute, dy, 0.3, &key).unwrap())]
    };
    let keep = 1.0 - f64::from(0.3f32);
    let exact = move |x: &[Vec<f64>]| {
        x[0].iter().zip(&kept).map(|(x, kept)| if *kept == 0.0 { 0.0 } else { x / keep }).collect()
    };
    op("dropout", &[&[n_rows, width]], &[n_rows, width], run, exact)
}

/// Three documents: one token, a third of the rows, the rest.
fn attention(n_rows: usize, softcap: Option<f32>, window: Option<usize>) -> Op {
    let shape = AttentionShape { n_heads: 4, n_kv_heads: 2, head_dim: 6, scale: 0.3, softcap, window };
    let cu = [0, 1, 1 + n_rows / 3, n_rows];
    let run = move |compute: &Arc<Compute>, x: &[Tensor], dy: &Tensor| {
        let [q, k, v] = [&x[0], &x[1], &x[2]];
        let (out, lse) = nn::document_attention(compute, shape, q, k, v, &cu).unwrap();
        let (dq, dk, dv) =
            nn::document_attention_backward(compute, shape, q, k, v, &out, &lse, dy, &cu).unwrap();
        vec![values(&out), values(&dq), values(&dk), values(&dv)]
    };
    let exact = move |x: &[Vec<f64>]| attention_exact(&shape, &cu, [&x[0], &x[1], &x[2]]);
    let (q, kv) = ([n_rows, 24], [n_rows, 12]);
    op(format!("attention, {softcap:?}, {window:?}"), &[&q, &kv, &kv], &q, run, exact)
}

fn attention_exact(shape: &AttentionShape, cu: &[usize], [q, k, v]: [&[f64]; 3]) -> Vec<f64> {
    let (n, group) = (shape.head_dim, shape.n_heads / shape.n_kv_heads);
    let mut out = vec![0.0; q.len()];
    for ends in cu.windows(2) {
        for i in ends[0]..ends[1] {
            for head in 0..shape.n_heads {
                let q = &q[(i * shape.n_heads + head) * n..][..n];
                let first =
                    shape.window.map_or(ends[0], |window| ends[0].max((i + 1).saturating_sub(window)));
                let at = |j: usize| (j * shape.n_kv_heads + head / group) * n;
                let score = |j: usize| {
                    let x: f64 = q.iter().zip(&k[at(j)..]).map(|(q, k)| q * k).sum();
                    let x = x * f64::from(shape.scale);
                    shape.softcap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
                };
                let p = softmax_exact(&(first..=i).map(score).collect::<Vec<_>>());
                for (j, p) in (first..=i).zip(p) {
                    for d in 0..n {
                        out[(i * shape.n_heads + head) * n + d] += p * v[at(j) + d];
                    }
                }
            }
        }
    }
    out
}
