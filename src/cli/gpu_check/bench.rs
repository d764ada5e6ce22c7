//! How fast the kernels are, on the shapes of an 8B model.

use half::bf16;

use super::run::{Checker, noise, upload};
use crate::cuda::CudaError;
use crate::cuda::buffer::Buffer;
use crate::cuda::op::attention::{Documents, Gradients, Operands, Saved};
use crate::cuda::op::dequantize::{FORMATS, dequantize};
use crate::cuda::op::elementwise::{self as op, GateUp, RopeRows, Turn};
use crate::cuda::op::loss::{Head, HeadGradients, Targets, linear_cross_entropy};
use crate::cuda::op::moments::Moments;
use crate::cuda::op::norm::Norm;
use crate::cuda::op::optimizer::{Clip, Flat, Run, Step};
use crate::cuda::product::{Product, Sizes};
use crate::kernel::attention::AttentionShape;
use crate::kernel::rope::{RopeTable, inv_freq};
use crate::nn::Activation;

/// Rows of a batch, and the sizes of Llama 3.1 8B.
const ROWS: usize = 8192;
const D_MODEL: usize = 4096;
const D_FF: usize = 14_336;
const N_CLASSES: usize = 128_256;
const HEADS: (usize, usize, usize) = (32, 8, 128);

pub fn run(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    steps(checker)?;
    products(checker)?;
    for (n_heads, n_kv_heads, head_dim) in [(32, 8, 64), HEADS, (8, 4, 256)] {
        attention(
            checker,
            AttentionShape { n_heads, n_kv_heads, head_dim, scale: 0.1, softcap: None, window: None },
        )?;
    }
    loss(checker)?;
    formats(checker)?;
    optimizer(checker)
}

fn steps(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    let device = checker.device;
    let n = ROWS * D_MODEL;
    // the residual stream and its gradient are f32
    let x = upload::<f32>(device, &noise::<f32>(n, 1, 1.0))?;
    let dy = upload::<bf16>(device, &noise::<bf16>(n, 2, 1.0))?;
    let weight = upload::<f32>(device, &noise::<f32>(D_MODEL, 3, 1.0))?;
    let norm = Norm { weight: &weight, offset: 0.0, eps: 1e-5 };
    let (mut y, mut sum) = (Buffer::<bf16>::zeros(device, n)?, Buffer::<f32>::zeros(device, n)?);
    let mut factors = Buffer::<f32>::zeros(device, ROWS)?;
    let (shape, bytes) = (format!("{ROWS}x{D_MODEL} f32 to bf16"), 2.0 * n as f64);
    checker.time("rms_norm", &shape, Some(3.0 * bytes), None, &mut || norm.forward(device, &x, &mut y))?;
    checker.time("rms_norm of a sum", &shape, Some(6.0 * bytes), None, &mut || {
        norm.forward_of_sum(device, &x, &dy, &mut sum, &mut y)
    })?;
    checker.time("rms_norm_backward", &shape, Some(5.0 * bytes), None, &mut || {
        norm.backward(device, &x, &dy, None, &mut sum, &mut factors)
    })?;
    let (mut moments, rows) = (Moments::zeros(device, D_MODEL)?, format!("{ROWS}x{D_MODEL} bf16"));
    checker
        .time("column sums", &rows, Some(bytes), None, &mut || moments.add(device, (0, D_MODEL), &y, None))?;
    checker.time("add", &shape, Some(5.0 * bytes), None, &mut || {
        op::add_scaled(device, &x, &dy, 1.0, &mut sum)
    })?;
    let values = noise::<f32>(n, 5, 1.0);
    let (moved, shape) = (Some(4.0 * n as f64), format!("{n} f32"));
    checker.time("copy to the device", &shape, moved, None, &mut || sum.write(device, &values))?;
    checker.time("copy from the device", &shape, moved, None, &mut || sum.read(device).map(drop))?;
    let shape = format!("{ROWS}x{D_MODEL} bf16");
    let (n_heads, _, head_dim) = HEADS;
    let table = upload::<f32>(device, &RopeTable::new(&inv_freq(500_000.0, head_dim), 1.0).rows(2048))?;
    let positions: Vec<u32> = (0..2048).cycle().take(ROWS).collect();
    let positions = Buffer::of(device, &positions)?;
    let rows = RopeRows { table: &table, dim: head_dim, positions: &positions };
    checker.time("rope", &shape, Some(2.0 * bytes), None, &mut || {
        op::rope(device, &mut y, (D_MODEL, n_heads, head_dim), &rows, Turn::Forward)
    })?;

    let n = ROWS * D_FF;
    let gate_up = upload::<bf16>(device, &noise::<bf16>(2 * n, 4, 1.0))?;
    let (mut y, mut gradient) = (Buffer::<bf16>::zeros(device, n)?, Buffer::<bf16>::zeros(device, 2 * n)?);
    let (shape, bytes) = (format!("{ROWS}x{D_FF} bf16"), 2.0 * n as f64);
    checker.time("swiglu", &shape, Some(3.0 * bytes), None, &mut || {
        op::gated(device, Activation::Silu, GateUp::Fused(&gate_up), D_FF, &mut y)
    })?;
    checker.time("swiglu_backward", &shape, Some(5.0 * bytes), None, &mut || {
        let to = (&mut gradient, None);
        op::gated_backward(device, Activation::Silu, GateUp::Fused(&gate_up), &y, to, D_FF, None)
    })
}

