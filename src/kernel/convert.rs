//! Row conversions between f32 and the 16-bit floats, at memory speed, with the same bits on every ISA.
//!
//! 16-bit values are little-endian bytes, as they lie in files; slices need no alignment.

use super::Isa;

/// Returns the binary16 bits nearest to `x`, ties to even; overflow gives infinity, a NaN stays one
/// (quiet, top payload bits kept), as the F16C instructions do.
#[inline]
pub fn f32_to_f16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let abs = bits & 0x7fff_ffff;
    let magnitude = if abs >= 0x7f80_0000 {
        let payload = ((abs >> 13) & 0x3ff) as u16;
        if abs > 0x7f80_0000 { 0x7e00 | payload } else { 0x7c00 }
    } else if abs >= 0x477f_f000 {
        0x7c00 // 65520 and above round to infinity
    } else if abs < 0x3880_0000 {
        // Below 2^-14 the unit is 2^-24, which is the last bit of a float in [0.5, 1): the addition rounds.
        ((f32::from_bits(abs) + 0.5).to_bits() - 0x3f00_0000) as u16
    } else {
        ((abs - 0x3800_0000 + 0xfff + ((abs >> 13) & 1)) >> 13) as u16
    };
    sign | magnitude
}

/// Returns the value of binary16 bits, exactly; a signalling NaN becomes quiet.
#[inline]
pub fn f16_bits_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = (bits >> 10) & 0x1f;
    let mantissa = u32::from(bits & 0x3ff);
    let magnitude = match exponent {
        0 => (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits(), // mantissa * 2^-24
        31 if mantissa != 0 => 0x7fc0_0000 | (mantissa << 13),
        31 => 0x7f80_0000,
        _ => (u32::from(exponent) + 112) << 23 | (mantissa << 13),
    };
    f32::from_bits(sign | magnitude)
}

/// Returns the bfloat16 bits nearest to `x`, ties to even; denormals are kept, a NaN becomes quiet.
#[inline]
pub fn f32_to_bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Returns the value of bfloat16 bits, exactly.
#[inline]
pub fn bf16_bits_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Converts binary16 bytes to f32.
///
/// # Panics
/// If `bytes.len() != 2 * out.len()`.
pub fn f16_to_f32(isa: Isa, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * 2);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `supported` returns only levels whose features this machine has.
    match isa.supported() {
        Isa::Avx512 => return unsafe { x86::f16_to_f32_avx512(bytes, out) },
        Isa::Avx2 => return unsafe { x86::f16_to_f32_avx2(bytes, out) },
        Isa::Portable => {}
    }
    widen(bytes, out, f16_bits_to_f32);
}

/// Converts f32 to binary16 bytes, each as [`f32_to_f16_bits`].
///
/// # Panics
/// If `out.len() != 2 * values.len()`.
pub fn f32_to_f16(isa: Isa, values: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), values.len() * 2);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `supported` returns only levels whose features this machine has.
    match isa.supported() {
        Isa::Avx512 => return unsafe { x86::f32_to_f16_avx512(values, out) },
        Isa::Avx2 => return unsafe { x86::f32_to_f16_avx2(values, out) },
        Isa::Portable => {}
    }
    narrow(values, out, f32_to_f16_bits);
}

/// Converts bfloat16 bytes to f32.
///
/// # Panics
/// If `bytes.len() != 2 * out.len()`.
pub fn bf16_to_f32(isa: Isa, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * 2);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `supported` returns only levels whose features this machine has.
    match isa.supported() {
        Isa::Avx512 => return unsafe { x86::bf16_to_f32_avx512(bytes, out) },
        Isa::Avx2 => return unsafe { x86::bf16_to_f32_avx2(bytes, out) },
        Isa::Portable => {}
    }
    widen(bytes, out, bf16_bits_to_f32);
}

/// Converts f32 to bfloat16 bytes, each as [`f32_to_bf16_bits`].
///
/// # Panics
/// If `out.len() != 2 * values.len()`.
pub fn f32_to_bf16(isa: Isa, values: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), values.len() * 2);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `supported` returns only levels whose features this machine has.
    match isa.supported() {
        Isa::Avx512 => return unsafe { x86::f32_to_bf16_avx512(values, out) },
        Isa::Avx2 => return unsafe { x86::f32_to_bf16_avx2(values, out) },
        Isa::Portable => {}
    }
    narrow(values, out, f32_to_bf16_bits);
}

#[inline(always)]
fn widen(bytes: &[u8], out: &mut [f32], convert: impl Fn(u16) -> f32) {
    for (value, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *value = convert(u16::from_le_bytes([pair[0], pair[1]]));
    }
}

