//! Metadata values for display: long arrays abbreviated, numbers as they were meant.

use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::tensor::gguf::{Array, Value};

/// Elements of an array that are shown.
const SHOWN_ELEMENTS: usize = 8;

/// A key, its type and its value; of an array the first eight elements.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeyView {
    pub key: String,
    /// `u32`, `string`, `string[32000]`, ...; `json` for an entry of config.json.
    #[serde(rename = "type")]
    pub kind: String,
    pub value: Json,
}

impl KeyView {
    pub(super) fn text(key: &str, value: &str) -> KeyView {
        KeyView { key: key.to_owned(), kind: "string".to_owned(), value: json!(value) }
    }

    pub(super) fn json(key: &str, value: &Json) -> KeyView {
        KeyView { key: key.to_owned(), kind: "json".to_owned(), value: value.clone() }
    }

    /// Returns true if elements are left out of `value`.
    pub fn is_abbreviated(&self) -> bool {
        self.kind.ends_with(']')
            && self.value.as_array().is_some_and(|shown| !self.kind.ends_with(&format!("[{}]", shown.len())))
    }
}

/// Returns the view of a GGUF value.
pub fn key_view(key: &str, value: &Value) -> KeyView {
    let kind = match value {
        Value::Array(array) => format!("{}[{}]", array.type_name(), array.len()),
        other => other.type_name().to_owned(),
    };
    KeyView { key: key.to_owned(), kind, value: to_json(value) }
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F32(v) => float(*v),
        Value::F64(v) => double(*v),
        Value::Bool(v) => json!(v),
        Value::String(text) => json!(text),
        Value::Array(array) => array_to_json(array),
    }
}

/// The shortest decimal that is this f32, not the f64 beside it: 1e-5, not 9.999999747378752e-6.
fn float(value: f32) -> Json {
    match value.is_finite() {
        true => json!(value.to_string().parse::<f64>().unwrap_or(value.into())),
        false => json!(value.to_string()),
    }
}

fn double(value: f64) -> Json {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

fn array_to_json(array: &Array) -> Json {
    fn first<T>(items: &[T], show: impl Fn(&T) -> Json) -> Json {
        items.iter().take(SHOWN_ELEMENTS).map(show).collect()
    }
    match array {
        Array::U8(v) => first(v, |v| json!(v)),
        Array::I8(v) => first(v, |v| json!(v)),
        Array::U16(v) => first(v, |v| json!(v)),
        Array::I16(v) => first(v, |v| json!(v)),
        Array::U32(v) => first(v, |v| json!(v)),
        Array::I32(v) => first(v, |v| json!(v)),
        Array::U64(v) => first(v, |v| json!(v)),
        Array::I64(v) => first(v, |v| json!(v)),
        Array::F32(v) => first(v, |v| float(*v)),
        Array::F64(v) => first(v, |v| double(*v)),
        Array::Bool(v) => first(v, |v| json!(v)),
        Array::String(v) => first(v, |v| json!(v)),
        Array::Array(v) => first(v, array_to_json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_arrays_are_abbreviated_and_floats_are_shortest() {
        let view = key_view("k", &Value::Array(Array::U32((0..10).collect())));
        assert_eq!((view.kind.as_str(), &view.value), ("u32[10]", &json!([0, 1, 2, 3, 4, 5, 6, 7])));
        assert!(view.is_abbreviated());
        assert!(!key_view("k", &Value::Array(Array::U32((0..8).collect()))).is_abbreviated());
        assert_eq!(key_view("k", &Value::F32(1e-5)).value.to_string(), "0.00001");
        assert_eq!(key_view("k", &Value::F32(f32::NAN)).value, json!("NaN"));
        assert_eq!(key_view("k", &Value::F32(500000.0)).value, json!(500000.0));
    }
}
