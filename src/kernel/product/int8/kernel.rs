//! The micro-kernel: a block of 32 columns of as many weight rows as there are lanes stays in registers while rows of
//! activations go by.

use std::marker::PhantomData;

use super::activations::{Activations, BLOCK};
use super::lanes::{Lanes, Words};
use crate::kernel::product::panels::{Part, Recode};

/// A block format as integer codes with scales: weight = scale * (code - OFFSET) - minimum.
///
/// Scales and minima belong to groups of 32 or 16 weights and are what the format's decoder multiplies with.
pub trait Codes: Send + Sync + 'static {
    /// The format's name in the registry of formats.
    const NAME: &'static str;
    /// Bytes per block of the format.
    const BYTES: usize;
    /// 8 for signed codes; else codes are unsigned and below `2^BITS`, `BITS <= 6`.
    const BITS: u32;
    /// What is subtracted from codes; 0 if they are signed or there are minima.
    const OFFSET: i32 = 0;
    /// Groups per 32 weights: 1 or 2.
    const GROUPS: usize;
    const HAS_MINIMA: bool = false;

    /// The parts of a block in the order in which [`Codes::unit`] reads them (see [`crate::kernel::product::panels`]);
    /// none if that is the order in which they lie, and whole words.
    const PARTS: &'static [Part] = &[];

    /// How blocks are written in panels, if not as they are stored.
    const RECODE: Option<Recode> = None;

    /// Gives `sink` the weights of the unit of blocks that `words` are, 32 at a time, in order.
    fn unit<S: Lanes>(s: S, words: Words<'_>, sink: &mut impl Sink<S>);

    /// Reads the block's weights the slow way.
    #[cfg(test)]
    fn slowly(block: &[u8]) -> super::oracle::Slow;
}

/// Weights of 32 columns, a row per lane.
#[derive(Clone, Copy)]
pub struct Weights<S: Lanes> {
    /// Four codes in a dword; signed ones have gone through [`Lanes::signed`].
    pub codes: [S::I; 8],
    /// The scales of each 16; the second counts if `GROUPS` is 2.
    pub scales: [S::F; 2],
    /// The minima of each 16, negated; the second counts if `GROUPS` is 2, none without `HAS_MINIMA`.
    pub negated_minima: [S::F; 2],
}

impl<S: Lanes> Weights<S> {
    /// Returns weights with one scale and no minimum.
    #[inline(always)]
    pub fn plain(codes: [S::I; 8], scale: S::F) -> Self {
        Weights { codes, scales: [scale; 2], negated_minima: [scale; 2] }
    }

    /// Returns weights with a scale for each 16 and no minima.
    #[inline(always)]
    pub fn halves(codes: [S::I; 8], scales: [S::F; 2]) -> Self {
        Weights { codes, scales, negated_minima: scales }
    }

    /// Returns weights with one scale and one minimum, which is given negated.
    #[inline(always)]
    pub fn affine(codes: [S::I; 8], scale: S::F, negated_minimum: S::F) -> Self {
        Weights { codes, scales: [scale; 2], negated_minima: [negated_minimum; 2] }
    }
}

/// Where a [`Codes::block`] goes.
pub trait Sink<S: Lanes> {
    fn weights(&mut self, weights: Weights<S>);
}

/// Returns what dots over signed or offset codes count too much.
#[inline(always)]
fn offset<S: Lanes, C: Codes>() -> i32 {
    if C::BITS == 8 { S::SIGNED_OFFSET } else { C::OFFSET }
}

/// Writes, per block, row and group, where integer dots start: `-offset * sum`; or for formats with minima the bits of
/// the f32 sum. `terms.len()` is blocks * rows * `C::GROUPS`.
#[inline(always)]
pub fn fill_terms<S: Lanes, C: Codes>(x: &Activations<'_>, terms: &mut [i32]) {
    let term = |sum: i32| {
        if C::HAS_MINIMA { (sum as f32).to_bits() as i32 } else { -offset::<S, C>() * sum }
    };
    if C::GROUPS == 1 {
        for (term_of_block, sums) in terms.iter_mut().zip(x.sums) {
            *term_of_block = term(i32::from(sums[0]) + i32::from(sums[1]));
        }
    } else {
        for (terms_of_block, sums) in terms.chunks_exact_mut(2).zip(x.sums) {
            terms_of_block[0] = term(i32::from(sums[0]));
            terms_of_block[1] = term(i32::from(sums[1]));
        }
    }
}

