// Attention in f32 without tensor cores, for any head size up to 256: what f32 and odd head sizes use, and the oracle of the other.
#include "attention_plain.cuh"

/// delta = the dot product of out and its gradient for every row and head: a warp each.
template <class T>
__device__ __forceinline__ void attention_delta(const T* out, const T* dout, float* delta, int rows, int n_heads, int head_dim,
                                                int stride) {
    const int pair = blockIdx.x * 8 + threadIdx.x / 32;
    if (pair >= rows * n_heads) return;
    const size_t first = (size_t)(pair / n_heads) * stride + (size_t)(pair % n_heads) * head_dim;
    float sum[1] = {0.0f};
    for (int d = threadIdx.x % 32; d < head_dim; d += 32) sum[0] = fmaf(to_f32(out[first + d]), to_f32(dout[first + d]), sum[0]);
    warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[pair] = sum[0];
}

template <class T, int D>
__device__ __forceinline__ void attention_plain(const T* q, const T* k, const T* v, T* out, float* lse, const Tile* tiles,
                                                AttentionRules rules) {
    constexpr int ROWS = PLAIN_ROWS<D>, PITCH = PLAIN_PITCH<D>, OWN = ROWS / 4;
    DYNAMIC_SHARED(shared);
    float* queries = reinterpret_cast<float*>(shared);
    float* other = queries + ROWS * PITCH; // keys, then values
    float* weights = other + ROWS * PITCH; // [ROWS][ROWS + 1]
    const Tile tile = tiles[blockIdx.y];
    const int head = blockIdx.x, kv_head = head / rules.group, head_dim = rules.head_dim;
    const int row = threadIdx.x / 4, part = threadIdx.x % 4, query = tile.first + row;
    k += (size_t)kv_head * head_dim;
    v += (size_t)kv_head * head_dim;
    load_plain<D>(queries, q + (size_t)head * head_dim, rules.q_stride, tile.first, tile.end, head_dim);
    float largest = -INFINITY, sum = 0.0f, sums[D / 4];
#pragma unroll
    for (int i = 0; i < D / 4; i++) sums[i] = 0.0f;
    const int end = min((int)tile.first + ROWS, (int)tile.end);
    for (int first = first_key(rules, tile, tile.first, ROWS); first < end; first += ROWS) {
        __syncthreads(); // the last values were read
        load_plain<D>(other, k, rules.kv_stride, first, tile.end, head_dim);
        __syncthreads();
        float s[OWN], top = largest, slope;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const int key = first + part + 4 * i;
            s[i] = sees(rules, tile, query, key) ? score(rules, dot(queries + row * PITCH, other + (part + 4 * i) * PITCH, head_dim), slope)
                                                 : -INFINITY;
            top = fmaxf(top, s[i]);
        }
        const float shrink = fold_scores(s, top, largest, sum, weights + row * (ROWS + 1) + part);
        __syncthreads(); // weights are there, keys were read
        load_plain<D>(other, v, rules.kv_stride, first, tile.end, head_dim);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < D / 4; i++) sums[i] *= shrink;
        add_rows<D>(sums, weights + row * (ROWS + 1), other, part);
    }
    sum += __shfl_xor_sync(WHOLE_WARP, sum, 1);
    sum += __shfl_xor_sync(WHOLE_WARP, sum, 2);
    if (query >= (int)tile.end) return;
    T* to = out + (size_t)query * rules.out_stride + (size_t)head * head_dim;
#pragma unroll
    for (int i = 0; i < D / 4; i++) {
        if (part + 4 * i < head_dim) to[part + 4 * i] = from_f32<T>(sums[i] / sum);
    }
    if (part == 0) lse[(size_t)query * rules.n_heads + head] = largest + logf(sum);
}

