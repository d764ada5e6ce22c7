//! Products by cuBLAS, cross entropy, and both in one.

use half::bf16;

use super::reference;
use super::run::{Against, Checker, allowed, download, noise, upload, widened};
use crate::cuda::CudaError;
use crate::cuda::buffer::{Buffer, Float};
use crate::cuda::op::loss::{
    Head, HeadGradients, NO_TARGET, Targets, cross_entropy_in_place, linear_cross_entropy,
};
use crate::cuda::product::{Product, Sizes};
use crate::kernel::softmax::{cross_entropy_gradient_rows, log_softmax_rows};

pub fn run(checker: &mut Checker<'_>) -> Result<(), CudaError> {
    for &(m, n, k) in checker.shapes(&[(1, 7, 5), (33, 129, 64), (200, 512, 1000)], 2) {
        products::<f32>(checker, Sizes { m, n, k })?;
        products::<bf16>(checker, Sizes { m, n, k })?;
    }
    for &n_classes in checker.shapes(&[11, 4099, 32_000], 2) {
        for cap in [None, Some(30.0)] {
            rows::<f32>(checker, n_classes, cap)?;
            rows::<bf16>(checker, n_classes, cap)?;
            heads::<f32>(checker, n_classes, cap)?;
            heads::<bf16>(checker, n_classes, cap)?;
        }
    }
    Ok(())
}

fn products<T: Float>(checker: &mut Checker<'_>, sizes: Sizes) -> Result<(), CudaError> {
    let device = checker.device;
    let Sizes { m, n, k } = sizes;
    let (x, w, dy) = (noise::<T>(m * k, 1, 1.0), noise::<T>(n * k, 2, 1.0), noise::<T>(m * n, 3, 1.0));
    let (a, b, c) = (upload::<T>(device, &x)?, upload::<T>(device, &w)?, upload::<T>(device, &dy)?);
    let (x, w, dy) = (widened(&x), widened(&w), widened(&dy));
    let dot = |len: usize, term: &dyn Fn(usize) -> f64| (0..len).map(term).sum::<f64>();
    let wants: [(Product, Vec<f64>); 3] = [
        (Product::Forward, (0..m * n).map(|at| dot(k, &|i| x[at / n * k + i] * w[at % n * k + i])).collect()),
        (
            Product::InputGradient,
            (0..m * k).map(|at| dot(n, &|i| dy[at / k * n + i] * w[i * k + at % k])).collect(),
        ),
        (
            Product::WeightGradient,
            (0..n * k).map(|at| dot(m, &|i| dy[i * n + at / k] * x[i * k + at % k])).collect(),
        ),
    ];
    for (product, want) in wants {
        let operands = match product {
            Product::Forward => (&b, &a),
            Product::InputGradient => (&b, &c),
            Product::WeightGradient => (&a, &c),
        };
        let (name, shape) = (format!("cublas {product:?} {}", T::NAME), format!("{m}x{n}x{k}"));
        let found = checker.twice(&name, &shape, &mut || {
            let mut out = Buffer::<f32>::zeros(device, want.len())?;
            device.product(product, sizes, operands, (1.0, 0.0), &mut out)?;
            download(device, &out)
        })?;
        // operands are exact, sums f32
        checker.near(&name, &shape, &found, &want, 1e-5, Against::Value);
    }
    Ok(())
}

const ROWS: usize = 6;

/// Targets of which one is missing, and factors.
fn targets(n_classes: usize) -> (Vec<u32>, Vec<f32>) {
    let last = u32::try_from(n_classes - 1).unwrap_or(0);
    (vec![0, last, last / 2, NO_TARGET, last / 3, 1], vec![0.25, 0.5, -0.75, 1.0, 0.3, 0.1])
}

/// Losses and gradients by logits in f64.
fn wanted(logits: &[f64], n_classes: usize, cap: Option<f32>) -> (Vec<f64>, Vec<f64>) {
    let (classes, factors) = targets(n_classes);
    let (mut nll, mut gradient) = (Vec::new(), Vec::new());
    for ((row, class), factor) in logits.chunks_exact(n_classes).zip(classes).zip(factors) {
        if class == NO_TARGET {
            nll.push(0.0);
            gradient.extend(vec![0.0; n_classes]);
            continue;
        }
        let (loss, slopes) = reference::cross_entropy(row, class as usize, cap.map(f64::from));
        nll.push(loss);
        gradient.extend(slopes.into_iter().map(|d| d * f64::from(factor)));
    }
    (nll, gradient)
}

