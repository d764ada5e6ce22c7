//! Hostile headers, built byte by byte, and what the reader says of each.

use super::header::{HeaderError, parse_header};
use super::value::{Array, Value};
use crate::error::Diagnostic;

/// A GGUF file under construction. Nothing is checked: that is the point.
#[derive(Clone, Default)]
struct File {
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
    n_keys: Option<u64>,
    n_tensors: Option<u64>,
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

fn tensor(name: &str, dims: &[u64], id: u32, offset: u64) -> Vec<u8> {
    let mut out = string(name.as_bytes());
    out.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
    out.extend(id.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

impl File {
    fn key(mut self, name: &str, id: u32, value: &[u8]) -> File {
        self.keys.push([&string(name.as_bytes()), &id.to_le_bytes()[..], value].concat());
        self
    }

    fn tensor(mut self, name: &str, dims: &[u64], id: u32, offset: u64) -> File {
        self.tensors.push(tensor(name, dims, id, offset));
        self
    }

    fn data(mut self, n: usize) -> File {
        self.data = vec![7; n];
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        out.extend(self.tensors.concat());
        if !self.data.is_empty() {
            out.resize(out.len().next_multiple_of(32), 0);
        }
        out.extend(&self.data);
        out
    }

    fn error(&self) -> HeaderError {
        parse_header(&self.bytes()).expect_err("a hostile header")
    }

    /// Returns the message of the error.
    fn says(&self) -> String {
        self.error().to_string()
    }
}

fn array(id: u32, n: u64, elements: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes()[..], &n.to_le_bytes(), elements].concat()
}

const F32: u32 = 0;
const Q8_1: u32 = 9;

#[test]
fn valid_file_reads_back() {
    let file = File::default()
        .key("a", 4, &7u32.to_le_bytes())
        .key("b", 9, &array(8, 2, &[string(b"x"), string(b"yz")].concat()))
        .tensor("t", &[8, 2], F32, 0)
        .tensor("u", &[1], F32, 64)
        .data(68);
    let header = parse_header(&file.bytes()).unwrap();
    assert_eq!((header.version, header.alignment), (3, 32));
    assert_eq!(header.metadata["a"], Value::U32(7));
    assert_eq!(header.metadata["b"], Value::Array(Array::String(vec!["x".into(), "yz".into()])));
    let [t, u] = &header.tensors[..] else { panic!("two tensors") };
    assert_eq!((t.name.as_str(), &t.shape[..], t.n_bytes), ("t", &[2, 8][..], 64));
    assert_eq!((u.offset - t.offset, u.n_bytes), (64, 4));
    assert_eq!(t.offset, header.data_offset);
    assert_eq!(t.offset % 32, 0);
}

#[test]
fn version_2_reads_and_no_tensors_are_valid() {
    let mut bytes = File::default().key("a", 7, &[1]).bytes();
    bytes[4] = 2;
    let header = parse_header(&bytes).unwrap();
    assert_eq!((header.version, header.tensors.len()), (2, 0));
    assert_eq!(header.data_offset, bytes.len() as u64);
}

#[test]
fn final_padding_may_be_absent_and_more_bytes_may_follow() {
    let file = File::default().tensor("t", &[3], F32, 0);
    assert!(parse_header(&file.clone().data(12).bytes()).is_ok());
    assert!(parse_header(&file.clone().data(32).bytes()).is_ok());
    assert_eq!(file.data(11).says(), "truncated: `t` ends at byte 76, but the file has 75",);
}

#[test]
fn magic_and_version() {
    let valid = File::default().bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = valid.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        parse_header(&file).unwrap_err()
    };
    assert_eq!(with(0, b"GGML").to_string(), "not a GGUF file: it begins with [47, 47, 4d, 4c], not `GGUF`");
    assert_eq!(with(4, &[0, 0, 0, 3]).to_string(), "a big-endian GGUF file (version bytes [00, 00, 00, 03])");
    assert!(with(4, &[0, 0, 0, 3]).hint().unwrap().contains("gguf_convert_endian.py"));
    assert_eq!(with(4, &[1]).to_string(), "GGUF version 1; versions 2 and 3 are read");
    assert_eq!(with(4, &[1]).hint().unwrap(), "convert the original checkpoint again");
    assert_eq!(with(4, &[4]), HeaderError::Version { version: 4 });
    assert_eq!(with(4, &[0]), HeaderError::Version { version: 0 });
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = File::default()
        .key("key", 8, &string(b"value"))
        .key("arr", 9, &array(5, 2, &[0; 8]))
        .key("nested", 9, &array(9, 1, &array(7, 1, &[1])))
        .tensor("t", &[4], F32, 0)
        .data(16)
        .bytes();
    assert!(parse_header(&bytes).is_ok());
    for n in 0..bytes.len() {
        assert!(parse_header(&bytes[..n]).is_err(), "cut to {n} bytes");
    }
    assert_eq!(
        parse_header(&bytes[..6]).unwrap_err().to_string(),
        "truncated at byte 4: the version needs 4 bytes, 2 are left"
    );
}

#[test]
fn counts_beyond_the_file() {
    let file = File::default().key("a", 7, &[1]).tensor("t", &[1], F32, 0).data(4);
    let keys = File { n_keys: Some(u64::MAX), ..file.clone() };
    assert_eq!(
        keys.says(),
        "the header claims 18446744073709551615 keys, but 76 bytes are left, too few for them"
    );
    let tensors = File { n_tensors: Some(1 << 40), ..file.clone() };
    assert_eq!(
        tensors.says(),
        "the header claims 1099511627776 tensors, but 76 bytes are left, too few for them"
    );
    // -1 read as i64, as the reference declares it.
    assert!(matches!(File { n_tensors: Some(u64::MAX), ..file }.error(), HeaderError::Count { .. }));
}

#[test]
fn string_lengths_beyond_the_file() {
    for n in [u64::MAX, 1 << 62, 1000] {
        let value = [&n.to_le_bytes()[..], b"abc"].concat();
        let error = File::default().key("k", 8, &value).error();
        assert!(matches!(error, HeaderError::Truncated { needed, left: 3, .. } if needed == n), "{error}");
    }
    let mut file = File::default();
    file.keys.push([&u64::MAX.to_le_bytes()[..], &[0; 64]].concat());
    assert_eq!(file.says(), "truncated at byte 32: a key needs 18446744073709551615 bytes, 64 are left");
}

#[test]
fn array_lengths_beyond_the_file() {
    // Lengths whose product with the element size overflows u64 too.
    for (id, n) in [(0, 17), (4, u64::MAX), (10, 1 << 61), (8, 3), (9, 2), (12, u64::MAX / 8 + 2)] {
        let error = File::default().key("k", 9, &array(id, n, &[0; 16])).error();
        let left = 16;
        assert_eq!(error, HeaderError::ArrayLength { key: "k".into(), claimed: n, left });
    }
}

#[test]
fn nesting_has_a_limit() {
    let nested = |depth: usize| {
        let mut value = array(0, 1, &[9]);
        for _ in 1..depth {
            value = array(9, 1, &value);
        }
        parse_header(&File::default().key("k", 9, &value).bytes())
    };
    assert!(nested(4).is_ok());
    assert_eq!(nested(5).unwrap_err().to_string(), "key `k`: arrays nested deeper than 4");
    // Deep enough to exhaust the stack, were it not refused.
    assert_eq!(nested(10_000).unwrap_err(), HeaderError::TooDeep { key: "k".into() });
}

#[test]
fn bad_values() {
    let bool = File::default().key("k", 7, &[2]);
    assert_eq!(bool.says(), "key `k`: 2 is not a bool (0 or 1)");
    let bools = File::default().key("k", 9, &array(7, 3, &[0, 1, 255]));
    assert_eq!(bools.says(), "key `k`: 255 is not a bool (0 or 1)");
    let id = File::default().key("k", 13, &[0; 8]);
    assert_eq!(id.says(), "key `k`: unknown value type 13");
    let element = File::default().key("k", 9, &array(13, 0, &[]));
    assert_eq!(element.says(), "key `k`: unknown value type 13");
    let text = File::default().key("k", 8, &string(b"ab\xff"));
    assert_eq!(text.says(), "k: not valid UTF-8 at byte 47");
}

#[test]
fn empty_and_duplicate_keys() {
    assert_eq!(File::default().key("", 7, &[1]).says(), "key 0 is empty");
    let twice = File::default().key("k", 7, &[1]).key("k", 7, &[0]);
    assert_eq!(twice.says(), "key `k` occurs twice");
}

#[test]
fn alignment_must_be_a_power_of_two_in_range() {
    let with = |alignment: u32| File::default().key("general.alignment", 4, &alignment.to_le_bytes());
    for bad in [0, 3, 33, 1 << 21, 1 << 31, u32::MAX] {
        assert_eq!(with(bad).error(), HeaderError::Alignment { alignment: bad });
    }
    for good in [1, 8, 64, 4096] {
        assert_eq!(parse_header(&with(good).bytes()).unwrap().alignment, good);
    }
    let wrong = File::default().key("general.alignment", 10, &32u64.to_le_bytes());
    assert_eq!(wrong.says(), "key `general.alignment` must be a u32, but is u64");
}

#[test]
fn tensor_names() {
    let named = |name: &str| File::default().tensor(name, &[1], F32, 0).data(4);
    assert_eq!(named("").says(), "tensor 0 has no name");
    assert!(parse_header(&named(&"n".repeat(63)).bytes()).is_ok());
    assert_eq!(
        named(&"n".repeat(64)).says(),
        "tensor 0: its name is 64 bytes long; it must be shorter than 64"
    );
    let twice = File::default().tensor("t", &[8], F32, 0).tensor("t", &[8], F32, 32).data(64);
    assert_eq!(twice.says(), "tensor `t` occurs twice");
    let mut invalid = File::default().data(4);
    let mut bytes = tensor("t", &[1], F32, 0);
    bytes[8] = 0xff;
    invalid.tensors.push(bytes);
    assert_eq!(invalid.says(), "the name of tensor 0: not valid UTF-8 at byte 32");
}

#[test]
fn tensor_dimensions() {
    let shaped = |dims: &[u64]| File::default().tensor("t", dims, F32, 0).data(64);
    assert_eq!(shaped(&[]).says(), "`t`: 0 dimensions; 1 to 4 are allowed");
    assert_eq!(shaped(&[1; 5]).says(), "`t`: 5 dimensions; 1 to 4 are allowed");
    let mut many = File::default().data(64);
    let mut bytes = tensor("t", &[1; 4], F32, 0);
    bytes[9..13].copy_from_slice(&u32::MAX.to_le_bytes());
    many.tensors.push(bytes);
    assert_eq!(many.error(), HeaderError::Dimensions { tensor: "t".into(), n_dims: u32::MAX });
    assert_eq!(
        shaped(&[4, 0]).says(),
        "`t`: shape [0, 4] (innermost last) has a dimension that is zero or too large"
    );
    assert!(matches!(shaped(&[u64::MAX, 1]).error(), HeaderError::BadDimension { .. }));
}

#[test]
fn tensor_sizes_overflow() {
    let shaped = |dims: &[u64]| File::default().tensor("t", dims, F32, 0).data(64).error();
    // Elements: 2^64 wraps to 0; 2^63 leaves i64. Bytes: 2^62 elements of 4 bytes.
    for dims in [&[1 << 32, 1 << 32][..], &[1 << 62, 2], &[1 << 62], &[1 << 16; 4]] {
        assert!(matches!(shaped(dims), HeaderError::Overflow { .. }), "{dims:?}: {}", shaped(dims));
    }
    // Representable, but more than the file has.
    assert!(matches!(shaped(&[1 << 60]), HeaderError::DataTruncated { .. }));
}

#[test]
fn sums_of_sizes_overflow() {
    // Each tensor fits i64; the third would begin beyond u64.
    let half = 1u64 << 62;
    let i8_id = 24;
    let file = File::default()
        .tensor("a", &[half], i8_id, 0)
        .tensor("b", &[half], i8_id, half)
        .tensor("c", &[half], i8_id, 2 * half)
        .data(64);
    assert!(matches!(file.error(), HeaderError::DataTruncated { tensor, .. } if tensor == "a"));
}

#[test]
fn unknown_tensor_types_are_named() {
    for id in [4, 5, 31, 36, 200, u32::MAX] {
        let error = File::default().tensor("t", &[32], id, 0).data(64).error();
        assert_eq!(error, HeaderError::TensorType { tensor: "t".into(), id });
        assert!(error.hint().is_some());
    }
}

#[test]
fn rows_must_be_whole_blocks() {
    let file = File::default().tensor("t", &[33, 32], Q8_1, 0).data(4096);
    assert_eq!(file.says(), "`t`: row length 33 is not a multiple of 32 (block of Q8_1)");
}

#[test]
fn offsets_must_follow_each_other() {
    let two = |second: u64| File::default().tensor("a", &[5], F32, 0).tensor("b", &[5], F32, second).data(64);
    assert!(parse_header(&two(32).bytes()).is_ok());
    // Overlap, unaligned, a hole, backwards, absurd.
    for bad in [0, 20, 64, 16, u64::MAX] {
        assert_eq!(two(bad).error(), HeaderError::Offset { tensor: "b".into(), found: bad, expected: 32 });
    }
    let first = File::default().tensor("a", &[5], F32, 32).data(64);
    assert_eq!(first.says(), "`a`: data offset 32, but 0 was expected after the tensor before it");
}

#[test]
fn every_single_byte_change_is_survived() {
    let bytes = File::default()
        .key("general.alignment", 4, &32u32.to_le_bytes())
        .key("s", 8, &string(b"text"))
        .key("a", 9, &array(9, 2, &[array(1, 2, &[1, 2]), array(8, 1, &string(b"q"))].concat()))
        .tensor("t", &[32, 2], Q8_1, 0)
        .tensor("u", &[3], F32, 96)
        .data(108)
        .bytes();
    let valid = parse_header(&bytes).unwrap();
    let mut refused = 0;
    for at in 0..bytes.len() - 108 {
        for flip in [1, 0x80, 0xff] {
            let mut file = bytes.clone();
            file[at] ^= flip;
            match parse_header(&file) {
                Ok(header) => {
                    assert!(header.tensors.iter().all(|t| t.offset + t.n_bytes <= file.len() as u64));
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 200, "only {refused} of the changes were refused");
    assert_eq!(valid.tensors.len(), 2);
}

#[test]
fn a_vocabulary_of_262144_tokens_parses() {
    let n = 1u64 << 18;
    let tokens: Vec<u8> = (0..n).flat_map(|i| string(format!("token{i}").as_bytes())).collect();
    let scores = vec![0; 4 * n as usize];
    let file = File::default().key("tokenizer.ggml.tokens", 9, &array(8, n, &tokens)).key(
        "tokenizer.ggml.scores",
        9,
        &array(6, n, &scores),
    );
    let header = parse_header(&file.bytes()).unwrap();
    let Value::Array(Array::String(read)) = &header.metadata["tokenizer.ggml.tokens"] else {
        panic!("an array of strings")
    };
    assert_eq!((read.len(), read[77_777].as_str()), (n as usize, "token77777"));
}
