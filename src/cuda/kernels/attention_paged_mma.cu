// Attention of new rows over keys and values in pages by tensor cores on bf16 with f32 sums, head sizes 64, 96, 128 and 256: the
// forward of attention_mma.cu, with blocks of keys that begin at multiples of their size from position 0.
//
// What a row does not see in a block has weight 0, so all values before the last new row of its tile have to be finite.
#include "attention_mma.cuh"
#include "paged.cuh"

/// Starts loading ROWS positions of one head; zeros from `end` on.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void load_paged_async(bf16* tile, const uint64_t* table, size_t from, int stride, int first, int end) {
    constexpr int RUNS = D / 8;
    for (int i = threadIdx.x; i < ROWS * RUNS; i += THREADS) {
        const int key = first + i / RUNS, d = i % RUNS * 8;
        const bool valid = key < end;
        // any address will do where nothing is read
        const bf16* row = paged_row<bf16>(table, from, valid ? key : end - 1, stride);
        copy_async(tile + i / RUNS * MMA_PITCH<D> + d, row + d, valid);
    }
}

template <int D>
__device__ __forceinline__ void attention_paged_mma(const bf16* q, bf16* out, const PagedTile* tiles, const uint64_t* tables, uint64_t from,
                                                    AttentionRules rules) {
    using Sizes = ForwardSizes<D>;
    constexpr int KEYS = Sizes::KEYS, THREADS = Sizes::THREADS, STEP = KEYS * MMA_PITCH<D>;
    DYNAMIC_SHARED(shared);
    bf16* queries = reinterpret_cast<bf16*>(shared);
    bf16* keys = queries + Sizes::QUERIES * MMA_PITCH<D>; // two stages
    bf16* values = keys + 2 * STEP;
    const PagedTile tile = tiles[blockIdx.y];
    const uint64_t* table = tables + tile.table;
    const int head = blockIdx.x, stride = rules.kv_stride;
    const size_t of_keys = from + (size_t)(head / rules.group) * D, of_values = of_keys + (size_t)PAGE * stride;
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int position = tile.position + 16 * warp + g; // of this lane's first query; the second is 8 further
    const int begin = first_paged_key(rules, tile.position, KEYS), end = tile.position + tile.rows;
    const auto load_step = [&](int stage, int first) {
        load_paged_async<D, KEYS, THREADS>(keys + stage * STEP, table, of_keys, stride, first, end);
        load_paged_async<D, KEYS, THREADS>(values + stage * STEP, table, of_values, stride, first, end);
    };
    load_async<D, Sizes::QUERIES, THREADS>(queries, q + (size_t)head * D, rules.q_stride, tile.row, tile.row + tile.rows);
    load_step(0, begin);
    commit_copies();
    RowsOf<D, (D <= 128)> own(queries, 16 * warp);
    float sums[D / 8][4], largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < D / 8; n++) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0.0f;
    int stage = 0;
    for (int first = begin; first < end; first += KEYS, stage ^= 1) {
        if (first + KEYS < end) load_step(stage ^ 1, first + KEYS);
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        if (first == begin) own.load();
        float s[KEYS / 8][4];
        products_of_rows<D, KEYS>(s, own, keys + stage * STEP);
        float top[2] = {largest[0], largest[1]}, slope;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = first + 8 * n + 2 * t + i % 2, query = position + 8 * (i / 2);
                const bool seen = key <= query && query < end && (rules.window == 0 || query - key < (int)rules.window);
                s[n][i] = seen ? score_log2(rules, s[n][i], slope) : -INFINITY;
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
    }
    store_results<D>(out + (size_t)head * D, rules.out_stride, tile.row + 16 * warp, tile.row + tile.rows, sums, 1.0f / sum[0],
                     1.0f / sum[1]);
}

#define PAGED_MMA_KERNEL(D)                                                                                                     \
    KERNEL(ForwardSizes<D>::THREADS)                                                                                              \
    attention_paged_mma_##D(const bf16* q, bf16* out, const PagedTile* tiles, const uint64_t* tables, uint64_t from,            \
                            AttentionRules rules) {                                                                             \
        attention_paged_mma<D>(q, out, tiles, tables, from, rules);                                                             \
    }

PAGED_MMA_KERNEL(64)
PAGED_MMA_KERNEL(96)
PAGED_MMA_KERNEL(128)
PAGED_MMA_KERNEL(256)
