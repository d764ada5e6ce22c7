//! Streaming writer of GGUF version 3: every offset is known before the first byte.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::header::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MAX_DIMS, MAX_NAME_BYTES};
use super::split::{self, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS};
use super::value::{Array, Metadata, Value};
use crate::tensor::Error;
use crate::tensor::sink::{AtomicFile, WrittenFile, check_space};
use crate::tensor::stream::{Layout, TensorDecl, TensorStream};

/// When to begin a new shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Before a tensor that would take the shard's tensor bytes (header not counted) over this.
    MaxBytes(u64),
    /// After this many tensors.
    MaxTensors(usize),
}

/// How to write.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Bytes each tensor's data is aligned to: a power of two, 8 or more. `None` takes
    /// `general.alignment` from the metadata, or 32 if it says nothing.
    pub alignment: Option<u32>,
    /// `None` writes one file.
    pub split: Option<Split>,
    /// Compute the SHA-256 of each file while writing.
    pub sha256: bool,
    /// Replace files that have the names when the writer finishes; otherwise that is an error.
    pub replace: bool,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions { alignment: None, split: None, sha256: true, replace: true }
    }
}

/// Writes a GGUF model, in one file or in shards; no file has its name before [`GgufWriter::finish`].
pub struct GgufWriter {
    done: Vec<AtomicFile>,
    current: ShardFile,
    waiting: VecDeque<Planned>,
    sha256: bool,
    replace: bool,
}

/// The shard being written.
struct ShardFile {
    file: AtomicFile,
    stream: TensorStream,
}

/// A shard whose turn has not come.
struct Planned {
    path: PathBuf,
    header: Vec<u8>,
    layout: Layout,
}

impl Planned {
    fn size(&self) -> u64 {
        self.header.len() as u64 + self.layout.total
    }

    fn begin(self, sha256: bool, replace: bool) -> Result<ShardFile, Error> {
        let mut file = AtomicFile::create(&self.path, Some(self.size()), sha256)?;
        file.set_replace(replace);
        file.write_all(&self.header)?;
        Ok(ShardFile { file, stream: TensorStream::new(self.layout) })
    }
}

impl GgufWriter {
    /// Computes all offsets, creates the (first) file and writes its header.
    ///
    /// `path` is the file to make. With a split it gives the shards' name: `out.gguf` becomes
    /// `out-00001-of-00003.gguf` and so on; keys go to the first shard, and `split.*` keys are replaced.
    /// A shape is written with as many dimensions as declared.
    ///
    /// Errors if a declaration cannot be written, or as [`AtomicFile::create`] does.
    pub fn create(
        path: &Path,
        metadata: &Metadata,
        tensors: &[TensorDecl],
        options: &WriteOptions,
    ) -> Result<GgufWriter, Error> {
        let mut waiting = plan(path, metadata, tensors, options)
            .map_err(|why| Error::BadDeclaration { path: path.to_owned(), why })?;
        check_space(path, waiting.iter().map(Planned::size).sum())?;
        let first = waiting.pop_front().expect("a plan has at least one file");
        let current = first.begin(options.sha256, options.replace)?;
        let mut writer = GgufWriter {
            done: Vec::new(),
            current,
            waiting,
            sha256: options.sha256,
            replace: options.replace,
        };
        writer.next_shard_if_finished()?;
        Ok(writer)
    }

