//! Four lanes in plain Rust, which compilers turn into what the target has.

use super::lanes::{Lanes, Words};
use crate::kernel::convert::f16_bits_to_f32;

const LANES: usize = 4;

/// Runs everywhere.
#[derive(Clone, Copy)]
pub struct Portable;

macro_rules! lane_wise {
    ($(fn $name:ident($($arg:ident: $from:ty),*) -> $to:ty $body:block)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: [$from; LANES]),*) -> [$to; LANES] {
            let mut out = [<$to>::default(); LANES];
            for lane in 0..LANES {
                $(let $arg = $arg[lane];)*
                out[lane] = $body;
            }
            out
        })*
    };
}

impl Lanes for Portable {
    type I = [u32; LANES];
    type F = [f32; LANES];
    const LANES: usize = LANES;
    const SIGNED_OFFSET: i32 = 0;
    const ANY_CODES: bool = true;

    lane_wise! {
        fn and(a: u32, b: u32) -> u32 { a & b }
        fn or(a: u32, b: u32) -> u32 { a | b }
        fn xor(a: u32, b: u32) -> u32 { a ^ b }
        fn add(a: u32, b: u32) -> u32 { a.wrapping_add(b) }
        fn from_bits(a: u32) -> f32 { f32::from_bits(a) }
        fn mul_i32(a: u32, b: u32) -> u32 { a.wrapping_mul(b) }
        fn signed(a: u32) -> u32 { a }
        fn to_f32(a: u32) -> f32 { a as i32 as f32 }
        fn low_half(a: u32) -> f32 { f16_bits_to_f32(a as u16) }
        fn mul(a: f32, b: f32) -> f32 { a * b }
        fn fma(a: f32, b: f32, c: f32) -> f32 { a.mul_add(b, c) }
    }

    #[inline(always)]
    fn shl(self, a: [u32; LANES], n: u32) -> [u32; LANES] {
        [a[0] << n, a[1] << n, a[2] << n, a[3] << n]
    }
    #[inline(always)]
    fn shr(self, a: [u32; LANES], n: u32) -> [u32; LANES] {
        [a[0] >> n, a[1] >> n, a[2] >> n, a[3] >> n]
    }
    #[inline(always)]
    fn sar(self, a: [u32; LANES], n: u32) -> [u32; LANES] {
        let sar = |a: u32| (a as i32 >> n) as u32;
        [sar(a[0]), sar(a[1]), sar(a[2]), sar(a[3])]
    }
    #[inline(always)]
    fn splat(self, word: u32) -> [u32; LANES] {
        [word; LANES]
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], a: [u32; LANES]) -> [u32; LANES] {
        let mut out = a;
        for lane in 0..LANES {
            let mut bytes = a[lane].to_le_bytes();
            for byte in &mut bytes {
                *byte = table[usize::from(*byte & 15)] as u8;
            }
            out[lane] = u32::from_le_bytes(bytes);
        }
        out
    }
    #[inline(always)]
    fn splat_f32(self, x: f32) -> [f32; LANES] {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> [f32; LANES] {
        [x[0], x[1], x[2], x[3]]
    }
    #[inline(always)]
    fn store(self, x: [f32; LANES], out: &mut [f32]) {
        out[..LANES].copy_from_slice(&x);
    }

    #[inline(always)]
    fn word(self, words: Words<'_>, word: usize) -> [u32; LANES] {
        // SAFETY: the words of LANES rows are there.
        let lanes = unsafe { words.address(word, LANES).cast::<[u32; LANES]>().read_unaligned() };
        lanes.map(u32::from_le)
    }

    #[inline(always)]
    fn dot<const N: usize>(self, bits: u32, start: i32, codes: [[u32; LANES]; N], x: &[u8]) -> [u32; LANES] {
        let mut sums = [start; LANES];
        for (codes, x) in codes.iter().zip(x.chunks_exact(4)) {
            for lane in 0..LANES {
                let codes = codes[lane].to_le_bytes();
                for i in 0..4 {
                    let code = if bits == 8 { i32::from(codes[i] as i8) } else { i32::from(codes[i]) };
                    sums[lane] += code * i32::from(x[i] as i8);
                }
            }
        }
        [sums[0] as u32, sums[1] as u32, sums[2] as u32, sums[3] as u32]
    }
}
