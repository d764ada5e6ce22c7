//! Gradients of a device in f32 against finite differences of its own forward.

use half::bf16;

use super::run::{Checker, download, noise, upload};
use crate::cuda::CudaError;
use crate::cuda::buffer::Buffer;
use crate::cuda::op::attention::{Documents, Family, Gradients, Operands, Saved};
use crate::cuda::op::elementwise::{self as op, GateUp, RopeRows, Turn};
use crate::cuda::op::loss::{
    Head, HeadGradients, NO_TARGET, Targets, cross_entropy_in_place, linear_cross_entropy,
};
use crate::cuda::op::norm::{self, Norm};
use crate::kernel::attention::AttentionShape;
use crate::kernel::rope::{RopeTable, inv_freq};
use crate::nn::Activation;

/// How far values are moved: exact in f32 beside values that bf16 holds.
const STEP: f32 = 1.0 / 32.0;

/// What slopes may be off by, set against the root of the sum of the gradient's squares, which is what a slope is about. Differences of
/// fourth order leave 1e-6 of what bends; a result is rounded by some 1e-7 of itself, which the step makes 20 times as much, and averages
/// have gradients that are a tenth of their results and less. A term that is missing shows as a hundredth and more.
const ALLOWED: f64 = 1e-3;

pub fn run(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    for (rows, cols) in [(3, 33), (5, 128)] {
        norms(checker, rows, cols)?;
        gates(checker, rows, cols)?;
    }
    for (n_heads, head_dim, dim) in [(3, 64, 64), (2, 80, 20)] {
        ropes(checker, n_heads, head_dim, dim)?;
    }
    for n_classes in [11, 517] {
        for cap in [None, Some(3.0)] {
            losses(checker, n_classes, cap)?;
            heads(checker, n_classes, cap)?;
        }
    }
    let shape = |n_heads, n_kv_heads, head_dim: usize, softcap, window| {
        let scale = 1.0 / (head_dim as f32).sqrt();
        AttentionShape { n_heads, n_kv_heads, head_dim, scale, softcap, window }
    };
    for (shape, cu) in [
        (shape(4, 2, 64, None, None), &[0, 9, 9, 30, 31][..]),
        (shape(2, 1, 10, Some(2.0), Some(7)), &[0, 21]),
        (shape(1, 1, 128, None, Some(40)), &[0, 70]),
    ] {
        attention(checker, shape, cu)?;
    }
    Ok(())
}

