//! Registers of dwords, one weight row per lane: what the packers and the micro-kernel are written in.
//!
//! A dword holds four codes of one row, ascending k from the low byte, or one i32. Every operation is exact or
//! correctly rounded, so all implementations give the same bits.

use crate::kernel::product::panels::PANEL_ROWS;

/// Words of rows as panels have them, row 0 of a panel being lane 0: those of a unit of blocks, or of several.
#[derive(Clone, Copy)]
pub struct Words<'a> {
    start: *const u8,
    /// Bytes from a panel to the next.
    panel_bytes: usize,
    n_words: usize,
    /// The row that is lane 0.
    row: usize,
    _bytes: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> Words<'a> {
    /// Bytes of a word of a panel's rows.
    pub const BYTES: usize = 4 * PANEL_ROWS;

    /// Returns the words of all rows of the panels in `bytes`, each of `panel_bytes`.
    ///
    /// # Panics
    /// If `bytes` begin at no cache line.
    #[inline(always)]
    pub fn new(bytes: &'a [u8], panel_bytes: usize) -> Self {
        debug_assert!(!bytes.is_empty() && bytes.len().is_multiple_of(panel_bytes));
        assert!(bytes.as_ptr().addr().is_multiple_of(Self::BYTES), "panels begin at cache lines");
        let n_words = panel_bytes / Self::BYTES;
        // the rows of a panel that is not there are those of the first, and are dropped
        let panel_bytes = if bytes.len() > panel_bytes { panel_bytes } else { 0 };
        Words { start: bytes.as_ptr(), panel_bytes, n_words, row: 0, _bytes: std::marker::PhantomData }
    }

    /// Returns the rows from `row` on.
    #[inline(always)]
    pub fn rows_from(self, row: usize) -> Self {
        Words { row: self.row + row, ..self }
    }

    /// Returns words `first..first + n`.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline(always)]
    pub fn part(self, first: usize, n: usize) -> Self {
        assert!(first + n <= self.n_words);
        Words { start: self.start.wrapping_add(first * Self::BYTES), n_words: n, ..self }
    }

    /// Returns the address of word `word` of the first row; those of the next `lanes` rows follow.
    ///
    /// # Panics
    /// If there is no such word, or the rows are not in one panel.
    #[inline(always)]
    pub fn address(self, word: usize, lanes: usize) -> *const u32 {
        let (panel, row) = (self.row / PANEL_ROWS, self.row % PANEL_ROWS);
        assert!(word < self.n_words && row + lanes <= PANEL_ROWS && panel < MAX_LANES / PANEL_ROWS);
        self.start.wrapping_add(panel * self.panel_bytes + word * Self::BYTES + 4 * row).cast()
    }
}

/// The most lanes any implementation has.
pub const MAX_LANES: usize = 32;

/// An instruction set as a token: a value exists only where the CPU has the features.
///
/// Generic code over it must be `#[inline(always)]` down to the intrinsics and run in a function with the features.
#[allow(clippy::wrong_self_convention, reason = "self is the instruction set, not the value converted")]
pub trait Lanes: Copy {
    /// A dword per lane.
    type I: Copy;
    /// An f32 per lane.
    type F: Copy;
    const LANES: usize;
    /// What [`Lanes::dot`] adds to signed codes.
    const SIGNED_OFFSET: i32;
    /// Whether [`Lanes::dot`] takes any unsigned codes, whatever its `bits`.
    const ANY_CODES: bool;

    fn splat(self, word: u32) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    /// Shifts left; `n < 32`, best a constant.
    fn shl(self, a: Self::I, n: u32) -> Self::I;
    /// Shifts right, zeros coming in; `n < 32`, best a constant.
    fn shr(self, a: Self::I, n: u32) -> Self::I;
    /// Shifts right, copies of the sign coming in; `n < 32`, best a constant.
    fn sar(self, a: Self::I, n: u32) -> Self::I;
    /// The low 32 bits of the products.
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// Returns `table[byte]` for every byte, all below 16.
    fn lookup(self, table: &[i8; 16], a: Self::I) -> Self::I;
    /// Returns signed bytes as [`Lanes::dot`] wants them.
    fn signed(self, a: Self::I) -> Self::I;

