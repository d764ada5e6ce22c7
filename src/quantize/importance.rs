//! Importance matrices: per input column, how much a weight matters (the mean square of its activation).
//!
//! Two forms are read: GGUF (`NAME.in_sum2`, `NAME.counts`; llama-imatrix since 2025) and the legacy
//! `.dat`. A weight is `in_sum2 / count`; where the count is 0 (an expert never routed to) it is 1.

mod legacy;
mod statistics;
mod sums;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use legacy::LegacyError;
pub use statistics::Statistics;
pub use sums::ImportanceSums;
pub use write::Form;

use crate::error::Diagnostic;
use crate::read::{ReadError, refuse_endless};
use crate::tensor::gguf::{Array, Gguf, Metadata, Value};
use crate::tensor::{Dtype, TensorInfo, TensorSource};

/// The key under which a GGUF names the GPUs that computed its sums. Without one it was the CPU.
const DEVICES_KEY: &str = "lctl.imatrix.devices";

/// An importance matrix, read and checked.
#[derive(Debug)]
pub struct Importance {
    file: PathBuf,
    /// What messages and the output call it.
    path: PathBuf,
    entries: BTreeMap<String, Vec<f32>>,
    datasets: Vec<String>,
    n_chunks: Option<u32>,
}

/// What a parser found, unchecked.
#[derive(Debug, Default)]
struct Parsed {
    entries: Vec<ParsedEntry>,
    datasets: Vec<String>,
    n_chunks: Option<u32>,
    /// Tokens per chunk; a legacy file does not say.
    chunk_len: Option<u32>,
    devices: Vec<String>,
    is_legacy: bool,
}

/// One tensor's entry. Of a legacy file the squares are `mean square * count`, and counts calls.
#[derive(Debug)]
struct ParsedEntry {
    name: String,
    squares: Vec<f32>,
    /// Sums of the inputs themselves.
    values: Option<Vec<f32>>,
    counts: Vec<f32>,
}

/// What can be wrong with an importance matrix.
#[derive(Debug, thiserror::Error)]
pub enum ImportanceError {
    #[error("{path}: cannot read the importance matrix")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error(transparent)]
    File(#[from] ReadError),

    #[error("{path}: no importance matrix")]
    Legacy {
        path: PathBuf,
        #[source]
        source: LegacyError,
    },

    #[error("{path}: no importance matrix")]
    Gguf {
        path: PathBuf,
        #[source]
        source: Box<crate::tensor::Error>,
    },

    #[error("{path}: no `.in_sum2` tensor among {n_tensors}")]
    Empty { path: PathBuf, n_tensors: usize },

    #[error("{path}: `{entry}`: {what} is {value} at column {column}")]
    BadValue { path: PathBuf, entry: String, what: &'static str, value: f32, column: usize },

    #[error("{path}: `{entry}` is there twice")]
    Duplicate { path: PathBuf, entry: String },

    #[error("{path}: `{entry}.{have}` has no `{entry}.{lack}`")]
    Lonely { path: PathBuf, entry: String, have: &'static str, lack: &'static str },

    #[error("{path}: `{tensor}` is {dtype}, not F32")]
    NotF32 { path: PathBuf, tensor: String, dtype: Dtype },

    #[error("{path}: `{entry}`: {n_values} sums do not divide among {n_counts} counts")]
    Uneven { path: PathBuf, entry: String, n_values: usize, n_counts: usize },

    #[error(
        "{path}: `{tensor}` has {n_values} weights, but the tensor has {n_columns} columns in {n_experts} expert(s)"
    )]
    WrongLength { path: PathBuf, tensor: String, n_values: usize, n_columns: usize, n_experts: usize },

