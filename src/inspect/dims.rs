//! The few sizes that memory depends on, read from any architecture's keys.
//!
//! Unlike the architecture tables this knows no families: a model that lctl cannot run still has layers
//! and heads under the common names.

use serde::Serialize;
use serde_json::Value as Json;

use crate::tensor::gguf::{Array, Metadata, Value};

/// More layers than any model has; a hostile header must not make us allocate.
const MAX_LAYERS: u64 = 4096;

/// Sizes of a decoder, as its keys state them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dimensions {
    pub n_layers: u64,
    pub d_model: u64,
    pub n_heads: u64,
    /// Key and value heads of each layer; 0 for a layer without attention.
    pub n_kv_heads: Vec<u64>,
    pub key_dim: u64,
    pub value_dim: u64,
    /// Width of the widest feed-forward layer that runs for a token (all its chosen experts together).
    pub d_ff: u64,
    pub vocab_size: u64,
    /// Positions the model was made for.
    pub context_length: Option<u64>,
    /// Keys a query sees in a windowed layer.
    pub sliding_window: Option<u64>,
    /// Which layers are windowed; none unless the file or its architecture says.
    pub windowed: Vec<bool>,
}

impl Dimensions {
    /// Returns the sizes under the `ARCH.` keys, `None` if the necessary ones are absent or absurd.
    pub fn from_gguf(metadata: &Metadata) -> Option<Dimensions> {
        let arch = metadata.get("general.architecture")?.as_str()?;
        let value = |name: &str| metadata.get(&format!("{arch}.{name}"));
        let largest = |name: &str| value(name).and_then(|value| numbers(value)?.into_iter().max());
        let n_layers = largest("block_count").filter(|n| *n <= MAX_LAYERS)?;
        let d_model = largest("embedding_length")?;
        let n_heads = largest("attention.head_count")?;
        let kv = value("attention.head_count_kv").and_then(numbers).unwrap_or(vec![n_heads]);
        let head_dim = d_model.checked_div(n_heads).unwrap_or(0);
        let experts = largest("expert_used_count").unwrap_or(1);
        let expert_ff = largest("expert_feed_forward_length").map(|ff| ff.saturating_mul(experts));
        let sliding_window = largest("attention.sliding_window").filter(|window| *window > 0);
        let pattern = value("attention.sliding_window_pattern");
        let windowed = match (pattern, arch) {
            (Some(Value::Array(Array::Bool(layers))), _) => layers.clone(),
            (Some(period), _) => period.as_u64().map_or(Vec::new(), |period| every(period, n_layers)),
            (None, "gemma2") => every(2, n_layers),
            (None, "gemma3") => every(6, n_layers),
            _ => Vec::new(),
        };
        let tokens = match metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Array(tokens)) => Some(tokens.len() as u64),
            _ => None,
        };
        Some(Dimensions {
            n_layers,
            d_model,
            n_heads,
            n_kv_heads: per_layer(kv, n_layers),
            key_dim: largest("attention.key_length").unwrap_or(head_dim),
            value_dim: largest("attention.value_length").unwrap_or(head_dim),
            d_ff: expert_ff.or_else(|| largest("feed_forward_length")).unwrap_or(0),
            vocab_size: largest("vocab_size").or(tokens).unwrap_or(0),
            context_length: largest("context_length"),
            windowed: if sliding_window.is_some() { windowed } else { Vec::new() },
            sliding_window,
        })
    }

    /// Returns the sizes in a config.json (its `text_config`, if the model has other parts too).
    pub fn from_config(config: &Json) -> Option<Dimensions> {
        let config = config.get("text_config").filter(|part| part.is_object()).unwrap_or(config);
        let number = |name: &str| config.get(name).and_then(Json::as_u64);
        let n_layers = number("num_hidden_layers").filter(|n| *n <= MAX_LAYERS)?;
        let d_model = number("hidden_size")?;
        let n_heads = number("num_attention_heads")?;
        let head_dim = number("head_dim").unwrap_or(d_model.checked_div(n_heads).unwrap_or(0));
        let experts = number("num_experts_per_tok");
        let expert_ff = number("moe_intermediate_size").or_else(|| number("intermediate_size"));
        let sliding_window = number("sliding_window")
            .filter(|_| config.get("use_sliding_window").and_then(Json::as_bool) != Some(false));
        let windowed = match config.get("layer_types").and_then(Json::as_array) {
            Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
            None => match config.get("model_type").and_then(Json::as_str) {
                Some("gemma2") => every(2, n_layers),
                Some("gemma3" | "gemma3_text") => {
                    every(number("sliding_window_pattern").unwrap_or(6), n_layers)
                }
                _ => Vec::new(),
            },
        };
        Some(Dimensions {
            n_layers,
            d_model,
            n_heads,
            n_kv_heads: per_layer(vec![number("num_key_value_heads").unwrap_or(n_heads)], n_layers),
            key_dim: head_dim,
            value_dim: head_dim,
            d_ff: expert_ff.unwrap_or(0).saturating_mul(experts.unwrap_or(1)),
            vocab_size: number("vocab_size").unwrap_or(0),
            context_length: number("max_position_embeddings"),
            windowed: if sliding_window.is_some() { windowed } else { Vec::new() },
            sliding_window,
        })
    }
}