fn products(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    let device = checker.device;
    for (n, k) in [(D_MODEL, D_MODEL), (2 * D_FF, D_MODEL), (D_MODEL, D_FF)] {
        let sizes = Sizes { m: ROWS, n, k };
        let x = upload::<bf16>(device, &noise::<bf16>(ROWS * k, 1, 1.0))?;
        let w = upload::<bf16>(device, &noise::<bf16>(n * k, 2, 1.0))?;
        let (mut y, mut dx) =
            (Buffer::<bf16>::zeros(device, ROWS * n)?, Buffer::<bf16>::zeros(device, ROWS * k)?);
        let (shape, flops) = (format!("{ROWS}x{n}x{k} bf16"), 2.0 * (ROWS * n) as f64 * k as f64);
        checker.time("cublas forward", &shape, None, Some(flops), &mut || {
            device.product(Product::Forward, sizes, (&w, &x), (1.0, 0.0), &mut y)
        })?;
        checker.time("cublas input gradient", &shape, None, Some(flops), &mut || {
            device.product(Product::InputGradient, sizes, (&w, &y), (1.0, 0.0), &mut dx)
        })?;
    }
    Ok(())
}

fn attention(checker: &mut Checker<'_>, shape: AttentionShape) -> Result<(), CudaError> {
    const DOCUMENT: usize = 2048;
    let device = checker.device;
    let cu: Vec<usize> = (0..=ROWS / DOCUMENT).map(|i| i * DOCUMENT).collect();
    let (n_q, n_kv) = (ROWS * shape.n_heads * shape.head_dim, ROWS * shape.n_kv_heads * shape.head_dim);
    let of = |n: usize, seed: u64| upload::<bf16>(device, &noise::<bf16>(n, seed, 1.0));
    let (q, k, v, dout) = (of(n_q, 1)?, of(n_kv, 2)?, of(n_kv, 3)?, of(n_q, 4)?);
    let (mut out, mut lse) =
        (Buffer::<bf16>::zeros(device, n_q)?, Buffer::<f32>::zeros(device, ROWS * shape.n_heads)?);
    let zeros = |n: usize| Buffer::<bf16>::zeros(device, n);
    let (mut dq, mut dk, mut dv) = (zeros(n_q)?, zeros(n_kv)?, zeros(n_kv)?);
    let documents = Documents::new::<bf16>(device, shape, &cu)?;
    let operands = Operands { q: &q, k: &k, v: &v };
    // causal: half of all pairs; two products of a multiply and an add
    let flops = 4.0 * (ROWS * DOCUMENT / 2 * shape.n_heads) as f64 * shape.head_dim as f64;
    let text = format!("{}x{} of {} by 2048", shape.n_heads, shape.head_dim, ROWS);
    checker.time("attention", &text, None, Some(flops), &mut || {
        documents.forward(device, &operands, &mut out, &mut lse)
    })?;
    let saved = Saved { out: &out, lse: &lse, dout: &dout };
    // counted as five products, as published figures are; seven are computed
    checker.time("attention_backward", &text, None, Some(2.5 * flops), &mut || {
        let mut gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        documents.backward(device, &operands, &saved, &mut gradients)
    })
}

