//! Products of quantized weights in integers ([`Arithmetic::Int8`](super::Arithmetic::Int8)).
//!
//! Activations: each row is cut into blocks of 32 values; a block has one f32 scale `d = amax / 127` and codes
//! `q = round(x * (127 / amax))`, half to even, in -127..=127. A block whose amax is below 2^-100 counts as zeros; one
//! with an infinity or a NaN makes all products with its row NaN.
//!
//! Weights: integer codes c in groups of 16 or 32 with a scale s and in some formats a minimum m, so that
//! `s * c - m` is what the format's decoder gives; s and m are f32 as the decoder has them (e.g. `d * code`).
//!
//! An element of y begins at +0; then for each block of 32 columns, ascending, with its groups g, ascending:
//!
//! ```text
//! dot_g = sum of c * q     sum_g = sum of q                 exact integers
//! t = s_0 * dot_0          t = fma(s_1, dot_1, t)           the second if groups are of 16
//! t = fma(-m_g, sum_g, t)  for each g                       if the format has minima
//! y = fma(d, t, y)
//! ```
//!
//! Every step but the exact ones is an f32 operation, rounded once. The slow form is `oracle`.
//!
//! Weights are read from panels ([`super::panels`]), where a register holds four codes of each of 16 rows; of weights
//! that are mapped, some units are packed at a time. The micro-kernel keeps 32 columns of 16 or 32 rows in registers
//! while rows of activations go by: with one row of activations the weights are read once, with many the unpacking
//! is shared by up to [`X_GROUP`] rows.

#![allow(clippy::needless_range_loop, reason = "iterator adaptors' closures lose the target features")]

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod format;
mod kernel;
mod lanes;
#[cfg(test)]
mod oracle;
mod portable;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;

use self::activations::Activations;
#[cfg(target_arch = "x86_64")]
use self::avx2::{Avx2, AvxVnni, Pairs};
#[cfg(target_arch = "x86_64")]
use self::avx512::Avx512;
use self::kernel::{Codes, Products, fill_terms};
use self::lanes::{Lanes, MAX_LANES, Pair, Words};
use self::portable::Portable;
use super::driver::{Product, Tile};
use super::matrix::{Matrix, Stored};
use super::panels::{Layout, PANEL_ROWS, Part, Recode};
use super::scratch;
use crate::kernel::Isa;
use crate::tensor::Dtype;

/// Rows of activations that share an unpacking of weights.
const X_GROUP: usize = 256;
/// With fewer rows the registers of twice the lanes only spill.
const PAIR_ROWS: usize = 4;
/// Bytes of each row that are packed at a time where the weights are not: they stay in the first cache.
const CHUNK_BYTES: usize = 1024;

/// The formats with integer codes, by name. Adding one is a file in `format` and a line here.
static FORMATS: &[Format] = &[
    of::<format::Q8>(),
    of::<format::Symmetric<4>>(),
    of::<format::Symmetric<5>>(),
    of::<format::Affine<4>>(),
    of::<format::Affine<5>>(),
    of::<format::Q2K>(),
    of::<format::Q3K>(),
    of::<format::Q4K>(),
    of::<format::Q5K>(),
    of::<format::Q6K>(),
    of::<format::Iq4Nl>(),
    of::<format::Iq4Xs>(),
    of::<format::Mxfp4>(),
];

/// A format with integer codes.
struct Format {
    name: &'static str,
    parts: &'static [Part],
    recode: Option<Recode>,
    kernels: fn(Level) -> &'static dyn Product,
    #[cfg(test)]
    slowly: fn(&[u8]) -> oracle::Slow,
}

const fn of<C: Codes>() -> Format {
    Format {
        name: C::NAME,
        parts: C::PARTS,
        recode: C::RECODE,
        kernels: kernels::<C>,
        #[cfg(test)]
        slowly: C::slowly,
    }
}

/// What the integer kernels are compiled for: finer than [`Isa`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Portable,
    Avx2,
    Avx2Vnni,
    Avx512,
    Avx512Vnni,
    /// [`Level::Avx2Vnni`] with AVX-512's encoding of the same instruction.
    #[cfg(test)]
    Avx2Vnni512,
}

impl Level {
    /// Returns the instruction set it belongs to.
    fn isa(self) -> Isa {
        match self {
            Level::Portable => Isa::Portable,
            Level::Avx512 | Level::Avx512Vnni => Isa::Avx512,
            _ => Isa::Avx2,
        }
    }

