//! Block formats as integer codes: one file each.

mod iq4;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_k;
mod q5_k;
mod q6_k;
mod q8_0;
mod small;

pub use iq4::{Iq4Nl, Iq4Xs};
pub use mxfp4::Mxfp4;
pub use q2_k::Q2K;
pub use q3_k::Q3K;
pub use q4_k::Q4K;
pub use q5_k::Q5K;
pub use q6_k::Q6K;
pub use q8_0::Q8;
pub use small::{Affine, Symmetric};

use super::lanes::{Lanes, Words};

/// Repeats a block with each of the numbers, as constants: shifts by them are then immediate, and what they index stays
/// in registers. Compilers leave loops of so large bodies rolled.
macro_rules! unrolled {
    ($i:ident in [$($n:literal),+] $body:block) => {
        $({
            let $i = $n;
            $body
        })+
    };
}
use unrolled;

/// A dword of four equal bytes.
const fn bytes(byte: u8) -> u32 {
    u32::from_le_bytes([byte; 4])
}

/// Reads `N` words of each row, of four bytes each.
#[inline(always)]
fn read<S: Lanes, const N: usize>(s: S, words: Words<'_>, first: usize) -> [S::I; N] {
    let mut out = [s.word(words, first); N];
    for (i, out) in out.iter_mut().enumerate() {
        *out = s.word(words, first + i);
    }
    out
}

/// Returns the values of the two binary16 in each dword, the low ones first.
#[inline(always)]
fn two_halves<S: Lanes>(s: S, v: S::I) -> [S::F; 2] {
    [s.low_half(v), s.low_half(s.shr(v, 16))]
}

/// Returns the bits of each byte from bit `shift` on that `mask`, which has no bits that neighbours shift in, keeps.
#[inline(always)]
fn field<S: Lanes>(s: S, v: S::I, shift: u32, mask: u8) -> S::I {
    s.and(if shift == 0 { v } else { s.shr(v, shift) }, s.splat(bytes(mask)))
}

/// [`field`] of eight dwords.
#[inline(always)]
fn fields<S: Lanes>(s: S, mut v: [S::I; 8], shift: u32, mask: u8) -> [S::I; 8] {
    for v in &mut v {
        *v = field(s, *v, shift, mask);
    }
    v
}

/// Returns the 32 codes of four words of nibbles, the low ones first.
#[inline(always)]
fn nibbles<S: Lanes>(s: S, words: Words<'_>, first: usize) -> [S::I; 8] {
    let v: [S::I; 4] = read(s, words, first);
    let mut codes = [v[0]; 8];
    for j in 0..4 {
        codes[j] = field(s, v[j], 0, 15);
        codes[4 + j] = field(s, v[j], 4, 15);
    }
    codes
}

/// Returns byte `j` of each dword as a number.
#[inline(always)]
fn byte<S: Lanes>(s: S, v: S::I, j: usize) -> S::F {
    s.to_f32(s.and(s.shr(v, 8 * j as u32), s.splat(255)))
}

/// Returns the signed number in the `bits` bits of each dword from bit `at` on.
#[inline(always)]
fn signed<S: Lanes>(s: S, v: S::I, at: u32, bits: u32) -> S::F {
    s.to_f32(s.sar(s.shl(v, 32 - bits - at), 32 - bits))
}
