//! Sixteen lanes in AVX-512 registers, with or without VNNI.
//!
//! SAFETY, for every block here: a token exists only where the CPU has AVX-512 F, BW, DQ and VL with everything
//! below, and VNNI if `VNNI`. Pointers come from slices whose length was just checked, or from checked words.

use std::arch::x86_64::*;

use super::lanes::{Lanes, Words};
use crate::kernel::Isa;

const LANES: usize = 16;

/// Proof that the CPU has AVX-512 F, BW, DQ and VL, and VNNI if `VNNI`.
#[derive(Clone, Copy)]
pub struct Avx512<const VNNI: bool>(());

impl<const VNNI: bool> Avx512<VNNI> {
    /// Returns the token if the CPU has the features.
    pub fn new() -> Option<Self> {
        let has = Isa::detect() >= Isa::Avx512 && (!VNNI || is_x86_feature_detected!("avx512vnni"));
        has.then_some(Avx512(()))
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

impl<const VNNI: bool> Lanes for Avx512<VNNI> {
    type I = __m512i;
    type F = __m512;
    const LANES: usize = LANES;
    const SIGNED_OFFSET: i32 = if VNNI { 128 } else { 0 };
    const ANY_CODES: bool = VNNI;

    methods! {
        fn splat(word: u32) -> __m512i { _mm512_set1_epi32(word as i32) }
        fn and(a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn or(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn xor(a: __m512i, b: __m512i) -> __m512i { _mm512_xor_si512(a, b) }
        fn shl(a: __m512i, n: u32) -> __m512i { _mm512_sll_epi32(a, _mm_cvtsi32_si128(n as i32)) }
        fn shr(a: __m512i, n: u32) -> __m512i { _mm512_srl_epi32(a, _mm_cvtsi32_si128(n as i32)) }
        fn sar(a: __m512i, n: u32) -> __m512i { _mm512_sra_epi32(a, _mm_cvtsi32_si128(n as i32)) }
        fn add(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn from_bits(a: __m512i) -> __m512 { _mm512_castsi512_ps(a) }
        // Volatile keeps the reads of weights in the order in which they lie: the processor's prefetchers follow that one, and
        // compilers shuffle a unit's reads. Sixteen rows begin at a row of a panel that is a multiple of 16, so at a cache line.
        fn word(words: Words<'_>, word: usize) -> __m512i {
            std::ptr::read_volatile(words.address(word, LANES).cast::<__m512i>())
        }
        fn mul_i32(a: __m512i, b: __m512i) -> __m512i { _mm512_mullo_epi32(a, b) }
        fn lookup(table: &[i8; 16], a: __m512i) -> __m512i {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, a)
        }
        fn signed(a: __m512i) -> __m512i {
            if VNNI { _mm512_xor_si512(a, _mm512_set1_epi8(i8::MIN)) } else { a }
        }
        fn splat_f32(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(x: &[f32]) -> __m512 { _mm512_loadu_ps(x[..LANES].as_ptr()) }
        fn store(x: __m512, out: &mut [f32]) -> () { _mm512_storeu_ps(out[..LANES].as_mut_ptr(), x) }
        fn to_f32(a: __m512i) -> __m512 { _mm512_cvtepi32_ps(a) }
        fn low_half(a: __m512i) -> __m512 { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn dot<const N: usize>(self, bits: u32, start: i32, codes: [__m512i; N], x: &[u8]) -> __m512i {
        let x = x[..4 * N].as_ptr().cast::<i32>();
        // SAFETY: see the module.
        unsafe {
            let x = |j: usize| _mm512_set1_epi32(x.add(j).read_unaligned());
            let mut sum = _mm512_set1_epi32(start);
            if VNNI {
                for j in 0..N {
                    sum = _mm512_dpbusd_epi32(sum, codes[j], x(j));
                }
                return sum;
            }
            let ones = _mm512_set1_epi16(1);
            if bits == 8 {
                // |code| * (x with the code's sign): at most 2 * 128 * 127 in a pair, which fits i16
                for (j, codes) in codes.into_iter().enumerate() {
                    let zero = _mm512_setzero_si512();
                    let signed_x = _mm512_mask_sub_epi8(x(j), _mm512_movepi8_mask(codes), zero, x(j));
                    let pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(codes), signed_x);
                    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, ones));
                }
                return sum;
            }
            for (run, codes) in codes.chunks(super::lanes::pairs_in_i16(bits)).enumerate() {
                let first = run * super::lanes::pairs_in_i16(bits);
                let mut pairs = _mm512_maddubs_epi16(codes[0], x(first));
                for (j, codes) in codes.iter().enumerate().skip(1) {
                    pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(*codes, x(first + j)));
                }
                sum = _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, ones));
            }
            sum
        }
    }
}
