//! Trained values where the flat vector has them, beside those that nothing changes.

use std::ops::Range;

use half::bf16;

use crate::cuda::buffer::{Buffer, Float, Slice};
pub(super) use crate::model::device::weights::{Frozen, Ready, embedded};

/// The trained values: as the optimizer has them, and as products take them where that is another type.
pub(super) struct Values<'a> {
    pub exact: &'a Buffer<f32>,
    pub rounded: Option<&'a Buffer<bf16>>,
}

impl<'a> Values<'a> {
    /// Returns a range of them as products take it.
    ///
    /// # Panics
    /// If T is bf16 and there are no rounded values: whoever made them made both.
    pub fn of<T: Float>(&self, range: Range<usize>) -> Slice<'a, T> {
        let all = self.exact.as_type::<T>().or_else(|| self.rounded.and_then(Buffer::as_type::<T>));
        all.expect("parameters are there in f32, and in bf16 where that is computed in").slice(range)
    }
}
