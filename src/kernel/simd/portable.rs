//! Eight lanes in plain Rust.

use std::array::from_fn;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};

use half::f16;

use super::{Isa, Simd, SimdFma};

const LANES: usize = 8;

/// Plain Rust; the compiler vectorizes it with the target's baseline.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
pub struct F32([f32; LANES]);

#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
pub struct I32([i32; LANES]);

/// 0 or -1 per lane.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
pub struct Mask([i32; LANES]);

macro_rules! lane_wise {
    ($type:ident, $trait:ident, $method:ident, |$a:ident, $b:ident| $expr:expr) => {
        impl $trait for $type {
            type Output = $type;
            #[inline(always)]
            fn $method(self, other: $type) -> $type {
                $type(from_fn(|i| {
                    let ($a, $b) = (self.0[i], other.0[i]);
                    $expr
                }))
            }
        }
    };
}

lane_wise!(F32, Add, add, |a, b| a + b);
lane_wise!(F32, Sub, sub, |a, b| a - b);
lane_wise!(F32, Mul, mul, |a, b| a * b);
lane_wise!(F32, Div, div, |a, b| a / b);
lane_wise!(I32, Add, add, |a, b| a.wrapping_add(b));
lane_wise!(I32, Sub, sub, |a, b| a.wrapping_sub(b));
lane_wise!(I32, Mul, mul, |a, b| a.wrapping_mul(b));
lane_wise!(I32, BitAnd, bitand, |a, b| a & b);
lane_wise!(I32, BitOr, bitor, |a, b| a | b);
lane_wise!(I32, BitXor, bitxor, |a, b| a ^ b);
lane_wise!(Mask, BitAnd, bitand, |a, b| a & b);
lane_wise!(Mask, BitOr, bitor, |a, b| a | b);

impl Neg for F32 {
    type Output = F32;
    #[inline(always)]
    fn neg(self) -> F32 {
        F32(self.0.map(|a| -a))
    }
}

impl Not for Mask {
    type Output = Mask;
    #[inline(always)]
    fn not(self) -> Mask {
        Mask(self.0.map(|a| !a))
    }
}

#[inline(always)]
fn compare<T: Copy>(a: [T; LANES], b: [T; LANES], test: impl Fn(T, T) -> bool) -> Mask {
    Mask(from_fn(|i| -(test(a[i], b[i]) as i32)))
}

#[inline(always)]
fn choose<T: Copy>(m: Mask, a: [T; LANES], b: [T; LANES]) -> [T; LANES] {
    from_fn(|i| if m.0[i] != 0 { a[i] } else { b[i] })
}

#[inline(always)]
fn u16_at(bytes: &[u8], i: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])
}

impl Simd for Portable {
    type F32 = F32;
    type I32 = I32;
    type Mask = Mask;

    const LANES: usize = LANES;
    const ISA: Isa = Isa::Portable;

