//! The GGUF header: counts, key-value pairs, tensor table; nothing is trusted before it is checked.
//!
//! Spec: ggml/docs/gguf.md. Where files in the wild and the spec part, the rule is what llama.cpp loads,
//! except for what no writer produces (no dimensions, a zero dimension, an empty name, a bool of 2, text
//! that is not UTF-8), which is refused, and arrays in arrays, which the spec has and llama.cpp has not.

use std::collections::HashSet;

use super::cursor::{Cursor, ReadAt, Stop};
use super::value::{Array, Metadata, Value};
use crate::error::Diagnostic;
use crate::tensor::TensorInfo;
use crate::tensor::format;

/// Alignment of a file that does not say.
pub const DEFAULT_ALIGNMENT: u32 = 32;
/// Largest alignment accepted. Real files have 32 to 4096 (a page).
pub const MAX_ALIGNMENT: u32 = 1 << 20;
/// Bytes a tensor's name must stay below (ggml's `GGML_MAX_NAME`).
pub const MAX_NAME_BYTES: usize = 64;
/// Arrays inside arrays inside arrays: more levels are refused.
pub const MAX_DEPTH: usize = 4;
/// Most dimensions of a tensor.
pub const MAX_DIMS: usize = 4;
/// The key that holds the alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";

/// A checked header. `shard` is 0 and `offset` absolute in every tensor.
#[derive(Debug)]
pub struct Header {
    pub version: u32,
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
    pub alignment: u32,
    /// Where the data section begins; the header's end if there are no tensors.
    pub data_offset: u64,
}

/// What can be wrong with a GGUF header.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HeaderError {
    #[error("not a GGUF file: it begins with {found:02x?}, not `GGUF`")]
    BadMagic { found: [u8; 4] },
    #[error("a big-endian GGUF file (version bytes {found:02x?})")]
    BigEndian { found: [u8; 4] },
    #[error("GGUF version {version}; versions 2 and 3 are read")]
    Version { version: u32 },
    #[error("truncated at byte {at}: {what} needs {needed} bytes, {left} are left")]
    Truncated { what: String, at: u64, needed: u64, left: u64 },
    #[error("the header claims {claimed} {what}, but {left} bytes are left, too few for them")]
    Count { what: &'static str, claimed: u64, left: u64 },
    #[error("{what}: not valid UTF-8 at byte {at}")]
    NotUtf8 { what: String, at: u64 },
    #[error("key {index} is empty")]
    EmptyKey { index: u64 },
    #[error("key `{key}` occurs twice")]
    DuplicateKey { key: String },
    #[error("key `{key}`: unknown value type {id}")]
    ValueType { key: String, id: u32 },
    #[error("key `{key}`: {found} is not a bool (0 or 1)")]
    BadBool { key: String, found: u8 },
    #[error("key `{key}`: arrays nested deeper than {MAX_DEPTH}")]
    TooDeep { key: String },
    #[error("key `{key}`: an array of {claimed} elements, but {left} bytes are left, too few for them")]
    ArrayLength { key: String, claimed: u64, left: u64 },
    #[error("key `general.alignment` must be a u32, but is {found}")]
    AlignmentType { found: &'static str },
    #[error("alignment {alignment} is not a power of two between 1 and {MAX_ALIGNMENT}")]
    Alignment { alignment: u32 },
    #[error("tensor {index} has no name")]
    EmptyName { index: u64 },
    #[error("tensor {index}: its name is {len} bytes long; it must be shorter than {MAX_NAME_BYTES}")]
    LongName { index: u64, len: u64 },
    #[error("tensor `{name}` occurs twice")]
    DuplicateTensor { name: String },
    #[error("`{tensor}`: {n_dims} dimensions; 1 to {MAX_DIMS} are allowed")]
    Dimensions { tensor: String, n_dims: u32 },
    #[error("`{tensor}`: shape {shape:?} (innermost last) has a dimension that is zero or too large")]
    BadDimension { tensor: String, shape: Vec<u64> },
    #[error("`{tensor}`: shape {shape:?} (innermost last) overflows")]
    Overflow { tensor: String, shape: Vec<u64> },
    #[error("`{tensor}`: unknown tensor type {id}")]
    TensorType { tensor: String, id: u32 },
    #[error("`{tensor}`: row length {row_len} is not a multiple of {block_len} (block of {dtype})")]
    RowLength { tensor: String, dtype: &'static str, row_len: u64, block_len: usize },
    #[error("`{tensor}`: data offset {found}, but {expected} was expected after the tensor before it")]
    Offset { tensor: String, found: u64, expected: u64 },
    #[error("truncated: `{tensor}` ends at byte {end}, but the file has {len}")]
    DataTruncated { tensor: String, end: u64, len: u64 },
}

impl Diagnostic for HeaderError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            HeaderError::Truncated { .. } | HeaderError::DataTruncated { .. } => {
                "the download or copy is incomplete: fetch the file again"
            }
            HeaderError::BigEndian { .. } => {
                "convert it on its own machine: gguf-py/gguf/scripts/gguf_convert_endian.py FILE little"
            }
            HeaderError::Version { version: 1 } => "convert the original checkpoint again",
            HeaderError::TensorType { .. } => {
                "the file needs a newer lctl, or its type was removed from GGUF"
            }
            HeaderError::Version { .. } => "the file needs a newer lctl, or its version was tampered with",
            _ => "the file is damaged or made to mislead: fetch it again, from a source you trust",
        };
        Some(hint.to_owned())
    }
}