    /// Appends bytes of the current tensor; it may be called any number of times per tensor. Padding
    /// is added after its last byte.
    ///
    /// Errors if the bytes run past the tensor's end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.current.stream.write(&mut self.current.file, bytes)?;
        self.next_shard_if_finished()
    }

    /// Returns the name of the tensor whose bytes come next.
    pub fn current_tensor(&self) -> Option<&str> {
        self.current.stream.current()
    }

    /// Returns the files to be made, by their final names, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let done = self.done.iter().map(AtomicFile::path);
        done.chain([self.current.file.path()]).chain(self.waiting.iter().map(|shard| shard.path.as_path()))
    }

    /// Makes all files durable and gives them their names, all or none. Errors if a tensor is incomplete.
    pub fn finish(self) -> Result<Vec<WrittenFile>, Error> {
        AtomicFile::commit_all(self.seal()?)
    }

    /// Makes all files durable; they get their names by [`AtomicFile::commit_all`]. Errors if a tensor is incomplete.
    pub fn seal(mut self) -> Result<Vec<AtomicFile>, Error> {
        self.current.stream.check_finished(self.current.file.path())?;
        self.current.file.seal()?;
        self.done.push(self.current.file);
        Ok(self.done)
    }

    /// Shards are opened one at a time, so that their number is not limited by open files.
    fn next_shard_if_finished(&mut self) -> Result<(), Error> {
        while self.current.stream.is_finished() {
            let Some(next) = self.waiting.pop_front() else { return Ok(()) };
            let mut full = std::mem::replace(&mut self.current, next.begin(self.sha256, self.replace)?);
            full.file.seal()?;
            self.done.push(full.file);
        }
        Ok(())
    }
}

/// Decides every file's name, header and layout, or says why the declarations cannot be written.
fn plan(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorDecl],
    options: &WriteOptions,
) -> Result<VecDeque<Planned>, String> {
    let mut metadata = metadata.clone();
    let alignment = settle_alignment(&mut metadata, options.alignment)?;
    // Names must be unique over all shards, so the whole list is laid out first.
    Layout::new(tensors, alignment.into())?;
    check_names(tensors)?;
    plan_shards(path, metadata, tensors, alignment, options)?
        .into_iter()
        .map(|(path, metadata, tensors)| {
            let layout = Layout::new(tensors, alignment.into())?;
            let header = encode_header(&metadata, tensors, &layout, alignment)?;
            Ok(Planned { path, header, layout })
        })
        .collect()
}

/// Settles the alignment, and the metadata's key with it.
fn settle_alignment(metadata: &mut Metadata, wanted: Option<u32>) -> Result<u32, String> {
    let stated = match metadata.get(ALIGNMENT_KEY) {
        None => None,
        Some(Value::U32(alignment)) => Some(*alignment),
        Some(other) => return Err(format!("`{ALIGNMENT_KEY}` must be a u32, but is {}", other.type_name())),
    };
    let alignment = wanted.or(stated).unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || !(8..=MAX_ALIGNMENT).contains(&alignment) {
        return Err(format!("alignment {alignment} is not a power of two between 8 and {MAX_ALIGNMENT}"));
    }
    if stated.is_some() || alignment != DEFAULT_ALIGNMENT {
        metadata.insert(ALIGNMENT_KEY.to_owned(), Value::U32(alignment));
    }
    Ok(alignment)
}

fn check_names(tensors: &[TensorDecl]) -> Result<(), String> {
    for TensorDecl { name, dtype, shape } in tensors {
        if name.is_empty() || name.len() >= MAX_NAME_BYTES {
            return Err(format!("`{name}`: a tensor's name has 1 to {} bytes", MAX_NAME_BYTES - 1));
        }
        if shape.is_empty() || shape.len() > MAX_DIMS || shape.contains(&0) {
            return Err(format!("`{name}`: shape {shape:?} must have 1 to {MAX_DIMS} dimensions, none zero"));
        }
        if dtype.ggml_id().is_none() {
            return Err(format!("`{name}`: GGUF has no type {dtype}"));
        }
    }
    Ok(())
}

/// A file to write: its path, keys and tensors.
type FilePlan<'a> = (PathBuf, Metadata, &'a [TensorDecl]);

