// Keys and values of sequences in pages: what the kernels that write and read them know (cuda/op/paged.rs has the same).
//
// A page has PAGE positions of all layers: per layer keys [PAGE][kv_stride], then values alike. A sequence's table has the addresses
// of its pages, by position / PAGE.
#pragma once
#include "attention.cuh"

constexpr int PAGE = 16;

/// Where a new row's keys and values go.
struct PagedRow {
    uint64_t page;
    uint32_t slot, unused;
};

/// Rows `row` .. of queries at positions `position` .. of one sequence, whose pages are listed from entry `table` on.
struct PagedTile {
    uint32_t row, rows, position, table;
};

/// The first key that any query from `position` on sees, in steps of `step` from position 0: blocks of keys begin at the same places
/// whatever else is computed.
__device__ __forceinline__ int first_paged_key(const AttentionRules& rules, int position, int step) {
    const int seen = rules.window ? position - (int)rules.window + 1 : 0;
    return seen <= 0 ? 0 : seen / step * step;
}

/// The row of a key, or of a value, of one layer and head: `from` counts values from the start of a page.
template <class T>
__device__ __forceinline__ const T* paged_row(const uint64_t* table, size_t from, int key, int stride) {
    return reinterpret_cast<const T*>(table[key / PAGE]) + from + (size_t)(key % PAGE) * stride;
}
