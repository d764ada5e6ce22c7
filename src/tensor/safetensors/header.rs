//! The JSON header: every offset, size and name checked before anything trusts it.

use std::collections::HashSet;
use std::fmt;

use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::error::Diagnostic;
use crate::tensor::{Dtype, TensorInfo, format};

/// Longest header accepted; the `safetensors` crate has the same limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// What a header says, checked: `offset`s are absolute, `shard` is 0, order is the data's.
#[derive(Debug)]
pub struct Header {
    pub metadata: IndexMap<String, String>,
    pub tensors: Vec<TensorInfo>,
}

/// What can be wrong with a safetensors header.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("{len} bytes long, too short for a safetensors header (8)")]
    TooShort { len: u64 },
    #[error("the header claims {claimed} bytes, more than the {MAX_HEADER_BYTES} allowed")]
    TooLong { claimed: u64 },
    #[error("truncated: the header claims {claimed} bytes, but {left} follow")]
    Truncated { claimed: u64, left: u64 },
    #[error("the header is not valid UTF-8 at byte {at}")]
    NotUtf8 { at: usize },
    #[error("the header is not valid: {why}")]
    NotJson { why: String },
    #[error("`{name}` occurs twice")]
    Duplicate { name: String },
    #[error("`{tensor}`: unknown dtype `{dtype}`")]
    UnknownDtype { tensor: String, dtype: String, known: Vec<&'static str> },
    #[error("`{tensor}`: data_offsets [{begin}, {end}] run backwards")]
    Backwards { tensor: String, begin: u64, end: u64 },
    #[error("`{tensor}`: data ends at byte {end} of the data area, which has {area}")]
    OutsideFile { tensor: String, end: u64, area: u64 },
    #[error("`{tensor}`: shape {shape:?} overflows")]
    Overflow { tensor: String, shape: Vec<u64> },
    #[error("`{tensor}`: row length {row_len} is not a multiple of {block_len} (block of `{dtype}`)")]
    RowLength { tensor: String, dtype: &'static str, row_len: u64, block_len: usize },
    #[error("`{tensor}`: data_offsets hold {found} bytes, but shape {shape:?} of {dtype} needs {needed}")]
    ByteCount { tensor: String, dtype: &'static str, shape: Vec<u64>, found: u64, needed: u64 },
    #[error("`{tensor}` begins at byte {begin}, inside `{previous}`, which ends at {end}")]
    Overlap { tensor: String, begin: u64, previous: String, end: u64 },
    #[error("bytes {begin}..{end} of the data area belong to no tensor")]
    Hole { begin: u64, end: u64 },
}

impl Diagnostic for HeaderError {
    fn hint(&self) -> Option<String> {
        match self {
            HeaderError::TooShort { .. }
            | HeaderError::Truncated { .. }
            | HeaderError::OutsideFile { .. } => {
                Some("the download is incomplete: fetch the file again".to_owned())
            }
            HeaderError::UnknownDtype { known, .. } => Some(format!("known dtypes: {}", known.join(", "))),
            _ => Some(
                "the file is damaged or made to mislead: fetch it again, from a source you trust".to_owned(),
            ),
        }
    }
}

/// Parses the header of a whole file held in memory.
pub fn parse_header(file: &[u8]) -> Result<Header, HeaderError> {
    let len = file.len() as u64;
    let (prefix, rest) = file.split_first_chunk::<8>().ok_or(HeaderError::TooShort { len })?;
    let n_bytes = checked_len(u64::from_le_bytes(*prefix), len)?;
    parse_json(&rest[..n_bytes], len)
}

/// Returns the header's length, if a file of `file_len` bytes can hold it.
pub(super) fn checked_len(claimed: u64, file_len: u64) -> Result<usize, HeaderError> {
    if claimed > MAX_HEADER_BYTES {
        return Err(HeaderError::TooLong { claimed });
    }
    let left = file_len - 8;
    if claimed > left {
        return Err(HeaderError::Truncated { claimed, left });
    }
    Ok(claimed as usize)
}

/// Parses and checks the JSON; `file_len` is the whole file's.
pub(super) fn parse_json(json: &[u8], file_len: u64) -> Result<Header, HeaderError> {
    let text = std::str::from_utf8(json).map_err(|error| HeaderError::NotUtf8 { at: error.valid_up_to() })?;
    if !text.starts_with('{') {
        return Err(HeaderError::NotJson { why: "it does not begin with `{`".to_owned() });
    }
    let raw: Raw =
        serde_json::from_str(text).map_err(|error| HeaderError::NotJson { why: error.to_string() })?;
    let data_start = 8 + json.len() as u64;
    let area = file_len - data_start;
    let mut seen = HashSet::with_capacity(raw.entries.len());
    let mut tensors = Vec::with_capacity(raw.entries.len());
    for (name, entry) in &raw.entries {
        if !seen.insert(name.as_str()) {
            return Err(HeaderError::Duplicate { name: name.clone() });
        }
        tensors.push(check_entry(name, entry, data_start, area)?);
    }
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.n_bytes));
    check_cover(&tensors, data_start, area)?;
    Ok(Header { metadata: unique(raw.metadata)?, tensors })
}

