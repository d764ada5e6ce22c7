// Attention by tensor cores on bf16 with f32 sums (FlashAttention-2, arXiv:2307.08691), head sizes 64, 96, 128 and 256.
#include "attention_mma.cuh"

template <int D>
__device__ __forceinline__ void attention_mma(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, const Tile* tiles,
                                              AttentionRules rules) {
    using Sizes = ForwardSizes<D>;
    constexpr int KEYS = Sizes::KEYS, THREADS = Sizes::THREADS, STEP = KEYS * MMA_PITCH<D>;
    DYNAMIC_SHARED(shared);
    bf16* queries = reinterpret_cast<bf16*>(shared);
    bf16* keys = queries + Sizes::QUERIES * MMA_PITCH<D>; // two stages
    bf16* values = keys + 2 * STEP;
    const Tile tile = tiles[blockIdx.y];
    const int head = blockIdx.x, kv_head = head / rules.group;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    q += (size_t)head * D;
    k += (size_t)kv_head * D;
    v += (size_t)kv_head * D;
    const int row = tile.first + 16 * warp + g; // this lane's first query; the second is 8 further
    const int begin = first_key(rules, tile, tile.first, KEYS), end = min((int)tile.first + Sizes::QUERIES, (int)tile.end);
    load_async<D, Sizes::QUERIES, THREADS>(queries, q, rules.q_stride, tile.first, tile.end);
    load_async<D, KEYS, THREADS>(keys, k, rules.kv_stride, begin, tile.end);
    load_async<D, KEYS, THREADS>(values, v, rules.kv_stride, begin, tile.end);
    commit_copies();
    RowsOf<D, (D <= 128)> own(queries, 16 * warp);
    float sums[D / 8][4], largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < D / 8; n++) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0.0f;
    int stage = 0;
    for (int first = begin; first < end; first += KEYS, stage ^= 1) {
        if (first + KEYS < end) {
            load_async<D, KEYS, THREADS>(keys + (stage ^ 1) * STEP, k, rules.kv_stride, first + KEYS, tile.end);
            load_async<D, KEYS, THREADS>(values + (stage ^ 1) * STEP, v, rules.kv_stride, first + KEYS, tile.end);
        }
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        if (first == begin) own.load();
        float s[KEYS / 8][4];
        products_of_rows<D, KEYS>(s, own, keys + stage * STEP);
        // all keys seen by all queries of the tile: nothing to mask
        const bool whole = first + KEYS - 1 <= (int)tile.first && tile.first + Sizes::QUERIES <= tile.end &&
                           (rules.window == 0 || (int)tile.first + Sizes::QUERIES - 1 - first < (int)rules.window);
        float top[2] = {largest[0], largest[1]}, slope;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = first + 8 * n + 2 * t + i % 2;
                s[n][i] = whole || sees(rules, tile, row + 8 * (i / 2), key) ? score_log2(rules, s[n][i], slope) : -INFINITY;
                top[i / 2] = fmaxf(top[i / 2], s[n][i]);
            }
        }
        fold_block<D, KEYS>(s, top, largest, sum, sums);
        add_weighted<D, KEYS, D>(sums, s, values + stage * STEP, 0);
        __syncthreads(); // this stage was read
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(WHOLE_WARP, sum[i], 1);
        sum[i] += __shfl_xor_sync(WHOLE_WARP, sum[i], 2);
        const int query = row + 8 * i;
        if (t == 0 && query < (int)tile.end) lse[(size_t)query * rules.n_heads + head] = (largest[i] + log2f(sum[i])) * LN_2;
    }
    store_results<D>(out + (size_t)head * D, rules.out_stride, tile.first + 16 * warp, tile.end, sums, 1.0f / sum[0], 1.0f / sum[1]);
}

/// Sizes of dq's kernel: a warp per 16 queries.
template <int D>
struct QuerySizes {
    static constexpr int QUERIES = 64, KEYS = D <= 64 ? 64 : 32, STAGES = D <= 128 ? 2 : 1, THREADS = 128;
    static constexpr int SHARED = (2 * QUERIES + 2 * STAGES * KEYS) * MMA_PITCH<D> * 2;
};

