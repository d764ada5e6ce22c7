//! The resident form of weights: panels of 16 rows, the rows' 32-bit words side by side.
//!
//! A product streams a panel from its first byte to its last and finds every register as it wants it, a row per lane:
//! nothing is shuffled, and one row of activations costs what reading memory costs. A panel has the rows' bytes and no
//! others but padding, in this order:
//!
//! - blocks of a size that is no multiple of 4 come in units of 2 or 4: first the parts of all blocks that are no whole
//!   words, then the blocks' other parts, so that these begin at a word; parts are in the order in which kernels want them;
//! - where bits of 32 weights lie far apart, they are first brought together ([`Recode`]);
//! - element e of row r lies at `(16 * e + r) * size` of an element. Elements are words; halves for F16.
//!
//! The last unit of a row is filled up with zeros, the last panel of a matrix with its last row.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use super::scratch;
use crate::kernel::Isa;
use crate::tensor::Dtype;
use crate::tensor::format::{BlockFormat as _, F16};

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;

/// Where the bytes of a row lie in its panel.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Bytes of an element: 2 or 4.
    element: usize,
    /// Bytes of a stored row.
    row_bytes: usize,
    /// Bytes of a block; of plain numbers, of the row.
    block_bytes: usize,
    /// The parts of a block; empty if there is but one.
    parts: &'static [Part],
    /// Blocks of a unit.
    unit: usize,
    recode: Option<Recode>,
}

/// A block written in another way in as many bytes; both functions take what they read and where they write.
#[derive(Clone, Copy, Debug)]
pub struct Recode {
    pub stored_to_packed: fn(&[u8], &mut [u8]),
    pub packed_to_stored: fn(&[u8], &mut [u8]),
}

impl Layout {
    /// Returns the layout of rows of `cols` values, a number of whole blocks.
    pub fn of(dtype: Dtype, cols: usize) -> Layout {
        let row_bytes = cols / dtype.block_len() * dtype.block_bytes();
        if dtype.block_len() == 1 {
            let element = if dtype.name() == F16.name() { 2 } else { 4 };
            return Layout { element, row_bytes, block_bytes: row_bytes, parts: &[], unit: 1, recode: None };
        }
        let block_bytes = dtype.block_bytes();
        let (parts, recode) = super::int8::packing(dtype).unwrap_or((&[], None));
        let unit = if parts.is_empty() { 1 } else { unit(block_bytes) };
        Layout { element: 4, row_bytes, block_bytes, parts, unit, recode }
    }

    /// Returns the bytes of an element: of what lies side by side.
    pub fn element(&self) -> usize {
        self.element
    }

    /// Returns the number of units of a row, the last one perhaps not full.
    pub fn units(&self) -> usize {
        self.row_bytes.div_ceil((self.unit * self.block_bytes).max(1))
    }

    /// Returns the bytes of a unit of one row.
    pub fn unit_bytes(&self) -> usize {
        (self.unit * self.block_bytes).next_multiple_of(4)
    }

    /// Returns the bytes of a panel.
    pub fn panel_bytes(&self) -> usize {
        PANEL_ROWS * self.units() * self.unit_bytes()
    }

    /// Writes `units` of a panel; `rows` are its rows as stored, `out` has `16 * units.len() * unit_bytes()`.
    ///
    /// # Panics
    /// If a row or `out` has another length, or there are no such units.
    pub fn pack(&self, isa: Isa, rows: &[&[u8]; PANEL_ROWS], units: Range<usize>, out: &mut [u8]) {
        assert!(rows.iter().all(|row| row.len() == self.row_bytes) && units.end <= self.units());
        assert_eq!(out.len(), PANEL_ROWS * units.len() * self.unit_bytes());
        let stored = self.stored(&units);
        let rows: [&[u8]; PANEL_ROWS] = std::array::from_fn(|row| &rows[row][stored.clone()]);
        let Some(recode) = self.recode else { return self.lay(isa, &rows, units, out) };
        scratch::with(PANEL_ROWS * stored.len(), |recoded| {
            for (row, to) in rows.iter().zip(recoded.chunks_exact_mut(stored.len())) {
                let blocks = row.chunks_exact(self.block_bytes).zip(to.chunks_exact_mut(self.block_bytes));
                blocks.for_each(|(from, to)| (recode.stored_to_packed)(from, to));
            }
            let row = |row: usize| &recoded[row * stored.len()..][..stored.len()];
            self.lay(isa, &std::array::from_fn(row), units, out);
        });
    }

    /// Returns where the bytes of `units` lie in a stored row.
    fn stored(&self, units: &Range<usize>) -> Range<usize> {
        let bytes = self.unit * self.block_bytes;
        units.start * bytes..(units.end * bytes).min(self.row_bytes)
    }

