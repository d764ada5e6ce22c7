//! Elementwise steps between the products.

use super::Compute;
use super::disjoint::{for_row_block_pairs, for_row_blocks, written_by_row_blocks};
use super::math::{GeluTanh, MapInPlace, Silu, Unary, lanes};
use super::simd::{FmaKernel, SimdFma, dispatch_fma};

/// Returns `silu(gate) * up` (SwiGLU, arXiv:2002.05202); see [`lanes::silu`].
///
/// # Panics
/// If the lengths differ (as all functions here).
pub fn swiglu(compute: &Compute, gate: &[f32], up: &[f32]) -> Vec<f32> {
    zipped(compute, gate, up, Gated(Silu))
}

/// Returns `gelu(gate) * up`, gelu in its tanh form (GeGLU, arXiv:2002.05202); see [`lanes::gelu_tanh`].
pub fn geglu_tanh(compute: &Compute, gate: &[f32], up: &[f32]) -> Vec<f32> {
    zipped(compute, gate, up, Gated(GeluTanh))
}

/// Replaces gate and up by their gradients under [`swiglu`]: up by `dy * silu(gate)`, gate by
/// `dy * up * silu'(gate)`; see [`lanes::silu_and_slope`].
pub fn swiglu_backward(compute: &Compute, gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    gated_backward(compute, gate, up, dy, Silu);
}

/// Replaces gate and up by their gradients under [`geglu_tanh`]; see [`lanes::gelu_tanh_and_slope`].
pub fn geglu_tanh_backward(compute: &Compute, gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    gated_backward(compute, gate, up, dy, GeluTanh);
}

/// Replaces x by `x + y`.
pub fn add(compute: &Compute, x: &mut [f32], y: &[f32]) {
    zip(compute, x, y, Add);
}

/// Returns `x + y`.
pub fn sum(compute: &Compute, x: &[f32], y: &[f32]) -> Vec<f32> {
    zipped(compute, x, y, Add)
}

/// Returns `x + factor * y`, product and sum each rounded.
pub fn scaled_sum(compute: &Compute, x: &[f32], factor: f32, y: &[f32]) -> Vec<f32> {
    zipped(compute, x, y, AddScaled(factor))
}

/// Returns a copy of x, made by all threads.
pub fn copied(compute: &Compute, x: &[f32]) -> Vec<f32> {
    written_by_row_blocks(&compute.team, x.len(), 1, |first, out| {
        out.copy_from_slice(&x[first..][..out.len()]);
    })
}

/// Returns `factor * x`.
pub fn scaled(compute: &Compute, x: &[f32], factor: f32) -> Vec<f32> {
    written_by_row_blocks(&compute.team, x.len(), 1, |first, out| {
        out.copy_from_slice(&x[first..][..out.len()]);
        dispatch_fma(compute.isa, MapInPlace(Scale(factor), out));
    })
}

/// Replaces x by `cap * tanh(x / cap)` (Gemma 2, arXiv:2408.00118).
pub fn soft_cap(compute: &Compute, x: &mut [f32], cap: f32) {
    map(compute, x, SoftCap(cap));
}

/// Replaces x by its gradient under [`soft_cap`], `dy * (1 - tanh(x / cap)^2)`.
pub fn soft_cap_backward(compute: &Compute, x: &mut [f32], cap: f32, dy: &[f32]) {
    zip(compute, x, dy, SoftCapSlope(cap));
}

/// Adds the same bias to every row of x, `[T, bias.len()]`.
pub fn add_bias(compute: &Compute, x: &mut [f32], bias: &[f32]) {
    assert!(x.len().is_multiple_of(bias.len().max(1)));
    for_row_blocks(&compute.team, x, bias.len(), |_, rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            dispatch_fma(compute.isa, Zip { x: row, y: bias, function: Add });
        }
    });
}

/// A function of two f32, over lanes.
trait Binary: Copy + Send + Sync {
    fn apply<S: SimdFma>(self, s: S, x: S::F32, y: S::F32) -> S::F32;
}

fn zip(compute: &Compute, x: &mut [f32], y: &[f32], function: impl Binary) {
    assert_eq!(x.len(), y.len());
    for_row_blocks(&compute.team, x, 1, |first, x| {
        dispatch_fma(compute.isa, Zip { y: &y[first..][..x.len()], x, function });
    });
}

