//! Importance matrices as llama-imatrix writes them: as a GGUF, or in the legacy form.

use std::path::Path;

use super::sums::Sums;
use super::{DEVICES_KEY, ImportanceError, ImportanceSums};
use crate::tensor::format::F32;
use crate::tensor::gguf::{Array, GgufWriter, Metadata, Value, WriteOptions};
use crate::tensor::{AtomicFile, Dtype, TensorDecl, WrittenFile};

/// A form of importance matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Sums and counts, the experts' each for itself.
    Gguf,
    /// Means, and one count per tensor.
    Legacy,
}

impl ImportanceSums {
    /// Writes the file, whole or not at all; one that is there is replaced if `replace`.
    ///
    /// Errors if a sum fits no f32, or the file cannot be written.
    pub fn write(&self, path: &Path, form: Form, replace: bool) -> Result<WrittenFile, ImportanceError> {
        for (entry, sums) in &self.entries {
            let all = sums.squares.iter().chain(sums.values.iter().flatten());
            if let Some(column) = all.map(|sum| *sum as f32).position(|sum| !sum.is_finite()) {
                let (path, entry, value) = (path.into(), entry.clone(), f32::INFINITY);
                return Err(ImportanceError::BadValue { path, entry, what: "sum", value, column });
            }
        }
        match form {
            Form::Gguf => self.write_gguf(path, replace).map_err(Into::into),
            Form::Legacy => {
                let bytes = self.legacy_bytes(path)?;
                let mut file = AtomicFile::create(path, Some(bytes.len() as u64), true)?;
                file.set_replace(replace);
                file.write_all(&bytes)?;
                Ok(file.commit()?)
            }
        }
    }

    fn write_gguf(&self, path: &Path, replace: bool) -> Result<WrittenFile, crate::tensor::Error> {
        let mut metadata = Metadata::new();
        let mut set = |key: &str, value| metadata.insert(key.to_owned(), value);
        let number = |n: u64| Value::U32(n.try_into().unwrap_or(u32::MAX));
        set("general.type", Value::String("imatrix".into()));
        set("imatrix.datasets", Value::Array(Array::String(self.datasets.clone())));
        set("imatrix.chunk_count", number(self.n_chunks()));
        set("imatrix.chunk_size", number(self.chunk_len as u64));
        if !self.devices.is_empty() {
            set(DEVICES_KEY, Value::Array(Array::String(self.devices.clone())));
        }
        let mut declared = Vec::new();
        for (name, sums) in &self.entries {
            let (n_experts, n) = (sums.counts.len(), sums.squares.len());
            let mut declare = |suffix: &str, columns: usize| {
                // a single row has no dimension for it
                let shape = if n_experts > 1 { vec![n_experts, columns] } else { vec![columns] };
                declared.push(TensorDecl { name: format!("{name}.{suffix}"), dtype: Dtype(&F32), shape });
            };
            declare("in_sum2", n / n_experts.max(1));
            declare("counts", 1);
            if sums.values.is_some() {
                declare("in_sum", n / n_experts.max(1));
            }
        }
        let options = WriteOptions { replace, ..WriteOptions::default() };
        let mut writer = GgufWriter::create(path, &metadata, &declared, &options)?;
        for Sums { squares, values, counts } in self.entries.values() {
            writer.write(&f32_bytes(squares.iter().map(|sum| *sum as f32)))?;
            writer.write(&f32_bytes(counts.iter().map(|count| *count as f32)))?;
            if let Some(values) = values {
                writer.write(&f32_bytes(values.iter().map(|sum| *sum as f32)))?;
            }
        }
        let mut files = writer.finish()?;
        Ok(files.pop().expect("one file without a split"))
    }

    /// Returns the legacy form; a tensor without rows is left out, an expert without rows weighs one.
    fn legacy_bytes(&self, path: &Path) -> Result<Vec<u8>, ImportanceError> {
        let count = |entry: &str, n: u64| {
            let too_many = |_| ImportanceError::TooMany { path: path.into(), entry: entry.to_owned(), n };
            i32::try_from(n).map(i32::to_le_bytes).map_err(too_many)
        };
        let seen: Vec<(&String, &Sums, u64)> = (self.entries.iter())
            .map(|(name, sums)| (name, sums, sums.counts.iter().copied().max().unwrap_or(0)))
            .filter(|(.., most)| *most > 0)
            .collect();
        let mut bytes = count("", seen.len() as u64)?.to_vec();
        for (name, sums, most) in seen {
            let n_calls = most.div_ceil(self.chunk_len.max(1) as u64);
            bytes.extend(count(name, name.len() as u64)?);
            bytes.extend(name.as_bytes());
            bytes.extend(count(name, n_calls)?);
            bytes.extend(count(name, sums.squares.len() as u64)?);
            let columns = sums.squares.len() / sums.counts.len().max(1);
            for (squares, rows) in sums.squares.chunks_exact(columns.max(1)).zip(&sums.counts) {
                // rounded at each step, as the reference does
                let weight = |sum: &f64| if *rows > 0 { *sum as f32 / *rows as f32 } else { 1.0 };
                bytes.extend(f32_bytes(squares.iter().map(|sum| weight(sum) * n_calls as f32)));
            }
        }
        let dataset = self.datasets.last().map_or("", String::as_str);
        bytes.extend(count("", self.n_chunks())?);
        bytes.extend(count("", dataset.len() as u64)?);
        bytes.extend(dataset.as_bytes());
        Ok(bytes)
    }
}

fn f32_bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}
