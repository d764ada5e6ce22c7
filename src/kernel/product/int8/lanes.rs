//! Registers of dwords, one weight row per lane: what the packers and the micro-kernel are written in.
//!
//! A dword holds four codes of one row, ascending k from the low byte, or one i32. Every operation is exact or
//! correctly rounded, so all implementations give the same bits.

/// The bytes of as many rows as there are lanes, of the same length each; further rows may follow.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    rows: &'a [*const u8],
    row_bytes: usize,
    _bytes: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> Rows<'a> {
    /// Fills `pointers` with `row(0)`, `row(1)`, ... and returns them as rows.
    ///
    /// # Panics
    /// If a row is not `row_bytes` long.
    #[inline(always)]
    pub fn new(pointers: &'a mut [*const u8], row_bytes: usize, row: impl Fn(usize) -> &'a [u8]) -> Self {
        for (lane, pointer) in pointers.iter_mut().enumerate() {
            let bytes = row(lane);
            assert_eq!(bytes.len(), row_bytes);
            *pointer = bytes.as_ptr();
        }
        Rows { rows: pointers, row_bytes, _bytes: std::marker::PhantomData }
    }

    /// Returns the rows from `first` on.
    #[inline(always)]
    pub fn from(self, first: usize) -> Self {
        Rows { rows: &self.rows[first..], ..self }
    }

    /// Returns the addresses of bytes `at..at + len` of the first `N` rows.
    ///
    /// # Panics
    /// If there are fewer rows or bytes.
    #[inline(always)]
    pub fn at<const N: usize>(self, at: usize, len: usize) -> At<'a, N> {
        assert!(at + len <= self.row_bytes);
        let rows = self.rows[..N].first_chunk().expect("the slice has N rows");
        At { rows, at }
    }

    /// Returns the address of the byte `at` bytes after the first of row `lane`, which may lie outside the row.
    #[inline(always)]
    pub fn near(self, lane: usize, at: usize) -> *const u8 {
        self.rows[lane].wrapping_add(at)
    }

    /// Returns the byte at `at` of row `lane`.
    #[inline(always)]
    pub fn byte(self, lane: usize, at: usize) -> u8 {
        assert!(at < self.row_bytes);
        // SAFETY: every row has `row_bytes` bytes, which live for 'a.
        unsafe { *self.rows[lane].add(at) }
    }
}

/// Checked places in rows.
pub struct At<'a, const N: usize> {
    rows: &'a [*const u8; N],
    at: usize,
}

impl<const N: usize> At<'_, N> {
    /// Returns the address in row `lane`; as many bytes as [`Rows::at`] was asked for may be read there.
    #[inline(always)]
    pub fn address(&self, lane: usize) -> *const u8 {
        self.rows[lane].wrapping_add(self.at)
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
    /// Converts to the nearest f32, half to even.
    fn to_f32(self, a: Self::I) -> Self::F;
    /// Returns the value of the binary16 in the low half of each dword.
    fn low_half(self, a: Self::I) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Reads the 16 bytes at `at` of each row: dword d of row i is lane i of result d.
    fn transpose16(self, rows: Rows<'_>, at: usize) -> [Self::I; 4];
    /// Reads the dword at `at` of each row.
    fn words(self, rows: Rows<'_>, at: usize) -> Self::I;
    /// Reads the binary16 at `at` of each row.
    fn halves(self, rows: Rows<'_>, at: usize) -> Self::F;

    /// Asks for the cache line at `address`, which may be anywhere.
    fn prefetch(self, address: *const u8);

    /// Returns `start` plus the dot of each lane's `4 * N` codes with the activations, exactly.
    ///
    /// For `bits == 8` the codes are [`Lanes::signed`] and each counts as the code plus [`Lanes::SIGNED_OFFSET`];
    /// else they are unsigned, below `2^bits`, `bits <= 6`. Activations are signed bytes but -128.
    fn dot<const N: usize>(self, bits: u32, start: i32, codes: [Self::I; N], x: &[u8]) -> Self::I;

    /// [`Lanes::dot`] where there is other work beside it, so that only the number of instructions counts.
    #[inline(always)]
    fn dot_among_many<const N: usize>(self, bits: u32, start: i32, codes: [Self::I; N], x: &[u8]) -> Self::I {
        self.dot(bits, start, codes, x)
    }
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

    both! {
        fn and(a, b) -> Self::I;
        fn or(a, b) -> Self::I;
        fn xor(a, b) -> Self::I;
        fn mul_i32(a, b) -> Self::I;
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
    fn transpose16(self, rows: Rows<'_>, at: usize) -> [Self::I; 4] {
        let (a, b) = (self.0.transpose16(rows, at), self.0.transpose16(rows.from(S::LANES), at));
        [(a[0], b[0]), (a[1], b[1]), (a[2], b[2]), (a[3], b[3])]
    }
    #[inline(always)]
    fn words(self, rows: Rows<'_>, at: usize) -> Self::I {
        (self.0.words(rows, at), self.0.words(rows.from(S::LANES), at))
    }
    #[inline(always)]
    fn halves(self, rows: Rows<'_>, at: usize) -> Self::F {
        (self.0.halves(rows, at), self.0.halves(rows.from(S::LANES), at))
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        self.0.prefetch(address);
    }
    #[inline(always)]
    fn dot<const N: usize>(self, bits: u32, start: i32, codes: [Self::I; N], x: &[u8]) -> Self::I {
        let (mut low, mut high) = ([codes[0].0; N], [codes[0].1; N]);
        for j in 1..N {
            (low[j], high[j]) = codes[j];
        }
        let (low, high) =
            (self.0.dot_among_many(bits, start, low, x), self.0.dot_among_many(bits, start, high, x));
        (low, high)
    }
}
