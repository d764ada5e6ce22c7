//! Eight lanes in AVX2 registers.
//!
//! SAFETY, for every block here: the vector types have private fields and are made only by methods of an
//! [`Avx2`] token, which exists only where the CPU has AVX2, FMA and F16C; so holding any of
//! them proves the features. Pointers come from slices whose length was just checked.

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};

use super::{FmaKernel, Isa, Kernel, Simd, SimdFma};

const LANES: usize = 8;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// Returns the token if the CPU has the features.
    pub fn new() -> Option<Avx2> {
        (Isa::detect() >= Isa::Avx2).then_some(Avx2(()))
    }
}

/// Runs `kernel` with the features on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
    kernel.run(token)
}

/// Runs `kernel` with the features on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run_fma<K: FmaKernel>(token: Avx2, kernel: K) -> K::Output {
    kernel.run(token)
}

#[derive(Clone, Copy, Debug)]
pub struct F32(__m256);

#[derive(Clone, Copy, Debug)]
pub struct I32(__m256i);

/// All bits of a lane set or clear.
#[derive(Clone, Copy, Debug)]
pub struct Mask(__m256);

macro_rules! lane_wise {
    ($type:ident, $trait:ident, $method:ident, $intrinsic:ident) => {
        impl $trait for $type {
            type Output = $type;
            #[inline(always)]
            fn $method(self, other: $type) -> $type {
                // SAFETY: see the module.
                unsafe { $type($intrinsic(self.0, other.0)) }
            }
        }
    };
}

lane_wise!(F32, Add, add, _mm256_add_ps);
lane_wise!(F32, Sub, sub, _mm256_sub_ps);
lane_wise!(F32, Mul, mul, _mm256_mul_ps);
lane_wise!(F32, Div, div, _mm256_div_ps);
lane_wise!(I32, Add, add, _mm256_add_epi32);
lane_wise!(I32, Sub, sub, _mm256_sub_epi32);
lane_wise!(I32, Mul, mul, _mm256_mullo_epi32);
lane_wise!(I32, BitAnd, bitand, _mm256_and_si256);
lane_wise!(I32, BitOr, bitor, _mm256_or_si256);
lane_wise!(I32, BitXor, bitxor, _mm256_xor_si256);
lane_wise!(Mask, BitAnd, bitand, _mm256_and_ps);
lane_wise!(Mask, BitOr, bitor, _mm256_or_ps);

impl Neg for F32 {
    type Output = F32;
    #[inline(always)]
    fn neg(self) -> F32 {
        // SAFETY: see the module.
        unsafe { F32(_mm256_xor_ps(self.0, _mm256_set1_ps(-0.0))) }
    }
}

impl Not for Mask {
    type Output = Mask;
    #[inline(always)]
    fn not(self) -> Mask {
        // SAFETY: see the module.
        unsafe { Mask(_mm256_xor_ps(self.0, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))) }
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

impl Simd for Avx2 {
    type F32 = F32;
    type I32 = I32;
    type Mask = Mask;

    const LANES: usize = LANES;
    const ISA: Isa = Isa::Avx2;

