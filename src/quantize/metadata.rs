//! The keys of the output: the source's, what the quantizer adds, what the user overrides.

use super::importance::Importance;
use super::{Error, Recipe};
use crate::tensor::gguf::{Metadata, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, Value};

const FILE_TYPE: &str = "general.file_type";
const QUANTIZATION_VERSION: &str = "general.quantization_version";

/// Version of the block layouts that `general.quantization_version` announces (ggml's `GGML_QNT_VERSION`).
const BLOCK_LAYOUTS: u32 = 2;

/// Whose order of tensors and keys the output has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The reference converter's: tensors and keys as the checkpoint's mapping gives them.
    Converter,
    /// The reference quantizer's: tensors by block and name; what it sets moves behind all other keys.
    Quantizer,
}

/// One `--override-kv`.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    pub key: String,
    pub value: Value,
}

impl Override {
    /// Returns the override in `KEY=TYPE:VALUE`; TYPE is `int` (stored as u32), `float` (f32), `bool` or `str`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = |why: String| Error::BadOverride { given: text.to_owned(), why };
        let (key, typed) = text.split_once('=').ok_or_else(|| bad("`=` is missing".into()))?;
        if key.is_empty() {
            return Err(bad("the key is missing".into()));
        }
        let (kind, value) = typed.split_once(':').ok_or_else(|| bad("`TYPE:` is missing".into()))?;
        let value = match kind {
            "int" => value
                .parse()
                .ok()
                .map(Value::U32)
                .ok_or_else(|| bad(format!("`{value}` is no number from 0 to {}", u32::MAX)))?,
            "float" => {
                let parsed = value.parse::<f64>().ok().map(|v| v as f32).filter(|v| v.is_finite());
                Value::F32(parsed.ok_or_else(|| bad(format!("`{value}` is no number that an f32 holds")))?)
            }
            "bool" => value
                .parse()
                .map(Value::Bool)
                .map_err(|_| bad(format!("`{value}` is neither true nor false")))?,
            "str" => Value::from(value),
            _ => return Err(bad(format!("`{kind}` is none of int, float, bool, str"))),
        };
        Ok(Override { key: key.to_owned(), value })
    }
}

/// Errors if an override gives a key of the source another kind of value, or sets what shards are told by.
pub(super) fn check_overrides(source: &Metadata, overrides: &[Override]) -> Result<(), Error> {
    for Override { key, value } in overrides {
        if [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS].contains(&key.as_str()) {
            return Err(Error::OverrideSplit { key: key.clone() });
        }
        if let Some(old) = source.get(key).filter(|old| kind(old) != kind(value)) {
            let (found, given) = (kind(old), kind(value));
            return Err(Error::OverrideType { key: key.clone(), found, given });
        }
    }
    Ok(())
}

/// What a reader tells apart: integers of any width are one kind.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::F32(_) | Value::F64(_) => "a float",
        Value::Bool(_) => "a bool",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        _ => "an integer",
    }
}

/// Returns the source's keys with the overrides, last one of a key first: what a plan looks at.
pub(super) fn overridden(source: &Metadata, overrides: &[Override]) -> Metadata {
    let mut keys = source.clone();
    overrides.iter().for_each(|o| move_to_end(&mut keys, &o.key, o.value.clone()));
    keys
}

/// Returns the keys of the output.
pub(super) fn finished(
    source: &Metadata,
    layout: Layout,
    recipe: &Recipe,
    overrides: &[Override],
    importance: Option<&Importance>,
) -> Metadata {
    let mut keys = source.clone();
    match layout {
        Layout::Converter => {
            keys.insert(FILE_TYPE.to_owned(), Value::U32(recipe.file_type));
        }
        Layout::Quantizer => {
            move_to_end(&mut keys, QUANTIZATION_VERSION, Value::U32(BLOCK_LAYOUTS));
            move_to_end(&mut keys, FILE_TYPE, Value::U32(recipe.file_type));
        }
    }
    for key in [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS] {
        keys.shift_remove(key);
    }
    let mut keys = overridden(&keys, overrides);
    for (key, value) in importance.map(Importance::metadata).unwrap_or_default() {
        move_to_end(&mut keys, &key, value);
    }
    keys
}

fn move_to_end(keys: &mut Metadata, key: &str, value: Value) {
    keys.shift_remove(key);
    keys.insert(key.to_owned(), value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_have_the_references_types() {
        let parse = |text| Override::parse(text).map(|o| (o.key, o.value));
        assert_eq!(parse("a.b=int:7").unwrap(), ("a.b".into(), Value::U32(7)));
        assert_eq!(parse("a=float:1e-5").unwrap(), ("a".into(), Value::F32(1e-5)));
        assert_eq!(parse("a=bool:true").unwrap(), ("a".into(), Value::Bool(true)));
        assert_eq!(parse("a=str:x=y:z").unwrap(), ("a".into(), Value::from("x=y:z")));
        for (text, why) in [
            ("a", "`=` is missing"),
            ("=int:1", "the key is missing"),
            ("a=1", "`TYPE:` is missing"),
            ("a=int:-1", "`-1` is no number from 0 to 4294967295"),
            ("a=float:x", "`x` is no number that an f32 holds"),
            ("a=float:1e39", "`1e39` is no number that an f32 holds"),
            ("a=bool:1", "`1` is neither true nor false"),
            ("a=u8:1", "`u8` is none of int, float, bool, str"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), format!("--override-kv {text}: {why}"));
        }
    }

    #[test]
    fn the_quantizers_keys_move_behind_the_others() {
        let mut source = Metadata::new();
        for (key, value) in [
            (FILE_TYPE, Value::U32(1)),
            ("split.no", Value::U16(0)),
            ("a", Value::U32(1)),
            ("b", Value::U32(2)),
        ] {
            source.insert(key.to_owned(), value);
        }
        let overrides = [Override { key: "a".into(), value: Value::U32(9) }];
        let recipe = Recipe::by_name("Q4_K_M").unwrap();
        let keys = finished(&source, Layout::Quantizer, recipe, &overrides, None);
        let expected: Vec<(&str, Value)> = vec![
            ("b", Value::U32(2)),
            (QUANTIZATION_VERSION, Value::U32(2)),
            (FILE_TYPE, Value::U32(15)),
            ("a", Value::U32(9)),
        ];
        assert_eq!(keys.iter().map(|(k, v)| (k.as_str(), v.clone())).collect::<Vec<_>>(), expected);
        let keys = finished(&source, Layout::Converter, Recipe::by_name("BF16").unwrap(), &[], None);
        assert_eq!(keys.keys().collect::<Vec<_>>(), [FILE_TYPE, "a", "b"]);
        assert_eq!(keys[FILE_TYPE], Value::U32(32));
    }
}