    #[error(
        "{path}: `{entry}` has {n_values} sums in {n_counts} part(s), others of it {n_expected} in {n_parts}"
    )]
    OfAnother {
        path: PathBuf,
        entry: String,
        n_values: usize,
        n_counts: usize,
        n_expected: usize,
        n_parts: usize,
    },

    #[error(
        "{path}: how many tokens a chunk of it has is not known: the other files say from {least} to {most}"
    )]
    ChunkLengths { path: PathBuf, least: u32, most: u32 },

    #[error("{path}: the model multiplies by no `{entry}`")]
    NoSuchTensor { path: PathBuf, entry: String },

    #[error("{path}: {n} of `{entry}` are too many for a legacy file, which counts in 31 bits")]
    TooMany { path: PathBuf, entry: String, n: u64 },

    #[error(
        "`{entry}`: the {what} of column {column}{} is {value:e}, beyond the largest f32, {:e}",
        of_expert(*.expert), f32::MAX
    )]
    BeyondF32 { entry: String, what: &'static str, value: f64, column: usize, expert: usize },

    #[error("{path}: none of {n_entries} tensors has seen a token: a legacy file would be empty")]
    NothingSeen { path: PathBuf, n_entries: usize },

    #[error(transparent)]
    Write(#[from] crate::tensor::Error),

    #[error("{path}: no entry of it names a tensor of this model")]
    OfNoTensor { path: PathBuf },

    #[error("{path}: nothing for `{tensor}`, which is noise as {dtype} without importance")]
    Missing { path: PathBuf, tensor: String, dtype: Dtype },
}

/// Where a column is, of a tensor with several experts; the first says nothing of it.
fn of_expert(expert: usize) -> String {
    if expert > 0 { format!(" of expert {expert}") } else { String::new() }
}

impl Diagnostic for ImportanceError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            ImportanceError::File(source) => return source.hint(),
            ImportanceError::Write(source) => return source.hint(),
            ImportanceError::TooMany { .. } => "write a GGUF".into(),
            ImportanceError::ChunkLengths { .. } => "say it with --context N".into(),
            ImportanceError::BeyondF32 { .. } => {
                "measure fewer chunks, or add fewer files: importance matrices hold f32".into()
            }
            ImportanceError::NothingSeen { .. } => {
                "run a model over a text, or add a file whose counts are not 0".into()
            }
            ImportanceError::Io { .. } => "give a file that `lctl imatrix` or llama-imatrix wrote".into(),
            ImportanceError::WrongLength { .. }
            | ImportanceError::OfNoTensor { .. }
            | ImportanceError::OfAnother { .. }
            | ImportanceError::NoSuchTensor { .. } => "was it made from this very model?".into(),
            ImportanceError::Missing { tensor, .. } => {
                let name = tensor.replace('.', "\\.");
                format!(
                    "let the calibration text reach it, or name another type: `--tensor-type '{name}=Q4_K'`"
                )
            }
            _ => "make it again: `lctl imatrix MODEL TEXT -o imatrix.gguf`".into(),
        })
    }

    fn exit_code(&self) -> u8 {
        match self {
            ImportanceError::Write(source) => source.exit_code(),
            _ => 2,
        }
    }
}

impl Importance {
    /// Returns the importance matrix in `path`, of either form; every weight is finite and >= 0.
    pub fn open(path: &Path) -> Result<Self, ImportanceError> {
        Self::checked(path, parse(path, false)?)
    }

    /// Returns the importance matrix in the bytes of a legacy file; `path` is for messages.
    pub fn from_legacy_bytes(path: &Path, bytes: &[u8]) -> Result<Self, ImportanceError> {
        let parsed = legacy::parse(bytes)
            .map_err(|source| ImportanceError::Legacy { path: path.to_owned(), source })?;
        Self::checked(path, parsed)
    }

