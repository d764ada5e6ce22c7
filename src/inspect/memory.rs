//! Memory to run a model: weights as stored, an f16 key-value cache, and one batch's activations.

use serde::Serialize;

use super::Dimensions;

/// Context assumed where the user names none and the model allows more.
pub const DEFAULT_CONTEXT: u64 = 4096;

/// Tokens that a prompt is processed in at a time.
const BATCH: u64 = 512;

/// An estimate in bytes; the formula is in docs/inspect.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Tokens of context, prompt and answer together.
    pub context: u64,
    pub weights: u64,
    pub kv_cache: u64,
    pub compute: u64,
    pub total: u64,
}

impl Memory {
    /// Returns the estimate at `context` tokens, by default the smaller of the model's context and 4096.
    ///
    /// weights = bytes of all tensors;
    /// kv_cache = sum over layers of 2 (f16) * n_kv_heads * (key_dim + value_dim) * min(context, window);
    /// compute = the largest of one batch's phases in f32, B = min(512, context) tokens:
    /// attention without flash attention, its mask included, B * ((n_heads + 1) * context + 5 d_model), feed-forward
    /// B * (3 d_ff + 2 d_model), output B * (vocab_size + d_model).
    /// Saturates instead of overflowing on absurd keys.
    pub fn estimate(weights: u64, dims: &Dimensions, context: Option<u64>) -> Memory {
        let context =
            context.unwrap_or_else(|| dims.context_length.unwrap_or(DEFAULT_CONTEXT).min(DEFAULT_CONTEXT));
        let window = dims.sliding_window.unwrap_or(context).min(context);
        let head_bytes = dims.key_dim.saturating_add(dims.value_dim).saturating_mul(2);
        let layer = |(layer, heads): (usize, &u64)| {
            let is_windowed = dims.windowed.get(layer).copied().unwrap_or(false);
            let keys = if is_windowed { window } else { context };
            heads.saturating_mul(head_bytes).saturating_mul(keys)
        };
        let kv_cache = dims.n_kv_heads.iter().enumerate().map(layer).fold(0, u64::saturating_add);

        let batch_bytes = BATCH.min(context) * 4;
        let widths = [
            dims.n_heads
                .saturating_add(1)
                .saturating_mul(context)
                .saturating_add(dims.d_model.saturating_mul(5)),
            dims.d_ff.saturating_mul(3).saturating_add(dims.d_model.saturating_mul(2)),
            dims.vocab_size.saturating_add(dims.d_model),
        ];
        let widest = widths.into_iter().fold(0, u64::max);
        let compute = batch_bytes.saturating_mul(widest);
        let total = weights.saturating_add(kv_cache).saturating_add(compute);
        Memory { context, weights, kv_cache, compute, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims() -> Dimensions {
        Dimensions {
            n_layers: 2,
            d_model: 64,
            n_heads: 4,
            n_kv_heads: vec![2, 2],
            key_dim: 16,
            value_dim: 16,
            d_ff: 128,
            vocab_size: 1000,
            context_length: Some(2048),
            sliding_window: None,
            windowed: Vec::new(),
        }
    }

    #[test]
    fn grouped_query_cache_and_largest_phase() {
        let memory = Memory::estimate(1000, &dims(), None);
        assert_eq!(memory.context, 2048);
        assert_eq!(memory.kv_cache, 2 * 2 * 2 * (16 + 16) * 2048);
        assert_eq!(memory.compute, 512 * 4 * (5 * 2048 + 5 * 64));
        assert_eq!(memory.total, 1000 + memory.kv_cache + memory.compute);
        // At one token the output layer is widest.
        assert_eq!(Memory::estimate(0, &dims(), Some(1)).compute, 4 * (1000 + 64));
    }

    #[test]
    fn a_window_bounds_its_layers_only() {
        let windowed = Dimensions { sliding_window: Some(100), windowed: vec![true, false], ..dims() };
        assert_eq!(Memory::estimate(0, &windowed, Some(1000)).kv_cache, 2 * 2 * 32 * (100 + 1000));
        assert_eq!(Memory::estimate(0, &windowed, Some(50)).kv_cache, 2 * 2 * 32 * (50 + 50));
    }

    #[test]
    fn absurd_sizes_saturate() {
        let absurd =
            Dimensions { n_kv_heads: vec![u64::MAX; 3], key_dim: u64::MAX, d_ff: u64::MAX, ..dims() };
        assert_eq!(Memory::estimate(1, &absurd, Some(u64::MAX)).total, u64::MAX);
    }
}