/// Parses the header of a whole file held in memory.
pub fn parse_header(file: &[u8]) -> Result<Header, HeaderError> {
    let read_at = |offset: u64, out: &mut [u8]| {
        let start = offset as usize;
        out.copy_from_slice(&file[start..start + out.len()]);
        Ok(())
    };
    match read_header(&read_at, file.len() as u64) {
        Ok(header) => Ok(header),
        Err(Stop::Header(error)) => Err(error),
        Err(Stop::Io(_)) => unreachable!("reading a slice does not fail: the cursor stays inside `len`"),
    }
}

/// Parses the header of a file of `len` bytes.
pub(super) fn read_header(read_at: &ReadAt<'_>, len: u64) -> Result<Header, Stop> {
    let mut cursor = Cursor::new(read_at, len);
    let version = read_version(&mut cursor)?;
    let n_tensors = cursor.u64("the tensor count")?;
    let n_keys = cursor.u64("the key count")?;
    let left = cursor.left();
    // Smallest key, its empty name refused later: length 8, type 4, value 1. Smallest tensor: 8 + 1 + 4 + 8 + 4 + 8.
    for (what, claimed, least) in [("keys", n_keys, 13), ("tensors", n_tensors, 33)] {
        if claimed > left / least {
            return Err(HeaderError::Count { what, claimed, left }.into());
        }
    }
    let metadata = read_metadata(&mut cursor, n_keys)?;
    let alignment = alignment_of(&metadata)?;
    let mut tensors = read_tensors(&mut cursor, n_tensors)?;
    let header_end = cursor.position();
    let data_offset = match n_tensors {
        0 => header_end,
        _ => header_end.next_multiple_of(alignment.into()),
    };
    place(&mut tensors, data_offset, alignment.into(), len)?;
    Ok(Header { version, metadata, tensors, alignment, data_offset })
}

fn read_version(cursor: &mut Cursor) -> Result<u32, Stop> {
    let magic: [u8; 4] = cursor.array("the magic number")?;
    if magic != *b"GGUF" {
        return Err(HeaderError::BadMagic { found: magic }.into());
    }
    let found: [u8; 4] = cursor.array("the version")?;
    let version = u32::from_le_bytes(found);
    if version != 0 && version & 0xffff == 0 {
        return Err(HeaderError::BigEndian { found }.into());
    }
    if !(2..=3).contains(&version) {
        return Err(HeaderError::Version { version }.into());
    }
    Ok(version)
}