fn rows<T: Float>(checker: &mut Checker<'_>, n_classes: usize, cap: Option<f32>) -> Result<(), CudaError> {
    let device = checker.device;
    let logits = noise::<T>(ROWS * n_classes, 4, 12.0);
    let (classes, factors) = targets(n_classes);
    let (on_device, factors_on_device) = (Buffer::of(device, &classes)?, upload::<f32>(device, &factors)?);
    let of = Targets { classes: &on_device, factors: &factors_on_device, softcap: cap };
    let mut nll = Buffer::<f32>::zeros(device, ROWS)?;
    let (name, shape) = (format!("cross_entropy {}", T::NAME), format!("{ROWS}x{n_classes} cap {cap:?}"));
    let mut found = checker.twice(&name, &shape, &mut || {
        let mut place = upload::<T>(device, &logits)?;
        cross_entropy_in_place(device, &mut place, &of, &mut nll)?;
        Ok([download(device, &nll)?, download(device, &place)?].concat())
    })?;
    let gradient = found.split_off(ROWS);
    let (want_nll, want) = wanted(&widened(&logits), n_classes, cap);
    checker.near(&format!("nll {}", T::NAME), &shape, &found, &want_nll, 1e-5, Against::Value);
    checker.near(&name, &shape, &gradient, &want, allowed::<T>(), Against::Value);
    if cap.is_none() {
        // the row without a target is 0 on both: its factor is
        let classes: Vec<u32> =
            classes.iter().map(|class| if *class == NO_TARGET { 0 } else { *class }).collect();
        let mut factors = factors;
        factors[3] = 0.0;
        let mut cpu = logits;
        let pieces = log_softmax_rows(&checker.compute, &cpu, n_classes);
        cross_entropy_gradient_rows(&checker.compute, &mut cpu, n_classes, &pieces, &classes, &factors);
        checker.near_cpu(&name, &shape, &gradient, &cpu, allowed::<T>(), Against::Value);
    }
    Ok(())
}

fn heads<T: Float>(checker: &mut Checker<'_>, n_classes: usize, cap: Option<f32>) -> Result<(), CudaError> {
    const WIDTH: usize = 48;
    let device = checker.device;
    let (hidden, weights) = (noise::<T>(ROWS * WIDTH, 5, 1.0), noise::<T>(n_classes * WIDTH, 6, 1.0));
    let (classes, factors) = targets(n_classes);
    let (on_device, factors) = (Buffer::of(device, &classes)?, upload::<f32>(device, &factors)?);
    let of = Targets { classes: &on_device, factors: &factors, softcap: cap };
    let (x, w) = (upload::<T>(device, &hidden)?, upload::<T>(device, &weights)?);
    let head = Head { weight: &w, hidden: &x, width: WIDTH };
    let name = format!("linear_cross_entropy {}", T::NAME);
    let shape = format!("{ROWS}x{WIDTH}x{n_classes} cap {cap:?}");
    let mut found = checker.twice(&name, &shape, &mut || {
        let (mut nll, mut d_hidden) =
            (Buffer::zeros(device, ROWS)?, Buffer::<T>::zeros(device, ROWS * WIDTH)?);
        let gradients = HeadGradients { hidden: &mut d_hidden, weight: None };
        linear_cross_entropy(device, &head, &of, &mut nll, Some(gradients))?;
        Ok([download(device, &nll)?, download(device, &d_hidden)?].concat())
    })?;
    let gradient = found.split_off(ROWS);
    let (hidden, weights) = (widened(&hidden), widened(&weights));
    let logit = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    let of_row = |x: &[f64]| weights.chunks_exact(WIDTH).map(|w| logit(x, w)).collect::<Vec<f64>>();
    let logits: Vec<f64> = hidden.chunks_exact(WIDTH).flat_map(of_row).collect();
    let (want_nll, d_logits) = wanted(&logits, n_classes, cap);
    let mut want = vec![0.0; ROWS * WIDTH];
    for (want, d) in want.chunks_exact_mut(WIDTH).zip(d_logits.chunks_exact(n_classes)) {
        for (d, w) in d.iter().zip(weights.chunks_exact(WIDTH)) {
            want.iter_mut().zip(w).for_each(|(sum, w)| *sum += d * w);
        }
    }
    checker.near(&name, &shape, &found, &want_nll, 1e-5, Against::Value);
    checker.near(&name, &shape, &gradient, &want, allowed::<T>(), Against::Largest);
    Ok(())
}
