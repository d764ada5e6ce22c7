//! One step of an arithmetic: what a micro-kernel does with a lane of x and of w.

use std::marker::PhantomData;

use super::lanes::Lanes;

/// An arithmetic on an instruction set.
///
/// # Safety
/// As [`Lanes`].
pub unsafe trait Step: Copy + Send + Sync + 'static {
    type L: Lanes;
    /// Values of k in a lane: 1, or 2 for a pair of bf16 (the even k in the low half).
    const DEPTH: usize;

    /// Returns `sum` after the products of a lane of `x` with a lane of `w`.
    unsafe fn step(sum: V<Self>, x: V<Self>, w: V<Self>) -> V<Self>;
}

/// The vectors of a step.
pub type V<S> = <<S as Step>::L as Lanes>::V;

/// [`crate::kernel::Arithmetic::F32`].
#[derive(Clone, Copy)]
pub struct F32<L>(PhantomData<L>);

// SAFETY: as `Lanes`.
unsafe impl<L: Lanes> Step for F32<L> {
    type L = L;
    const DEPTH: usize = 1;

    #[inline(always)]
    unsafe fn step(sum: L::V, x: L::V, w: L::V) -> L::V {
        // SAFETY: the caller's.
        unsafe { L::fma(x, w, sum) }
    }
}

/// [`crate::kernel::Arithmetic::Bf16`] in f32 instructions.
#[derive(Clone, Copy)]
pub struct Bf16<L>(PhantomData<L>);

// SAFETY: as `Lanes`.
unsafe impl<L: Lanes> Step for Bf16<L> {
    type L = L;
    const DEPTH: usize = 2;

    #[inline(always)]
    unsafe fn step(sum: L::V, x: L::V, w: L::V) -> L::V {
        // SAFETY: the caller's.
        unsafe {
            let sum = L::fma(L::high_bf16(x), L::high_bf16(w), sum);
            L::fma(L::low_bf16(x), L::low_bf16(w), sum)
        }
    }
}

/// [`crate::kernel::Arithmetic::Bf16`] in the instruction of AVX512-BF16, VDPBF16PS.
///
/// It rounds each of its two multiply-adds to nearest even and takes and gives denormals as zeros
/// (Intel SDM); there are none, see [`super::lanes::BF16_TINY`].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct DotBf16;

#[cfg(target_arch = "x86_64")]
// SAFETY: as `Lanes`, the instruction set being AVX512-BF16 too.
unsafe impl Step for DotBf16 {
    type L = super::avx512::Avx512;
    const DEPTH: usize = 2;

    #[inline(always)]
    unsafe fn step(sum: V<Self>, x: V<Self>, w: V<Self>) -> V<Self> {
        use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};
        // SAFETY: the caller's; the types are 512 bits of the same size.
        unsafe {
            let as_pairs = |v: __m512| std::mem::transmute::<__m512, __m512bh>(v);
            _mm512_dpbf16_ps(sum, as_pairs(x), as_pairs(w))
        }
    }
}
