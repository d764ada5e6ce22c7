//! f32 buffers that begin at a cache line.

use std::ops::{Deref, DerefMut};

/// Zeros at first; memory is taken from the system as it is touched.
#[derive(Default)]
pub(crate) struct AlignedF32 {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl AlignedF32 {
    const LINE: usize = 16;

    pub fn zeros(len: usize) -> Self {
        let values = vec![0.0; len + Self::LINE - 1];
        // where the offset cannot be computed, the buffer is merely unaligned
        let start = values.as_ptr().align_offset(Self::LINE * size_of::<f32>()).min(Self::LINE - 1);
        AlignedF32 { values, start, len }
    }
}

impl Deref for AlignedF32 {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedF32 {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.len]
    }
}
