//! Buffers that kernels use again and again, one set per thread.

use std::cell::RefCell;

/// A cache line, the alignment of every buffer.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    /// Buffers not in use. Kernels nest (packed x around panels), so there is more than one.
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with `len` bytes, aligned to 64, of unspecified content; they are kept for the thread's next call.
pub fn with<R>(len: usize, work: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut lines = FREE.with_borrow_mut(|free| free.pop()).unwrap_or_default();
    let n_lines = len.div_ceil(64);
    if lines.len() < n_lines {
        lines.resize(n_lines, Line([0; 64]));
    }
    // SAFETY: `Line` is 64 bytes without padding, all initialised, and `len <= 64 * lines.len()`.
    let bytes = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<u8>(), len) };
    let result = work(bytes);
    FREE.with_borrow_mut(|free| free.push(lines));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_buffers_are_aligned_and_apart() {
        for _ in 0..2 {
            with(100, |outer| {
                outer.fill(1);
                with(1000, |inner| {
                    inner.fill(2);
                    assert_eq!(inner.as_ptr() as usize % 64, 0);
                    assert_eq!(inner.len(), 1000);
                });
                assert_eq!(outer.as_ptr() as usize % 64, 0);
                assert!(outer.iter().all(|byte| *byte == 1));
            });
        }
    }
}
