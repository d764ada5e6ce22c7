//! What both writers share: where each tensor goes, and bytes counted against it.

use std::collections::HashSet;
use std::path::Path;

use super::sink::AtomicFile;
use super::{Dtype, Error};

/// A tensor about to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDecl {
    pub name: String,
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

impl TensorDecl {
    /// Returns the bytes of data, `None` if that overflows or a row is no whole number of blocks.
    pub fn n_bytes(&self) -> Option<u64> {
        let row_len = self.shape.last().copied().unwrap_or(1);
        if row_len % self.dtype.block_len() != 0 {
            return None;
        }
        let elements = self.shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim as u64))?;
        (elements / self.dtype.block_len() as u64).checked_mul(self.dtype.block_bytes() as u64)
    }
}

impl From<&super::TensorInfo> for TensorDecl {
    fn from(info: &super::TensorInfo) -> TensorDecl {
        TensorDecl { name: info.name.clone(), dtype: info.dtype, shape: info.shape.clone() }
    }
}

/// Where a tensor's bytes go, relative to the data section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub name: String,
    pub offset: u64,
    pub n_bytes: u64,
    /// Zero bytes after it.
    pub padding: u64,
}

/// Places of tensors laid one after the other, each padded to the alignment.
pub(super) struct Layout {
    pub places: Vec<Place>,
    pub total: u64,
}

impl Layout {
    /// Errors, with the reason, if a name repeats or a size cannot be computed.
    pub fn new(tensors: &[TensorDecl], alignment: u64) -> Result<Layout, String> {
        let mut names = HashSet::with_capacity(tensors.len());
        let mut places = Vec::with_capacity(tensors.len());
        let mut total = 0u64;
        for tensor in tensors {
            let TensorDecl { name, dtype, shape } = tensor;
            if !names.insert(name) {
                return Err(format!("`{name}` is declared twice"));
            }
            let n_bytes = tensor.n_bytes().ok_or_else(|| {
                format!(
                    "`{name}`: shape {shape:?} does not fit {dtype} (blocks of {}), or overflows",
                    dtype.block_len()
                )
            })?;
            let padded = n_bytes.checked_next_multiple_of(alignment);
            let next = padded.and_then(|padded| total.checked_add(padded));
            let next = next.ok_or_else(|| format!("`{name}`: the data section overflows"))?;
            places.push(Place {
                name: name.clone(),
                offset: total,
                n_bytes,
                padding: next - total - n_bytes,
            });
            total = next;
        }
        Ok(Layout { places, total })
    }
}

/// Counts bytes against a layout, tensor by tensor.
pub(super) struct TensorStream {
    places: Vec<Place>,
    current: usize,
    /// Bytes written of the current tensor.
    written: u64,
}

impl TensorStream {
    pub fn new(layout: Layout) -> TensorStream {
        let mut stream = TensorStream { places: layout.places, current: 0, written: 0 };
        stream.skip_empty();
        stream
    }

    /// Writes bytes of the current tensor and, after its last one, its padding.
    pub fn write(&mut self, file: &mut AtomicFile, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        let given = bytes.len() as u64;
        let Some(place) = self.places.get(self.current) else {
            return Err(Error::AfterLastTensor { path: file.path().to_owned(), extra: given });
        };
        let left = place.n_bytes - self.written;
        if given > left {
            return Err(Error::TooManyBytes {
                path: file.path().to_owned(),
                tensor: place.name.clone(),
                n_bytes: place.n_bytes,
                extra: given - left,
            });
        }
        file.write_all(bytes)?;
        self.written += given;
        if given == left {
            file.write_zeros(place.padding)?;
            self.current += 1;
            self.written = 0;
            self.skip_empty();
        }
        Ok(())
    }

    /// Returns the name of the tensor whose bytes come next.
    pub fn current(&self) -> Option<&str> {
        self.places.get(self.current).map(|place| place.name.as_str())
    }

    pub fn is_finished(&self) -> bool {
        self.current == self.places.len()
    }

    pub fn check_finished(&self, path: &Path) -> Result<(), Error> {
        let Some(place) = self.places.get(self.current) else { return Ok(()) };
        Err(Error::Unfinished {
            path: path.to_owned(),
            tensor: place.name.clone(),
            written: self.written,
            n_bytes: place.n_bytes,
        })
    }

    /// A tensor of no bytes gets no `write`; it needs no padding either.
    fn skip_empty(&mut self) {
        while self.places.get(self.current).is_some_and(|place| place.n_bytes == 0) {
            self.current += 1;
        }
    }
}
