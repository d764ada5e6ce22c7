//! The float micro-kernels' vectors of 8 lanes.

use std::arch::x86_64::*;

use super::lanes::{Lanes, Rows, TINY_BITS};

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2;

// SAFETY: as the trait says.
unsafe impl Lanes for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const ROWS: usize = 4;
    const VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the caller's, as in every method here.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m256 {
        // SAFETY: see `zero`.
        unsafe { _mm256_loadu_ps(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(v: __m256, to: *mut u32) {
        // SAFETY: see `zero`.
        unsafe { _mm256_storeu_ps(to.cast(), v) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const u32) -> __m256 {
        // SAFETY: see `zero`.
        unsafe { _mm256_set1_ps(from.cast::<f32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn fma(x: __m256, w: __m256, sum: __m256) -> __m256 {
        // SAFETY: see `zero`.
        unsafe { _mm256_fmadd_ps(x, w, sum) }
    }

    #[inline(always)]
    unsafe fn canonical(v: __m256) -> __m256 {
        // SAFETY: see `zero`.
        unsafe {
            let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
            _mm256_blendv_ps(v, _mm256_set1_ps(f32::from_bits(0x7fc0_0000)), nan)
        }
    }

    #[inline(always)]
    unsafe fn high_bf16(v: __m256) -> __m256 {
        // SAFETY: see `zero`.
        unsafe { _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32))) }
    }

    #[inline(always)]
    unsafe fn low_bf16(v: __m256) -> __m256 {
        // SAFETY: see `zero`.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v))) }
    }

    #[inline(always)]
    unsafe fn high_f16(v: __m256) -> __m256 {
        // SAFETY: see `zero`.
        unsafe { widen_f16(_mm256_srli_epi32::<16>(_mm256_castps_si256(v))) }
    }

    #[inline(always)]
    unsafe fn low_f16(v: __m256) -> __m256 {
        // SAFETY: see `zero`.
        unsafe { widen_f16(_mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0xffff))) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m256 {
        // SAFETY: see `zero`.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> __m256 {
        // SAFETY: see `zero`.
        unsafe { _mm256_castsi256_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn pairs(low: __m256, high: __m256) -> __m256 {
        // SAFETY: see `zero`.
        unsafe {
            let high = _mm256_slli_epi32::<16>(_mm256_castps_si256(high));
            _mm256_castsi256_ps(_mm256_or_si256(_mm256_castps_si256(low), high))
        }
    }

    #[inline(always)]
    unsafe fn flush_bf16(v: __m256) -> __m256 {
        // SAFETY: see `zero`.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let magnitude = _mm256_and_si256(bits, _mm256_set1_epi16(0x7fff));
            let keep = _mm256_cmpgt_epi16(magnitude, _mm256_set1_epi16(TINY_BITS as i16 - 1));
            _mm256_castsi256_ps(_mm256_and_si256(bits, keep))
        }
    }

    #[inline(always)]
    unsafe fn columns(rows: &Rows, offset: usize) -> [__m256; 16] {
        // SAFETY: see `zero`.
        unsafe {
            let mut v = [_mm256_setzero_ps(); 16];
            for half in 0..2 {
                let mut a = [_mm256_setzero_ps(); 8];
                for j in 0..8 {
                    a[j] = _mm256_loadu_ps(rows[j].add(offset + 32 * half).cast());
                }
                let a = transpose(a);
                for t in 0..8 {
                    v[8 * half + t] = a[t];
                }
            }
            v
        }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: see `zero`; a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
}

/// Returns the f16 in the low half of every lane, whose high half is zero, as f32.
#[inline(always)]
unsafe fn widen_f16(lanes: __m256i) -> __m256 {
    // SAFETY: the caller's.
    unsafe {
        let packed = _mm256_packus_epi32(lanes, lanes); // lanes 0..4 0..4 4..8 4..8
        _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b00_00_10_00>(packed)))
    }
}

/// Returns the transpose of an 8 x 8 matrix.
#[inline(always)]
unsafe fn transpose(v: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller's.
    unsafe {
        let mut a = v;
        for i in 0..4 {
            a[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
            a[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
        }
        let mut b = a;
        for i in 0..2 {
            b[4 * i] = _mm256_shuffle_ps::<0x44>(a[4 * i], a[4 * i + 2]);
            b[4 * i + 1] = _mm256_shuffle_ps::<0xee>(a[4 * i], a[4 * i + 2]);
            b[4 * i + 2] = _mm256_shuffle_ps::<0x44>(a[4 * i + 1], a[4 * i + 3]);
            b[4 * i + 3] = _mm256_shuffle_ps::<0xee>(a[4 * i + 1], a[4 * i + 3]);
        }
        let mut out = b;
        for c in 0..4 {
            out[c] = _mm256_permute2f128_ps::<0x20>(b[c], b[4 + c]);
            out[4 + c] = _mm256_permute2f128_ps::<0x31>(b[c], b[4 + c]);
        }
        out
    }
}