fn read_metadata(cursor: &mut Cursor, n_keys: u64) -> Result<Metadata, Stop> {
    let mut metadata = Metadata::with_capacity(n_keys as usize);
    for index in 0..n_keys {
        let key = cursor.string("a key")?;
        if key.is_empty() {
            return Err(HeaderError::EmptyKey { index }.into());
        }
        if metadata.contains_key(&key) {
            return Err(HeaderError::DuplicateKey { key }.into());
        }
        let value = read_value(cursor, &key)?;
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn read_value(cursor: &mut Cursor, key: &str) -> Result<Value, Stop> {
    let id = cursor.u32(key)?;
    Ok(match id {
        0 => Value::U8(cursor.u8(key)?),
        1 => Value::I8(i8::from_le_bytes(cursor.array(key)?)),
        2 => Value::U16(u16::from_le_bytes(cursor.array(key)?)),
        3 => Value::I16(i16::from_le_bytes(cursor.array(key)?)),
        4 => Value::U32(cursor.u32(key)?),
        5 => Value::I32(i32::from_le_bytes(cursor.array(key)?)),
        6 => Value::F32(f32::from_le_bytes(cursor.array(key)?)),
        7 => Value::Bool(to_bool(cursor.u8(key)?, key)?),
        8 => Value::String(cursor.string(key)?),
        9 => Value::Array(read_array(cursor, key, 1)?),
        10 => Value::U64(cursor.u64(key)?),
        11 => Value::I64(i64::from_le_bytes(cursor.array(key)?)),
        12 => Value::F64(f64::from_le_bytes(cursor.array(key)?)),
        _ => return Err(HeaderError::ValueType { key: key.to_owned(), id }.into()),
    })
}

fn to_bool(byte: u8, key: &str) -> Result<bool, HeaderError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(HeaderError::BadBool { key: key.to_owned(), found }),
    }
}

fn read_array(cursor: &mut Cursor, key: &str, depth: usize) -> Result<Array, Stop> {
    if depth > MAX_DEPTH {
        return Err(HeaderError::TooDeep { key: key.to_owned() }.into());
    }
    let id = cursor.u32(key)?;
    let n = cursor.u64(key)?;
    // Least bytes an element takes: a string its length, an array its type and length.
    let least: u64 = match id {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => 12,
        _ => return Err(HeaderError::ValueType { key: key.to_owned(), id }.into()),
    };
    let left = cursor.left();
    if n > left / least {
        return Err(HeaderError::ArrayLength { key: key.to_owned(), claimed: n, left }.into());
    }
    Ok(match id {
        0 => Array::U8(numbers(cursor, key, n, u8::from_le_bytes)?),
        1 => Array::I8(numbers(cursor, key, n, i8::from_le_bytes)?),
        2 => Array::U16(numbers(cursor, key, n, u16::from_le_bytes)?),
        3 => Array::I16(numbers(cursor, key, n, i16::from_le_bytes)?),
        4 => Array::U32(numbers(cursor, key, n, u32::from_le_bytes)?),
        5 => Array::I32(numbers(cursor, key, n, i32::from_le_bytes)?),
        6 => Array::F32(numbers(cursor, key, n, f32::from_le_bytes)?),
        7 => Array::Bool(
            cursor.take(n, key)?.iter().map(|byte| to_bool(*byte, key)).collect::<Result<_, _>>()?,
        ),
        8 => Array::String((0..n).map(|_| cursor.string(key)).collect::<Result<_, _>>()?),
        10 => Array::U64(numbers(cursor, key, n, u64::from_le_bytes)?),
        11 => Array::I64(numbers(cursor, key, n, i64::from_le_bytes)?),
        12 => Array::F64(numbers(cursor, key, n, f64::from_le_bytes)?),
        _ => Array::Array((0..n).map(|_| read_array(cursor, key, depth + 1)).collect::<Result<_, _>>()?),
    })
}

/// Reads `n` little-endian numbers; the caller has checked that the file has the bytes.
fn numbers<T, const N: usize>(
    cursor: &mut Cursor,
    key: &str,
    n: u64,
    from_le: fn([u8; N]) -> T,
) -> Result<Vec<T>, Stop> {
    let bytes = cursor.take(n * N as u64, key)?;
    Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| from_le(*chunk)).collect())
}

fn alignment_of(metadata: &Metadata) -> Result<u32, HeaderError> {
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some(Value::U32(alignment)) => *alignment,
        Some(other) => return Err(HeaderError::AlignmentType { found: other.type_name() }),
    };
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(HeaderError::Alignment { alignment });
    }
    Ok(alignment)
}

