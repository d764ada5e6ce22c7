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
    /// Errors if a sum fits no f32, a legacy file would have no entry, or the file cannot be written.
    pub fn write(&self, path: &Path, form: Form, replace: bool) -> Result<WrittenFile, ImportanceError> {
        for (entry, sums) in &self.entries {
            check_range(entry, "sum of squares", &sums.squares, sums.counts.len())?;
            check_range(entry, "sum", sums.values.as_deref().unwrap_or_default(), sums.counts.len())?;
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
    ///
    /// Errors if every tensor is left out, a number is beyond the form's, or a weighted mean fits no f32.
    fn legacy_bytes(&self, path: &Path) -> Result<Vec<u8>, ImportanceError> {
        let count = |entry: &str, n: u64| {
            let too_many = |_| ImportanceError::TooMany { path: path.into(), entry: entry.to_owned(), n };
            i32::try_from(n).map(i32::to_le_bytes).map_err(too_many)
        };
        let seen: Vec<(&String, &Sums, u64)> = (self.entries.iter())
            .map(|(name, sums)| (name, sums, sums.counts.iter().copied().max().unwrap_or(0)))
            .filter(|(.., most)| *most > 0)
            .collect();
        if seen.is_empty() {
            return Err(ImportanceError::NothingSeen { path: path.into(), n_entries: self.entries.len() });
        }
        let mut bytes = count("", seen.len() as u64)?.to_vec();
        for (name, sums, most) in seen {
            let n_calls = most.div_ceil(self.chunk_len.max(1) as u64);
            bytes.extend(count(name, name.len() as u64)?);
            bytes.extend(name.as_bytes());
            bytes.extend(count(name, n_calls)?);
            bytes.extend(count(name, sums.squares.len() as u64)?);
            let columns = sums.squares.len() / sums.counts.len().max(1);
            for (expert, (squares, rows)) in
                sums.squares.chunks_exact(columns.max(1)).zip(&sums.counts).enumerate()
            {
                // rounded at each step, as the reference does
                let weight = |sum: &f64| if *rows > 0 { *sum as f32 / *rows as f32 } else { 1.0 };
                let values: Vec<f32> = squares.iter().map(|sum| weight(sum) * n_calls as f32).collect();
                // an expert of few rows has a mean near its sum, and the calls are the tensor's
                if let Some(column) = values.iter().position(|value| !value.is_finite()) {
                    let value = f64::from(weight(&squares[column])) * n_calls as f64;
                    let (entry, what) = (name.clone(), "mean square times calls");
                    return Err(ImportanceError::BeyondF32 { entry, what, value, column, expert });
                }
                bytes.extend(f32_bytes(values.into_iter()));
            }
        }
        let dataset = self.datasets.last().map_or("", String::as_str);
        bytes.extend(count("", self.n_chunks())?);
        bytes.extend(count("", dataset.len() as u64)?);
        bytes.extend(dataset.as_bytes());
        Ok(bytes)
    }
}

/// Errors with the first sum, of columns of that many experts, that is no finite f32.
fn check_range(
    entry: &str,
    what: &'static str,
    sums: &[f64],
    n_experts: usize,
) -> Result<(), ImportanceError> {
    let Some(at) = sums.iter().position(|sum| !(*sum as f32).is_finite()) else { return Ok(()) };
    let columns = (sums.len() / n_experts.max(1)).max(1);
    let (expert, column) = (at / columns, at % columns);
    Err(ImportanceError::BeyondF32 { entry: entry.to_owned(), what, value: sums[at], column, expert })
}

fn f32_bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_one(squares: &[f64], values: Option<&[f64]>, counts: &[u64]) -> ImportanceSums {
        let sums =
            Sums { squares: squares.to_vec(), values: values.map(<[f64]>::to_vec), counts: counts.to_vec() };
        ImportanceSums {
            entries: [("a.weight".to_owned(), sums)].into(),
            datasets: Vec::new(),
            devices: Vec::new(),
            chunk_len: 4,
        }
    }

    fn refused(sums: &ImportanceSums, form: Form) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i");
        let error = sums.write(&path, form, false).unwrap_err();
        assert!(!path.exists());
        error.to_string()
    }

    #[test]
    fn what_fits_no_f32_is_named_with_its_place() {
        // the sums themselves lie behind those of squares, and are signed
        let sums = of_one(&[1.0, 2.0], Some(&[0.0, -4e38]), &[1]);
        assert_eq!(
            refused(&sums, Form::Gguf),
            "`a.weight`: the sum of column 1 is -4e38, beyond the largest f32, 3.4028235e38"
        );
        let experts = of_one(&[1.0, 1.0, 1.0, 5e38], None, &[1, 1]);
        assert_eq!(
            refused(&experts, Form::Gguf),
            "`a.weight`: the sum of squares of column 1 of expert 1 is 5e38, beyond the largest f32, 3.4028235e38"
        );
    }

    /// A legacy file holds means times the tensor's calls, which of an expert of one row are more than its sum.
    #[test]
    fn an_expert_of_few_rows_may_be_beyond_a_legacy_file() {
        let sums = of_one(&[1.0, 2e38], None, &[4000, 1]);
        let dir = tempfile::tempdir().unwrap();
        sums.write(&dir.path().join("i.gguf"), Form::Gguf, false).unwrap();
        let said = refused(&sums, Form::Legacy);
        assert!(
            said.starts_with("`a.weight`: the mean square times calls of column 0 of expert 1 is 1.9999999"),
            "{said}"
        );
    }
}
