//! Eight lanes in AVX2 registers.
//!
//! SAFETY, for every block here: a token exists only where the CPU has AVX2, FMA and F16C, and what its [`Dot`]
//! says. Pointers come from slices whose length was just checked, or from checked words.

use std::arch::x86_64::*;

use super::lanes::{Lanes, Words};
use crate::kernel::Isa;

const LANES: usize = 8;

/// How four products are summed.
pub trait Dot: Copy {
    /// Whether [`Dot::quads`] is there; VPMADDUBSW is used where not.
    const VNNI: bool;
    /// Returns true if the CPU has it.
    fn is_there() -> bool;
    /// Adds to each i32 the dot of four unsigned bytes of `a` with four signed ones of `b`.
    ///
    /// # Safety
    /// The CPU has it.
    unsafe fn quads(sum: __m256i, a: __m256i, b: __m256i) -> __m256i;
}

/// AVX2 alone.
#[derive(Clone, Copy)]
pub struct Pairs;

impl Dot for Pairs {
    const VNNI: bool = false;

    fn is_there() -> bool {
        true
    }

    #[inline(always)]
    unsafe fn quads(_: __m256i, _: __m256i, _: __m256i) -> __m256i {
        unreachable!("VNNI is false")
    }
}

/// AVX-VNNI.
#[derive(Clone, Copy)]
pub struct AvxVnni;

impl Dot for AvxVnni {
    const VNNI: bool = true;

    fn is_there() -> bool {
        is_x86_feature_detected!("avxvnni")
    }

    #[inline(always)]
    unsafe fn quads(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the caller's.
        unsafe { _mm256_dpbusd_avx_epi32(sum, a, b) }
    }
}

/// AVX-512 VNNI on 256 bits: the same operation in another encoding, for tests where AVX-VNNI is missing.
#[cfg(test)]
#[derive(Clone, Copy)]
pub struct Avx512Vnni;

#[cfg(test)]
impl Dot for Avx512Vnni {
    const VNNI: bool = true;

    fn is_there() -> bool {
        is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl")
    }

    #[inline(always)]
    unsafe fn quads(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the caller's.
        unsafe { _mm256_dpbusd_epi32(sum, a, b) }
    }
}

/// Proof that the CPU has AVX2, FMA, F16C and `D`.
#[derive(Clone, Copy)]
pub struct Avx2<D>(std::marker::PhantomData<D>);

impl<D: Dot> Avx2<D> {
    /// Returns the token if the CPU has the features.
    pub fn new() -> Option<Self> {
        (Isa::detect() >= Isa::Avx2 && D::is_there()).then_some(Avx2(std::marker::PhantomData))
    }
}

macro_rules! methods {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $ret:ty $body:block)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: $type),*) -> $ret {
            // SAFETY: see the module.
            unsafe { $body }
        })*
    };
}

impl<D: Dot> Lanes for Avx2<D> {
    type I = __m256i;
    type F = __m256;
    const LANES: usize = LANES;
    const SIGNED_OFFSET: i32 = if D::VNNI { 128 } else { 0 };
    const ANY_CODES: bool = D::VNNI;

    methods! {
        fn splat(word: u32) -> __m256i { _mm256_set1_epi32(word as i32) }
        fn and(a: __m256i, b: __m256i) -> __m256i { _mm256_and_si256(a, b) }
        fn or(a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
        fn xor(a: __m256i, b: __m256i) -> __m256i { _mm256_xor_si256(a, b) }
        fn shl(a: __m256i, n: u32) -> __m256i { _mm256_sll_epi32(a, _mm_cvtsi32_si128(n as i32)) }
        fn shr(a: __m256i, n: u32) -> __m256i { _mm256_srl_epi32(a, _mm_cvtsi32_si128(n as i32)) }
        fn sar(a: __m256i, n: u32) -> __m256i { _mm256_sra_epi32(a, _mm_cvtsi32_si128(n as i32)) }
        fn add(a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi32(a, b) }
        fn from_bits(a: __m256i) -> __m256 { _mm256_castsi256_ps(a) }
        fn word(words: Words<'_>, word: usize) -> __m256i { _mm256_loadu_si256(words.address(word, LANES).cast()) }
        fn mul_i32(a: __m256i, b: __m256i) -> __m256i { _mm256_mullo_epi32(a, b) }
        fn lookup(table: &[i8; 16], a: __m256i) -> __m256i {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, a)
        }
        fn signed(a: __m256i) -> __m256i {
            if D::VNNI { _mm256_xor_si256(a, _mm256_set1_epi8(i8::MIN)) } else { a }
        }
        fn splat_f32(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn load(x: &[f32]) -> __m256 { _mm256_loadu_ps(x[..LANES].as_ptr()) }
        fn store(x: __m256, out: &mut [f32]) -> () { _mm256_storeu_ps(out[..LANES].as_mut_ptr(), x) }
        fn to_f32(a: __m256i) -> __m256 { _mm256_cvtepi32_ps(a) }
        fn low_half(a: __m256i) -> __m256 {
            let low = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
            let halves = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            _mm256_cvtph_ps(halves)
        }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn dot<const N: usize>(self, bits: u32, start: i32, codes: [__m256i; N], x: &[u8]) -> __m256i {
        let x = x[..4 * N].as_ptr().cast::<i32>();
        // SAFETY: see the module.
        unsafe {
            let x = |j: usize| _mm256_set1_epi32(x.add(j).read_unaligned());
            let mut sum = _mm256_set1_epi32(start);
            if D::VNNI {
                for (j, codes) in codes.into_iter().enumerate() {
                    sum = D::quads(sum, codes, x(j));
                }
                return sum;
            }
            let ones = _mm256_set1_epi16(1);
            if bits == 8 {
                // |code| * (x with the code's sign): at most 2 * 128 * 127 in a pair, which fits i16
                for (j, codes) in codes.into_iter().enumerate() {
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x(j), codes));
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                }
                return sum;
            }
            for (run, codes) in codes.chunks(super::lanes::pairs_in_i16(bits)).enumerate() {
                let first = run * super::lanes::pairs_in_i16(bits);
                let mut pairs = _mm256_maddubs_epi16(codes[0], x(first));
                for (j, codes) in codes.iter().enumerate().skip(1) {
                    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(*codes, x(first + j)));
                }
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
            }
            sum
        }
    }
}
