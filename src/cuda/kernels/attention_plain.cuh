// What the kernels of attention without tensor cores share: tiles in shared memory as f32, four threads to a row.
#pragma once
#include "attention.cuh"

/// Rows of a tile by the largest head size; four threads share a row.
template <int D>
constexpr int PLAIN_ROWS = D <= 128 ? 32 : 16;
template <int D>
constexpr int PLAIN_THREADS = 4 * PLAIN_ROWS<D>;
/// Values from row to row in shared memory: odd, so that rows lie in different banks.
template <int D>
constexpr int PLAIN_PITCH = D + 1;

/// Loads rows first .. of one head as f32; zeros from `end` on, and behind the head's values.
template <int D, class T>
__device__ __forceinline__ void load_plain(float* tile, const T* from, int stride, int first, int end, int head_dim) {
    constexpr int ROWS = PLAIN_ROWS<D>;
    for (int i = threadIdx.x; i < ROWS * D; i += PLAIN_THREADS<D>) {
        const int row = i / D, d = i % D;
        const bool is_value = first + row < end && d < head_dim;
        tile[row * PLAIN_PITCH<D> + d] = is_value ? to_f32(from[(size_t)(first + row) * stride + d]) : 0.0f;
    }
}

/// sums += the rows of a tile, each times its weight, ascending: the columns part, part + 4, ...
template <int D>
__device__ __forceinline__ void add_rows(float (&sums)[D / 4], const float* weights, const float* tile, int part) {
// unrolled further it takes nvcc minutes
#pragma unroll 2
    for (int j = 0; j < PLAIN_ROWS<D>; j++) {
        const float weight = weights[j];
        const float* row = tile + j * PLAIN_PITCH<D> + part;
#pragma unroll
        for (int i = 0; i < D / 4; i++) sums[i] = fmaf(weight, row[4 * i], sums[i]);
    }
}

/// The dot product of two rows.
__device__ __forceinline__ float dot(const float* a, const float* b, int head_dim) {
    float sum = 0.0f;
#pragma unroll 4
    for (int d = 0; d < head_dim; d++) sum = fmaf(a[d], b[d], sum);
    return sum;
}

/// Folds this thread's scores of a block of keys, the largest of which is `top`, into its row's running maximum and sum; writes their weights,
/// four apart. Returns what was summed before is to be multiplied by.
template <int OWN>
__device__ __forceinline__ float fold_scores(const float (&s)[OWN], float top, float& largest, float& sum, float* weights) {
    top = fmaxf(top, __shfl_xor_sync(WHOLE_WARP, top, 1));
    top = fmaxf(top, __shfl_xor_sync(WHOLE_WARP, top, 2));
    // nothing seen yet: any finite number, since all weights are 0
    const float base = top == -INFINITY ? 0.0f : top;
    const float shrink = expf(largest - base);
    largest = top;
    sum *= shrink;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const float p = expf(s[i] - base);
        sum += p;
        weights[4 * i] = p;
    }
    return shrink;
}

/// The score of a product, and its slope by the scaled product.
__device__ __forceinline__ float score(const AttentionRules& rules, float product, float& slope) {
    const float x = product * rules.scale;
    if (rules.cap > 0.0f) {
        const float t = tanhf(x / rules.cap);
        slope = 1.0f - t * t;
        return rules.cap * t;
    }
    slope = 1.0f;
    return x;
}
