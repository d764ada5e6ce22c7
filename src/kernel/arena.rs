//! Memory for what stays as long as a model: one mapping, in huge pages where the system has them.
//!
//! Streaming weights from pages of 4 KiB keeps the address translation busier than the memory; huge pages were 1.7 times
//! as fast to read on the machine of docs/benchmarks.md.

use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::MmapMut;

/// Hands out parts of a mapping, one after another.
pub struct Arena {
    memory: Arc<Memory>,
    used: usize,
}

/// A part of an [`Arena`], filled and then never written again; begins at a cache line.
#[derive(Clone)]
pub struct Block {
    memory: Arc<Memory>,
    range: Range<usize>,
}

struct Memory {
    start: *mut u8,
    len: usize,
    /// Owns what `start` points to; none if `len` is 0.
    _map: Option<MmapMut>,
}

// SAFETY: a part is written by its arena alone before a block of it exists, and only read from then on.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

const LINE: usize = 64;

impl Arena {
    /// Returns an arena for blocks that need `len` bytes together, each rounded up to 64.
    ///
    /// Errors if the system does not give so much address space.
    pub fn new(len: usize) -> Result<Arena, std::io::Error> {
        if len == 0 {
            let memory = Memory { start: std::ptr::NonNull::dangling().as_ptr(), len, _map: None };
            return Ok(Arena { memory: Arc::new(memory), used: 0 });
        }
        let mut map = MmapMut::map_anon(len)?;
        #[cfg(target_os = "linux")]
        {
            // only a matter of speed, and kernels without huge pages refuse it
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let memory = Memory { start: map.as_mut_ptr(), len, _map: Some(map) };
        Ok(Arena { memory: Arc::new(memory), used: 0 })
    }

    /// Returns a block of `len` bytes after `write` has filled it; it gets zeros.
    ///
    /// # Panics
    /// If the arena is too small.
    pub fn fill(&mut self, len: usize, write: impl FnOnce(&mut [u8])) -> Block {
        let range = self.used..self.used + len;
        assert!(range.end <= self.memory.len);
        self.used += len.next_multiple_of(LINE);
        // SAFETY: the range lies in the mapping, and no other block has any of it: `used` only grows.
        write(unsafe { std::slice::from_raw_parts_mut(self.memory.start.add(range.start), len) });
        Block { memory: self.memory.clone(), range }
    }
}

impl Deref for Block {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping, which lives as long as `memory`; nobody writes to it any more.
        unsafe { std::slice::from_raw_parts(self.memory.start.add(self.range.start), self.range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_apart_and_outlive_their_arena() {
        let mut arena = Arena::new(3 * 64).unwrap();
        let a = arena.fill(65, |bytes| bytes.fill(1));
        let b = arena.fill(0, |bytes| assert!(bytes.is_empty()));
        let c = arena.fill(64, |bytes| {
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(2);
        });
        drop(arena);
        assert_eq!((&*a, &*b, &*c), (&[1; 65][..], &[][..], &[2; 64][..]));
        assert_eq!((a.as_ptr() as usize % 64, c.as_ptr() as usize % 64), (0, 0));
    }

    #[test]
    #[should_panic]
    fn more_than_was_asked_for_is_refused() {
        let mut arena = Arena::new(64).unwrap();
        arena.fill(1, |_| {});
        arena.fill(1, |_| {});
    }
}