    methods! {
        fn splat(x: f32) -> F32 { F32(_mm256_set1_ps(x)) }
        fn splat_i32(x: i32) -> I32 { I32(_mm256_set1_epi32(x)) }

        fn load(src: &[f32]) -> F32 { F32(_mm256_loadu_ps(src[..LANES].as_ptr())) }
        fn store(v: F32, dst: &mut [f32]) -> () { _mm256_storeu_ps(dst[..LANES].as_mut_ptr(), v.0) }
        fn load_i32(src: &[i32]) -> I32 { I32(_mm256_loadu_si256(src[..LANES].as_ptr().cast())) }
        fn store_i32(v: I32, dst: &mut [i32]) -> () { _mm256_storeu_si256(dst[..LANES].as_mut_ptr().cast(), v.0) }
        fn load_u8(src: &[u8]) -> I32 { I32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(src[..LANES].as_ptr().cast()))) }
        fn load_i8(src: &[u8]) -> I32 { I32(_mm256_cvtepi8_epi32(_mm_loadl_epi64(src[..LANES].as_ptr().cast()))) }
        fn store_u8(v: I32, dst: &mut [u8]) -> () {
            // low byte of each lane to the bottom of its 128-bit half, then the two halves together
            let pick = _mm256_set1_epi64x(0x0c08_0400);
            let bytes = _mm256_shuffle_epi8(v.0, pick);
            let halves = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            _mm_storel_epi64(dst[..LANES].as_mut_ptr().cast(), halves);
        }
        fn load_u16(src: &[u8]) -> I32 { I32(_mm256_cvtepu16_epi32(_mm_loadu_si128(src[..2 * LANES].as_ptr().cast()))) }
        fn store_u16(v: I32, dst: &mut [u8]) -> () {
            let low = _mm256_and_si256(v.0, _mm256_set1_epi32(0xffff));
            let words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            _mm_storeu_si128(dst[..2 * LANES].as_mut_ptr().cast(), words);
        }
        fn load_f16(src: &[u8]) -> F32 { F32(_mm256_cvtph_ps(_mm_loadu_si128(src[..2 * LANES].as_ptr().cast()))) }
        fn store_f16(v: F32, dst: &mut [u8]) -> () {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0);
            _mm_storeu_si128(dst[..2 * LANES].as_mut_ptr().cast(), halves);
        }

        fn min(a: F32, b: F32) -> F32 { F32(_mm256_min_ps(a.0, b.0)) }
        fn max(a: F32, b: F32) -> F32 { F32(_mm256_max_ps(a.0, b.0)) }
        fn abs(a: F32) -> F32 { F32(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a.0)) }
        fn sqrt(a: F32) -> F32 { F32(_mm256_sqrt_ps(a.0)) }
        fn trunc(a: F32) -> F32 { F32(_mm256_round_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(a.0)) }

        fn lt(a: F32, b: F32) -> Mask { Mask(_mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)) }
        fn le(a: F32, b: F32) -> Mask { Mask(_mm256_cmp_ps::<_CMP_LE_OQ>(a.0, b.0)) }
        fn eq(a: F32, b: F32) -> Mask { Mask(_mm256_cmp_ps::<_CMP_EQ_OQ>(a.0, b.0)) }
        fn eq_i32(a: I32, b: I32) -> Mask { Mask(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.0, b.0))) }
        fn gt_i32(a: I32, b: I32) -> Mask { Mask(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.0, b.0))) }
        fn select(m: Mask, a: F32, b: F32) -> F32 { F32(_mm256_blendv_ps(b.0, a.0, m.0)) }
        fn select_i32(m: Mask, a: I32, b: I32) -> I32 { I32(_mm256_blendv_epi8(b.0, a.0, _mm256_castps_si256(m.0))) }
        fn mask_bits(m: Mask) -> u32 { _mm256_movemask_ps(m.0) as u32 }

        fn min_i32(a: I32, b: I32) -> I32 { I32(_mm256_min_epi32(a.0, b.0)) }
        fn max_i32(a: I32, b: I32) -> I32 { I32(_mm256_max_epi32(a.0, b.0)) }

        fn to_bits(a: F32) -> I32 { I32(_mm256_castps_si256(a.0)) }
        fn from_bits(a: I32) -> F32 { F32(_mm256_castsi256_ps(a.0)) }
        fn to_f32(a: I32) -> F32 { F32(_mm256_cvtepi32_ps(a.0)) }
        fn trunc_i32(a: F32) -> I32 { I32(_mm256_cvttps_epi32(a.0)) }

        fn lookup16(table: &[f32; 16], index: I32) -> F32 {
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), index.0);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table[8..].as_ptr()), index.0);
            // bit 3 of the index becomes the sign bit that the blend looks at
            let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index.0));
            F32(_mm256_blendv_ps(low, high, upper))
        }
        fn lookup32(table: &[f32; 32], index: I32) -> F32 {
            let quarter = |i: usize| _mm256_permutevar8x32_ps(_mm256_loadu_ps(table[i..].as_ptr()), index.0);
            // bits 3 and 4 of the index become the sign bits that the blends look at
            let bit3 = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index.0));
            let bit4 = _mm256_castsi256_ps(_mm256_slli_epi32::<27>(index.0));
            let low = _mm256_blendv_ps(quarter(0), quarter(8), bit3);
            let high = _mm256_blendv_ps(quarter(16), quarter(24), bit3);
            F32(_mm256_blendv_ps(low, high, bit4))
        }
    }

    #[inline(always)]
    fn shl<const N: u32>(self, a: I32) -> I32 {
        // SAFETY: see the module.
        unsafe { I32(_mm256_sll_epi32(a.0, _mm_cvtsi32_si128(N as i32))) }
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: I32) -> I32 {
        // SAFETY: see the module.
        unsafe { I32(_mm256_srl_epi32(a.0, _mm_cvtsi32_si128(N as i32))) }
    }
    #[inline(always)]
    fn sar<const N: u32>(self, a: I32) -> I32 {
        // SAFETY: see the module.
        unsafe { I32(_mm256_sra_epi32(a.0, _mm_cvtsi32_si128(N as i32))) }
    }

    #[inline(always)]
    fn transpose(self, src: &[f32], stride: usize, dst: &mut [F32]) {
        assert!(dst.len().is_multiple_of(LANES) && dst.len() <= stride);
        for (tile, out) in dst.chunks_exact_mut(LANES).enumerate() {
            let mut rows = [self.splat(0.0); LANES];
            for (j, row) in rows.iter_mut().enumerate() {
                *row = self.load(&src[j * stride + tile * LANES..]);
            }
            out.copy_from_slice(&transpose_tile(rows));
        }
    }
}