/// Checks one tensor alone: offsets inside the data area, bytes == elements * size.
fn check_entry(name: &str, entry: &Entry, data_start: u64, area: u64) -> Result<TensorInfo, HeaderError> {
    let tensor = || name.to_owned();
    let dtype = format::by_safetensors_name(&entry.dtype).ok_or_else(|| HeaderError::UnknownDtype {
        tensor: tensor(),
        dtype: entry.dtype.clone(),
        known: format::REGISTRY.iter().filter_map(|f| f.safetensors_name()).collect(),
    })?;
    let [begin, end] = entry.data_offsets;
    if begin > end {
        return Err(HeaderError::Backwards { tensor: tensor(), begin, end });
    }
    if end > area {
        return Err(HeaderError::OutsideFile { tensor: tensor(), end, area });
    }
    let (shape, n_bytes) = size_of(name, dtype, &entry.shape)?;
    if n_bytes != end - begin {
        return Err(HeaderError::ByteCount {
            tensor: tensor(),
            dtype: dtype.0.name(),
            shape: entry.shape.clone(),
            found: end - begin,
            needed: n_bytes,
        });
    }
    Ok(TensorInfo { name: tensor(), dtype, shape, n_bytes, shard: 0, offset: data_start + begin })
}

/// Returns the shape as it is used in memory, and its bytes.
fn size_of(name: &str, dtype: Dtype, shape: &[u64]) -> Result<(Vec<usize>, u64), HeaderError> {
    let overflow = || HeaderError::Overflow { tensor: name.to_owned(), shape: shape.to_owned() };
    let elements =
        shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim)).ok_or_else(overflow)?;
    let row_len = shape.last().copied().unwrap_or(1);
    let block_len = dtype.block_len();
    if row_len % block_len as u64 != 0 {
        let (tensor, dtype) = (name.to_owned(), dtype.0.name());
        return Err(HeaderError::RowLength { tensor, dtype, row_len, block_len });
    }
    // A row must be countable even where an outer dimension of zero makes the tensor empty.
    let row_bytes = (row_len / block_len as u64).checked_mul(dtype.block_bytes() as u64);
    row_bytes.and_then(|n| usize::try_from(n).ok()).ok_or_else(overflow)?;
    let blocks = elements / block_len as u64;
    let n_bytes = blocks.checked_mul(dtype.block_bytes() as u64).ok_or_else(overflow)?;
    let shape: Result<Vec<usize>, _> = shape.iter().map(|dim| usize::try_from(*dim)).collect();
    Ok((shape.map_err(|_| overflow())?, n_bytes))
}

/// Checks that the tensors, sorted by offset, cover the data area without overlap or hole.
fn check_cover(tensors: &[TensorInfo], data_start: u64, area: u64) -> Result<(), HeaderError> {
    let mut covered = 0;
    for (i, tensor) in tensors.iter().enumerate() {
        let begin = tensor.offset - data_start;
        if begin < covered {
            let previous = tensors[i - 1].name.clone();
            return Err(HeaderError::Overlap { tensor: tensor.name.clone(), begin, previous, end: covered });
        }
        if begin > covered {
            return Err(HeaderError::Hole { begin: covered, end: begin });
        }
        covered = begin + tensor.n_bytes;
    }
    if covered < area {
        return Err(HeaderError::Hole { begin: covered, end: area });
    }
    Ok(())
}