    /// Returns the best level of this machine within `isa`.
    fn within(isa: Isa) -> Level {
        match isa {
            Isa::Portable => Level::Portable,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if Avx2::<AvxVnni>::new().is_some() => Level::Avx2Vnni,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if Avx512::<true>::new().is_some() => Level::Avx512Vnni,
            Isa::Avx2 => Level::Avx2,
            Isa::Avx512 => Level::Avx512,
        }
    }
}

/// Returns the parts that blocks of that format fall into in panels and how they are written there, if it has integer codes.
pub(super) fn packing(dtype: Dtype) -> Option<(&'static [Part], Option<Recode>)> {
    let format = FORMATS.iter().find(|format| format.name == dtype.name())?;
    Some((format.parts, format.recode))
}

/// Returns the integer product with weights of that format, if it has integer codes.
pub(super) fn product(isa: Isa, dtype: Dtype) -> Option<&'static dyn Product> {
    let format = FORMATS.iter().find(|format| format.name == dtype.name())?;
    Some((format.kernels)(Level::within(isa)))
}

fn kernels<C: Codes>(level: Level) -> &'static dyn Product {
    macro_rules! pick {
        ($($(#[$attribute:meta])* $level:ident),*) => {
            match level {
                $($(#[$attribute])* Level::$level => const { &Int8::<C> { level: Level::$level, codes: PhantomData } },)*
            }
        };
    }
    pick!(
        Portable,
        Avx2,
        Avx2Vnni,
        Avx512,
        Avx512Vnni,
        #[cfg(test)]
        Avx2Vnni512
    )
}

/// Products with weights of one format on one level.
struct Int8<C> {
    level: Level,
    codes: PhantomData<C>,
}

impl<C: Codes> Product for Int8<C> {
    fn x_group(&self) -> usize {
        X_GROUP
    }

    fn w_group(&self) -> usize {
        MAX_LANES
    }

    fn x_row_bytes(&self, k: usize) -> usize {
        activations::row_bytes(k)
    }

    fn pack_x(&self, x: &[f32], k: usize, out: &mut [u8]) {
        activations::pack(self.level.isa(), x, k, out);
    }

    fn tile(&self, tile: &mut Tile<'_>) {
        assert_eq!(tile.w.dtype().name(), C::NAME);
        let n_terms = terms_per_row::<C>(tile.w.cols()) * X_GROUP.min(tile.rows.len());
        let chunk = match tile.w.stored() {
            Stored::Panels(_) => 0,
            Stored::Rows => chunk_units(&Layout::of(tile.w.dtype(), tile.w.cols())).1 * MAX_LANES,
        };
        let isa = self.level.isa();
        scratch::with(chunk + (n_terms + X_GROUP * MAX_LANES) * size_of::<f32>(), |bytes| {
            let (chunk, rest) = bytes.split_at_mut(chunk);
            let (terms, y) = split_scratch(rest, n_terms);
            self.tile_with(tile, Scratch { isa, chunk, terms, y });
        });
    }
}

/// Room to work in.
struct Scratch<'a> {
    isa: Isa,
    /// For units of weights that are not packed.
    chunk: &'a mut [u8],
    /// For the terms of a group of rows.
    terms: &'a mut [i32],
    /// For a group's products with as many rows of weights as there are lanes.
    y: &'a mut [f32],
}

/// Returns how many units are packed at a time, and their bytes of a row.
fn chunk_units(layout: &Layout) -> (usize, usize) {
    let units = (CHUNK_BYTES / layout.unit_bytes()).max(1);
    (units, units * layout.unit_bytes())
}

impl<C: Codes> Int8<C> {
    fn tile_with(&self, tile: &mut Tile<'_>, scratch: Scratch<'_>) {
        let has = "the caller checked that the machine has it";
        // SAFETY: the tokens prove that the CPU has the features.
        match self.level {
            Level::Portable => multiply::<Portable, C>(Portable, tile, scratch),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2_tile::<C>(Avx2::new().expect(has), tile, scratch) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2Vnni => unsafe { avx2_vnni_tile::<C>(Avx2::new().expect(has), tile, scratch) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512_tile::<C>(Avx512::new().expect(has), tile, scratch) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => unsafe { avx512_vnni_tile::<C>(Avx512::new().expect(has), tile, scratch) },
            #[cfg(all(test, target_arch = "x86_64"))]
            Level::Avx2Vnni512 => unsafe { avx2_vnni_512_tile::<C>(Avx2::new().expect(has), tile, scratch) },
            #[cfg(not(target_arch = "x86_64"))]
            level => panic!("{level:?} does not exist on this architecture"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2_tile<C: Codes>(s: Avx2<Pairs>, tile: &mut Tile<'_>, scratch: Scratch<'_>) {
    multiply::<_, C>(s, tile, scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn avx2_vnni_tile<C: Codes>(s: Avx2<AvxVnni>, tile: &mut Tile<'_>, scratch: Scratch<'_>) {
    multiply::<_, C>(s, tile, scratch);
}

#[cfg(all(test, target_arch = "x86_64"))]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512vnni")]
fn avx2_vnni_512_tile<C: Codes>(s: Avx2<avx2::Avx512Vnni>, tile: &mut Tile<'_>, scratch: Scratch<'_>) {
    multiply::<_, C>(s, tile, scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn avx512_tile<C: Codes>(s: Avx512<false>, tile: &mut Tile<'_>, scratch: Scratch<'_>) {
    multiply::<_, C>(s, tile, scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn avx512_vnni_tile<C: Codes>(s: Avx512<true>, tile: &mut Tile<'_>, scratch: Scratch<'_>) {
    if tile.rows.len() < PAIR_ROWS {
        multiply::<_, C>(s, tile, scratch)
    } else {
        multiply::<_, C>(Pair(s), tile, scratch)
    }
}

/// Returns the terms that a row of activations of `k` values has.
const fn terms_per_row<C: Codes>(k: usize) -> usize {
    k / activations::BLOCK * C::GROUPS
}

/// Computes a tile, `S::LANES` rows of weights at a time.
///
/// Its intrinsics need the caller's target features, which closures do not have: there are none here around them.
#[inline(always)]
fn multiply<S: Lanes, C: Codes>(s: S, tile: &mut Tile<'_>, scratch: Scratch<'_>) {
    let Scratch { isa, chunk, terms, y } = scratch;
    let (w, cols) = (tile.w, tile.cols.clone());
    let k = w.cols();
    for (first, rows, x) in tile.x_groups() {
        let x = Activations::new(x, rows, k);
        let terms = &mut terms[..rows * terms_per_row::<C>(k)];
        fill_terms::<S, C>(&x, terms);
        for col in cols.clone().step_by(S::LANES) {
            let (panel, row) = (col / PANEL_ROWS, col % PANEL_ROWS);
            let mut products = Products::<S, C>::new(s, x, terms, y);
            if let Stored::Panels(panels) = w.stored() {
                let n_panels = S::LANES.div_ceil(PANEL_ROWS).min(w.rows().div_ceil(PANEL_ROWS) - panel);
                let (bytes, layout) = (panels.panels(panel..panel + n_panels), panels.layout);
                products.add(Words::new(bytes, layout.panel_bytes()).rows_from(row), layout.units());
            } else {
                let layout = Layout::of(w.dtype(), k);
                let (together, _) = chunk_units(&layout);
                for unit in (0..layout.units()).step_by(together) {
                    let units = unit..layout.units().min(unit + together);
                    let n = units.len();
                    let (bytes, panel_bytes) =
                        pack_chunk(isa, w, panel, S::LANES.div_ceil(PANEL_ROWS), units, chunk);
                    products.add(Words::new(bytes, panel_bytes).rows_from(row), n);
                }
            }
            let n = S::LANES.min(cols.end - col);
            for (row, y) in y.chunks_exact(S::LANES).take(rows).enumerate() {
                tile.write(first + row, col, &y[..n]);
            }
        }
    }
}

/// Packs `units` of panels `panel..panel + n_panels` into `chunk`; returns their bytes, and those of one.
fn pack_chunk<'a>(
    isa: Isa,
    w: &Matrix,
    panel: usize,
    n_panels: usize,
    units: std::ops::Range<usize>,
    chunk: &'a mut [u8],
) -> (&'a [u8], usize) {
    let layout = Layout::of(w.dtype(), w.cols());
    let panel_bytes = PANEL_ROWS * units.len() * layout.unit_bytes();
    let chunk = &mut chunk[..n_panels * panel_bytes];
    for (i, out) in chunk.chunks_exact_mut(panel_bytes).enumerate() {
        let first = (panel + i) * PANEL_ROWS;
        let rows = std::array::from_fn(|row| w.mapped_row((first + row).min(w.rows() - 1)));
        layout.pack(isa, &rows, units.clone(), out);
    }
    (chunk, panel_bytes)
}

/// Splits 64-aligned scratch bytes into integers and floats.
fn split_scratch(bytes: &mut [u8], n_terms: usize) -> (&mut [i32], &mut [f32]) {
    let (terms, y) = bytes.split_at_mut(n_terms * size_of::<i32>());
    // SAFETY: any bits are values of both types.
    let ((a, terms, _), (b, y, _)) = unsafe { (terms.align_to_mut(), y.align_to_mut()) };
    assert!(a.is_empty() && b.is_empty());
    (terms, y)
}