fn zipped(compute: &Compute, x: &[f32], y: &[f32], function: impl Binary) -> Vec<f32> {
    assert_eq!(x.len(), y.len());
    written_by_row_blocks(&compute.team, x.len(), 1, |first, out| {
        // a part at a time, so that it is in the cache when it is added to
        out.copy_from_slice(&x[first..][..out.len()]);
        dispatch_fma(compute.isa, Zip { y: &y[first..][..out.len()], x: out, function });
    })
}

fn map(compute: &Compute, x: &mut [f32], function: impl Unary) {
    for_row_blocks(&compute.team, x, 1, |_, x| dispatch_fma(compute.isa, MapInPlace(function, x)));
}

fn gated_backward(compute: &Compute, gate: &mut [f32], up: &mut [f32], dy: &[f32], function: impl Sloped) {
    assert_eq!(gate.len(), dy.len());
    for_row_block_pairs(&compute.team, gate, up, 1, |first, gate, up| {
        let dy = &dy[first..][..gate.len()];
        dispatch_fma(compute.isa, GatedBackward { gate, up, dy, function });
    });
}

struct Zip<'a, F> {
    x: &'a mut [f32],
    y: &'a [f32],
    function: F,
}

impl<F: Binary> FmaKernel for Zip<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) {
        let Self { x, y, function } = self;
        let body = x.len() / S::LANES * S::LANES;
        for (x, y) in x.chunks_exact_mut(S::LANES).zip(y.chunks_exact(S::LANES)) {
            s.store(function.apply(s, s.load(x), s.load(y)), x);
        }
        let (x, y) = (&mut x[body..], &y[body..]);
        if !x.is_empty() {
            let mut padded = [[0.0; 16]; 2];
            padded[0][..x.len()].copy_from_slice(x);
            padded[1][..y.len()].copy_from_slice(y);
            let image = function.apply(s, s.load(&padded[0]), s.load(&padded[1]));
            s.store(image, &mut padded[0]);
            x.copy_from_slice(&padded[0][..y.len()]);
        }
    }
}

/// `f(x) * y`
#[derive(Clone, Copy)]
struct Gated<F>(F);

impl<F: Unary> Binary for Gated<F> {
    #[inline(always)]
    fn apply<S: SimdFma>(self, s: S, x: S::F32, y: S::F32) -> S::F32 {
        self.0.apply(s, x) * y
    }
}

/// A function that comes with its derivative.
trait Sloped: Copy + Send + Sync {
    fn value_and_slope<S: SimdFma>(self, s: S, x: S::F32) -> (S::F32, S::F32);
}

impl Sloped for Silu {
    #[inline(always)]
    fn value_and_slope<S: SimdFma>(self, s: S, x: S::F32) -> (S::F32, S::F32) {
        lanes::silu_and_slope(s, x)
    }
}

impl Sloped for GeluTanh {
    #[inline(always)]
    fn value_and_slope<S: SimdFma>(self, s: S, x: S::F32) -> (S::F32, S::F32) {
        lanes::gelu_tanh_and_slope(s, x)
    }
}

struct GatedBackward<'a, F> {
    gate: &'a mut [f32],
    up: &'a mut [f32],
    dy: &'a [f32],
    function: F,
}

impl<F: Sloped> FmaKernel for GatedBackward<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) {
        let Self { gate, up, dy, function } = self;
        let body = gate.len() / S::LANES * S::LANES;
        let vectors = gate.chunks_exact_mut(S::LANES).zip(up.chunks_exact_mut(S::LANES));
        for ((gate, up), dy) in vectors.zip(dy.chunks_exact(S::LANES)) {
            let (value, slope) = function.value_and_slope(s, s.load(gate));
            let dy = s.load(dy);
            s.store(dy * s.load(up) * slope, gate);
            s.store(dy * value, up);
        }
        let (gate, up, dy) = (&mut gate[body..], &mut up[body..], &dy[body..]);
        if !dy.is_empty() {
            let mut padded = [[0.0; 16]; 3];
            padded[0][..dy.len()].copy_from_slice(gate);
            padded[1][..dy.len()].copy_from_slice(up);
            padded[2][..dy.len()].copy_from_slice(dy);
            let (value, slope) = function.value_and_slope(s, s.load(&padded[0]));
            let (up_vector, dy_vector) = (s.load(&padded[1]), s.load(&padded[2]));
            s.store(dy_vector * up_vector * slope, &mut padded[0]);
            s.store(dy_vector * value, &mut padded[1]);
            gate.copy_from_slice(&padded[0][..dy.len()]);
            up.copy_from_slice(&padded[1][..dy.len()]);
        }
    }
}

#[derive(Clone, Copy)]
struct Add;