/// Values that can be moved by [`STEP`] without rounding.
fn movable(n: usize, seed: u64) -> Vec<f32> {
    noise::<bf16>(n, seed, 1.0)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Sets a gradient at `x` against differences of `forward` in directions of ones and minus ones.
fn check(
    checker: &mut Checker<'_>,
    (name, shape): (&str, &str),
    x: &[f32],
    gradient: &[f32],
    forward: &dyn Fn(&[f32]) -> Result<f64, CudaError>,
) -> Result<(), CudaError> {
    let size = dot(gradient, gradient).sqrt();
    for seed in 100..103 {
        let direction: Vec<f32> = noise::<f32>(x.len(), seed, 1.0).iter().map(|u| u.signum()).collect();
        let at = |steps: f32| {
            let moved: Vec<f32> = x.iter().zip(&direction).map(|(x, u)| x + steps * STEP * u).collect();
            forward(&moved)
        };
        // of fourth order
        let slope = (8.0 * (at(1.0)? - at(-1.0)?) - (at(2.0)? - at(-2.0)?)) / (12.0 * f64::from(STEP));
        let error = (slope - dot(gradient, &direction)).abs() / size;
        checker.note(&format!("{name} f32"), "slopes", shape, error, ALLOWED);
    }
    Ok(())
}

fn norms(checker: &mut Checker<'_>, rows: usize, cols: usize) -> Result<(), CudaError> {
    let (device, n, eps) = (checker.device, rows * cols, 1e-5);
    let (x, w, dy) = (movable(n, 1), movable(cols, 2), movable(n, 3));
    let forward = |x: &[f32], w: &[f32]| {
        let (x, weight) = (upload::<f32>(device, x)?, upload::<f32>(device, w)?);
        let mut y = Buffer::<f32>::zeros(device, n)?;
        Norm { weight: &weight, offset: 1.0, eps }.forward(device, &x, &mut y)?;
        Ok(dot(&download(device, &y)?, &dy))
    };
    let (on_device, dy_on, weight) =
        (upload::<f32>(device, &x)?, upload::<f32>(device, &dy)?, upload::<f32>(device, &w)?);
    let (mut dx, mut factors) = (Buffer::<f32>::zeros(device, n)?, Buffer::<f32>::zeros(device, rows)?);
    let norm = Norm { weight: &weight, offset: 1.0, eps };
    norm.backward(device, &on_device, &dy_on, None, &mut dx, &mut factors)?;
    let mut dw = Buffer::<f32>::zeros(device, cols)?;
    norm::weight_gradient(device, &on_device, &factors, &dy_on, &mut dw)?;
    let (dx, dw) = (download(device, &dx)?, download(device, &dw)?);
    let shape = format!("{rows}x{cols}");
    check(checker, ("rms_norm_backward", &shape), &x, &dx, &|x| forward(x, &w))?;
    check(checker, ("weight_gradient", &shape), &w, &dw, &|w| forward(&x, w))
}

fn gates(checker: &mut Checker<'_>, rows: usize, cols: usize) -> Result<(), CudaError> {
    let (device, n) = (checker.device, rows * cols);
    let (gate, up, dy) = (noise::<bf16>(n, 4, 4.0), movable(n, 5), movable(n, 6));
    let shape = format!("{rows}x{cols}");
    for (kind, name) in [(Activation::Silu, "swiglu_backward"), (Activation::GeluTanh, "geglu_backward")] {
        let forward = |gate: &[f32], up: &[f32]| {
            let (gate, up) = (upload::<f32>(device, gate)?, upload::<f32>(device, up)?);
            let mut y = Buffer::<f32>::zeros(device, n)?;
            op::gated(device, kind, GateUp::Apart(&gate, &up), cols, &mut y)?;
            Ok(dot(&download(device, &y)?, &dy))
        };
        let (g, u, d) =
            (upload::<f32>(device, &gate)?, upload::<f32>(device, &up)?, upload::<f32>(device, &dy)?);
        let (mut dgate, mut dup) = (Buffer::<f32>::zeros(device, n)?, Buffer::<f32>::zeros(device, n)?);
        let to = (&mut dgate, Some(&mut dup));
        op::gated_backward(device, kind, GateUp::Apart(&g, &u), &d, to, cols, None)?;
        let (dgate, dup) = (download(device, &dgate)?, download(device, &dup)?);
        check(checker, (name, &format!("{shape} gate")), &gate, &dgate, &|gate| forward(gate, &up))?;
        check(checker, (name, &format!("{shape} up")), &up, &dup, &|up| forward(&gate, up))?;
    }
    Ok(())
}

fn ropes(checker: &mut Checker<'_>, n_heads: usize, head_dim: usize, dim: usize) -> Result<(), CudaError> {
    let device = checker.device;
    let positions = [0, 1, 511, 5];
    let n = positions.len() * n_heads * head_dim;
    let (x, dy) = (movable(n, 7), movable(n, 8));
    let table = upload::<f32>(device, &RopeTable::new(&inv_freq(10_000.0, dim), 1.25).rows(512))?;
    let positions = Buffer::of(device, &positions)?;
    let turned = |values: &[f32], turn: Turn| {
        let rows = RopeRows { table: &table, dim, positions: &positions };
        let mut y = upload::<f32>(device, values)?;
        op::rope(device, &mut y, (n_heads * head_dim, n_heads, head_dim), &rows, turn)?;
        download(device, &y)
    };
    let gradient = turned(&dy, Turn::Back)?;
    let shape = format!("{n_heads}x{head_dim} turning {dim}");
    check(checker, ("rope", &shape), &x, &gradient, &|x| Ok(dot(&turned(x, Turn::Forward)?, &dy)))
}

const ROWS: usize = 4;

/// Targets of which one is missing, and factors.
fn targets(n_classes: usize) -> (Vec<u32>, Vec<f32>) {
    let last = u32::try_from(n_classes - 1).unwrap_or(0);
    (vec![0, last, NO_TARGET, last / 3], vec![0.25, 0.5, 1.0, -0.75])
}

fn losses(checker: &mut Checker<'_>, n_classes: usize, cap: Option<f32>) -> Result<(), CudaError> {
    let device = checker.device;
    let logits = noise::<bf16>(ROWS * n_classes, 9, 4.0);
    let (classes, factors) = targets(n_classes);
    let (classes, on_device) = (Buffer::of(device, &classes)?, upload::<f32>(device, &factors)?);
    let of = Targets { classes: &classes, factors: &on_device, softcap: cap };
    let losses = |logits: &[f32]| {
        let (mut place, mut nll) = (upload::<f32>(device, logits)?, Buffer::zeros(device, ROWS)?);
        cross_entropy_in_place(device, &mut place, &of, &mut nll)?;
        Ok::<_, CudaError>((download(device, &nll)?, download(device, &place)?))
    };
    let gradient = losses(&logits)?.1;
    let shape = format!("{ROWS}x{n_classes} cap {cap:?}");
    check(checker, ("cross_entropy", &shape), &logits, &gradient, &|x| Ok(dot(&losses(x)?.0, &factors)))
}

fn heads(checker: &mut Checker<'_>, n_classes: usize, cap: Option<f32>) -> Result<(), CudaError> {
    const WIDTH: usize = 24;
    let device = checker.device;
    let (hidden, weights) = (movable(ROWS * WIDTH, 10), movable(n_classes * WIDTH, 11));
    let (classes, factors) = targets(n_classes);
    let (classes, on_device) = (Buffer::of(device, &classes)?, upload::<f32>(device, &factors)?);
    let of = Targets { classes: &classes, factors: &on_device, softcap: cap };
    let losses = |hidden: &[f32], weights: &[f32], gradients: Option<HeadGradients<'_, f32>>| {
        let (hidden, weight) = (upload::<f32>(device, hidden)?, upload::<f32>(device, weights)?);
        let mut nll = Buffer::zeros(device, ROWS)?;
        let head = Head { weight: &weight, hidden: &hidden, width: WIDTH };
        linear_cross_entropy(device, &head, &of, &mut nll, gradients)?;
        Ok(dot(&download(device, &nll)?, &factors))
    };
    let mut by_hidden = Buffer::<f32>::zeros(device, ROWS * WIDTH)?;
    let mut by_weight = Buffer::<f32>::zeros(device, n_classes * WIDTH)?;
    let gradients = HeadGradients { hidden: &mut by_hidden, weight: Some(&mut by_weight) };
    losses(&hidden, &weights, Some(gradients))?;
    let (by_hidden, by_weight) = (download(device, &by_hidden)?, download(device, &by_weight)?);
    let (name, shape) = ("linear_cross_entropy", format!("{ROWS}x{WIDTH}x{n_classes} cap {cap:?}"));
    check(checker, (name, &format!("{shape} hidden")), &hidden, &by_hidden, &|x| losses(x, &weights, None))?;
    check(checker, (name, &format!("{shape} weight")), &weights, &by_weight, &|w| losses(&hidden, w, None))
}

