//! A small SIMD layer: kernels are written once over [`Simd`] and compiled once per [`Isa`].
//!
//! Every operation is exactly rounded or purely bitwise, and none is fused except in [`SimdFma`], so
//! a lane-wise kernel gives the same bits on every instruction set. The width differs ([`Simd::LANES`]):
//! a kernel stays reproducible if no value crosses lanes, or only through order-free operations.
//!
//! ```
//! use lctl::kernel::{Isa, simd::{Kernel, Simd, dispatch}};
//!
//! /// Doubles a slice whose length is a multiple of 16.
//! struct Double<'a>(&'a mut [f32]);
//!
//! impl Kernel for Double<'_> {
//!     type Output = ();
//!     #[inline(always)]
//!     fn run<S: Simd>(self, s: S) {
//!         for chunk in self.0.chunks_exact_mut(S::LANES) {
//!             let x = s.load(chunk);
//!             s.store(x + x, chunk);
//!         }
//!     }
//! }
//!
//! let mut x = [1.0; 16];
//! dispatch(Isa::detect(), Double(&mut x));
//! assert_eq!(x, [2.0; 16]);
//! ```

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};

use super::Isa;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use portable::Portable;

/// 1.5 * 2^23: adding it to |v| <= 4194303 rounds v to an integer, half to even, in the low mantissa bits.
pub const ROUND_MAGIC: f32 = 12_582_912.0;

