// Causal attention within documents that lie one after another, forward and backward: kernel::attention::documents.
//
// q, out, dout, dq are [T, H, D], k, v, dk, dv [T, K, D]; rows are `*_stride` values apart. Head h reads KV head h / group. Query i
// sees key j of its document iff 0 <= i - j and, with a window, i - j < window. x = scale q.k; s = cap tanh(x / cap) if cap > 0, else x.
// lse, [T, H], is ln(sum of e^s). Blocks are (heads, tiles); a tile is (first row, document's first, document's end, 0).
//
// Two families: `plain` multiplies in f32 for any D up to its size; `mma` uses tensor cores on bf16 and needs D of its size, pointers
// aligned to 16 bytes and strides that are multiples of 8. The order of every sum depends on places within a document alone.
#pragma once
#include "common.cuh"

struct Tile {
    uint32_t first, begin, end, unused;
};

/// Everything but operands and results.
struct AttentionRules {
    /// The host gives them in this order (cuda/op/attention.rs).
    uint32_t n_heads, group, window, head_dim;
    float scale, cap;
    uint32_t q_stride, kv_stride, out_stride;
};

/// The first key that any query from `first` on sees, in steps of `step` from the document's begin.
__device__ __forceinline__ int first_key(const AttentionRules& rules, const Tile& tile, int first, int step) {
    const int begin = tile.begin, seen = rules.window ? first - (int)rules.window + 1 : begin;
    return seen <= begin ? begin : begin + (seen - begin) / step * step;
}

/// Past the last query that sees a key before `end`.
__device__ __forceinline__ int last_query(const AttentionRules& rules, const Tile& tile, int end) {
    // the last key is end - 1; its last query is window - 1 further
    return rules.window ? (int)min((int64_t)tile.end, (int64_t)end - 1 + rules.window) : (int)tile.end;
}

__device__ __forceinline__ bool sees(const AttentionRules& rules, const Tile& tile, int query, int key) {
    return key <= query && query < (int)tile.end && (rules.window == 0 || query - key < (int)rules.window);
}
