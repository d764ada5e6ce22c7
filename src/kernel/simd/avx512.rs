//! Sixteen lanes in AVX-512 registers.
//!
//! SAFETY, for every block here: the vector types have private fields and are made only by methods of an
//! [`Avx512`] token, which exists only where the CPU has AVX-512 F, BW, DQ and VL with AVX2, FMA and F16C;
//! so holding any of them proves the features. Pointers come from slices whose length was just checked.

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};

use super::{FmaKernel, Isa, Kernel, Simd, SimdFma};

const LANES: usize = 16;

/// Proof that the CPU has AVX-512 F, BW, DQ and VL, and everything below.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// Returns the token if the CPU has the features.
    pub fn new() -> Option<Avx512> {
        (Isa::detect() >= Isa::Avx512).then_some(Avx512(()))
    }
}

/// Runs `kernel` with the features on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn run<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
    kernel.run(token)
}

/// Runs `kernel` with the features on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn run_fma<K: FmaKernel>(token: Avx512, kernel: K) -> K::Output {
    kernel.run(token)
}

#[derive(Clone, Copy, Debug)]
pub struct F32(__m512);

#[derive(Clone, Copy, Debug)]
pub struct I32(__m512i);

/// One bit per lane.
#[derive(Clone, Copy, Debug)]
pub struct Mask(__mmask16);

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

lane_wise!(F32, Add, add, _mm512_add_ps);
lane_wise!(F32, Sub, sub, _mm512_sub_ps);
lane_wise!(F32, Mul, mul, _mm512_mul_ps);
lane_wise!(F32, Div, div, _mm512_div_ps);
lane_wise!(I32, Add, add, _mm512_add_epi32);
lane_wise!(I32, Sub, sub, _mm512_sub_epi32);
lane_wise!(I32, Mul, mul, _mm512_mullo_epi32);
lane_wise!(I32, BitAnd, bitand, _mm512_and_si512);
lane_wise!(I32, BitOr, bitor, _mm512_or_si512);
lane_wise!(I32, BitXor, bitxor, _mm512_xor_si512);

impl Neg for F32 {
    type Output = F32;
    #[inline(always)]
    fn neg(self) -> F32 {
        // SAFETY: see the module.
        unsafe { F32(_mm512_xor_ps(self.0, _mm512_set1_ps(-0.0))) }
    }
}

impl BitAnd for Mask {
    type Output = Mask;
    #[inline(always)]
    fn bitand(self, other: Mask) -> Mask {
        Mask(self.0 & other.0)
    }
}

impl BitOr for Mask {
    type Output = Mask;
    #[inline(always)]
    fn bitor(self, other: Mask) -> Mask {
        Mask(self.0 | other.0)
    }
}