pub(super) fn unique(pairs: Vec<(String, String)>) -> Result<IndexMap<String, String>, HeaderError> {
    let mut map = IndexMap::with_capacity(pairs.len());
    for (key, value) in pairs {
        if map.contains_key(&key) {
            return Err(HeaderError::Duplicate { name: key });
        }
        map.insert(key, value);
    }
    Ok(map)
}

/// The JSON object as pairs, so that a name given twice can be seen.
#[derive(Default)]
struct Raw {
    metadata: Vec<(String, String)>,
    entries: Vec<(String, Entry)>,
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        struct RawVisitor;
        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name != "__metadata__" {
                        raw.entries.push((name, map.next_value()?));
                    } else if metadata.replace(map.next_value::<Strings>()?).is_some() {
                        return Err(serde::de::Error::custom("`__metadata__` occurs twice"));
                    }
                }
                raw.metadata = metadata.unwrap_or_default().0;
                Ok(raw)
            }
        }
        deserializer.deserialize_map(RawVisitor)
    }
}

/// A JSON object of strings as pairs.
#[derive(Default)]
pub(super) struct Strings(pub Vec<(String, String)>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strings, D::Error> {
        struct StringsVisitor;
        impl<'de> Visitor<'de> for StringsVisitor {
            type Value = Strings;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Strings(pairs))
            }
        }
        deserializer.deserialize_map(StringsVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a file: length, `json`, and `data` bytes.
    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut out = (json.len() as u64).to_le_bytes().to_vec();
        out.extend(json.as_bytes());
        out.resize(out.len() + data, 0);
        out
    }

    fn says(json: &str, data: usize) -> String {
        parse_header(&file(json, data)).expect_err("a hostile header").to_string()
    }

    fn tensor(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    fn one(shape: &str, begin: u64, end: u64) -> String {
        format!("{{{}}}", tensor("t", "F32", shape, begin, end))
    }

    #[test]
    fn valid_header_reads_back_in_the_order_of_the_data() {
        let json = format!(
            r#"{{"__metadata__":{{"format":"pt"}},{},{},{}}}"#,
            tensor("late", "F32", "[2,3]", 2, 26),
            tensor("early", "BF16", "[]", 0, 2),
            tensor("empty", "F32", "[0,7]", 26, 26)
        );
        let header = parse_header(&file(&json, 26)).unwrap();
        let names: Vec<_> = header.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["early", "late", "empty"]);
        let early = &header.tensors[0];
        assert_eq!((early.offset, early.n_bytes, early.n_elements()), (8 + json.len() as u64, 2, 1));
        assert_eq!(header.tensors[1].shape, [2, 3]);
        assert_eq!(header.metadata["format"], "pt");
    }

    #[test]
    fn the_safetensors_crate_and_this_parser_agree() {
        use safetensors::tensor::{Dtype, TensorView, serialize};
        let data = [0u8; 48];
        let view = |dtype, shape: &[usize], n| TensorView::new(dtype, shape.to_vec(), &data[..n]).unwrap();
        let tensors = [
            ("a", view(Dtype::F32, &[3, 4], 48)),
            ("b", view(Dtype::BF16, &[5], 10)),
            ("c", view(Dtype::U8, &[1], 1)),
        ];
        let bytes = serialize(tensors, None).unwrap();
        let (n, theirs) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let ours = parse_header(&bytes).unwrap();
        assert_eq!(ours.tensors.len(), 3);
        for tensor in &ours.tensors {
            let info = theirs.info(&tensor.name).unwrap();
            assert_eq!(tensor.shape, info.shape);
            let begin = tensor.offset as usize - 8 - n;
            assert_eq!((begin, begin + tensor.n_bytes as usize), info.data_offsets);
        }
    }

    #[test]
    fn lengths() {
        assert_eq!(
            parse_header(&[1, 2, 3]).unwrap_err().to_string(),
            "3 bytes long, too short for a safetensors header (8)"
        );
        let with_len = |n: u64| {
            let mut bytes = file("{}", 0);
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            parse_header(&bytes).unwrap_err()
        };
        assert_eq!(
            with_len(u64::MAX).to_string(),
            "the header claims 18446744073709551615 bytes, more than the 100000000 allowed"
        );
        assert_eq!(with_len(3).to_string(), "truncated: the header claims 3 bytes, but 2 follow");
        assert_eq!(with_len(3).hint().unwrap(), "the download is incomplete: fetch the file again");
        assert_eq!(with_len(0).to_string(), "the header is not valid: it does not begin with `{`");
    }

    #[test]
    fn not_json() {
        let mut bytes = file("{\"a\"}", 0);
        bytes[10] = 0xff;
        assert_eq!(parse_header(&bytes).unwrap_err(), HeaderError::NotUtf8 { at: 2 });
        for json in ["{", "[]", " {}", "{\"t\":1}", "{\"t\":{}}", "{} x"] {
            let error = parse_header(&file(json, 0)).unwrap_err();
            assert!(matches!(error, HeaderError::NotJson { .. }), "{json}: {error}");
        }
        let nested = format!("{{\"t\":{}", "[".repeat(100_000));
        assert!(matches!(parse_header(&file(&nested, 0)), Err(HeaderError::NotJson { .. })));
        assert_eq!(
            says(r#"{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4),
            "the header is not valid: invalid value: integer `-1`, expected u64 at line 1 column 31"
        );
    }

    #[test]
    fn duplicates() {
        let t = tensor("t", "F32", "[1]", 0, 4);
        let u = tensor("t", "F32", "[1]", 4, 8);
        assert_eq!(says(&format!("{{{t},{u}}}"), 8), "`t` occurs twice");
        assert!(says(r#"{"__metadata__":{},"__metadata__":{}}"#, 0).contains("`__metadata__` occurs twice"));
        assert_eq!(says(r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0), "`a` occurs twice");
        let dtype_twice = r#"{"t":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}"#;
        assert!(says(dtype_twice, 4).contains("duplicate field `dtype`"));
    }

    #[test]
    fn unknown_dtype_lists_the_known() {
        let json = format!("{{{}}}", tensor("t", "F99", "[1]", 0, 4));
        let error = parse_header(&file(&json, 4)).unwrap_err();
        assert_eq!(error.to_string(), "`t`: unknown dtype `F99`");
        let hint = error.hint().unwrap();
        assert!(hint.starts_with("known dtypes: ") && hint.contains("BF16"), "{hint}");
    }

    #[test]
    fn offsets() {
        assert_eq!(says(&one("[1]", 8, 4), 8), "`t`: data_offsets [8, 4] run backwards");
        assert_eq!(says(&one("[1]", 0, 4), 3), "`t`: data ends at byte 4 of the data area, which has 3");
        let end = u64::MAX;
        assert_eq!(
            says(&one("[1]", 0, end), 4),
            format!("`t`: data ends at byte {end} of the data area, which has 4")
        );
        assert_eq!(says(&one("[1]", 4, 8), 8), "bytes 0..4 of the data area belong to no tensor");
        assert_eq!(says(&one("[1]", 0, 4), 9), "bytes 4..9 of the data area belong to no tensor");
        let t = tensor("t", "F32", "[2]", 0, 8);
        let u = tensor("u", "F32", "[2]", 4, 12);
        assert_eq!(says(&format!("{{{t},{u}}}"), 12), "`u` begins at byte 4, inside `t`, which ends at 8");
        let v = tensor("v", "F32", "[2]", 12, 20);
        assert_eq!(says(&format!("{{{t},{v}}}"), 20), "bytes 8..12 of the data area belong to no tensor");
    }

    #[test]
    fn sizes() {
        assert_eq!(
            says(&one("[2,2]", 0, 12), 12),
            "`t`: data_offsets hold 12 bytes, but shape [2, 2] of F32 needs 16"
        );
        for shape in [
            "[4294967296,4294967296]",
            "[9223372036854775808]",
            "[18446744073709551615,2]",
            "[0,9223372036854775808]",
        ] {
            let error = parse_header(&file(&one(shape, 0, 0), 0)).unwrap_err();
            assert!(matches!(error, HeaderError::Overflow { .. }), "{shape}: {error}");
        }
    }

    #[test]
    fn rows_must_be_whole_blocks() {
        // No dtype of today's safetensors has blocks; F4 and its kin would.
        let blocks_of_32 = format::by_name("Q8_1").unwrap();
        let error = size_of("t", blocks_of_32, &[32, 33]).unwrap_err();
        assert_eq!(error.to_string(), "`t`: row length 33 is not a multiple of 32 (block of `Q8_1`)");
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = file(&one("[3]", 0, 12), 12);
        assert!(parse_header(&bytes).is_ok());
        for n in 0..bytes.len() {
            assert!(parse_header(&bytes[..n]).is_err(), "cut to {n} bytes");
        }
    }
}