fn attention(checker: &mut Checker<'_>, shape: AttentionShape, cu: &[usize]) -> Result<(), CudaError> {
    let (device, n) = (checker.device, cu[cu.len() - 1]);
    let (n_q, n_kv) = (n * shape.n_heads * shape.head_dim, n * shape.n_kv_heads * shape.head_dim);
    let (q, k, v, dout) = (movable(n_q, 12), movable(n_kv, 13), movable(n_kv, 14), movable(n_q, 15));
    let documents = Documents::with_family(device, shape, cu, Family::Plain)?;
    let outs = |q: &[f32], k: &[f32], v: &[f32]| {
        let (q, k, v) = (upload::<f32>(device, q)?, upload::<f32>(device, k)?, upload::<f32>(device, v)?);
        let (mut out, mut lse) =
            (Buffer::<f32>::zeros(device, n_q)?, Buffer::<f32>::zeros(device, n * shape.n_heads)?);
        documents.forward(device, &Operands { q: &q, k: &k, v: &v }, &mut out, &mut lse)?;
        Ok::<_, CudaError>((out, lse))
    };
    let forward = |q: &[f32], k: &[f32], v: &[f32]| Ok(dot(&download(device, &outs(q, k, v)?.0)?, &dout));
    let (q_on, k_on, v_on) =
        (upload::<f32>(device, &q)?, upload::<f32>(device, &k)?, upload::<f32>(device, &v)?);
    let dout_on = upload::<f32>(device, &dout)?;
    let (out, lse) = outs(&q, &k, &v)?;
    let zeros = |n: usize| Buffer::<f32>::zeros(device, n);
    let (mut dq, mut dk, mut dv) = (zeros(n_q)?, zeros(n_kv)?, zeros(n_kv)?);
    let mut gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    let saved = Saved { out: &out, lse: &lse, dout: &dout_on };
    documents.backward(device, &Operands { q: &q_on, k: &k_on, v: &v_on }, &saved, &mut gradients)?;
    let (dq, dk, dv) = (download(device, &dq)?, download(device, &dk)?, download(device, &dv)?);
    let text = format!("{shape:?} {cu:?}");
    check(checker, ("attention dq plain", &text), &q, &dq, &|q| forward(q, &k, &v))?;
    check(checker, ("attention dk plain", &text), &k, &dk, &|k| forward(&q, k, &v))?;
    check(checker, ("attention dv plain", &text), &v, &dv, &|v| forward(&q, &k, v))
}

#[cfg(all(test, feature = "cuda-host"))]
mod tests {
    use super::*;
    use crate::cuda::under_test;
    use crate::kernel::{Compute, Isa};

    #[test]
    fn a_gradient_that_is_off_by_a_hundredth_shows_on_any_device() {
        let device = under_test::device();
        let compute = Compute::new(Isa::detect(), 1).unwrap();
        let mut checker = Checker::new(&device, compute, true, 4);
        let x = movable(50, 1);
        // of the sum of cubes
        let forward = |x: &[f32]| Ok(x.iter().map(|x| f64::from(*x).powi(3)).sum());
        let gradient: Vec<f32> = x.iter().map(|x| 3.0 * x * x).collect();
        check(&mut checker, ("cubes", ""), &x, &gradient, &forward).unwrap();
        assert!(checker.checks().iter().all(|check| check.error < 1e-5), "{:?}", checker.checks());
        let of_right = checker.checks().len();
        let wrong: Vec<f32> = gradient.iter().map(|g| 1.01 * g).collect();
        check(&mut checker, ("cubes", ""), &x, &wrong, &forward).unwrap();
        assert!(checker.checks()[of_right..].iter().any(|check| !check.passed()));
    }
}
