// Attention of new rows over the keys and values of their sequences, which lie in pages; and how they get there.
//
// A row's result depends on its query and on the keys and values it sees, by their positions, alone: blocks of keys begin at multiples
// of their size from position 0 and are folded in ascending order, and what a row does not see changes nothing of it.
#include "attention_plain.cuh"
#include "paged.cuh"

/// Copies a row's key and value to its page; a block has a row.
template <class T>
__device__ __forceinline__ void store_paged(const T* k, const T* v, const PagedRow* rows, uint64_t from, int cols) {
    const PagedRow row = rows[blockIdx.x];
    T* keys = reinterpret_cast<T*>(row.page) + from + (size_t)row.slot * cols;
    T* values = keys + (size_t)PAGE * cols;
    k += (size_t)blockIdx.x * cols;
    v += (size_t)blockIdx.x * cols;
    if (cols % WIDE<T> == 0 && all_aligned(k, v, keys, values)) {
        using Run = Pack<T, WIDE<T>>;
        for (int i = threadIdx.x; i < cols / WIDE<T>; i += blockDim.x) {
            reinterpret_cast<Run*>(keys)[i] = reinterpret_cast<const Run*>(k)[i];
            reinterpret_cast<Run*>(values)[i] = reinterpret_cast<const Run*>(v)[i];
        }
        return;
    }
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        keys[i] = k[i];
        values[i] = v[i];
    }
}

/// Loads positions first .. of one head as f32; zeros from `end` on, and behind the head's values.
template <int D, class T>
__device__ __forceinline__ void load_paged(float* tile, const uint64_t* table, size_t from, int stride, int first, int end, int head_dim) {
    constexpr int ROWS = PLAIN_ROWS<D>;
    for (int i = threadIdx.x; i < ROWS * D; i += PLAIN_THREADS<D>) {
        const int key = first + i / D, d = i % D;
        const bool is_value = key < end && d < head_dim;
        tile[i / D * PLAIN_PITCH<D> + d] = is_value ? to_f32(paged_row<T>(table, from, key, stride)[d]) : 0.0f;
    }
}

/// A block has a tile of queries of one head; `from` is where the layer's keys begin in a page.
template <class T, int D>
__device__ __forceinline__ void attention_paged(const T* q, T* out, const PagedTile* tiles, const uint64_t* tables, uint64_t from,
                                                AttentionRules rules) {
    constexpr int ROWS = PLAIN_ROWS<D>, PITCH = PLAIN_PITCH<D>, OWN = ROWS / 4;
    DYNAMIC_SHARED(shared);
    float* queries = reinterpret_cast<float*>(shared);
    float* other = queries + ROWS * PITCH; // keys, then values
    float* weights = other + ROWS * PITCH; // [ROWS][ROWS + 1]
    const PagedTile tile = tiles[blockIdx.y];
    const uint64_t* table = tables + tile.table;
    const int head = blockIdx.x, head_dim = rules.head_dim, stride = rules.kv_stride;
    const size_t keys = from + (size_t)(head / rules.group) * head_dim, values = keys + (size_t)PAGE * stride;
    const int row = threadIdx.x / 4, part = threadIdx.x % 4, end = tile.position + tile.rows;
    // the keys that this thread's query sees: none of a row that is not there
    const int query = tile.position + row, own_end = query < end ? query + 1 : 0, own_first = first_paged_key(rules, query, 1);
    load_plain<D>(queries, q + (size_t)head * head_dim, rules.q_stride, tile.row, tile.row + tile.rows, head_dim);
    float largest = -INFINITY, sum = 0.0f, sums[D / 4];
#pragma unroll
    for (int i = 0; i < D / 4; i++) sums[i] = 0.0f;
    for (int first = first_paged_key(rules, tile.position, ROWS); first < end; first += ROWS) {
        __syncthreads(); // the last values were read
        load_paged<D, T>(other, table, keys, stride, first, end, head_dim);
        __syncthreads();
        float s[OWN], top = largest, slope;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const int key = first + part + 4 * i;
            const bool seen = own_first <= key && key < own_end;
            s[i] = seen ? score(rules, dot(queries + row * PITCH, other + (part + 4 * i) * PITCH, head_dim), slope) : -INFINITY;
            top = fmaxf(top, s[i]);
        }
        const float shrink = fold_scores(s, top, largest, sum, weights + row * (ROWS + 1) + part);
        __syncthreads(); // weights are there, keys were read
        load_paged<D, T>(other, table, values, stride, first, end, head_dim);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < D / 4; i++) sums[i] *= shrink;
        // what is not seen is not multiplied by 0, either: it may be no number
        const int last = min(own_end - first, ROWS);
        for (int j = max(own_first - first, 0); j < last; j++) {
            const float weight = weights[row * (ROWS + 1) + j];
            const float* value = other + j * PITCH + part;
#pragma unroll
            for (int i = 0; i < D / 4; i++) sums[i] = fmaf(weight, value[4 * i], sums[i]);
        }
    }
    sum += __shfl_xor_sync(WHOLE_WARP, sum, 1);
    sum += __shfl_xor_sync(WHOLE_WARP, sum, 2);
    if (query >= end) return;
    T* to = out + (size_t)(tile.row + row) * rules.out_stride + (size_t)head * head_dim;
#pragma unroll
    for (int i = 0; i < D / 4; i++) {
        if (part + 4 * i < head_dim) to[part + 4 * i] = from_f32<T>(sums[i] / sum);
    }
}

#define STORE_KERNEL(T, name)                                                                                                   \
    KERNEL(256)                                                                                                                 \
    store_paged_##name(const T* k, const T* v, const PagedRow* rows, uint64_t from, int cols) {                                 \
        store_paged<T>(k, v, rows, from, cols);                                                                                 \
    }

#define PAGED_KERNEL(T, D, name)                                                                                                \
    KERNEL(PLAIN_THREADS<D>)                                                                                                    \
    attention_paged_plain_##name##_##D(const T* q, T* out, const PagedTile* tiles, const uint64_t* tables, uint64_t from,       \
                                       AttentionRules rules) {                                                                  \
        attention_paged<T, D>(q, out, tiles, tables, from, rules);                                                              \
    }

STORE_KERNEL(float, f32)
STORE_KERNEL(bf16, bf16)
PAGED_KERNEL(float, 64, f32)
PAGED_KERNEL(float, 128, f32)
PAGED_KERNEL(float, 256, f32)
PAGED_KERNEL(bf16, 64, bf16)
PAGED_KERNEL(bf16, 128, bf16)
PAGED_KERNEL(bf16, 256, bf16)
