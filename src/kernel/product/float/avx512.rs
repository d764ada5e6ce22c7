//! The float micro-kernels' vectors of 16 lanes.

use std::arch::x86_64::*;

use super::lanes::{Lanes, Rows, TINY_BITS};

/// AVX-512 F, BW, DQ, VL.
#[derive(Clone, Copy)]
pub struct Avx512;

// SAFETY: as the trait says.
unsafe impl Lanes for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const ROWS: usize = 8;
    const VECTORS: usize = 3;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller's, as in every method here.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m512 {
        // SAFETY: see `zero`.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(v: __m512, to: *mut u32) {
        // SAFETY: see `zero`.
        unsafe { _mm512_storeu_ps(to.cast(), v) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const u32) -> __m512 {
        // SAFETY: see `zero`.
        unsafe { _mm512_set1_ps(from.cast::<f32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn fma(x: __m512, w: __m512, sum: __m512) -> __m512 {
        // SAFETY: see `zero`.
        unsafe { _mm512_fmadd_ps(x, w, sum) }
    }

    #[inline(always)]
    unsafe fn canonical(v: __m512) -> __m512 {
        // SAFETY: see `zero`.
        unsafe {
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            _mm512_mask_mov_ps(v, nan, _mm512_set1_ps(f32::from_bits(0x7fc0_0000)))
        }
    }

    #[inline(always)]
    unsafe fn high_bf16(v: __m512) -> __m512 {
        // SAFETY: see `zero`.
        unsafe {
            let bits = _mm512_castps_si512(v);
            _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
        }
    }

    #[inline(always)]
    unsafe fn low_bf16(v: __m512) -> __m512 {
        // SAFETY: see `zero`.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(v))) }
    }

    #[inline(always)]
    unsafe fn high_f16(v: __m512) -> __m512 {
        // SAFETY: see `zero`.
        unsafe {
            let high = _mm512_srli_epi32::<16>(_mm512_castps_si512(v));
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(high))
        }
    }

    #[inline(always)]
    unsafe fn low_f16(v: __m512) -> __m512 {
        // SAFETY: see `zero`.
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_castps_si512(v))) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        // SAFETY: see `zero`.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> __m512 {
        // SAFETY: see `zero`.
        unsafe { _mm512_castsi512_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn pairs(low: __m512, high: __m512) -> __m512 {
        // SAFETY: see `zero`.
        unsafe {
            let high = _mm512_slli_epi32::<16>(_mm512_castps_si512(high));
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(low), high))
        }
    }

    #[inline(always)]
    unsafe fn flush_bf16(v: __m512) -> __m512 {
        // SAFETY: see `zero`.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let magnitude = _mm512_and_si512(bits, _mm512_set1_epi16(0x7fff));
            let keep = _mm512_cmpge_epu16_mask(magnitude, _mm512_set1_epi16(TINY_BITS as i16));
            _mm512_castsi512_ps(_mm512_maskz_mov_epi16(keep, bits))
        }
    }

    #[inline(always)]
    unsafe fn columns(rows: &Rows, offset: usize) -> [__m512; 16] {
        // SAFETY: see `zero`.
        unsafe {
            let mut v = [_mm512_setzero_ps(); 16];
            for j in 0..16 {
                v[j] = _mm512_loadu_ps(rows[j].add(offset).cast());
            }
            transpose(v)
        }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: see `zero`; a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}

/// Returns the transpose of a 16 x 16 matrix: 1 x 1, 2 x 2 in 128-bit lanes, then the lanes themselves.
#[inline(always)]
unsafe fn transpose(v: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: the caller's.
    unsafe {
        let mut a = v;
        for i in 0..8 {
            a[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
        }
        // b[4 i + c]: column c of every 128-bit lane, rows 4 i .. 4 i + 4
        let mut b = a;
        for i in 0..4 {
            b[4 * i] = low_pairs(a[4 * i], a[4 * i + 2]);
            b[4 * i + 1] = high_pairs(a[4 * i], a[4 * i + 2]);
            b[4 * i + 2] = low_pairs(a[4 * i + 1], a[4 * i + 3]);
            b[4 * i + 3] = high_pairs(a[4 * i + 1], a[4 * i + 3]);
        }
        let mut out = b;
        for c in 0..4 {
            let even01 = _mm512_shuffle_f32x4::<0x88>(b[c], b[4 + c]);
            let odd01 = _mm512_shuffle_f32x4::<0xdd>(b[c], b[4 + c]);
            let even23 = _mm512_shuffle_f32x4::<0x88>(b[8 + c], b[12 + c]);
            let odd23 = _mm512_shuffle_f32x4::<0xdd>(b[8 + c], b[12 + c]);
            out[c] = _mm512_shuffle_f32x4::<0x88>(even01, even23);
            out[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even01, even23);
            out[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd01, odd23);
            out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd01, odd23);
        }
        out
    }
}

/// Returns the low halves of every 128-bit lane of both.
#[inline(always)]
unsafe fn low_pairs(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller's.
    unsafe { _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))) }
}

/// Returns the high halves of every 128-bit lane of both.
#[inline(always)]
unsafe fn high_pairs(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller's.
    unsafe { _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))) }
}