    fn checked(path: &Path, parsed: Parsed) -> Result<Self, ImportanceError> {
        let mut entries = BTreeMap::new();
        for ParsedEntry { name: entry, squares, counts, .. } in parsed.entries {
            let values = match parsed.is_legacy {
                true => legacy::per_call(squares, &counts),
                false => mean_squares(path, &entry, squares, &counts)?,
            };
            if let Some(column) = values.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
                let value = values[column];
                return Err(ImportanceError::BadValue {
                    path: path.into(),
                    entry,
                    what: "weight",
                    value,
                    column,
                });
            }
            if entries.contains_key(&entry) {
                return Err(ImportanceError::Duplicate { path: path.into(), entry });
            }
            entries.insert(entry, values);
        }
        Ok(Importance {
            file: path.into(),
            path: path.into(),
            entries,
            datasets: parsed.datasets,
            n_chunks: parsed.n_chunks,
        })
    }

    /// Returns the weights of a tensor, `[n_experts * row_len]`, or `None` if the file has none.
    ///
    /// Errors if the lengths disagree.
    pub fn weights(&self, tensor: &str, shape: &[usize]) -> Result<Option<&[f32]>, ImportanceError> {
        let Some(values) = self.entries.get(tensor) else { return Ok(None) };
        let n_columns = shape.last().copied().unwrap_or(1);
        let n_experts = n_experts(shape);
        if n_columns.checked_mul(n_experts) == Some(values.len()) {
            return Ok(Some(values));
        }
        Err(ImportanceError::WrongLength {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            n_values: values.len(),
            n_columns,
            n_experts,
        })
    }

    /// Returns the error of a tensor that must have weights and has none.
    pub(super) fn missing(&self, tensor: &str, dtype: Dtype) -> ImportanceError {
        ImportanceError::Missing { path: self.path.clone(), tensor: tensor.to_owned(), dtype }
    }

    /// Returns it under another path: the one that messages and the output name.
    pub fn named(self, path: &Path) -> Self {
        Importance { path: path.into(), ..self }
    }

    /// Returns the path that messages and the output name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file's path.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the number of tensors that have weights.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if no tensor has weights.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the names of all tensors that have weights, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Returns the keys that say in the output which importance was used, in llama-quantize's order.
    /// Texts are cut at 127 bytes, as there.
    pub fn metadata(&self) -> Metadata {
        let mut keys = Metadata::new();
        let mut set = |key: &str, value| keys.insert(format!("quantize.imatrix.{key}"), value);
        set("file", cut_text(&self.path.to_string_lossy()));
        if let Some(dataset) = self.datasets.first() {
            set("dataset", cut_text(dataset));
        }
        set("entries_count", Value::U32(self.entries.len().try_into().unwrap_or(u32::MAX)));
        if let Some(n_chunks) = self.n_chunks.filter(|&n| n > 0) {
            set("chunks_count", Value::U32(n_chunks));
        }
        keys
    }
}

/// Returns how many expert matrices a shape stacks: the third dimension from the end, else 1.
pub(super) fn n_experts(shape: &[usize]) -> usize {
    shape.len().checked_sub(3).map_or(1, |i| shape[i])
}

fn cut_text(text: &str) -> Value {
    let mut end = text.len().min(127);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Value::String(text[..end].to_owned())
}

/// Returns what is in a file of either form; sums of the inputs themselves only if `with_values`.
fn parse(path: &Path, with_values: bool) -> Result<Parsed, ImportanceError> {
    let io = |source| ImportanceError::Io { path: path.to_owned(), source };
    match refuse_endless(path) {
        Err(ReadError::Io { source, .. }) => return Err(io(source)),
        checked => checked?,
    }
    let mut magic = [0u8; 4];
    let is_gguf = {
        use std::io::Read;
        let mut file = std::fs::File::open(path).map_err(io)?;
        file.read_exact(&mut magic).is_ok() && &magic == b"GGUF"
    };
    if is_gguf {
        return parse_gguf(path, with_values);
    }
    let bytes = std::fs::read(path).map_err(io)?;
    legacy::parse(&bytes).map_err(|source| ImportanceError::Legacy { path: path.to_owned(), source })
}

