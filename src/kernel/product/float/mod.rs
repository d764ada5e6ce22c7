//! Products in f32 and bf16: an outer-product micro-kernel over panels that are made as they are needed.
//!
//! Weights stay row-major where they lie. Some rows of w are transposed (and decoded, where the format asks for it)
//! into a panel of `[k][rows]` that stays in the cache while all rows of x pass over it; y is continued
//! from one block of k to the next, so that an element is one chain over ascending k. For a single row of x,
//! as in generation, the transposed registers are used at once.

#![allow(clippy::needless_range_loop, reason = "iterator adaptors' closures lose the target features")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(test, target_arch = "x86_64"))]
mod instruction_tests;
mod lanes;
mod micro;
mod pack;
mod step;
mod tile;
mod transposed;

use super::driver::{Product, Tile};
use super::transposed::Tile as TransposedTile;
use super::{Arithmetic, scratch};
use crate::kernel::Isa;

/// Operands below this magnitude are zero in bf16 products, so that no product or sum is denormal.
pub const BF16_TINY: f32 = 8.881_784e-16; // 2^-50

pub use transposed::MAX_COLS as MAX_TRANSPOSED_COLS;

/// A product that can also take the transposes of matrices.
pub trait FloatProduct: Product {
    /// Computes every element of the tile, or continues it.
    fn transposed(&self, tile: &mut TransposedTile<'_>);
}

/// Returns the product of a float arithmetic (any but `Int8`), in the best form this machine has at that level.
pub fn product(isa: Isa, arithmetic: Arithmetic) -> &'static dyn FloatProduct {
    let forms = forms(isa, arithmetic);
    forms[forms.len() - 1]
}

/// Returns every form of a float arithmetic at that level that this machine has, the best last; at least one.
pub fn forms(isa: Isa, arithmetic: Arithmetic) -> &'static [&'static dyn FloatProduct] {
    let is_f32 = arithmetic == Arithmetic::F32;
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if is_f32 => &[&Avx512F32],
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if is_x86_feature_detected!("avx512bf16") => &[&Avx512Bf16, &Avx512DotBf16],
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &[&Avx512Bf16],
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if is_f32 => &[&Avx2F32],
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &[&Avx2Bf16],
        _ if is_f32 => &[&PortableF32],
        _ => &[&PortableBf16],
    }
}

/// A product whose tile and packing of x are [`tile::run`] and [`tile::pack_x`] of a step, compiled for its features.
macro_rules! float_product {
    ($(#[$attribute:meta])* $name:ident, $step:ty, $isa:expr, $(#[$features:meta])?) => {
        $(#[$attribute])*
        struct $name;

        $(#[$attribute])*
        impl Product for $name {
            fn x_group(&self) -> usize {
                tile::x_group::<$step>()
            }

            fn w_group(&self) -> usize {
                tile::w_group::<$step>()
            }

            fn x_row_bytes(&self, k: usize) -> usize {
                tile::x_row_bytes::<$step>(k)
            }

            fn takes_plain_rows(&self) -> bool {
                <$step as step::Step>::DEPTH == 1
            }

            fn pack_x(&self, x: &[f32], k: usize, out: &mut [u8]) {
                $(#[$features])?
                unsafe fn pack_x(x: &[f32], k: usize, out: &mut [u8]) {
                    // SAFETY: the features are this function's.
                    unsafe { tile::pack_x::<$step>(x, k, out) }
                }
                // SAFETY: `forms` hands this out only where the CPU has the features.
                unsafe { pack_x(x, k, out) }
            }

            fn tile(&self, tile: &mut Tile<'_>) {
                $(#[$features])?
                unsafe fn run(tile: &mut Tile<'_>, buffer: &mut [u8]) {
                    // SAFETY: the features are this function's.
                    unsafe { tile::run::<$step>($isa, tile, buffer) }
                }
                scratch::with(tile::scratch_bytes::<$step>(tile), |buffer| {
                    // SAFETY: `forms` hands this out only where the CPU has the features.
                    unsafe { run(tile, buffer) }
                });
            }
        }

        $(#[$attribute])*
        impl FloatProduct for $name {
            fn transposed(&self, tile: &mut TransposedTile<'_>) {
                $(#[$features])?
                unsafe fn run(tile: &mut TransposedTile<'_>, buffer: &mut [u8]) {
                    // SAFETY: the features are this function's.
                    unsafe { transposed::run::<$step>($isa, tile, buffer) }
                }
                scratch::with(transposed::scratch_bytes::<$step>(tile), |buffer| {
                    // SAFETY: `forms` hands this out only where the CPU has the features.
                    unsafe { run(tile, buffer) }
                });
            }
        }
    };
}

float_product!(PortableF32, step::F32<lanes::Portable>, Isa::Portable,);
float_product!(PortableBf16, step::Bf16<lanes::Portable>, Isa::Portable,);
float_product!(
    #[cfg(target_arch = "x86_64")]
    Avx2F32, step::F32<avx2::Avx2>, Isa::Avx2, #[target_feature(enable = "avx2,fma,f16c")]
);
float_product!(
    #[cfg(target_arch = "x86_64")]
    Avx2Bf16, step::Bf16<avx2::Avx2>, Isa::Avx2, #[target_feature(enable = "avx2,fma,f16c")]
);
float_product!(
    #[cfg(target_arch = "x86_64")]
    Avx512F32, step::F32<avx512::Avx512>, Isa::Avx512,
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
);
float_product!(
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16, step::Bf16<avx512::Avx512>, Isa::Avx512,
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
);
float_product!(
    #[cfg(target_arch = "x86_64")]
    Avx512DotBf16, step::DotBf16, Isa::Avx512,
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
);