/// Returns the non-negative integers of a number or an array of them.
fn numbers(value: &Value) -> Option<Vec<u64>> {
    fn all<T: Copy + TryInto<u64>>(items: &[T]) -> Option<Vec<u64>> {
        items.iter().map(|item| (*item).try_into().ok()).collect()
    }
    match value {
        Value::Array(Array::U32(items)) => all(items),
        Value::Array(Array::I32(items)) => all(items),
        Value::Array(Array::U64(items)) => all(items),
        Value::Array(Array::I64(items)) => all(items),
        other => Some(vec![other.as_u64()?]),
    }
}

/// Spreads one value over all layers, or keeps one per layer.
fn per_layer(values: Vec<u64>, n_layers: u64) -> Vec<u64> {
    match values[..] {
        [one] => vec![one; n_layers as usize],
        _ => values,
    }
}

/// Of every `period` layers the last sees all keys, the others a window (Gemma 2 and 3).
fn every(period: u64, n_layers: u64) -> Vec<bool> {
    (0..n_layers).map(|layer| period > 0 && layer % period < period - 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn gemma(layers: u32) -> Metadata {
        let pairs = [
            ("general.architecture", Value::from("gemma3")),
            ("gemma3.block_count", Value::U32(layers)),
            ("gemma3.embedding_length", Value::U32(1152)),
            ("gemma3.attention.head_count", Value::U32(4)),
            ("gemma3.attention.head_count_kv", Value::U32(1)),
            ("gemma3.attention.key_length", Value::U32(256)),
            ("gemma3.attention.value_length", Value::U32(256)),
            ("gemma3.attention.sliding_window", Value::U32(512)),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
    }

    #[test]
    fn gemma_windows_all_but_every_sixth_layer() {
        let dims = Dimensions::from_gguf(&gemma(8)).unwrap();
        assert_eq!(dims.windowed, [true, true, true, true, true, false, true, true]);
        assert_eq!((dims.key_dim, dims.n_kv_heads.len(), dims.sliding_window), (256, 8, Some(512)));
    }

    #[test]
    fn absurd_layer_counts_allocate_nothing() {
        assert_eq!(Dimensions::from_gguf(&gemma(u32::MAX)), None);
    }

    #[test]
    fn a_window_that_is_switched_off_is_none() {
        let config = json!({"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "sliding_window": 8,
            "use_sliding_window": false, "layer_types": ["sliding_attention", "full_attention"]});
        let dims = Dimensions::from_config(&config).unwrap();
        assert_eq!((dims.sliding_window, dims.windowed.len(), dims.key_dim), (None, 0, 16));
    }
}
