// What the kernels of attention by tensor cores share: tiles in shared memory, fragments, products of tiles.
#pragma once
#include "attention.cuh"

/// Values from row to row in shared memory: 16 bytes more than D, so that the eight rows of an 8 x 8 matrix lie in different banks.
template <int D>
constexpr int MMA_PITCH = D + 8;

/// Starts loading ROWS rows of one head; zeros from `end` on.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void load_async(bf16* tile, const bf16* from, int stride, int first, int end) {
    constexpr int RUNS = D / 8;
    for (int i = threadIdx.x; i < ROWS * RUNS; i += THREADS) {
        const int row = i / RUNS, d = i % RUNS * 8;
        const bool valid = first + row < end;
        copy_async(tile + row * MMA_PITCH<D> + d, valid ? from + (size_t)(first + row) * stride + d : from, valid);
    }
}

/// A 16 x 16 operand a from rows `row` .. and columns `column` .. of a tile.
template <int D>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const bf16* tile, int row, int column) {
    const int lane = threadIdx.x % 32, matrix = lane / 8;
    load_matrices<false>(a, tile + (row + matrix % 2 * 8 + lane % 8) * MMA_PITCH<D> + column + matrix / 2 * 8);
}

/// Two operands b, 16 x 8, of tile^T: b(k, n) = tile(n, k) for n from `row`, k from `column`. The second is 8 rows further.
template <int D>
__device__ __forceinline__ void load_b_of_rows(uint32_t (&b)[4], const bf16* tile, int row, int column) {
    const int lane = threadIdx.x % 32, matrix = lane / 8;
    load_matrices<false>(b, tile + (row + matrix / 2 * 8 + lane % 8) * MMA_PITCH<D> + column + matrix % 2 * 8);
}

/// Two operands b, 16 x 8, of the tile as it lies: b(k, n) = tile(k, n) for k from `row`, n from `column`. The second is 8 columns further.
template <int D>
__device__ __forceinline__ void load_b_of_columns(uint32_t (&b)[4], const bf16* tile, int row, int column) {
    const int lane = threadIdx.x % 32, matrix = lane / 8;
    load_matrices<true>(b, tile + (row + matrix % 2 * 8 + lane % 8) * MMA_PITCH<D> + column + matrix / 2 * 8);
}

/// Operand a of columns 16 c .. of what lies in results: results of two neighbouring mma hold just these values.
template <int N>
__device__ __forceinline__ void a_of_results(uint32_t (&a)[4], const float (&d)[N][4], int c) {
    a[0] = pack_bf16(d[2 * c][0], d[2 * c][1]);
    a[1] = pack_bf16(d[2 * c][2], d[2 * c][3]);
    a[2] = pack_bf16(d[2 * c + 1][0], d[2 * c + 1][1]);
    a[3] = pack_bf16(d[2 * c + 1][2], d[2 * c + 1][3]);
}

/// 16 rows of a tile as operands a: kept in registers where heads are small enough, else read again at every use.
template <int D, bool KEPT>
struct RowsOf {
    uint32_t kept[KEPT ? D / 16 : 1][4];
    const bf16* tile;
    int row;

    __device__ __forceinline__ RowsOf(const bf16* tile, int row) : tile(tile), row(row) {}
    __device__ __forceinline__ void load() {
        if constexpr (KEPT) {
#pragma unroll
            for (int c = 0; c < D / 16; c++) load_a<D>(kept[c], tile, row, 16 * c);
        }
    }
    __device__ __forceinline__ void get(uint32_t (&a)[4], int c) const {
        if constexpr (KEPT) {
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = kept[c][i];
        } else {
            load_a<D>(a, tile, row, 16 * c);
        }
    }
};

