//! The binary `.dat` form of importance matrices that llama-imatrix wrote before it turned to GGUF.
//!
//! Little-endian: `i32 n_entries`; per entry `i32 len`, name, `i32 n_calls`, `i32 n_values`, f32 values;
//! then, optionally, `i32 n_chunks`, `i32 len`, data set name.

use super::{Parsed, ParsedEntry};

/// What a legacy file can say wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LegacyError {
    #[error("{what} at byte {at}: {need} bytes expected, {left} left")]
    Truncated { what: &'static str, at: usize, need: usize, left: usize },

    #[error("{what} at byte {at} is {value}")]
    BadCount { what: &'static str, at: usize, value: i32 },

    #[error("entry name at byte {at} is not UTF-8")]
    NotUtf8 { at: usize },
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], LegacyError> {
        let left = self.bytes.len() - self.at;
        if n > left {
            return Err(LegacyError::Truncated { what, at: self.at, need: n, left });
        }
        self.at += n;
        Ok(&self.bytes[self.at - n..self.at])
    }

    fn i32(&mut self, what: &'static str) -> Result<i32, LegacyError> {
        let bytes = self.take(4, what)?;
        Ok(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Returns a count that is at least `least`.
    fn count(&mut self, what: &'static str, least: i32) -> Result<usize, LegacyError> {
        let at = self.at;
        let value = self.i32(what)?;
        usize::try_from(value).ok().filter(|_| value >= least).ok_or(LegacyError::BadCount {
            what,
            at,
            value,
        })
    }

    fn text(&mut self, len: usize, what: &'static str) -> Result<String, LegacyError> {
        let at = self.at;
        let bytes = self.take(len, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| LegacyError::NotUtf8 { at })
    }
}

/// Returns what is in a legacy file.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, LegacyError> {
    let mut cursor = Cursor { bytes, at: 0 };
    let n_entries = cursor.count("entry count", 1)?;
    let mut parsed = Parsed { is_legacy: true, ..Parsed::default() };
    for _ in 0..n_entries {
        let name_len = cursor.count("name length", 1)?;
        let name = cursor.text(name_len, "entry name")?;
        let n_calls = cursor.i32("call count")?;
        let n_values = cursor.count("value count", 1)?;
        // n_values < 2^31, so the product fits where usize has 64 bits; take() refuses it elsewhere
        let data = cursor.take(n_values.saturating_mul(4), "values")?;
        let squares = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        parsed.entries.push(ParsedEntry { name, squares, values: None, counts: vec![n_calls as f32] });
    }
    if cursor.at < bytes.len() {
        let n_chunks = cursor.i32("chunk count")?;
        parsed.n_chunks = u32::try_from(n_chunks).ok().filter(|&n| n > 0);
    }
    if cursor.at < bytes.len() {
        let len = cursor.count("data set name length", 0)?;
        if len > 0 {
            parsed.datasets.push(cursor.text(len, "data set name")?);
        }
    }
    Ok(parsed)
}

/// Returns an entry's values divided by its number of calls, if it has one.
pub(super) fn per_call(mut values: Vec<f32>, n_calls: &[f32]) -> Vec<f32> {
    let divisor = n_calls.first().copied().filter(|n| *n > 0.0).unwrap_or(1.0);
    values.iter_mut().for_each(|value| *value /= divisor);
    values
}