impl Not for Mask {
    type Output = Mask;
    #[inline(always)]
    fn not(self) -> Mask {
        Mask(!self.0)
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

impl Simd for Avx512 {
    type F32 = F32;
    type I32 = I32;
    type Mask = Mask;

    const LANES: usize = LANES;
    const ISA: Isa = Isa::Avx512;

    methods! {
        fn splat(x: f32) -> F32 { F32(_mm512_set1_ps(x)) }
        fn splat_i32(x: i32) -> I32 { I32(_mm512_set1_epi32(x)) }

        fn load(src: &[f32]) -> F32 { F32(_mm512_loadu_ps(src[..LANES].as_ptr())) }
        fn store(v: F32, dst: &mut [f32]) -> () { _mm512_storeu_ps(dst[..LANES].as_mut_ptr(), v.0) }
        fn load_i32(src: &[i32]) -> I32 { I32(_mm512_loadu_si512(src[..LANES].as_ptr().cast())) }
        fn store_i32(v: I32, dst: &mut [i32]) -> () { _mm512_storeu_si512(dst[..LANES].as_mut_ptr().cast(), v.0) }
        fn load_u8(src: &[u8]) -> I32 { I32(_mm512_cvtepu8_epi32(_mm_loadu_si128(src[..LANES].as_ptr().cast()))) }
        fn load_i8(src: &[u8]) -> I32 { I32(_mm512_cvtepi8_epi32(_mm_loadu_si128(src[..LANES].as_ptr().cast()))) }
        fn store_u8(v: I32, dst: &mut [u8]) -> () {
            _mm_storeu_si128(dst[..LANES].as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v.0))
        }
        fn load_u16(src: &[u8]) -> I32 {
            I32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(src[..2 * LANES].as_ptr().cast())))
        }
        fn store_u16(v: I32, dst: &mut [u8]) -> () {
            _mm256_storeu_si256(dst[..2 * LANES].as_mut_ptr().cast(), _mm512_cvtepi32_epi16(v.0))
        }
        fn load_f16(src: &[u8]) -> F32 {
            F32(_mm512_cvtph_ps(_mm256_loadu_si256(src[..2 * LANES].as_ptr().cast())))
        }
        fn store_f16(v: F32, dst: &mut [u8]) -> () {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0);
            _mm256_storeu_si256(dst[..2 * LANES].as_mut_ptr().cast(), halves);
        }

        fn min(a: F32, b: F32) -> F32 { F32(_mm512_min_ps(a.0, b.0)) }
        fn max(a: F32, b: F32) -> F32 { F32(_mm512_max_ps(a.0, b.0)) }
        fn abs(a: F32) -> F32 { F32(_mm512_abs_ps(a.0)) }
        fn sqrt(a: F32) -> F32 { F32(_mm512_sqrt_ps(a.0)) }
        fn trunc(a: F32) -> F32 {
            F32(_mm512_roundscale_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(a.0))
        }

        fn lt(a: F32, b: F32) -> Mask { Mask(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a.0, b.0)) }
        fn le(a: F32, b: F32) -> Mask { Mask(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(a.0, b.0)) }
        fn eq(a: F32, b: F32) -> Mask { Mask(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a.0, b.0)) }
        fn eq_i32(a: I32, b: I32) -> Mask { Mask(_mm512_cmpeq_epi32_mask(a.0, b.0)) }
        fn gt_i32(a: I32, b: I32) -> Mask { Mask(_mm512_cmpgt_epi32_mask(a.0, b.0)) }
        fn select(m: Mask, a: F32, b: F32) -> F32 { F32(_mm512_mask_blend_ps(m.0, b.0, a.0)) }
        fn select_i32(m: Mask, a: I32, b: I32) -> I32 { I32(_mm512_mask_blend_epi32(m.0, b.0, a.0)) }

        fn min_i32(a: I32, b: I32) -> I32 { I32(_mm512_min_epi32(a.0, b.0)) }
        fn max_i32(a: I32, b: I32) -> I32 { I32(_mm512_max_epi32(a.0, b.0)) }

        fn to_bits(a: F32) -> I32 { I32(_mm512_castps_si512(a.0)) }
        fn from_bits(a: I32) -> F32 { F32(_mm512_castsi512_ps(a.0)) }
        fn to_f32(a: I32) -> F32 { F32(_mm512_cvtepi32_ps(a.0)) }
        fn trunc_i32(a: F32) -> I32 { I32(_mm512_cvttps_epi32(a.0)) }

        fn lookup16(table: &[f32; 16], index: I32) -> F32 {
            F32(_mm512_permutexvar_ps(index.0, _mm512_loadu_ps(table.as_ptr())))
        }
        fn lookup32(table: &[f32; 32], index: I32) -> F32 {
            let (low, high) = (_mm512_loadu_ps(table.as_ptr()), _mm512_loadu_ps(table[16..].as_ptr()));
            F32(_mm512_permutex2var_ps(low, index.0, high))
        }
    }

    #[inline(always)]
    fn mask_bits(self, m: Mask) -> u32 {
        u32::from(m.0)
    }

    #[inline(always)]
    fn shl<const N: u32>(self, a: I32) -> I32 {
        // SAFETY: see the module.
        unsafe { I32(_mm512_slli_epi32::<N>(a.0)) }
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: I32) -> I32 {
        // SAFETY: see the module.
        unsafe { I32(_mm512_srli_epi32::<N>(a.0)) }
    }
    #[inline(always)]
    fn sar<const N: u32>(self, a: I32) -> I32 {
        // SAFETY: see the module.
        unsafe { I32(_mm512_srai_epi32::<N>(a.0)) }
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

impl SimdFma for Avx512 {
    methods! {
        fn mul_add(a: F32, b: F32, c: F32) -> F32 { F32(_mm512_fmadd_ps(a.0, b.0, c.0)) }
    }
}

#[inline(always)]
fn transpose_tile(r: [F32; LANES]) -> [F32; LANES] {
    let mut quads = r; // quads[4 * g + e], 128-bit part p: element 4 * p + e of rows 4 * g .. 4 * g + 4
    let mut out = r;
    // SAFETY: see the module.
    unsafe {
        for g in 0..4 {
            let low = |a: F32, b: F32| _mm512_castps_pd(_mm512_unpacklo_ps(a.0, b.0));
            let high = |a: F32, b: F32| _mm512_castps_pd(_mm512_unpackhi_ps(a.0, b.0));
            let rows = &r[4 * g..4 * g + 4];
            let (a, b) = (low(rows[0], rows[1]), low(rows[2], rows[3]));
            let (c, d) = (high(rows[0], rows[1]), high(rows[2], rows[3]));
            quads[4 * g] = F32(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)));
            quads[4 * g + 1] = F32(_mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
            quads[4 * g + 2] = F32(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)));
            quads[4 * g + 3] = F32(_mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
        }
        for e in 0..4 {
            // parts (0, 2) and (1, 3) of row groups 0, 1 and of 2, 3
            let even01 = _mm512_shuffle_f32x4::<0x88>(quads[e].0, quads[4 + e].0);
            let odd01 = _mm512_shuffle_f32x4::<0xdd>(quads[e].0, quads[4 + e].0);
            let even23 = _mm512_shuffle_f32x4::<0x88>(quads[8 + e].0, quads[12 + e].0);
            let odd23 = _mm512_shuffle_f32x4::<0xdd>(quads[8 + e].0, quads[12 + e].0);
            out[e] = F32(_mm512_shuffle_f32x4::<0x88>(even01, even23));
            out[4 + e] = F32(_mm512_shuffle_f32x4::<0x88>(odd01, odd23));
            out[8 + e] = F32(_mm512_shuffle_f32x4::<0xdd>(even01, even23));
            out[12 + e] = F32(_mm512_shuffle_f32x4::<0xdd>(odd01, odd23));
        }
    }
    out
}