/// An instruction set as a token: a value exists only where the CPU has the features.
///
/// Generic code over it must be `#[inline(always)]` down to the intrinsics and run through
/// [`dispatch`]; a function left out of line is compiled without the features and slow.
#[allow(clippy::wrong_self_convention, reason = "self is the instruction set, not the value converted")]
pub trait Simd: Copy + Send + Sync + 'static {
    /// `LANES` f32 values; the operators are lane-wise IEEE operations.
    type F32: Copy
        + Add<Output = Self::F32>
        + Sub<Output = Self::F32>
        + Mul<Output = Self::F32>
        + Div<Output = Self::F32>
        + Neg<Output = Self::F32>;
    /// `LANES` i32 values; arithmetic wraps.
    type I32: Copy
        + Add<Output = Self::I32>
        + Sub<Output = Self::I32>
        + Mul<Output = Self::I32>
        + BitAnd<Output = Self::I32>
        + BitOr<Output = Self::I32>
        + BitXor<Output = Self::I32>;
    /// `LANES` truth values.
    type Mask: Copy + BitAnd<Output = Self::Mask> + BitOr<Output = Self::Mask> + Not<Output = Self::Mask>;

    /// Lanes per vector: 8 or 16.
    const LANES: usize;
    /// The level this token stands for.
    const ISA: Isa;

    /// Returns `x` in every lane.
    fn splat(self, x: f32) -> Self::F32;
    /// Returns `x` in every lane.
    fn splat_i32(self, x: i32) -> Self::I32;

    /// Loads the first `LANES` values. Panics if there are fewer (as all loads and stores here).
    fn load(self, src: &[f32]) -> Self::F32;
    /// Stores to the first `LANES` values.
    fn store(self, v: Self::F32, dst: &mut [f32]);
    /// Loads the first `LANES` values.
    fn load_i32(self, src: &[i32]) -> Self::I32;
    /// Stores to the first `LANES` values.
    fn store_i32(self, v: Self::I32, dst: &mut [i32]);
    /// Loads `LANES` bytes, zero-extended.
    fn load_u8(self, src: &[u8]) -> Self::I32;
    /// Loads `LANES` bytes, sign-extended.
    fn load_i8(self, src: &[u8]) -> Self::I32;
    /// Stores the low byte of every lane.
    fn store_u8(self, v: Self::I32, dst: &mut [u8]);
    /// Loads `LANES` little-endian 16-bit values (2 * `LANES` bytes), zero-extended.
    fn load_u16(self, src: &[u8]) -> Self::I32;
    /// Stores the low 16 bits of every lane, little-endian (2 * `LANES` bytes).
    fn store_u16(self, v: Self::I32, dst: &mut [u8]);
    /// Loads `LANES` little-endian IEEE halves (2 * `LANES` bytes).
    fn load_f16(self, src: &[u8]) -> Self::F32;
    /// Stores as little-endian IEEE halves, rounded half to even (2 * `LANES` bytes).
    fn store_f16(self, v: Self::F32, dst: &mut [u8]);

    /// `a < b ? a : b` (so b if either is NaN).
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a > b ? a : b` (so b if either is NaN).
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Clears the sign bit.
    fn abs(self, a: Self::F32) -> Self::F32;
    /// Square root, correctly rounded.
    fn sqrt(self, a: Self::F32) -> Self::F32;
    /// Rounds toward zero, to f32.
    fn trunc(self, a: Self::F32) -> Self::F32;

    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn le(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn eq(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `a > b`.
    #[inline(always)]
    fn gt(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        self.lt(b, a)
    }
    /// `a >= b`.
    #[inline(always)]
    fn ge(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        self.le(b, a)
    }
    fn eq_i32(self, a: Self::I32, b: Self::I32) -> Self::Mask;
    fn gt_i32(self, a: Self::I32, b: Self::I32) -> Self::Mask;

    /// `m ? a : b`, lane by lane.
    fn select(self, m: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `m ? a : b`, lane by lane.
    fn select_i32(self, m: Self::Mask, a: Self::I32, b: Self::I32) -> Self::I32;
    /// Returns lane i's truth value as bit i.
    fn mask_bits(self, m: Self::Mask) -> u32;
    /// True if any lane is.
    #[inline(always)]
    fn any(self, m: Self::Mask) -> bool {
        self.mask_bits(m) != 0
    }
    /// True if all lanes are.
    #[inline(always)]
    fn all(self, m: Self::Mask) -> bool {
        self.mask_bits(m) == u32::MAX >> (32 - Self::LANES)
    }

    fn min_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn max_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// Shifts left; `N < 32`.
    fn shl<const N: u32>(self, a: Self::I32) -> Self::I32;
    /// Shifts right, zeros coming in; `N < 32`.
    fn shr<const N: u32>(self, a: Self::I32) -> Self::I32;
    /// Shifts right, copies of the sign coming in; `N < 32`.
    fn sar<const N: u32>(self, a: Self::I32) -> Self::I32;

    /// Reinterprets the bits.
    fn to_bits(self, a: Self::F32) -> Self::I32;
    /// Reinterprets the bits.
    fn from_bits(self, a: Self::I32) -> Self::F32;
    /// Converts to the nearest f32, half to even.
    fn to_f32(self, a: Self::I32) -> Self::F32;
    /// Converts toward zero; `i32::MIN` where the value does not fit or is NaN.
    fn trunc_i32(self, a: Self::F32) -> Self::I32;

    /// Returns `table[index]` in every lane; only the low 4 bits of an index count.
    fn lookup16(self, table: &[f32; 16], index: Self::I32) -> Self::F32;

    /// Returns `table[index]` in every lane; only the low 5 bits of an index count.
    fn lookup32(self, table: &[f32; 32], index: Self::I32) -> Self::F32;

    /// Reads lanes from rows: lane j of `dst[i]` is `src[j * stride + i]`.
    ///
    /// # Panics
    /// If `dst.len()` is not a multiple of `LANES`, exceeds `stride`, or `src` is too short.
    fn transpose(self, src: &[f32], stride: usize, dst: &mut [Self::F32]);

    /// Writes lanes to rows of bytes: `dst[j * stride + i]` is the low byte of lane j of `src[i]`.
    ///
    /// # Panics
    /// If `src.len()` is not a multiple of 4 or `dst` is too short.
    #[inline(always)]
    fn store_bytes_by_lane(self, src: &[Self::I32], dst: &mut [u8], stride: usize) {
        assert!(src.len().is_multiple_of(4));
        let byte = self.splat_i32(255);
        let mut words = [0i32; 16];
        for (i, q) in src.chunks_exact(4).enumerate() {
            let low = (q[0] & byte) | self.shl::<8>(q[1] & byte);
            let high = self.shl::<16>(q[2] & byte) | self.shl::<24>(q[3]);
            self.store_i32(low | high, &mut words);
            for (j, word) in words[..Self::LANES].iter().enumerate() {
                dst[j * stride + 4 * i..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// `-(a)` where `sign` is negative (sign bit set), else `a`; `a` not negative.
    #[inline(always)]
    fn copysign(self, a: Self::F32, sign: Self::F32) -> Self::F32 {
        let high = self.splat_i32(i32::MIN);
        self.from_bits(self.to_bits(a) | (self.to_bits(sign) & high))
    }

    /// Rounds half to even; |a| <= 4194303 (outside, the result is not an integer's).
    #[inline(always)]
    fn round_small(self, a: Self::F32) -> Self::F32 {
        let magic = self.splat(ROUND_MAGIC);
        (a + magic) - magic
    }

    /// [`nearest_int`] lane by lane, for every input, NaN included.
    #[inline(always)]
    fn nearest_int(self, a: Self::F32) -> Self::I32 {
        let bits = self.to_bits(a + self.splat(ROUND_MAGIC));
        (bits & self.splat_i32(0x007f_ffff)) - self.splat_i32(0x0040_0000)
    }

    /// Rounds half away from zero, to f32 (C's `roundf`).
    #[inline(always)]
    fn round_away(self, a: Self::F32) -> Self::F32 {
        let whole = self.trunc(a);
        let up = self.copysign(self.splat(1.0), a);
        // a - whole is exact, and NaN for infinities, which are whole already
        let half = self.ge(self.abs(a - whole), self.splat(0.5));
        self.select(half, whole + up, whole)
    }
}

/// Rounds half to even as block encoders do: |v| <= 4194303 gives the integer, anything else wraps
/// (NaN gives 0), exactly as the bit trick says.
#[inline(always)]
pub fn nearest_int(v: f32) -> i32 {
    (((v + ROUND_MAGIC).to_bits() & 0x007f_ffff) as i32) - 0x0040_0000
}

/// An instruction set with a fused multiply-add.
///
/// Apart from [`Simd`], so that a quantizer, whose bytes must equal those of unfused code, cannot fuse.
pub trait SimdFma: Simd {
    /// Returns `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
}

