//! Elementwise steps between the products.

use super::Compute;
use super::disjoint::for_row_blocks;
use super::math::{GeluTanh, MapInPlace, Silu, Unary, lanes};
use super::simd::{FmaKernel, SimdFma, dispatch_fma};

/// Replaces gate by `silu(gate) * up` (SwiGLU, arXiv:2002.05202); see [`lanes::silu`].
///
/// # Panics
/// If the lengths differ (as all functions here).
pub fn swiglu(compute: &Compute, gate: &mut [f32], up: &[f32]) {
    zip(compute, gate, up, Gated(Silu));
}

/// Replaces gate by `gelu(gate) * up`, gelu in its tanh form (GeGLU, arXiv:2002.05202); see [`lanes::gelu_tanh`].
pub fn geglu_tanh(compute: &Compute, gate: &mut [f32], up: &[f32]) {
    zip(compute, gate, up, Gated(GeluTanh));
}

/// Replaces x by `x + y`.
pub fn add(compute: &Compute, x: &mut [f32], y: &[f32]) {
    zip(compute, x, y, Add);
}

/// Replaces x by `x + factor * y`, product and sum each rounded.
pub fn add_scaled(compute: &Compute, x: &mut [f32], factor: f32, y: &[f32]) {
    zip(compute, x, y, AddScaled(factor));
}

/// Replaces x by `factor * x`.
pub fn scale(compute: &Compute, x: &mut [f32], factor: f32) {
    map(compute, x, Scale(factor));
}

/// Replaces x by `cap * tanh(x / cap)` (Gemma 2, arXiv:2408.00118).
pub fn soft_cap(compute: &Compute, x: &mut [f32], cap: f32) {
    map(compute, x, SoftCap(cap));
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

fn map(compute: &Compute, x: &mut [f32], function: impl Unary) {
    for_row_blocks(&compute.team, x, 1, |_, x| dispatch_fma(compute.isa, MapInPlace(function, x)));
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
struct Scale(f32);

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
