//! Row conversions between f32 and the 16-bit floats, at memory speed, with the same bits on every ISA.
//!
//! 16-bit values are little-endian bytes, as they lie in files; slices need no alignment.

use super::Isa;
use super::simd::{Kernel, Simd, dispatch};

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
    dispatch(isa, WidenF16(bytes, out));
}

/// Converts f32 to binary16 bytes, each as [`f32_to_f16_bits`].
///
/// # Panics
/// If `out.len() != 2 * values.len()`.
pub fn f32_to_f16(isa: Isa, values: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), values.len() * 2);
    dispatch(isa, NarrowF16(values, out));
}

/// Converts bfloat16 bytes to f32.
///
/// # Panics
/// If `bytes.len() != 2 * out.len()`.
pub fn bf16_to_f32(isa: Isa, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * 2);
    dispatch(isa, WidenBf16(bytes, out));
}

/// Converts f32 to bfloat16 bytes, each as [`f32_to_bf16_bits`].
///
/// # Panics
/// If `out.len() != 2 * values.len()`.
pub fn f32_to_bf16(isa: Isa, values: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), values.len() * 2);
    dispatch(isa, NarrowBf16(values, out));
}

/// Returns how many of `n` values go through vectors: those that fill them, and none on the portable level, where the
/// scalar forms here are faster.
#[inline(always)]
fn vectored<S: Simd>(n: usize) -> usize {
    if S::ISA == Isa::Portable { 0 } else { n / S::LANES * S::LANES }
}

struct WidenF16<'a>(&'a [u8], &'a mut [f32]);

impl Kernel for WidenF16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(bytes, out) = self;
        let body = vectored::<S>(out.len());
        let (head, tail) = out.split_at_mut(body);
        for (out, bytes) in head.chunks_exact_mut(S::LANES).zip(bytes.chunks_exact(2 * S::LANES)) {
            s.store(s.load_f16(bytes), out);
        }
        for (value, pair) in tail.iter_mut().zip(bytes[2 * body..].chunks_exact(2)) {
            *value = f16_bits_to_f32(u16::from_le_bytes([pair[0], pair[1]]));
        }
    }
}

struct NarrowF16<'a>(&'a [f32], &'a mut [u8]);

impl Kernel for NarrowF16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(values, out) = self;
        let body = vectored::<S>(values.len());
        let (head, tail) = out.split_at_mut(2 * body);
        for (out, values) in head.chunks_exact_mut(2 * S::LANES).zip(values.chunks_exact(S::LANES)) {
            s.store_f16(s.load(values), out);
        }
        for (pair, value) in tail.chunks_exact_mut(2).zip(&values[body..]) {
            pair.copy_from_slice(&f32_to_f16_bits(*value).to_le_bytes());
        }
    }
}

struct WidenBf16<'a>(&'a [u8], &'a mut [f32]);

impl Kernel for WidenBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(bytes, out) = self;
        let body = vectored::<S>(out.len());
        let (head, tail) = out.split_at_mut(body);
        for (out, bytes) in head.chunks_exact_mut(S::LANES).zip(bytes.chunks_exact(2 * S::LANES)) {
            s.store(s.from_bits(s.shl::<16>(s.load_u16(bytes))), out);
        }
        for (value, pair) in tail.iter_mut().zip(bytes[2 * body..].chunks_exact(2)) {
            *value = bf16_bits_to_f32(u16::from_le_bytes([pair[0], pair[1]]));
        }
    }
}

struct NarrowBf16<'a>(&'a [f32], &'a mut [u8]);

impl Kernel for NarrowBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(values, out) = self;
        let body = vectored::<S>(values.len());
        let (head, tail) = out.split_at_mut(2 * body);
        for (out, values) in head.chunks_exact_mut(2 * S::LANES).zip(values.chunks_exact(S::LANES)) {
            let value = s.load(values);
            let bits = s.to_bits(value);
            let high = s.shr::<16>(bits);
            let rounded = s.shr::<16>(bits + s.splat_i32(0x7fff) + (high & s.splat_i32(1)));
            let quiet = high | s.splat_i32(0x40);
            s.store_u16(s.select_i32(s.eq(value, value), rounded, quiet), out);
        }
        for (pair, value) in tail.chunks_exact_mut(2).zip(&values[body..]) {
            pair.copy_from_slice(&f32_to_bf16_bits(*value).to_le_bytes());
        }
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