impl Binary for Add {
    #[inline(always)]
    fn apply<S: SimdFma>(self, _: S, x: S::F32, y: S::F32) -> S::F32 {
        x + y
    }
}

#[derive(Clone, Copy)]
struct AddScaled(f32);

impl Binary for AddScaled {
    #[inline(always)]
    fn apply<S: SimdFma>(self, s: S, x: S::F32, y: S::F32) -> S::F32 {
        x + s.splat(self.0) * y
    }
}

#[derive(Clone, Copy)]
pub(super) struct Scale(pub f32);

impl Unary for Scale {
    #[inline(always)]
    fn apply<S: SimdFma>(self, s: S, x: S::F32) -> S::F32 {
        s.splat(self.0) * x
    }
}

/// The cap of [`soft_cap`]; attention scores use it too.
#[derive(Clone, Copy)]
pub(crate) struct SoftCap(pub f32);

impl Unary for SoftCap {
    #[inline(always)]
    fn apply<S: SimdFma>(self, s: S, x: S::F32) -> S::F32 {
        let cap = s.splat(self.0);
        cap * lanes::tanh(s, x / cap)
    }
}

#[derive(Clone, Copy)]
struct SoftCapSlope(f32);

impl Binary for SoftCapSlope {
    #[inline(always)]
    fn apply<S: SimdFma>(self, s: S, x: S::F32, dy: S::F32) -> S::F32 {
        let t = lanes::tanh(s, x / s.splat(self.0));
        dy * s.mul_add(-t, t, s.splat(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Isa, Team};

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 20) as f32 - 8.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Runs a step on x and y on every ISA, thread count and some lengths, and compares with f64.
    fn check(
        name: &str,
        step: impl Fn(&Compute, &[f32], &[f32]) -> Vec<f32>,
        exact: impl Fn(f64, f64) -> f64,
    ) {
        for n in [0, 1, 8, 15, 33, 40_000] {
            let (x, y) = (noise(n, 1), noise(n, 2));
            let mut reference: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let compute = Compute { isa, team: Team::new(threads).unwrap() };
                    let got = step(&compute, &x, &y);
                    let bits: Vec<u32> = got.iter().map(|x| x.to_bits()).collect();
                    assert!(
                        *reference.get_or_insert_with(|| bits.clone()) == bits,
                        "{name} on {}",
                        isa.name()
                    );
                    for ((x, y), got) in x.iter().zip(&y).zip(got) {
                        let want = exact(f64::from(*x), f64::from(*y));
                        let scale = f64::from(x.abs().max(1.0) * y.abs().max(1.0));
                        assert!((f64::from(got) - want).abs() <= 4e-7 * scale, "{name}({x}, {y}): {got}");
                    }
                }
            }
        }
    }

    /// Returns what a step leaves in place of x.
    fn left(x: &[f32], step: impl Fn(&mut [f32])) -> Vec<f32> {
        let mut x = x.to_vec();
        step(&mut x);
        x
    }

    #[test]
    fn steps_are_near_f64_and_equal_on_every_isa_and_thread_count() {
        check("swiglu", swiglu, |x, y| x / (1.0 + (-x).exp()) * y);
        let factor = (2.0 / std::f64::consts::PI).sqrt();
        let gelu = move |x: f64| 0.5 * x * (1.0 + (factor * (x + 0.044715 * x * x * x)).tanh());
        check("geglu_tanh", geglu_tanh, move |x, y| gelu(x) * y);
        check("add", |c, x, y| left(x, |x| add(c, x, y)), |x, y| x + y);
        check("sum", sum, |x, y| x + y);
        check("scaled_sum", |c, x, y| scaled_sum(c, x, 0.3, y), |x, y| x + f64::from(0.3f32) * y);
        check("scaled", |c, x, _| scaled(c, x, 1.7), |x, _| f64::from(1.7f32) * x);
        check("copied", |c, x, _| copied(c, x), |x, _| x);
        check("soft_cap", |c, x, _| left(x, |x| soft_cap(c, x, 5.0)), |x, _| 5.0 * (x / 5.0).tanh());
    }

    #[test]
    fn a_bias_is_added_to_every_row() {
        let (x, bias) = (noise(37 * 300, 3), noise(300, 4));
        for threads in [1, 3] {
            let compute = Compute { isa: Isa::detect(), team: Team::new(threads).unwrap() };
            let mut y = x.clone();
            add_bias(&compute, &mut y, &bias);
            assert!(y.iter().enumerate().all(|(i, y)| *y == x[i] + bias[i % 300]));
        }
    }
}