    /// Writes `units`, of which `rows` are the bytes.
    fn lay(&self, isa: Isa, rows: &[&[u8]; PANEL_ROWS], units: Range<usize>, out: &mut [u8]) {
        let len = rows[0].len();
        self.runs(units.len(), |run| {
            let Run { at, to, len: n } = run;
            if at >= len {
                zero(run, out);
            } else if to.is_multiple_of(4) {
                let words = n / 4;
                transpose(isa, rows, at, words, &mut out[PANEL_ROWS * to..][..PANEL_ROWS * 4 * words]);
                copy(rows, Run { at: at + 4 * words, to: to + 4 * words, len: n - 4 * words }, out);
                if self.parts.is_empty() {
                    let end = to + n;
                    zero(Run { at: 0, to: end, len: end.next_multiple_of(4) - end }, out);
                }
            } else {
                copy(rows, run, out);
            }
        });
        if self.element == 2 {
            halves_apart(out);
        }
    }

    /// Writes the stored bytes of `units` of row `row` of a panel, as many as the row has.
    ///
    /// # Panics
    /// If `panel` or `out` is too short.
    pub fn unpack(&self, panel: &[u8], row: usize, units: Range<usize>, out: &mut [u8]) {
        let first_word = units.start * self.unit_bytes() / 4;
        let stored = self.stored(&units);
        let out = &mut out[..stored.len()];
        self.runs(units.len(), |Run { at, to, len }| {
            if at >= stored.len() {
                return;
            }
            for i in 0..len {
                let (word, byte) = (first_word + (to + i) / 4, (to + i) % 4);
                let from = match self.element {
                    2 => (2 * word + byte / 2) * 2 * PANEL_ROWS + 2 * row + byte % 2,
                    _ => word * 4 * PANEL_ROWS + 4 * row + byte,
                };
                out[at + i] = panel[from];
            }
        });
        if let Some(recode) = self.recode {
            let packed = out.to_vec();
            let blocks = packed.chunks_exact(self.block_bytes).zip(out.chunks_exact_mut(self.block_bytes));
            blocks.for_each(|(from, to)| (recode.packed_to_stored)(from, to));
        }
    }

    /// Calls `each` with the parts of `units` units; all places count from the first one.
    fn runs(&self, units: usize, mut each: impl FnMut(Run)) {
        let whole = [Part { at: 0, len: self.block_bytes }];
        let parts = if self.parts.is_empty() { &whole[..] } else { self.parts };
        let is_narrow = |part: &&Part| !self.parts.is_empty() && !part.len.is_multiple_of(4);
        for unit in 0..units {
            let mut to = unit * self.unit_bytes();
            let mut run = |block: usize, part: &Part| {
                let at = (unit * self.unit + block) * self.block_bytes + part.at;
                each(Run { at, to, len: part.len });
                to += part.len;
            };
            for part in parts.iter().filter(is_narrow) {
                (0..self.unit).for_each(|block| run(block, part));
            }
            for block in 0..self.unit {
                parts.iter().filter(|part| !is_narrow(part)).for_each(|part| run(block, part));
            }
        }
    }
}

/// `len` bytes of a block, from byte `at` on.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub at: usize,
    pub len: usize,
}

/// Returns the parts of blocks that are these ranges, one after another.
pub const fn parts<const N: usize>(ranges: [Range<usize>; N]) -> [Part; N] {
    let mut parts = [Part { at: 0, len: 0 }; N];
    let mut i = 0;
    while i < N {
        parts[i] = Part { at: ranges[i].start, len: ranges[i].end - ranges[i].start };
        i += 1;
    }
    parts
}

/// Returns how many blocks of that size are whole words.
const fn unit(block_bytes: usize) -> usize {
    if block_bytes.is_multiple_of(4) {
        1
    } else if block_bytes.is_multiple_of(2) {
        2
    } else {
        4
    }
}

/// `len` bytes from byte `at` of a row, which begin at byte `to` of what the row has in the panel.
#[derive(Clone, Copy)]
struct Run {
    at: usize,
    to: usize,
    len: usize,
}

/// Returns where byte `to` of a row lies.
fn place(row: usize, to: usize) -> usize {
    to / 4 * 4 * PANEL_ROWS + 4 * row + to % 4
}

fn copy(rows: &[&[u8]; PANEL_ROWS], run: Run, out: &mut [u8]) {
    for (row, bytes) in rows.iter().enumerate() {
        for i in 0..run.len {
            out[place(row, run.to + i)] = bytes[run.at + i];
        }
    }
}

fn zero(run: Run, out: &mut [u8]) {
    for row in 0..PANEL_ROWS {
        for i in 0..run.len {
            out[place(row, run.to + i)] = 0;
        }
    }
}

/// Writes words `at / 4..` of the rows, word for word, the rows' side by side.
fn transpose(isa: Isa, rows: &[&[u8]; PANEL_ROWS], at: usize, words: usize, out: &mut [u8]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Portable {
        done = words / 4 * 4;
        // SAFETY: every x86-64 CPU with more than the portable level has SSE4.1; rows have `at + 4 * words` bytes
        // (checked here), `out` 64 per word.
        unsafe {
            assert!(rows.iter().all(|row| at + 4 * words <= row.len()) && out.len() >= 64 * words);
            x86::transpose(rows, at, done, out.as_mut_ptr());
        }
    }
    let _ = isa;
    for word in done..words {
        for (row, bytes) in rows.iter().enumerate() {
            let at = at + 4 * word;
            out[place(row, 4 * word)..][..4].copy_from_slice(&bytes[at..at + 4]);
        }
    }
}