/// dq of a tile of queries.
template <class T, int D>
__device__ __forceinline__ void attention_dq_plain(const T* q, const T* k, const T* v, const T* dout, const float* lse,
                                                   const float* delta, T* dq, const Tile* tiles, AttentionRules rules) {
    constexpr int ROWS = PLAIN_ROWS<D>, PITCH = PLAIN_PITCH<D>, OWN = ROWS / 4;
    DYNAMIC_SHARED(shared);
    float* queries = reinterpret_cast<float*>(shared);
    float* gradients = queries + ROWS * PITCH;
    float* other = gradients + ROWS * PITCH; // values, then keys
    float* weights = other + ROWS * PITCH;
    const Tile tile = tiles[blockIdx.y];
    const int head = blockIdx.x, kv_head = head / rules.group, head_dim = rules.head_dim;
    const int row = threadIdx.x / 4, part = threadIdx.x % 4, query = tile.first + row;
    k += (size_t)kv_head * head_dim;
    v += (size_t)kv_head * head_dim;
    load_plain<D>(queries, q + (size_t)head * head_dim, rules.q_stride, tile.first, tile.end, head_dim);
    load_plain<D>(gradients, dout + (size_t)head * head_dim, rules.out_stride, tile.first, tile.end, head_dim);
    const bool is_row = query < (int)tile.end;
    const float own_lse = is_row ? lse[(size_t)query * rules.n_heads + head] : 0.0f;
    const float own_delta = is_row ? delta[(size_t)query * rules.n_heads + head] : 0.0f;
    float sums[D / 4];
#pragma unroll
    for (int i = 0; i < D / 4; i++) sums[i] = 0.0f;
    const int end = min((int)tile.first + ROWS, (int)tile.end);
    for (int first = first_key(rules, tile, tile.first, ROWS); first < end; first += ROWS) {
        __syncthreads();
        load_plain<D>(other, v, rules.kv_stride, first, tile.end, head_dim);
        __syncthreads();
        float dp[OWN];
#pragma unroll
        for (int i = 0; i < OWN; i++) dp[i] = dot(gradients + row * PITCH, other + (part + 4 * i) * PITCH, head_dim);
        __syncthreads();
        load_plain<D>(other, k, rules.kv_stride, first, tile.end, head_dim);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const int key = first + part + 4 * i;
            float slope, ds = 0.0f;
            if (sees(rules, tile, query, key)) {
                const float s = score(rules, dot(queries + row * PITCH, other + (part + 4 * i) * PITCH, head_dim), slope);
                ds = expf(s - own_lse) * (dp[i] - own_delta) * slope;
            }
            weights[row * (ROWS + 1) + part + 4 * i] = ds;
        }
        __syncthreads();
        add_rows<D>(sums, weights + row * (ROWS + 1), other, part);
    }
    if (!is_row) return;
    T* to = dq + (size_t)query * rules.q_stride + (size_t)head * head_dim;
#pragma unroll
    for (int i = 0; i < D / 4; i++) {
        if (part + 4 * i < head_dim) to[part + 4 * i] = from_f32<T>(sums[i] * rules.scale);
    }
}

