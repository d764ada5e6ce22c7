//! Our own elementary functions, so that their bits do not depend on a system's libm.
//!
//! [`lanes`] holds them over SIMD vectors, for kernels: exactly rounded operations in a fixed order, so the same bits on
//! every instruction set. Those of f64 are in [`super::math64`].

pub mod lanes;
#[cfg(test)]
mod tests;

use super::Isa;
use super::simd::{FmaKernel, SimdFma, dispatch_fma};

/// A function of one f32, over lanes.
pub(crate) trait Unary: Copy + Send + Sync {
    fn apply<S: SimdFma>(self, s: S, x: S::F32) -> S::F32;
}

/// Replaces every value by its image; the tail goes through a padded vector.
pub(crate) struct MapInPlace<'a, F>(pub F, pub &'a mut [f32]);

impl<F: Unary> FmaKernel for MapInPlace<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: SimdFma>(self, s: S) {
        let Self(function, values) = self;
        let mut vectors = values.chunks_exact_mut(S::LANES);
        for chunk in &mut vectors {
            s.store(function.apply(s, s.load(chunk)), chunk);
        }
        let rest = vectors.into_remainder();
        if !rest.is_empty() {
            let mut padded = [0.0; 16];
            padded[..rest.len()].copy_from_slice(rest);
            let image = function.apply(s, s.load(&padded));
            s.store(image, &mut padded);
            rest.copy_from_slice(&padded[..rest.len()]);
        }
    }
}

macro_rules! slice_function {
    ($(#[$doc:meta])* $name:ident, $type:ident) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $type;

        impl Unary for $type {
            #[inline(always)]
            fn apply<S: SimdFma>(self, s: S, x: S::F32) -> S::F32 {
                lanes::$name(s, x)
            }
        }

        $(#[$doc])*
        pub fn $name(isa: Isa, values: &mut [f32]) {
            dispatch_fma(isa, MapInPlace($type, values));
        }
    };
}

slice_function! {
    /// Replaces every x by e^x; see [`lanes::exp`].
    exp, Exp
}
slice_function! {
    /// Replaces every x by its natural logarithm; see [`lanes::log`].
    log, Log
}
slice_function! {
    /// Replaces every x by its hyperbolic tangent; see [`lanes::tanh`].
    tanh, Tanh
}
slice_function! {
    /// Replaces every x by 1 / (1 + e^-x); see [`lanes::sigmoid`].
    sigmoid, Sigmoid
}
slice_function! {
    /// Replaces every x by x / (1 + e^-x); see [`lanes::silu`].
    silu, Silu
}
slice_function! {
    /// Replaces every x by the tanh form of GELU; see [`lanes::gelu_tanh`].
    gelu_tanh, GeluTanh
}
