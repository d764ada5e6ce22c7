//! config.json as transformers understands it: nested text config flattened, the family's defaults
//! filled in, rope settings in one place whatever the spelling of their year.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Error;
use super::arch::{Default, HfClass};

/// The hyperparameters of one checkpoint.
pub(super) struct Hparams {
    values: Map<String, Value>,
    /// Rope settings of full attention: `rope_theta`, `rope_type`, `factor`, ...
    pub rope: Map<String, Value>,
    /// `rope_theta` of sliding-window layers, where it differs (Gemma 3).
    pub rope_theta_swa: Option<f64>,
    path: PathBuf,
}

impl Hparams {
    /// Reads `config` (the contents of `path`) as a config of `class`.
    ///
    /// Errors on a value of the wrong type where an object is needed.
    pub fn new(config: &Value, class: &HfClass, path: &Path) -> Result<Self, Error> {
        let mut values = flatten(config, path)?;
        for (key, default) in class.defaults {
            let value = match default {
                // a null is an answer: it turns a soft cap or a sliding window off
                _ if values.get(*key).is_some_and(|value| !value.is_null()) => continue,
                Default::SameAs(other) => values.get(*other).cloned().unwrap_or(Value::Null),
                Default::HeadDim => head_dim(&values).map_or(Value::Null, Value::from),
                _ if values.contains_key(*key) => continue,
                Default::Int(value) => Value::from(*value),
                Default::Float(value) => Value::from(*value),
                Default::Bool(value) => Value::from(*value),
            };
            values.insert((*key).to_owned(), value);
        }
        let mut hparams =
            Hparams { values, rope: Map::new(), rope_theta_swa: None, path: path.to_path_buf() };
        hparams.collect_rope(class)?;
        Ok(hparams)
    }

    /// Gathers the rope settings from `rope_parameters` (flat, or nested by attention type),
    /// or from `rope_scaling`, `rope_theta` and `rope_local_base_freq`.
    fn collect_rope(&mut self, class: &HfClass) -> Result<(), Error> {
        let nested = |map: &Map<String, Value>| map.contains_key("full_attention");
        let given = self.object("rope_scaling")?.or(self.object("rope_parameters")?).unwrap_or_default();
        let mut rope = if nested(&given) {
            let inner = |key: &str| given.get(key).and_then(Value::as_object).cloned();
            self.rope_theta_swa =
                inner("sliding_attention").and_then(|map| map.get("rope_theta").and_then(Value::as_f64));
            inner("full_attention").unwrap_or_default()
        } else {
            given
        };
        if let Some(kind) = rope.get("type").cloned() {
            rope.entry("rope_type").or_insert(kind);
        }
        let theta = self.f64("rope_theta")?.unwrap_or(class.rope_theta);
        rope.entry("rope_theta").or_insert(theta.into());
        if let Some(factor) = self.get("partial_rotary_factor").cloned() {
            rope.entry("partial_rotary_factor").or_insert(factor);
        }
        if let Some(length) = self.get("original_max_position_embeddings").cloned() {
            rope.insert("original_max_position_embeddings".to_owned(), length);
        } else if let Some(length) = self.get("max_position_embeddings").cloned() {
            rope.entry("original_max_position_embeddings").or_insert(length);
        }
        self.rope = rope;
        if self.rope_theta_swa.is_none() {
            self.rope_theta_swa = self.f64("rope_local_base_freq")?.or(class.rope_theta_swa);
        }
        Ok(())
    }

    fn object(&self, key: &str) -> Result<Option<Map<String, Value>>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) if map.is_empty() => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map.clone())),
            Some(other) => Err(self.bad(key, other, "an object")),
        }
    }

    /// Returns the value under `key`, if it is there and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Returns a count or length. Errors if it is no non-negative integer.
    pub fn int(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let int = value.as_u64().filter(|int| *int <= u64::from(u32::MAX));
        int.map(|int| Some(int as usize)).ok_or_else(|| self.bad(key, value, "an integer in 0..2^32"))
    }

    /// Returns the first of `keys` that is there; errors if none is.
    pub fn require_int(&self, keys: &[&str]) -> Result<usize, Error> {
        for key in keys {
            if let Some(int) = self.int(key)? {
                return Ok(int);
            }
        }
        Err(Error::MissingKey { path: self.path.clone(), key: keys[0].to_owned() })
    }

    /// Like [`Hparams::require_int`], but 0 is an error too.
    pub fn require_positive(&self, keys: &[&str]) -> Result<usize, Error> {
        match self.require_int(keys)? {
            0 => Err(self.bad(keys[0], &Value::from(0), "a positive integer")),
            int => Ok(int),
        }
    }

    pub fn f64(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        self.number(key, value).map(Some)
    }

    /// Every number ends up as f32, where `1e39` would be infinite.
    fn number(&self, key: &str, value: &Value) -> Result<f64, Error> {
        let number = value.as_f64().ok_or_else(|| self.bad(key, value, "a number"))?;
        match (number as f32).is_finite() {
            true => Ok(number),
            false => Err(self.bad(key, value, "a number that an f32 holds")),
        }
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.bad(key, value, "true or false"))
    }

    /// Returns a number among the rope settings.
    pub fn rope_f64(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.rope.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        self.number(&format!("rope_parameters.{key}"), value).map(Some)
    }

    /// Returns a number among the rope settings; errors if it is missing.
    pub fn require_rope_f64(&self, key: &str) -> Result<f64, Error> {
        self.rope_f64(key)?.ok_or_else(|| Error::MissingKey {
            path: self.path.clone(),
            key: format!("rope_parameters.{key}"),
        })
    }

    /// Returns the rope type in lower case; `default` if none is given.
    pub fn rope_type(&self) -> String {
        self.rope.get("rope_type").and_then(Value::as_str).unwrap_or("default").to_lowercase()
    }

    /// Returns an error about a value of this config.
    pub fn bad(&self, key: &str, found: &Value, expected: &'static str) -> Error {
        let mut found = found.to_string();
        if found.len() > 60 {
            found = found.chars().take(57).collect::<String>() + "...";
        }
        Error::BadValue { path: self.path.clone(), key: key.to_owned(), found, expected }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns the root of `config` with its `text_config` laid over it.
fn flatten(config: &Value, path: &Path) -> Result<Map<String, Value>, Error> {
    let bad = |key: &str, expected| Error::BadValue {
        path: path.to_path_buf(),
        key: key.to_owned(),
        found: "something else".to_owned(),
        expected,
    };
    let mut values = config.as_object().cloned().ok_or_else(|| bad("the whole file", "a JSON object"))?;
    match values.get("text_config") {
        None | Some(Value::Null) => {}
        Some(Value::Object(text)) => {
            let text = text.clone();
            for (key, value) in text {
                // a null in the text config must not hide a value at the root
                match value.is_null() {
                    true => _ = values.entry(key).or_insert(value),
                    false => _ = values.insert(key, value),
                }
            }
        }
        Some(_) => return Err(bad("text_config", "an object")),
    }
    Ok(values)
}

fn head_dim(values: &Map<String, Value>) -> Option<u64> {
    let d_model = values.get("hidden_size")?.as_u64()?;
    d_model.checked_div(values.get("num_attention_heads")?.as_u64()?)
}