/// dk and dv of a tile of keys, over the heads of the group, ascending, and for each its queries, ascending.
template <class T, int D>
__device__ __forceinline__ void attention_dkv_plain(const T* q, const T* k, const T* v, const T* dout, const float* lse,
                                                    const float* delta, T* dk, T* dv, const Tile* tiles, AttentionRules rules) {
    constexpr int ROWS = PLAIN_ROWS<D>, PITCH = PLAIN_PITCH<D>, OWN = ROWS / 4;
    DYNAMIC_SHARED(shared);
    float* keys = reinterpret_cast<float*>(shared);
    float* values = keys + ROWS * PITCH;
    float* other = values + ROWS * PITCH; // gradients, then queries
    float* weights = other + ROWS * PITCH;
    const Tile tile = tiles[blockIdx.y];
    const int kv_head = blockIdx.x, head_dim = rules.head_dim;
    const int row = threadIdx.x / 4, part = threadIdx.x % 4, key = tile.first + row;
    load_plain<D>(keys, k + (size_t)kv_head * head_dim, rules.kv_stride, tile.first, tile.end, head_dim);
    load_plain<D>(values, v + (size_t)kv_head * head_dim, rules.kv_stride, tile.first, tile.end, head_dim);
    float key_sums[D / 4], value_sums[D / 4];
#pragma unroll
    for (int i = 0; i < D / 4; i++) key_sums[i] = value_sums[i] = 0.0f;
    const int end = last_query(rules, tile, min((int)tile.first + ROWS, (int)tile.end));
    for (int head = kv_head * rules.group; head < (int)((kv_head + 1) * rules.group); head++) {
        for (int first = tile.first; first < end; first += ROWS) {
            __syncthreads();
            load_plain<D>(other, dout + (size_t)head * head_dim, rules.out_stride, first, tile.end, head_dim);
            __syncthreads();
            float dp[OWN];
#pragma unroll
            for (int i = 0; i < OWN; i++) dp[i] = dot(values + row * PITCH, other + (part + 4 * i) * PITCH, head_dim);
            // the gradients stay for dv, so queries are read from where they are
            float p[OWN], ds[OWN];
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                const int query = first + part + 4 * i;
                p[i] = ds[i] = 0.0f;
                if (key < (int)tile.end && sees(rules, tile, query, key)) {
                    const T* from = q + (size_t)query * rules.q_stride + (size_t)head * head_dim;
                    float product = 0.0f, slope;
                    for (int d = 0; d < head_dim; d++) product = fmaf(to_f32(from[d]), keys[row * PITCH + d], product);
                    const size_t at = (size_t)query * rules.n_heads + head;
                    p[i] = expf(score(rules, product, slope) - lse[at]);
                    ds[i] = p[i] * (dp[i] - delta[at]) * slope;
                }
                weights[row * (ROWS + 1) + part + 4 * i] = p[i];
            }
            __syncthreads();
            add_rows<D>(value_sums, weights + row * (ROWS + 1), other, part);
            __syncthreads();
#pragma unroll
            for (int i = 0; i < OWN; i++) weights[row * (ROWS + 1) + part + 4 * i] = ds[i];
            load_plain<D>(other, q + (size_t)head * head_dim, rules.q_stride, first, tile.end, head_dim);
            __syncthreads();
            add_rows<D>(key_sums, weights + row * (ROWS + 1), other, part);
        }
    }
    if (key >= (int)tile.end) return;
    const size_t to = (size_t)key * rules.kv_stride + (size_t)kv_head * head_dim;
#pragma unroll
    for (int i = 0; i < D / 4; i++) {
        const int d = part + 4 * i;
        if (d < head_dim) {
            dk[to + d] = from_f32<T>(key_sums[i] * rules.scale);
            dv[to + d] = from_f32<T>(value_sums[i]);
        }
    }
}

#define DELTA_KERNEL(T, name)                                                                                                   \
    KERNEL(256)                                                                                                                 \
    attention_delta_##name(const T* out, const T* dout, float* delta, int rows, int n_heads, int head_dim, int stride) {        \
        attention_delta<T>(out, dout, delta, rows, n_heads, head_dim, stride);                                                  \
    }

#define PLAIN_KERNELS(T, D, name)                                                                                               \
    KERNEL(PLAIN_THREADS<D>)                                                                                                    \
    attention_plain_##name##_##D(const T* q, const T* k, const T* v, T* out, float* lse, const Tile* tiles, AttentionRules rules) { \
        attention_plain<T, D>(q, k, v, out, lse, tiles, rules);                                                                 \
    }                                                                                                                           \
    KERNEL(PLAIN_THREADS<D>)                                                                                                    \
    attention_dq_plain_##name##_##D(const T* q, const T* k, const T* v, const T* dout, const float* lse, const float* delta,    \
                                    T* dq, const Tile* tiles, AttentionRules rules) {                                           \
        attention_dq_plain<T, D>(q, k, v, dout, lse, delta, dq, tiles, rules);                                                  \
    }                                                                                                                           \
    KERNEL(PLAIN_THREADS<D>)                                                                                                    \
    attention_dkv_plain_##name##_##D(const T* q, const T* k, const T* v, const T* dout, const float* lse, const float* delta,   \
                                     T* dk, T* dv, const Tile* tiles, AttentionRules rules) {                                   \
        attention_dkv_plain<T, D>(q, k, v, dout, lse, delta, dk, dv, tiles, rules);                                             \
    }

DELTA_KERNEL(float, f32)
DELTA_KERNEL(bf16, bf16)
PLAIN_KERNELS(float, 64, f32)
PLAIN_KERNELS(float, 128, f32)
PLAIN_KERNELS(float, 256, f32)
PLAIN_KERNELS(bf16, 64, bf16)
PLAIN_KERNELS(bf16, 128, bf16)
PLAIN_KERNELS(bf16, 256, bf16)
