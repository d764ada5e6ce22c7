//! Transposing words in SSE registers, which every x86-64 CPU has; loads and stores are what it takes.

use std::arch::x86_64::*;

use super::PANEL_ROWS;

/// Writes `words` words, a multiple of 4, from byte `at` of the rows on: word w of row r to word `16 * w + r` of `out`.
///
/// # Safety
/// The rows have `at + 4 * words` bytes, `out` has room for `64 * words`.
pub unsafe fn transpose(rows: &[&[u8]; PANEL_ROWS], at: usize, words: usize, out: *mut u8) {
    // SAFETY: the caller's.
    unsafe {
        for word in (0..words).step_by(4) {
            let load = |row: usize| _mm_loadu_ps(rows[row].as_ptr().add(at + 4 * word).cast());
            for row in (0..PANEL_ROWS).step_by(4) {
                let (mut a, mut b, mut c, mut d) = (load(row), load(row + 1), load(row + 2), load(row + 3));
                _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
                for (i, v) in [a, b, c, d].into_iter().enumerate() {
                    _mm_storeu_ps(out.add(64 * (word + i) + 4 * row).cast(), v);
                }
            }
        }
    }
}