#[inline(always)]
fn narrow(values: &[f32], out: &mut [u8], convert: impl Fn(f32) -> u16) {
    for (pair, &value) in out.chunks_exact_mut(2).zip(values) {
        pair.copy_from_slice(&convert(value).to_le_bytes());
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{bf16_bits_to_f32, f16_bits_to_f32, f32_to_bf16_bits, f32_to_f16_bits, narrow, widen};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,f16c")]
    pub fn f16_to_f32_avx2(bytes: &[u8], out: &mut [f32]) {
        let body = out.len() / 8 * 8;
        let (head, tail) = out.split_at_mut(body);
        for (values, chunk) in head.chunks_exact_mut(8).zip(bytes.chunks_exact(16)) {
            // SAFETY: the chunks are 16 bytes and 8 floats; both accesses are unaligned.
            unsafe {
                let half = _mm_loadu_si128(chunk.as_ptr().cast());
                _mm256_storeu_ps(values.as_mut_ptr(), _mm256_cvtph_ps(half));
            }
        }
        widen(&bytes[body * 2..], tail, f16_bits_to_f32);
    }

    #[target_feature(enable = "avx512f")]
    pub fn f16_to_f32_avx512(bytes: &[u8], out: &mut [f32]) {
        let body = out.len() / 16 * 16;
        let (head, tail) = out.split_at_mut(body);
        for (values, chunk) in head.chunks_exact_mut(16).zip(bytes.chunks_exact(32)) {
            // SAFETY: the chunks are 32 bytes and 16 floats; both accesses are unaligned.
            unsafe {
                let half = _mm256_loadu_si256(chunk.as_ptr().cast());
                _mm512_storeu_ps(values.as_mut_ptr(), _mm512_cvtph_ps(half));
            }
        }
        widen(&bytes[body * 2..], tail, f16_bits_to_f32);
    }

    #[target_feature(enable = "avx2,f16c")]
    pub fn f32_to_f16_avx2(values: &[f32], out: &mut [u8]) {
        let body = values.len() / 8 * 8;
        let (head, tail) = out.split_at_mut(body * 2);
        for (chunk, x) in head.chunks_exact_mut(16).zip(values.chunks_exact(8)) {
            // SAFETY: the chunks are 8 floats and 16 bytes; both accesses are unaligned.
            unsafe {
                let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(x.as_ptr()));
                _mm_storeu_si128(chunk.as_mut_ptr().cast(), half);
            }
        }
        narrow(&values[body..], tail, f32_to_f16_bits);
    }

    #[target_feature(enable = "avx512f")]
    pub fn f32_to_f16_avx512(values: &[f32], out: &mut [u8]) {
        let body = values.len() / 16 * 16;
        let (head, tail) = out.split_at_mut(body * 2);
        for (chunk, x) in head.chunks_exact_mut(32).zip(values.chunks_exact(16)) {
            // SAFETY: the chunks are 16 floats and 32 bytes; both accesses are unaligned.
            unsafe {
                let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_loadu_ps(x.as_ptr()));
                _mm256_storeu_si256(chunk.as_mut_ptr().cast(), half);
            }
        }
        narrow(&values[body..], tail, f32_to_f16_bits);
    }

    #[target_feature(enable = "avx2")]
    pub fn bf16_to_f32_avx2(bytes: &[u8], out: &mut [f32]) {
        let body = out.len() / 8 * 8;
        let (head, tail) = out.split_at_mut(body);
        for (values, chunk) in head.chunks_exact_mut(8).zip(bytes.chunks_exact(16)) {
            // SAFETY: the chunks are 16 bytes and 8 floats; both accesses are unaligned.
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(chunk.as_ptr().cast()));
                _mm256_storeu_si256(values.as_mut_ptr().cast(), _mm256_slli_epi32::<16>(wide));
            }
        }
        widen(&bytes[body * 2..], tail, bf16_bits_to_f32);
    }

    #[target_feature(enable = "avx512f")]
    pub fn bf16_to_f32_avx512(bytes: &[u8], out: &mut [f32]) {
        let body = out.len() / 16 * 16;
        let (head, tail) = out.split_at_mut(body);
        for (values, chunk) in head.chunks_exact_mut(16).zip(bytes.chunks_exact(32)) {
            // SAFETY: the chunks are 32 bytes and 16 floats; both accesses are unaligned.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(chunk.as_ptr().cast()));
                _mm512_storeu_si512(values.as_mut_ptr().cast(), _mm512_slli_epi32::<16>(wide));
            }
        }
        widen(&bytes[body * 2..], tail, bf16_bits_to_f32);
    }

    /// Returns the eight bfloat16 results in the low halves of 32-bit lanes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn round_bf16_avx2(x: __m256i) -> __m256i {
        let high = _mm256_srli_epi32::<16>(x);
        let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(x, bias));
        let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        let value = _mm256_castsi256_ps(x);
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
        _mm256_blendv_epi8(rounded, quiet, is_nan)
    }

    #[target_feature(enable = "avx2")]
    pub fn f32_to_bf16_avx2(values: &[f32], out: &mut [u8]) {
        let body = values.len() / 16 * 16;
        let (head, tail) = out.split_at_mut(body * 2);
        for (chunk, x) in head.chunks_exact_mut(32).zip(values.chunks_exact(16)) {
            // SAFETY: the chunks are 16 floats and 32 bytes; all accesses are unaligned.
            unsafe {
                let low = round_bf16_avx2(_mm256_loadu_si256(x.as_ptr().cast()));
                let high = round_bf16_avx2(_mm256_loadu_si256(x.as_ptr().add(8).cast()));
                // packus works within 128-bit halves: quarters come out as 0, 2, 1, 3
                let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
                _mm256_storeu_si256(chunk.as_mut_ptr().cast(), packed);
            }
        }
        narrow(&values[body..], tail, f32_to_bf16_bits);
    }

    #[target_feature(enable = "avx512f")]
    pub fn f32_to_bf16_avx512(values: &[f32], out: &mut [u8]) {
        let body = values.len() / 16 * 16;
        let (head, tail) = out.split_at_mut(body * 2);
        for (chunk, x) in head.chunks_exact_mut(32).zip(values.chunks_exact(16)) {
            // SAFETY: the chunks are 16 floats and 32 bytes; both accesses are unaligned.
            unsafe {
                let bits = _mm512_loadu_si512(x.as_ptr().cast());
                let high = _mm512_srli_epi32::<16>(bits);
                let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
                let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
                let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, bias));
                let value = _mm512_castsi512_ps(bits);
                let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
                let result = _mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40));
                _mm256_storeu_si256(chunk.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(result));
            }
        }
        narrow(&values[body..], tail, f32_to_bf16_bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit patterns around every rounding boundary, NaNs included; 16 * k + 3 of them, so that tails run.
    fn patterns() -> Vec<f32> {
        let mut bits = Vec::new();
        for half in 0..=0xffffu32 {
            let value = f16_bits_to_f32(half as u16).to_bits();
            for step in [-0x1001i32, -0x1000, -1, 0, 1, 0xfff, 0x1000, 0x1001] {
                bits.push(value.wrapping_add_signed(step));
            }
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                bits.push(half << 16 | low);
            }
        }
        bits.truncate(bits.len() / 16 * 16 - 13);
        bits.into_iter().map(f32::from_bits).collect()
    }

    #[test]
    fn f16_scalar_agrees_with_the_half_crate() {
        for value in patterns() {
            assert_eq!(
                f32_to_f16_bits(value),
                half::f16::from_f32_const(value).to_bits(),
                "{:#x}",
                value.to_bits()
            );
        }
        for bits in 0..=u16::MAX {
            let want = half::f16::from_bits(bits).to_f32_const();
            assert_eq!(f16_bits_to_f32(bits).to_bits(), want.to_bits(), "{bits:#x}");
        }
    }

    #[test]
    fn bf16_scalar_agrees_with_the_half_crate() {
        for value in patterns() {
            assert_eq!(
                f32_to_bf16_bits(value),
                half::bf16::from_f32(value).to_bits(),
                "{:#x}",
                value.to_bits()
            );
        }
    }

    #[test]
    fn every_isa_narrows_to_the_same_bits() {
        let values = patterns();
        let scalar = |convert: fn(f32) -> u16| -> Vec<u8> {
            values.iter().flat_map(|&value| convert(value).to_le_bytes()).collect()
        };
        let (want_f16, want_bf16) = (scalar(f32_to_f16_bits), scalar(f32_to_bf16_bits));
        for isa in Isa::available() {
            let mut out = vec![0; values.len() * 2];
            f32_to_f16(isa, &values, &mut out);
            assert!(out == want_f16, "f16 differs on {}", isa.name());
            f32_to_bf16(isa, &values, &mut out);
            assert!(out == want_bf16, "bf16 differs on {}", isa.name());
        }
    }

    #[test]
    fn every_isa_widens_to_the_same_bits() {
        let bytes: Vec<u8> = (0..=u16::MAX).chain(0..5).flat_map(u16::to_le_bytes).collect();
        let count = bytes.len() / 2;
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let want = |convert: fn(u16) -> f32| -> Vec<u32> {
            (0..count).map(|i| convert((i & 0xffff) as u16).to_bits()).collect()
        };
        for isa in Isa::available() {
            let mut out = vec![0.0; count];
            f16_to_f32(isa, &bytes, &mut out);
            assert!(bits(&out) == want(f16_bits_to_f32), "f16 differs on {}", isa.name());
            bf16_to_f32(isa, &bytes, &mut out);
            assert!(bits(&out) == want(bf16_bits_to_f32), "bf16 differs on {}", isa.name());
        }
    }
}
