//! SHA-256 over a tokenizer's vocabulary and settings.

use sha2::{Digest as _, Sha256};

use crate::tensor::gguf::{Array, Value};

/// A digest of values, each with its length, so that no two sequences of values write the same bytes.
#[derive(Default)]
pub struct Digest(Sha256);

impl Digest {
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    /// Adds a metadata value of a kind that tokenizer keys have; others by their debug form.
    pub fn value(&mut self, value: &Value) {
        self.number(value.type_id().into());
        match value {
            Value::String(text) => self.text(text),
            Value::Bool(flag) => self.number((*flag).into()),
            Value::Array(Array::String(texts)) => {
                self.number(texts.len() as u64);
                texts.iter().for_each(|text| self.text(text));
            }
            Value::Array(Array::F32(numbers)) => {
                self.number(numbers.len() as u64);
                numbers.iter().for_each(|number| self.number(number.to_bits().into()));
            }
            Value::Array(Array::I32(numbers)) => {
                self.number(numbers.len() as u64);
                numbers.iter().for_each(|number| self.number(*number as u64));
            }
            other => match other.as_u64() {
                Some(number) => self.number(number),
                None => self.text(&format!("{other:?}")),
            },
        }
    }

    /// Returns the digest in lower-case hexadecimal.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