fn loss(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    let device = checker.device;
    let hidden = upload::<bf16>(device, &noise::<bf16>(ROWS * D_MODEL, 1, 1.0))?;
    let weight = upload::<bf16>(device, &noise::<bf16>(N_CLASSES * D_MODEL, 2, 0.05))?;
    let classes: Vec<u32> = (0..ROWS).map(|i| u32::try_from(i * 7 % N_CLASSES).unwrap_or(0)).collect();
    let (classes, factors) = (Buffer::of(device, &classes)?, Buffer::of(device, &vec![1e-4; ROWS])?);
    let targets = Targets { classes: &classes, factors: &factors, softcap: None };
    let head = Head { weight: &weight, hidden: &hidden, width: D_MODEL };
    let mut nll = Buffer::<f32>::zeros(device, ROWS)?;
    let mut d_hidden = Buffer::<bf16>::zeros(device, ROWS * D_MODEL)?;
    let flops = 4.0 * (ROWS * D_MODEL) as f64 * N_CLASSES as f64;
    checker.time(
        "linear_cross_entropy",
        &format!("{ROWS}x{D_MODEL}x{N_CLASSES}"),
        None,
        Some(flops),
        &mut || {
            let gradients = HeadGradients { hidden: &mut d_hidden, weight: None };
            linear_cross_entropy(device, &head, &targets, &mut nll, Some(gradients))
        },
    )
}

fn formats(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    let device = checker.device;
    let n = D_MODEL * D_FF;
    let mut out = Buffer::<bf16>::zeros(device, n)?;
    for (name, len, bytes) in FORMATS {
        let n_bytes = n / len * bytes;
        let blocks = Buffer::<u8>::zeros(device, n_bytes)?;
        let traffic = (n_bytes + 2 * n) as f64;
        checker.time(
            &format!("dequantize_{name}"),
            &format!("{D_MODEL}x{D_FF} to bf16"),
            Some(traffic),
            None,
            &mut || dequantize(device, name, &blocks, &mut out),
        )?;
    }
    Ok(())
}

fn optimizer(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    const N: usize = 42_000_000;
    let device = checker.device;
    let mut params = Buffer::<f32>::zeros(device, N)?;
    let mut moments = [Buffer::<f32>::zeros(device, N)?, Buffer::<f32>::zeros(device, N)?];
    let gradients = Buffer::<f32>::zeros(device, N)?;
    let mut clip = Clip::new(device, N)?;
    checker.time("global_norm", "42M f32", Some(4.0 * N as f64), None, &mut || {
        clip.measure(device, &gradients, Some(1.0))
    })?;
    let step = Step::adamw((0.9, 0.999), 1e-8, 1e-4, 0.0, 1);
    checker.time("adamw", "42M f32", Some(28.0 * N as f64), None, &mut || {
        let mut flat =
            Flat { params: &mut params, moments: &mut moments, gradients: &gradients, rounded: None };
        step.apply(device, &mut flat, &clip, Run { first: 0, n: N })
    })
}