/// Work with fused multiply-adds, compiled once per instruction set.
pub trait FmaKernel {
    type Output;

    /// Runs the work. Implementations must be `#[inline(always)]`.
    fn run<S: SimdFma>(self, s: S) -> Self::Output;
}

/// Work compiled once per instruction set.
pub trait Kernel {
    type Output;

    /// Runs the work. Implementations must be `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `kernel` compiled for `isa`.
///
/// # Panics
/// If the machine lacks `isa`: callers take it from [`Isa::detect`] or [`Isa::available`].
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        Isa::Portable => kernel.run(Portable),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            let token = Avx2::new().expect("the caller checked that the machine has AVX2");
            // SAFETY: the token proves that the CPU has the features.
            unsafe { avx2::run(token, kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            let token = Avx512::new().expect("the caller checked that the machine has AVX-512");
            // SAFETY: the token proves that the CPU has the features.
            unsafe { avx512::run(token, kernel) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 => panic!("{} does not exist on this architecture", isa.name()),
    }
}

/// Runs `kernel`, which may fuse, compiled for `isa`.
///
/// # Panics
/// If the machine lacks `isa`: callers take it from [`Isa::detect`] or [`Isa::available`].
pub fn dispatch_fma<K: FmaKernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        Isa::Portable => kernel.run(Portable),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            let token = Avx2::new().expect("the caller checked that the machine has AVX2");
            // SAFETY: the token proves that the CPU has the features.
            unsafe { avx2::run_fma(token, kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            let token = Avx512::new().expect("the caller checked that the machine has AVX-512");
            // SAFETY: the token proves that the CPU has the features.
            unsafe { avx512::run_fma(token, kernel) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 => panic!("{} does not exist on this architecture", isa.name()),
    }
}