/// d = the products of 16 rows with all N rows of `others`: [16, N], as N / 8 results.
template <int D, int N, bool KEPT>
__device__ __forceinline__ void products_of_rows(float (&d)[N / 8][4], const RowsOf<D, KEPT>& rows, const bf16* others) {
#pragma unroll
    for (int i = 0; i < N / 8; i++) d[i][0] = d[i][1] = d[i][2] = d[i][3] = 0.0f;
#pragma unroll
    for (int c = 0; c < D / 16; c++) {
        uint32_t a[4];
        rows.get(a, c);
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t b[4];
            load_b_of_rows<D>(b, others, 16 * n, 16 * c);
            mma(d[2 * n], a, b[0], b[1]);
            mma(d[2 * n + 1], a, b[2], b[3]);
        }
    }
}

/// sums += weights [16, N] times columns `column` .. of the N rows of `others`.
template <int D, int N, int COLUMNS>
__device__ __forceinline__ void add_weighted(float (&sums)[COLUMNS / 8][4], const float (&weights)[N / 8][4], const bf16* others,
                                             int column) {
#pragma unroll
    for (int c = 0; c < N / 16; c++) {
        uint32_t a[4];
        a_of_results(a, weights, c);
#pragma unroll
        for (int n = 0; n < COLUMNS / 16; n++) {
            uint32_t b[4];
            load_b_of_columns<D>(b, others, 16 * c, column + 16 * n);
            mma(sums[2 * n], a, b[0], b[1]);
            mma(sums[2 * n + 1], a, b[2], b[3]);
        }
    }
}

/// The score of a product in units of ln 2, and its slope.
__device__ __forceinline__ float score_log2(const AttentionRules& rules, float product, float& slope) {
    if (rules.cap > 0.0f) {
        const float t = tanh_fast(product * rules.scale / rules.cap);
        slope = 1.0f - t * t;
        return rules.cap * LOG2_E * t;
    }
    slope = 1.0f;
    return product * (rules.scale * LOG2_E);
}

/// Stores 16 rows of results: columns of a pair of rows, two neighbouring values of a lane at once.
template <int COLUMNS>
__device__ __forceinline__ void store_results(bf16* to, int stride, int row, int end, const float (&d)[COLUMNS / 8][4], float first,
                                              float second) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
        if (row + g < end) {
            *reinterpret_cast<uint32_t*>(to + (size_t)(row + g) * stride + 8 * n + 2 * t) = pack_bf16(d[n][0] * first, d[n][1] * first);
        }
        if (row + g + 8 < end) {
            *reinterpret_cast<uint32_t*>(to + (size_t)(row + g + 8) * stride + 8 * n + 2 * t) = pack_bf16(d[n][2] * second, d[n][3] * second);
        }
    }
}

/// A step of the online softmax: scores of a block of keys, in units of ln 2, become weights; sums so far shrink to the new largest
/// scores. `top` are a lane's own largest of both rows, those so far among them.
template <int D, int KEYS>
__device__ __forceinline__ void fold_block(float (&s)[KEYS / 8][4], float (&top)[2], float (&largest)[2], float (&sum)[2],
                                           float (&sums)[D / 8][4]) {
    float shrink[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        top[i] = fmaxf(top[i], __shfl_xor_sync(WHOLE_WARP, top[i], 1));
        top[i] = fmaxf(top[i], __shfl_xor_sync(WHOLE_WARP, top[i], 2));
        const float base = top[i] == -INFINITY ? 0.0f : top[i];
        shrink[i] = exp2_fast(largest[i] - base);
        largest[i] = top[i];
        top[i] = base;
        sum[i] *= shrink[i];
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[n][i] = exp2_fast(s[n][i] - top[i / 2]);
            sum[i / 2] += s[n][i];
        }
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] *= shrink[i / 2];
    }
}

/// Sizes of the forwards: a warp per 16 queries.
template <int D>
struct ForwardSizes {
    static constexpr int QUERIES = 64, KEYS = D <= 128 ? 64 : 32, THREADS = 128;
    static constexpr int SHARED = (QUERIES + 4 * KEYS) * MMA_PITCH<D> * 2;
};