/// Adds up the products of all rows of activations with as many rows of weights as there are lanes.
pub struct Products<'a, S, C> {
    s: S,
    /// What is left of the activations: per block of 32 columns as many as there are rows, of the terms `C::GROUPS` times
    /// as many.
    rows: usize,
    codes: &'a [[u8; BLOCK]],
    scales: &'a [f32],
    terms: &'a [i32],
    /// `y[row][lane]`, `S::LANES` apart.
    y: &'a mut [f32],
    format: PhantomData<C>,
}

impl<'a, S: Lanes, C: Codes> Products<'a, S, C> {
    /// Returns sums of 0 over none of the columns yet, kept in `y`; `terms` are what [`fill_terms`] says.
    #[inline(always)]
    pub fn new(s: S, x: Activations<'a>, terms: &'a [i32], y: &'a mut [f32]) -> Self {
        let y = &mut y[..x.rows * S::LANES];
        y.fill(0.0);
        Products { s, rows: x.rows, codes: x.codes, scales: x.scales, terms, y, format: PhantomData }
    }

    /// Adds the products of the next `units` units of blocks, all of `words`.
    #[inline(always)]
    pub fn add(&mut self, words: Words<'_>, units: usize) {
        let n_words = unit_words::<C>();
        for unit in 0..units {
            C::unit(self.s, words.part(unit * n_words, n_words), self);
        }
    }
}

/// Returns the words of a unit of a row.
const fn unit_words<C: Codes>() -> usize {
    let mut unit = C::BYTES;
    while !unit.is_multiple_of(4) {
        unit += C::BYTES;
    }
    unit / 4
}

impl<S: Lanes, C: Codes> Sink<S> for Products<'_, S, C> {
    #[inline(always)]
    fn weights(&mut self, weights: Weights<S>) {
        let (s, rows) = (self.s, self.rows);
        if self.codes.is_empty() {
            return; // what fills up the last unit
        }
        let (codes, terms);
        (codes, self.codes) = self.codes.split_at(rows);
        (terms, self.terms) = self.terms.split_at(rows * C::GROUPS);
        let scales;
        (scales, self.scales) = self.scales.split_at(rows);
        let of_rows = codes.iter().zip(scales).zip(terms.chunks_exact(C::GROUPS));
        for (((codes, scale), terms), y) in of_rows.zip(self.y.chunks_exact_mut(S::LANES)) {
            let sum = block_sum::<S, C>(s, &weights, codes, terms);
            s.store(s.fma(s.splat_f32(*scale), sum, s.load(y)), y);
        }
    }
}

/// Returns the sum over a block's groups, before the scale of the activations.
#[inline(always)]
fn block_sum<S: Lanes, C: Codes>(s: S, weights: &Weights<S>, x: &[u8; BLOCK], terms: &[i32]) -> S::F {
    let start = |group: usize| if C::HAS_MINIMA || offset::<S, C>() == 0 { 0 } else { terms[group] };
    let c = weights.codes;
    let mut sum = if C::GROUPS == 1 {
        s.mul(weights.scales[0], s.to_f32(s.dot(C::BITS, start(0), c, x)))
    } else {
        let first = s.to_f32(s.dot(C::BITS, start(0), [c[0], c[1], c[2], c[3]], &x[..16]));
        let second = s.to_f32(s.dot(C::BITS, start(1), [c[4], c[5], c[6], c[7]], &x[16..]));
        s.fma(weights.scales[1], second, s.mul(weights.scales[0], first))
    };
    if C::HAS_MINIMA {
        for (term, negated_minimum) in terms.iter().zip(weights.negated_minima) {
            sum = s.fma(negated_minimum, s.splat_f32(f32::from_bits(*term as u32)), sum);
        }
    }
    sum
}