/// Returns the files to write, in order.
fn plan_shards<'a>(
    path: &Path,
    metadata: Metadata,
    tensors: &'a [TensorDecl],
    alignment: u32,
    options: &WriteOptions,
) -> Result<Vec<FilePlan<'a>>, String> {
    let Some(split) = options.split else {
        return Ok(vec![(path.to_owned(), metadata, tensors)]);
    };
    let ranges = shard_ranges(tensors, split, alignment.into());
    let count = u16::try_from(ranges.len())
        .map_err(|_| format!("it would have {} shards; GGUF allows {}", ranges.len(), u16::MAX))?;
    let n_tensors = i32::try_from(tensors.len()).map_err(|_| format!("{} tensors", tensors.len()))?;
    let prefix = path.with_extension("");
    let prefix = if path.extension().is_some_and(|ext| ext == "gguf") { &prefix } else { path };
    let name = prefix.file_name().unwrap_or_default().to_string_lossy();
    let mut first = Some(metadata);
    let shards = (0..count).zip(ranges).map(|(no, range)| {
        let mut keys = first.take().unwrap_or_else(|| shard_keys(alignment));
        for key in [SPLIT_NO, SPLIT_TENSORS, SPLIT_COUNT] {
            keys.shift_remove(key);
        }
        keys.insert(SPLIT_NO.to_owned(), Value::U16(no));
        keys.insert(SPLIT_TENSORS.to_owned(), Value::I32(n_tensors));
        keys.insert(SPLIT_COUNT.to_owned(), Value::U16(count));
        let file = split::file_name(&name, no.into(), count.into());
        (prefix.with_file_name(file), keys, &tensors[range])
    });
    Ok(shards.collect())
}

/// A later shard repeats only the alignment, which its own offsets depend on.
fn shard_keys(alignment: u32) -> Metadata {
    let mut keys = Metadata::new();
    if alignment != DEFAULT_ALIGNMENT {
        keys.insert(ALIGNMENT_KEY.to_owned(), Value::U32(alignment));
    }
    keys
}

/// Returns the index range of each shard's tensors; at least one shard, and none without tensors
/// unless there are no tensors at all.
fn shard_ranges(tensors: &[TensorDecl], split: Split, alignment: u64) -> Vec<std::ops::Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0u64);
    for (i, tensor) in tensors.iter().enumerate() {
        // The layout of the whole list was checked, so this neither fails nor overflows.
        let size = tensor.n_bytes().unwrap_or(0).next_multiple_of(alignment);
        let full = match split {
            Split::MaxBytes(max) => bytes + size > max,
            Split::MaxTensors(max) => i - start >= max.max(1),
        };
        if full && i > start {
            ranges.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    ranges.push(start..tensors.len());
    ranges
}

fn encode_header(
    metadata: &Metadata,
    tensors: &[TensorDecl],
    layout: &Layout,
    alignment: u32,
) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    out.extend_from_slice(b"GGUF");
    out.extend_from_slice(&3u32.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        if key.is_empty() {
            return Err("a key is empty".to_owned());
        }
        put_string(&mut out, key);
        put_value(&mut out, value);
    }
    for (tensor, place) in tensors.iter().zip(&layout.places) {
        put_string(&mut out, &tensor.name);
        out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        for dim in tensor.shape.iter().rev() {
            out.extend_from_slice(&(*dim as u64).to_le_bytes());
        }
        let id = tensor.dtype.ggml_id().ok_or_else(|| format!("GGUF has no type {}", tensor.dtype))?;
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&place.offset.to_le_bytes());
    }
    // A file without tensors has no data section to align (the reference converter's vocabularies), except
    // that the reference's splitter pads every shard.
    if !tensors.is_empty() || metadata.contains_key(SPLIT_COUNT) {
        out.resize(out.len().next_multiple_of(alignment as usize), 0);
    }
    Ok(out)
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    out.extend_from_slice(&value.type_id().to_le_bytes());
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(text) => put_string(out, text),
        Value::Array(array) => put_array(out, array),
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend_from_slice(&array.type_id().to_le_bytes());
    out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend_from_slice(v),
        Array::I8(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Array::Bool(v) => v.iter().for_each(|v| out.push(u8::from(*v))),
        Array::String(v) => v.iter().for_each(|text| put_string(out, text)),
        Array::Array(v) => v.iter().for_each(|array| put_array(out, array)),
        Array::U64(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
    }
}