template <int D>
__device__ __forceinline__ void attention_dq_mma(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,
                                                 const float* delta, bf16* dq, const Tile* tiles, AttentionRules rules) {
    using Sizes = QuerySizes<D>;
    constexpr int KEYS = Sizes::KEYS, STAGES = Sizes::STAGES, THREADS = Sizes::THREADS, STEP = KEYS * MMA_PITCH<D>;
    DYNAMIC_SHARED(shared);
    bf16* queries = reinterpret_cast<bf16*>(shared);
    bf16* gradients = queries + Sizes::QUERIES * MMA_PITCH<D>;
    bf16* keys = gradients + Sizes::QUERIES * MMA_PITCH<D>;
    bf16* values = keys + STAGES * STEP;
    const Tile tile = tiles[blockIdx.y];
    const int head = blockIdx.x, kv_head = head / rules.group;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    k += (size_t)kv_head * D;
    v += (size_t)kv_head * D;
    const int row = tile.first + 16 * warp + g;
    const int begin = first_key(rules, tile, tile.first, KEYS), end = min((int)tile.first + Sizes::QUERIES, (int)tile.end);
    load_async<D, Sizes::QUERIES, THREADS>(queries, q + (size_t)head * D, rules.q_stride, tile.first, tile.end);
    load_async<D, Sizes::QUERIES, THREADS>(gradients, dout + (size_t)head * D, rules.out_stride, tile.first, tile.end);
    float own_lse[2], own_delta[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const bool is_row = row + 8 * i < (int)tile.end;
        const size_t at = (size_t)(row + 8 * i) * rules.n_heads + head;
        own_lse[i] = is_row ? lse[at] * LOG2_E : 0.0f;
        own_delta[i] = is_row ? delta[at] : 0.0f;
    }
    const auto load_step = [&](int stage, int first) {
        load_async<D, KEYS, THREADS>(keys + stage * STEP, k, rules.kv_stride, first, tile.end);
        load_async<D, KEYS, THREADS>(values + stage * STEP, v, rules.kv_stride, first, tile.end);
    };
    if (STAGES == 2) load_step(0, begin);
    commit_copies();
    RowsOf<D, (D <= 64)> own_queries(queries, 16 * warp), own_gradients(gradients, 16 * warp);
    float sums[D / 8][4];
#pragma unroll
    for (int n = 0; n < D / 8; n++) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0.0f;
    int stage = 0;
    for (int first = begin; first < end; first += KEYS, stage = STAGES == 2 ? stage ^ 1 : 0) {
        if (STAGES == 1) load_step(0, first);
        else if (first + KEYS < end) load_step(stage ^ 1, first + KEYS);
        commit_copies();
        wait_for_copies<STAGES - 1>();
        __syncthreads();
        float s[KEYS / 8][4], dp[KEYS / 8][4];
        if (first == begin) {
            own_queries.load();
            own_gradients.load();
        }
        products_of_rows<D, KEYS>(s, own_queries, keys + stage * STEP);
        products_of_rows<D, KEYS>(dp, own_gradients, values + stage * STEP);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float slope;
                const float x = score_log2(rules, s[n][i], slope);
                const bool seen = sees(rules, tile, row + 8 * (i / 2), first + 8 * n + 2 * t + i % 2);
                s[n][i] = seen ? exp2_fast(x - own_lse[i / 2]) * (dp[n][i] - own_delta[i / 2]) * slope : 0.0f;
            }
        }
        add_weighted<D, KEYS, D>(sums, s, keys + stage * STEP, 0);
        __syncthreads(); // this stage was read
    }
    store_results<D>(dq + (size_t)head * D, rules.q_stride, tile.first + 16 * warp, tile.end, sums, rules.scale, rules.scale);
}

/// Sizes of the kernel of dk and dv: a warp per 16 keys and COLUMNS columns of their gradients.
template <int D>
struct KeySizes {
    static constexpr int KEYS = D <= 128 ? 64 : 32, QUERIES = 32, STAGES = D <= 128 ? 2 : 1, SPLIT = D <= 128 ? 1 : 2;
    static constexpr int COLUMNS = D / SPLIT, THREADS = KEYS / 16 * SPLIT * 32;
    static constexpr int SHARED = (2 * KEYS + 2 * STAGES * QUERIES) * MMA_PITCH<D> * 2 + 2 * STAGES * QUERIES * 4;
};