/// Reads the tensor table; `offset` is still relative to the data section.
fn read_tensors(cursor: &mut Cursor, n_tensors: u64) -> Result<Vec<TensorInfo>, Stop> {
    let mut tensors = Vec::with_capacity(n_tensors as usize);
    let mut seen = HashSet::with_capacity(n_tensors as usize);
    for index in 0..n_tensors {
        let tensor = read_tensor(cursor, index)?;
        if !seen.insert(tensor.name.clone()) {
            return Err(HeaderError::DuplicateTensor { name: tensor.name }.into());
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_tensor(cursor: &mut Cursor, index: u64) -> Result<TensorInfo, Stop> {
    let len = cursor.u64("a tensor's name")?;
    if len == 0 {
        return Err(HeaderError::EmptyName { index }.into());
    }
    if len >= MAX_NAME_BYTES as u64 {
        return Err(HeaderError::LongName { index, len }.into());
    }
    let at = cursor.position();
    let name = match std::str::from_utf8(cursor.take(len, "a tensor's name")?) {
        Ok(name) => name.to_owned(),
        Err(error) => {
            let at = at + error.valid_up_to() as u64;
            return Err(HeaderError::NotUtf8 { what: format!("the name of tensor {index}"), at }.into());
        }
    };
    let n_dims = cursor.u32(&name)?;
    if n_dims == 0 || n_dims as usize > MAX_DIMS {
        return Err(HeaderError::Dimensions { tensor: name, n_dims }.into());
    }
    let mut shape = (0..n_dims).map(|_| cursor.u64(&name)).collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    let id = cursor.u32(&name)?;
    let offset = cursor.u64(&name)?;
    Ok(size_up(name, shape, id, offset)?)
}

/// Checks a tensor's shape against its type and computes its bytes. `shape`: outermost first.
fn size_up(name: String, shape: Vec<u64>, id: u32, offset: u64) -> Result<TensorInfo, HeaderError> {
    let Some(dtype) = format::by_ggml_id(id) else {
        return Err(HeaderError::TensorType { tensor: name, id });
    };
    if shape.iter().any(|dim| *dim == 0 || *dim > i64::MAX as u64) {
        return Err(HeaderError::BadDimension { tensor: name, shape });
    }
    let elements = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let Some(elements) = elements.filter(|n| *n <= i64::MAX as u64 && usize::try_from(*n).is_ok()) else {
        return Err(HeaderError::Overflow { tensor: name, shape });
    };
    let row_len = shape.last().copied().unwrap_or(1);
    let block_len = dtype.block_len();
    if row_len % block_len as u64 != 0 {
        return Err(HeaderError::RowLength { tensor: name, dtype: dtype.0.name(), row_len, block_len });
    }
    let n_bytes = (elements / block_len as u64).checked_mul(dtype.block_bytes() as u64);
    let Some(n_bytes) = n_bytes.filter(|n| *n <= i64::MAX as u64) else {
        return Err(HeaderError::Overflow { tensor: name, shape });
    };
    let shape = shape.into_iter().map(|dim| dim as usize).collect();
    Ok(TensorInfo { name, dtype, shape, n_bytes, shard: 0, offset })
}

/// Checks that the tensors follow each other, each padded to the alignment, inside the file, and makes
/// their offsets absolute. Padding after the last tensor may be absent.
fn place(tensors: &mut [TensorInfo], data_offset: u64, alignment: u64, len: u64) -> Result<(), HeaderError> {
    let mut expected = 0u64;
    for tensor in tensors {
        if tensor.offset != expected {
            let (found, tensor) = (tensor.offset, tensor.name.clone());
            return Err(HeaderError::Offset { tensor, found, expected });
        }
        let overflow = |tensor: &TensorInfo| HeaderError::Overflow {
            tensor: tensor.name.clone(),
            shape: tensor.shape.iter().map(|dim| *dim as u64).collect(),
        };
        let end = data_offset.checked_add(expected).and_then(|start| start.checked_add(tensor.n_bytes));
        let end = end.ok_or_else(|| overflow(tensor))?;
        if end > len {
            return Err(HeaderError::DataTruncated { tensor: tensor.name.clone(), end, len });
        }
        let padded = tensor.n_bytes.checked_next_multiple_of(alignment);
        expected = padded.and_then(|n| expected.checked_add(n)).ok_or_else(|| overflow(tensor))?;
        tensor.offset += data_offset;
    }
    Ok(())
}