    #[inline(always)]
    fn splat(self, x: f32) -> F32 {
        F32([x; LANES])
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> I32 {
        I32([x; LANES])
    }

    #[inline(always)]
    fn load(self, src: &[f32]) -> F32 {
        let src = &src[..LANES];
        F32(from_fn(|i| src[i]))
    }
    #[inline(always)]
    fn store(self, v: F32, dst: &mut [f32]) {
        dst[..LANES].copy_from_slice(&v.0);
    }
    #[inline(always)]
    fn load_i32(self, src: &[i32]) -> I32 {
        let src = &src[..LANES];
        I32(from_fn(|i| src[i]))
    }
    #[inline(always)]
    fn store_i32(self, v: I32, dst: &mut [i32]) {
        dst[..LANES].copy_from_slice(&v.0);
    }
    #[inline(always)]
    fn load_u8(self, src: &[u8]) -> I32 {
        let src = &src[..LANES];
        I32(from_fn(|i| src[i] as i32))
    }
    #[inline(always)]
    fn load_i8(self, src: &[u8]) -> I32 {
        let src = &src[..LANES];
        I32(from_fn(|i| src[i] as i8 as i32))
    }
    #[inline(always)]
    fn store_u8(self, v: I32, dst: &mut [u8]) {
        let bytes: [u8; LANES] = from_fn(|i| v.0[i] as u8);
        dst[..LANES].copy_from_slice(&bytes);
    }
    #[inline(always)]
    fn load_u16(self, src: &[u8]) -> I32 {
        let src = &src[..2 * LANES];
        I32(from_fn(|i| u16_at(src, i) as i32))
    }
    #[inline(always)]
    fn store_u16(self, v: I32, dst: &mut [u8]) {
        for (lane, out) in v.0.iter().zip(dst[..2 * LANES].chunks_exact_mut(2)) {
            out.copy_from_slice(&(*lane as u16).to_le_bytes());
        }
    }
    #[inline(always)]
    fn load_f16(self, src: &[u8]) -> F32 {
        let src = &src[..2 * LANES];
        F32(from_fn(|i| f16::from_bits(u16_at(src, i)).to_f32()))
    }
    #[inline(always)]
    fn store_f16(self, v: F32, dst: &mut [u8]) {
        for (lane, out) in v.0.iter().zip(dst[..2 * LANES].chunks_exact_mut(2)) {
            out.copy_from_slice(&f16::from_f32(*lane).to_le_bytes());
        }
    }

    #[inline(always)]
    fn min(self, a: F32, b: F32) -> F32 {
        F32(from_fn(|i| if a.0[i] < b.0[i] { a.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    fn max(self, a: F32, b: F32) -> F32 {
        F32(from_fn(|i| if a.0[i] > b.0[i] { a.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    fn abs(self, a: F32) -> F32 {
        F32(a.0.map(f32::abs))
    }
    #[inline(always)]
    fn sqrt(self, a: F32) -> F32 {
        F32(a.0.map(f32::sqrt))
    }
    #[inline(always)]
    fn trunc(self, a: F32) -> F32 {
        F32(a.0.map(f32::trunc))
    }

    #[inline(always)]
    fn lt(self, a: F32, b: F32) -> Mask {
        compare(a.0, b.0, |a, b| a < b)
    }
    #[inline(always)]
    fn le(self, a: F32, b: F32) -> Mask {
        compare(a.0, b.0, |a, b| a <= b)
    }
    #[inline(always)]
    fn eq(self, a: F32, b: F32) -> Mask {
        compare(a.0, b.0, |a, b| a == b)
    }
    #[inline(always)]
    fn eq_i32(self, a: I32, b: I32) -> Mask {
        compare(a.0, b.0, |a, b| a == b)
    }
    #[inline(always)]
    fn gt_i32(self, a: I32, b: I32) -> Mask {
        compare(a.0, b.0, |a, b| a > b)
    }
    #[inline(always)]
    fn select(self, m: Mask, a: F32, b: F32) -> F32 {
        F32(choose(m, a.0, b.0))
    }
    #[inline(always)]
    fn select_i32(self, m: Mask, a: I32, b: I32) -> I32 {
        I32(choose(m, a.0, b.0))
    }
    #[inline(always)]
    fn mask_bits(self, m: Mask) -> u32 {
        let mut bits = 0;
        for (i, lane) in m.0.iter().enumerate() {
            bits |= (*lane as u32 & 1) << i;
        }
        bits
    }

    #[inline(always)]
    fn min_i32(self, a: I32, b: I32) -> I32 {
        I32(from_fn(|i| a.0[i].min(b.0[i])))
    }
    #[inline(always)]
    fn max_i32(self, a: I32, b: I32) -> I32 {
        I32(from_fn(|i| a.0[i].max(b.0[i])))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: I32) -> I32 {
        I32(a.0.map(|a| a << N))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: I32) -> I32 {
        I32(a.0.map(|a| (a as u32 >> N) as i32))
    }
    #[inline(always)]
    fn sar<const N: u32>(self, a: I32) -> I32 {
        I32(a.0.map(|a| a >> N))
    }

    #[inline(always)]
    fn to_bits(self, a: F32) -> I32 {
        I32(a.0.map(|a| a.to_bits() as i32))
    }
    #[inline(always)]
    fn from_bits(self, a: I32) -> F32 {
        F32(a.0.map(|a| f32::from_bits(a as u32)))
    }
    #[inline(always)]
    fn to_f32(self, a: I32) -> F32 {
        F32(a.0.map(|a| a as f32))
    }
    #[inline(always)]
    fn trunc_i32(self, a: F32) -> I32 {
        // `as` saturates and maps NaN to 0; x86 gives i32::MIN for all of those
        const LIMIT: f32 = 2_147_483_648.0;
        I32(a.0.map(|a| if (-LIMIT..LIMIT).contains(&a) { a as i32 } else { i32::MIN }))
    }

    #[inline(always)]
    fn lookup16(self, table: &[f32; 16], index: I32) -> F32 {
        F32(index.0.map(|i| table[(i & 15) as usize]))
    }

    #[inline(always)]
    fn lookup32(self, table: &[f32; 32], index: I32) -> F32 {
        F32(index.0.map(|i| table[(i & 31) as usize]))
    }

    #[inline(always)]
    fn transpose(self, src: &[f32], stride: usize, dst: &mut [F32]) {
        assert!(dst.len().is_multiple_of(LANES) && dst.len() <= stride);
        for j in 0..LANES {
            let row = &src[j * stride..][..dst.len()];
            for (v, x) in dst.iter_mut().zip(row) {
                v.0[j] = *x;
            }
        }
    }
}

impl SimdFma for Portable {
    #[inline(always)]
    fn mul_add(self, a: F32, b: F32, c: F32) -> F32 {
        F32(from_fn(|i| a.0[i].mul_add(b.0[i], c.0[i])))
    }
}