template <int D>
__device__ __forceinline__ void attention_dkv_mma(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,
                                                  const float* delta, bf16* dk, bf16* dv, const Tile* tiles, AttentionRules rules) {
    using Sizes = KeySizes<D>;
    constexpr int KEYS = Sizes::KEYS, QUERIES = Sizes::QUERIES, STAGES = Sizes::STAGES, THREADS = Sizes::THREADS;
    constexpr int COLUMNS = Sizes::COLUMNS, STEP = QUERIES * MMA_PITCH<D>;
    DYNAMIC_SHARED(shared);
    bf16* keys = reinterpret_cast<bf16*>(shared);
    bf16* values = keys + KEYS * MMA_PITCH<D>;
    bf16* queries = values + KEYS * MMA_PITCH<D>;
    bf16* gradients = queries + STAGES * STEP;
    float* lses = reinterpret_cast<float*>(gradients + STAGES * STEP); // in units of ln 2
    float* deltas = lses + STAGES * QUERIES;
    const Tile tile = tiles[blockIdx.y];
    const int kv_head = blockIdx.x;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int own_row = warp % (KEYS / 16) * 16, own_column = warp / (KEYS / 16) * COLUMNS;
    const int key = tile.first + own_row + g;
    load_async<D, KEYS, THREADS>(keys, k + (size_t)kv_head * D, rules.kv_stride, tile.first, tile.end);
    load_async<D, KEYS, THREADS>(values, v + (size_t)kv_head * D, rules.kv_stride, tile.first, tile.end);
    const int end = last_query(rules, tile, min((int)tile.first + KEYS, (int)tile.end));
    const int per_head = (end - (int)tile.first + QUERIES - 1) / QUERIES, steps = per_head * rules.group;
    const auto load_step = [&](int stage, int step) {
        const int head = kv_head * rules.group + step / per_head, first = tile.first + step % per_head * QUERIES;
        load_async<D, QUERIES, THREADS>(queries + stage * STEP, q + (size_t)head * D, rules.q_stride, first, tile.end);
        load_async<D, QUERIES, THREADS>(gradients + stage * STEP, dout + (size_t)head * D, rules.out_stride, first, tile.end);
        if (threadIdx.x < QUERIES) {
            const bool is_row = first + threadIdx.x < tile.end;
            const size_t at = (size_t)(first + threadIdx.x) * rules.n_heads + head;
            lses[stage * QUERIES + threadIdx.x] = is_row ? lse[at] * LOG2_E : 0.0f;
            deltas[stage * QUERIES + threadIdx.x] = is_row ? delta[at] : 0.0f;
        }
    };
    if (STAGES == 2) load_step(0, 0);
    commit_copies();
    const RowsOf<D, false> own_keys(keys, own_row), own_values(values, own_row);
    float key_sums[COLUMNS / 8][4], value_sums[COLUMNS / 8][4];
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) key_sums[n][i] = value_sums[n][i] = 0.0f;
    }
    int stage = 0;
    for (int step = 0; step < steps; step++, stage = STAGES == 2 ? stage ^ 1 : 0) {
        if (STAGES == 1) load_step(0, step);
        else if (step + 1 < steps) load_step(stage ^ 1, step + 1);
        commit_copies();
        wait_for_copies<STAGES - 1>();
        __syncthreads();
        const int first = tile.first + step % per_head * QUERIES;
        float p[QUERIES / 8][4], ds[QUERIES / 8][4];
        products_of_rows<D, QUERIES>(p, own_keys, queries + stage * STEP);
        products_of_rows<D, QUERIES>(ds, own_values, gradients + stage * STEP);
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = 8 * n + 2 * t + i % 2;
                float slope;
                const float x = score_log2(rules, p[n][i], slope);
                const bool seen = sees(rules, tile, first + column, key + 8 * (i / 2));
                p[n][i] = seen ? exp2_fast(x - lses[stage * QUERIES + column]) : 0.0f;
                ds[n][i] = p[n][i] * (ds[n][i] - deltas[stage * QUERIES + column]) * slope;
            }
        }
        add_weighted<D, QUERIES, COLUMNS>(value_sums, p, gradients + stage * STEP, own_column);
        add_weighted<D, QUERIES, COLUMNS>(key_sums, ds, queries + stage * STEP, own_column);
        __syncthreads(); // this stage was read
    }
    const size_t to = (size_t)kv_head * D + own_column;
    store_results<COLUMNS>(dk + to, rules.kv_stride, tile.first + own_row, tile.end, key_sums, rules.scale, rules.scale);
    store_results<COLUMNS>(dv + to, rules.kv_stride, tile.first + own_row, tile.end, value_sums, 1.0f, 1.0f);
}

#define MMA_KERNELS(D)                                                                                                          \
    KERNEL(ForwardSizes<D>::THREADS)                                                                                            \
    attention_mma_##D(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, const Tile* tiles, AttentionRules rules) { \
        attention_mma<D>(q, k, v, out, lse, tiles, rules);                                                                      \
    }                                                                                                                           \
    KERNEL(QuerySizes<D>::THREADS)                                                                                              \
    attention_dq_mma_##D(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta,   \
                         bf16* dq, const Tile* tiles, AttentionRules rules) {                                                   \
        attention_dq_mma<D>(q, k, v, dout, lse, delta, dq, tiles, rules);                                                       \
    }                                                                                                                           \
    KERNEL(KeySizes<D>::THREADS)                                                                                                \
    attention_dkv_mma_##D(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta,  \
                          bf16* dk, bf16* dv, const Tile* tiles, AttentionRules rules) {                                        \
        attention_dkv_mma<D>(q, k, v, dout, lse, delta, dk, dv, tiles, rules);                                                  \
    }

MMA_KERNELS(64)
MMA_KERNELS(96)
MMA_KERNELS(128)
MMA_KERNELS(256)