/// Splits each row of 16 words into the row of their low halves and that of their high ones.
fn halves_apart(out: &mut [u8]) {
    for words in out.chunks_exact_mut(4 * PANEL_ROWS) {
        let mut apart = [0; 4 * PANEL_ROWS];
        for row in 0..PANEL_ROWS {
            apart[2 * row..][..2].copy_from_slice(&words[4 * row..][..2]);
            apart[2 * PANEL_ROWS + 2 * row..][..2].copy_from_slice(&words[4 * row + 2..][..2]);
        }
        words.copy_from_slice(&apart);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::format::REGISTRY;

    /// What a panel is, byte for byte.
    fn slowly(layout: &Layout, rows: &[Vec<u8>]) -> Vec<u8> {
        let whole = [Part { at: 0, len: layout.block_bytes }];
        let parts = if layout.parts.is_empty() { &whole[..] } else { layout.parts };
        let (wide, narrow): (Vec<Part>, Vec<Part>) =
            parts.iter().partition(|part| layout.parts.is_empty() || part.len % 4 == 0);
        let regroup = |row: &Vec<u8>| {
            let mut row = row.clone();
            if let Some(recode) = layout.recode {
                let stored = row.clone();
                let blocks = stored.chunks(layout.block_bytes).zip(row.chunks_mut(layout.block_bytes));
                blocks.for_each(|(from, to)| (recode.stored_to_packed)(from, to));
            }
            row.resize(layout.units() * layout.unit * layout.block_bytes, 0);
            let mut out = Vec::new();
            for unit in row.chunks(layout.unit * layout.block_bytes) {
                for part in &narrow {
                    unit.chunks(layout.block_bytes)
                        .for_each(|block| out.extend(&block[part.at..][..part.len]));
                }
                for block in unit.chunks(layout.block_bytes) {
                    wide.iter().for_each(|part| out.extend(&block[part.at..][..part.len]));
                }
            }
            out.resize(out.len().next_multiple_of(4), 0);
            out
        };
        let regrouped: Vec<Vec<u8>> = rows.iter().map(regroup).collect();
        let size = layout.element;
        let elements = 0..regrouped[0].len() / size;
        elements
            .flat_map(|e| regrouped.iter().flat_map(move |row| row[size * e..][..size].to_vec()))
            .collect()
    }

    #[test]
    fn parts_are_all_bytes_of_a_block() {
        for format in REGISTRY.iter().filter(|format| format.can_decode()) {
            let layout = Layout::of(crate::tensor::Dtype(*format), format.block_len());
            let mut bytes: Vec<usize> =
                layout.parts.iter().flat_map(|part| part.at..part.at + part.len).collect();
            bytes.sort_unstable();
            assert!(layout.parts.is_empty() || bytes.into_iter().eq(0..format.block_bytes()));
        }
    }

    #[test]
    fn panels_are_as_described_and_unpack_to_their_rows() {
        for format in REGISTRY.iter().filter(|format| format.can_decode()) {
            let dtype = crate::tensor::Dtype(*format);
            for blocks in [1, 2, 3, 7, 8] {
                let layout = Layout::of(dtype, blocks * dtype.block_len());
                let byte = |row: usize, i: usize| (row * 89 + i * 7 + i / 256) as u8;
                let rows: Vec<Vec<u8>> = (0..PANEL_ROWS)
                    .map(|row| (0..blocks * dtype.block_bytes()).map(|i| byte(row, i)).collect())
                    .collect();
                let slices: [&[u8]; PANEL_ROWS] = std::array::from_fn(|row| &rows[row][..]);
                let want = slowly(&layout, &rows);
                assert_eq!(want.len(), layout.panel_bytes(), "{}", format.name());
                for isa in Isa::available() {
                    let mut panel = vec![0xee; layout.panel_bytes()];
                    layout.pack(isa, &slices, 0..layout.units(), &mut panel);
                    assert!(panel == want, "{} {blocks} blocks on {}", format.name(), isa.name());
                    let last = layout.units() - 1;
                    let mut unit = vec![0xee; PANEL_ROWS * layout.unit_bytes()];
                    layout.pack(isa, &slices, last..last + 1, &mut unit);
                    assert!(want.ends_with(&unit));
                }
                for (row, bytes) in rows.iter().enumerate() {
                    let mut out = vec![0; bytes.len()];
                    layout.unpack(&want, row, 0..layout.units(), &mut out);
                    assert_eq!(&out, bytes, "{}", format.name());
                    let start = (layout.units() - 1) * layout.unit * layout.block_bytes;
                    out.truncate(bytes.len() - start);
                    layout.unpack(&want, row, layout.units() - 1..layout.units(), &mut out);
                    assert_eq!(out, bytes[start..], "{}", format.name());
                }
            }
        }
    }
}