fn parse_gguf(path: &Path, with_values: bool) -> Result<Parsed, ImportanceError> {
    let wrap = |source| ImportanceError::Gguf { path: path.to_owned(), source: Box::new(source) };
    let file = Gguf::open(path).map_err(wrap)?;
    let mut parsed = Parsed::default();
    for sums in file.tensors() {
        let Some(entry) = sums.name.strip_suffix(".in_sum2") else {
            if let Some(entry) = sums.name.strip_suffix(".counts")
                && file.find(&format!("{entry}.in_sum2")).is_none()
            {
                return Err(lonely(path, entry, "counts", "in_sum2"));
            }
            continue;
        };
        let counts =
            file.find(&format!("{entry}.counts")).ok_or_else(|| lonely(path, entry, "in_sum2", "counts"))?;
        let values = with_values.then(|| file.find(&format!("{entry}.in_sum"))).flatten();
        parsed.entries.push(ParsedEntry {
            name: entry.to_owned(),
            squares: read_f32(&file, sums)?,
            values: values.map(|values| read_f32(&file, values)).transpose()?,
            counts: read_f32(&file, counts)?,
        });
    }
    if parsed.entries.is_empty() {
        return Err(ImportanceError::Empty { path: path.into(), n_tensors: file.tensors().len() });
    }
    if let Some(Value::Array(Array::String(names))) = file.metadata().get("imatrix.datasets") {
        parsed.datasets.clone_from(names);
    }
    if let Some(Value::Array(Array::String(names))) = file.metadata().get(DEVICES_KEY) {
        parsed.devices.clone_from(names);
    }
    let number = |key: &str| file.metadata().get(key)?.as_u64().and_then(|n| u32::try_from(n).ok());
    parsed.n_chunks = number("imatrix.chunk_count");
    parsed.chunk_len = number("imatrix.chunk_size");
    Ok(parsed)
}

fn lonely(path: &Path, entry: &str, have: &'static str, lack: &'static str) -> ImportanceError {
    ImportanceError::Lonely { path: path.into(), entry: entry.into(), have, lack }
}

fn read_f32(file: &Gguf, tensor: &TensorInfo) -> Result<Vec<f32>, ImportanceError> {
    if tensor.dtype.name() != "F32" {
        return Err(ImportanceError::NotF32 {
            path: file.path().into(),
            tensor: tensor.name.clone(),
            dtype: tensor.dtype,
        });
    }
    let mut bytes = vec![0u8; tensor.n_elements() * 4];
    file.read_at(tensor, 0, &mut bytes)
        .map_err(|source| ImportanceError::Gguf { path: file.path().into(), source: Box::new(source) })?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Returns `sums[e, c] / counts[e]`, 1 where the count is 0; `counts` are rounded to whole numbers first.
fn mean_squares(
    path: &Path,
    entry: &str,
    mut sums: Vec<f32>,
    counts: &[f32],
) -> Result<Vec<f32>, ImportanceError> {
    check_counts(path, entry, sums.len(), counts)?;
    let n_columns = sums.len() / counts.len();
    for (row, count) in sums.chunks_exact_mut(n_columns).zip(counts) {
        let count = count.round();
        row.iter_mut().for_each(|sum| *sum = if count > 0.0 { *sum / count } else { 1.0 });
    }
    Ok(sums)
}

/// Errors unless the sums divide among counts that are some.
fn check_counts(path: &Path, entry: &str, n_values: usize, counts: &[f32]) -> Result<(), ImportanceError> {
    if counts.is_empty() || n_values == 0 || !n_values.is_multiple_of(counts.len()) {
        return Err(ImportanceError::Uneven {
            path: path.into(),
            entry: entry.into(),
            n_values,
            n_counts: counts.len(),
        });
    }
    match counts.iter().position(|count| !(count.is_finite() && *count >= 0.0)) {
        None => Ok(()),
        Some(expert) => Err(ImportanceError::BadValue {
            path: path.into(),
            entry: entry.to_owned(),
            what: "count",
            value: counts[expert],
            column: expert,
        }),
    }
}

#[cfg(test)]
mod tests;
