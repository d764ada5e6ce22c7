// Cross entropy over rows of logits, and its gradient: the middle of a loss whose products cuBLAS computes, a chunk of rows at a time;
// and what evaluation asks of logits.
#include "common.cuh"

/// What a row's target is if it has none: its loss and gradient are 0.
constexpr uint32_t NO_TARGET = 0xffffffffu;

constexpr int LOSS_THREADS = 512;

/// The largest value and the sum of exponentials below it, over a block.
__device__ __forceinline__ void block_log_sum(float& largest, float& sum) {
    __shared__ float all[2][LOSS_THREADS / 32];
    const auto join = [](float& m, float& s, float other_m, float other_s) {
        const float top = fmaxf(m, other_m);
        // both are -infinity only where nothing was seen
        s = (m == top ? s : s * expf(m - top)) + (other_m == top ? other_s : other_s * expf(other_m - top));
        m = top;
    };
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        const float other_m = __shfl_xor_sync(WHOLE_WARP, largest, mask), other_s = __shfl_xor_sync(WHOLE_WARP, sum, mask);
        join(largest, sum, other_m, other_s);
    }
    if (threadIdx.x % 32 == 0) {
        all[0][threadIdx.x / 32] = largest;
        all[1][threadIdx.x / 32] = sum;
    }
    __syncthreads();
    largest = all[0][0];
    sum = all[1][0];
    for (int warp = 1; warp < LOSS_THREADS / 32; warp++) join(largest, sum, all[0][warp], all[1][warp]);
}

/// nll = -ln(probability of the target), and out = factor * (p - [is the target]), times 1 - (capped / cap)^2 with a cap; a block has a
/// row. Logits become cap * tanh(logit / cap) if cap > 0 (Gemma 2). `out` may be the logits, or null.
template <class T, class O>
__device__ __forceinline__ void cross_entropy(const T* logits, const uint32_t* targets, const float* factors, float cap, float* nll,
                                              O* out, int cols) {
    const T* row = logits + (size_t)blockIdx.x * cols;
    O* to = out ? out + (size_t)blockIdx.x * cols : nullptr;
    const uint32_t target = targets[blockIdx.x];
    constexpr int W = WIDE<T> < WIDE<O> ? WIDE<T> : WIDE<O>;
    const bool wide = cols % WIDE<T> == 0 && cols % WIDE<O> == 0 && all_aligned(logits) && all_aligned(out);
    const int first = wide ? threadIdx.x * W : threadIdx.x, step = wide ? LOSS_THREADS * W : LOSS_THREADS;
    if (target == NO_TARGET) {
        for (int i = first; to && i < cols; i += step) {
            for (int j = 0; j < (wide ? W : 1); j++) to[i + j] = from_f32<O>(0.0f);
        }
        if (threadIdx.x == 0) nll[blockIdx.x] = 0.0f;
        return;
    }
    const auto capped = [&](float x) { return cap > 0.0f ? cap * tanhf(x / cap) : x; };
    float largest = -INFINITY, sum = 0.0f;
    const auto see = [&](float (&x)[W], int n) {
        float top = largest;
        for (int j = 0; j < n; j++) {
            x[j] = capped(x[j]);
            top = fmaxf(top, x[j]);
        }
        if (top > largest) {
            sum *= expf(largest - top);
            largest = top;
        }
        for (int j = 0; j < n; j++) sum += x[j] == -INFINITY ? 0.0f : expf(x[j] - largest);
    };
    for (int i = first; i < cols; i += step) {
        float x[W];
        if (wide) {
            load<W>(row + i, x);
            see(x, W);
        } else {
            x[0] = to_f32(row[i]);
            see(x, 1);
        }
    }
    block_log_sum(largest, sum);
    const float log_sum = logf(sum);
    if (threadIdx.x == 0) nll[blockIdx.x] = -((capped(to_f32(row[target])) - largest) - log_sum);
    if (!to) return;
    __syncthreads(); // the target's logit was read
    const float factor = factors[blockIdx.x];
    const auto gradient = [&](float x, int column) {
        const float c = capped(x);
        const float d = factor * (expf((c - largest) - log_sum) - ((uint32_t)column == target ? 1.0f : 0.0f));
        const float ratio = c / cap;
        return cap > 0.0f ? d * (1.0f - ratio * ratio) : d;
    };
    for (int i = first; i < cols; i += step) {
        if (wide) {
            float x[W];
            load<W>(row + i, x);
#pragma unroll
            for (int j = 0; j < W; j++) x[j] = gradient(x[j], i + j);
            store<W>(to + i, x);
        } else {
            to[i] = from_f32<O>(gradient(to_f32(row[i]), i));
        }
    }
}

#define LOSS_KERNEL(T, O, name)                                                                                                 \
    KERNEL(LOSS_THREADS)                                                                                                        \
    cross_entropy_##name(const T* logits, const uint32_t* targets, const float* factors, float cap, float* nll, O* out,         \
                         int cols) {                                                                                            \
        cross_entropy<T, O>(logits, targets, factors, cap, nll, out, cols);                                                     \
    }

LOSS_KERNEL(float, float, f32)
LOSS_KERNEL(float, bf16, f32_bf16)
LOSS_KERNEL(bf16, bf16, bf16)

/// Of every row of logits, capped: the largest and ln(sum of e^(x - largest)), beside one another, and the first index of the largest,
/// 0 if there is none; a block has a row.
KERNEL(LOSS_THREADS)
score_rows_f32(const float* logits, float cap, float* pieces, uint32_t* best, int cols) {
    __shared__ uint32_t indexes[LOSS_THREADS / 32];
    const float* row = logits + (size_t)blockIdx.x * cols;
    float own = -INFINITY, sum = 0.0f;
    uint32_t index = 0;
    for (int i = threadIdx.x; i < cols; i += LOSS_THREADS) {
        const float x = cap > 0.0f ? cap * tanhf(row[i] / cap) : row[i];
        if (x > own) {
            sum *= expf(own - x);
            own = x;
            index = i;
        }
        sum += x == -INFINITY ? 0.0f : expf(x - own);
    }
    float largest = own;
    block_log_sum(largest, sum);
    // a thread that saw nothing has no index to give
    uint32_t first = own == largest && own > -INFINITY ? index : 0xffffffffu;
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        const uint32_t other = __shfl_xor_sync(WHOLE_WARP, first, mask);
        first = other < first ? other : first;
    }
    if (threadIdx.x % 32 == 0) indexes[threadIdx.x / 32] = first;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < LOSS_THREADS / 32; warp++) first = indexes[warp] < first ? indexes[warp] : first;
    pieces[2 * (size_t)blockIdx.x] = largest;
    pieces[2 * (size_t)blockIdx.x + 1] = logf(sum);
    best[blockIdx.x] = first == 0xffffffffu ? 0 : first;
}

/// The log-probability of every target, (row, token), by the pieces of its row.
KERNEL(256)
score_targets_f32(const float* logits, const float* pieces, const uint32_t* targets, float cap, float* log_probs, int n, int cols) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const size_t row = targets[2 * i];
        const float x = logits[row * cols + targets[2 * i + 1]], capped = cap > 0.0f ? cap * tanhf(x / cap) : x;
        log_probs[i] = (capped - pieces[2 * row]) - pieces[2 * row + 1];
    }
}

/// Every logit becomes cap * tanh(logit / cap).
KERNEL(256)
softcap_f32(float* logits, float cap, uint64_t n) {
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
        logits[i] = cap * tanhf(logits[i] / cap);
    }
}