    fn splat_f32(self, x: f32) -> Self::F;
    /// Loads one f32 per lane.
    ///
    /// # Panics
    /// If there are fewer.
    fn load(self, x: &[f32]) -> Self::F;
    /// Stores one f32 per lane.
    ///
    /// # Panics
    /// If there is less room.
    fn store(self, x: Self::F, out: &mut [f32]);
    /// The sum's low 32 bits.
    fn add(self, a: Self::I, b: Self::I) -> Self::I;
    /// Returns the f32 of these bits.
    fn from_bits(self, a: Self::I) -> Self::F;
    /// Converts to the nearest f32, half to even.
    fn to_f32(self, a: Self::I) -> Self::F;
    /// Returns the value of the binary16 in the low half of each dword.
    fn low_half(self, a: Self::I) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Reads word `word` of each row.
    fn word(self, words: Words<'_>, word: usize) -> Self::I;

    /// Returns `start` plus the dot of each lane's `4 * N` codes with the activations, exactly.
    ///
    /// For `bits == 8` the codes are [`Lanes::signed`] and each counts as the code plus [`Lanes::SIGNED_OFFSET`];
    /// else they are unsigned, below `2^bits`, `bits <= 6`. Activations are signed bytes but -128.
    fn dot<const N: usize>(self, bits: u32, start: i32, codes: [Self::I; N], x: &[u8]) -> Self::I;
}

/// Returns how many sums of two products of a code below `2^bits` with an activation an i16 holds.
#[inline(always)]
pub const fn pairs_in_i16(bits: u32) -> usize {
    let pair = 2 * ((1 << bits) - 1) * 127;
    i16::MAX as usize / pair
}

/// Twice the lanes: `(rows 0..LANES, rows LANES..2 * LANES)`.
#[derive(Clone, Copy)]
pub struct Pair<S>(pub S);

macro_rules! both {
    ($(fn $name:ident($($arg:ident),*) -> $out:ty;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: $out),*) -> $out {
            (self.0.$name($($arg.0),*), self.0.$name($($arg.1),*))
        })*
    };
}

impl<S: Lanes> Lanes for Pair<S> {
    type I = (S::I, S::I);
    type F = (S::F, S::F);
    const LANES: usize = 2 * S::LANES;
    const SIGNED_OFFSET: i32 = S::SIGNED_OFFSET;
    const ANY_CODES: bool = S::ANY_CODES;

    both! {
        fn and(a, b) -> Self::I;
        fn or(a, b) -> Self::I;
        fn xor(a, b) -> Self::I;
        fn mul_i32(a, b) -> Self::I;
        fn add(a, b) -> Self::I;
        fn signed(a) -> Self::I;
        fn mul(a, b) -> Self::F;
        fn fma(a, b, c) -> Self::F;
    }

    #[inline(always)]
    fn shl(self, a: Self::I, n: u32) -> Self::I {
        (self.0.shl(a.0, n), self.0.shl(a.1, n))
    }
    #[inline(always)]
    fn shr(self, a: Self::I, n: u32) -> Self::I {
        (self.0.shr(a.0, n), self.0.shr(a.1, n))
    }
    #[inline(always)]
    fn sar(self, a: Self::I, n: u32) -> Self::I {
        (self.0.sar(a.0, n), self.0.sar(a.1, n))
    }
    #[inline(always)]
    fn splat(self, word: u32) -> Self::I {
        (self.0.splat(word), self.0.splat(word))
    }
    #[inline(always)]
    fn lookup(self, table: &[i8; 16], a: Self::I) -> Self::I {
        (self.0.lookup(table, a.0), self.0.lookup(table, a.1))
    }
    #[inline(always)]
    fn splat_f32(self, x: f32) -> Self::F {
        (self.0.splat_f32(x), self.0.splat_f32(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::F {
        (self.0.load(x), self.0.load(&x[S::LANES..]))
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32]) {
        let (low, high) = out.split_at_mut(S::LANES);
        self.0.store(x.0, low);
        self.0.store(x.1, high);
    }
    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        (self.0.to_f32(a.0), self.0.to_f32(a.1))
    }
    #[inline(always)]
    fn low_half(self, a: Self::I) -> Self::F {
        (self.0.low_half(a.0), self.0.low_half(a.1))
    }
    #[inline(always)]
    fn from_bits(self, a: Self::I) -> Self::F {
        (self.0.from_bits(a.0), self.0.from_bits(a.1))
    }
    #[inline(always)]
    fn word(self, words: Words<'_>, word: usize) -> Self::I {
        (self.0.word(words, word), self.0.word(words.rows_from(S::LANES), word))
    }
    #[inline(always)]
    fn dot<const N: usize>(self, bits: u32, start: i32, codes: [Self::I; N], x: &[u8]) -> Self::I {
        let (mut low, mut high) = ([codes[0].0; N], [codes[0].1; N]);
        for j in 1..N {
            (low[j], high[j]) = codes[j];
        }
        (self.0.dot(bits, start, low, x), self.0.dot(bits, start, high, x))
    }
}