impl SimdFma for Avx2 {
    methods! {
        fn mul_add(a: F32, b: F32, c: F32) -> F32 { F32(_mm256_fmadd_ps(a.0, b.0, c.0)) }
    }
}

#[inline(always)]
fn transpose_tile(r: [F32; LANES]) -> [F32; LANES] {
    // SAFETY: see the module.
    unsafe {
        let pair = |a: F32, b: F32| (_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
        let ((a0, a1), (a2, a3)) = (pair(r[0], r[1]), pair(r[2], r[3]));
        let ((a4, a5), (a6, a7)) = (pair(r[4], r[5]), pair(r[6], r[7]));
        // 4 rows by one element in each 128-bit half
        let b = [
            _mm256_shuffle_ps::<0x44>(a0, a2),
            _mm256_shuffle_ps::<0xee>(a0, a2),
            _mm256_shuffle_ps::<0x44>(a1, a3),
            _mm256_shuffle_ps::<0xee>(a1, a3),
            _mm256_shuffle_ps::<0x44>(a4, a6),
            _mm256_shuffle_ps::<0xee>(a4, a6),
            _mm256_shuffle_ps::<0x44>(a5, a7),
            _mm256_shuffle_ps::<0xee>(a5, a7),
        ];
        [
            F32(_mm256_permute2f128_ps::<0x20>(b[0], b[4])),
            F32(_mm256_permute2f128_ps::<0x20>(b[1], b[5])),
            F32(_mm256_permute2f128_ps::<0x20>(b[2], b[6])),
            F32(_mm256_permute2f128_ps::<0x20>(b[3], b[7])),
            F32(_mm256_permute2f128_ps::<0x31>(b[0], b[4])),
            F32(_mm256_permute2f128_ps::<0x31>(b[1], b[5])),
            F32(_mm256_permute2f128_ps::<0x31>(b[2], b[6])),
            F32(_mm256_permute2f128_ps::<0x31>(b[3], b[7])),
        ]
    }
}
