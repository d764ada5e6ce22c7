//! Streaming writer: header first, then each tensor's bytes in the order declared.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::header::MAX_HEADER_BYTES;
use crate::tensor::Error;
use crate::tensor::sink::{AtomicFile, WrittenFile};
use crate::tensor::stream::{Layout, TensorDecl, TensorStream};

/// Writes one safetensors file; nothing appears under its name before [`SafeTensorsWriter::finish`].
pub struct SafeTensorsWriter {
    file: AtomicFile,
    stream: TensorStream,
}

impl SafeTensorsWriter {
    /// Writes the header. `metadata` becomes `__metadata__` unless it is empty.
    ///
    /// Errors if a name repeats or a dtype has no safetensors name, and as [`AtomicFile::create`] does.
    pub fn create<'a>(
        path: &Path,
        metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
        tensors: &[TensorDecl],
        sha256: bool,
    ) -> Result<SafeTensorsWriter, Error> {
        let bad = |why| Error::BadDeclaration { path: path.to_owned(), why };
        let layout = Layout::new(tensors, 1).map_err(bad)?;
        let header = header_json(metadata, tensors, &layout).map_err(bad)?;
        let mut file = AtomicFile::create(path, Some(8 + header.len() as u64 + layout.total), sha256)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        Ok(SafeTensorsWriter { file, stream: TensorStream::new(layout) })
    }

    /// Appends bytes of the current tensor; it may be called any number of times per tensor.
    ///
    /// Errors if the bytes run past the tensor's end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream.write(&mut self.file, bytes)
    }

    /// Makes the file durable and gives it its name. Errors if a tensor is incomplete.
    pub fn finish(self) -> Result<WrittenFile, Error> {
        self.stream.check_finished(self.file.path())?;
        self.file.commit()
    }
}

fn header_json<'a>(
    metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
    tensors: &[TensorDecl],
    layout: &Layout,
) -> Result<Vec<u8>, String> {
    let mut header = Map::new();
    let metadata: Map<String, Value> =
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), metadata.into());
    }
    for (tensor, place) in tensors.iter().zip(&layout.places) {
        let Some(dtype) = tensor.dtype.safetensors_name() else {
            return Err(format!("`{}`: safetensors has no dtype for {}", tensor.name, tensor.dtype));
        };
        if tensor.name == "__metadata__" {
            return Err("`__metadata__` is not a tensor name".to_owned());
        }
        let offsets = [place.offset, place.offset + place.n_bytes];
        header.insert(
            tensor.name.clone(),
            json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": offsets }),
        );
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MAX_HEADER_BYTES {
        return Err(format!("its header would be {} bytes, more than {MAX_HEADER_BYTES}", text.len()));
    }
    Ok(text)
}
