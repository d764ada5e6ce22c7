// Steps that treat every value alone: residual sums, gates of feed-forwards, rotations, dropout, casts, rows by index.
#include "common.cuh"

/// Calls `visit(i, width)` for runs of n values over the whole grid: 16 bytes of T wide, the rest one by one.
template <class T, class F>
__device__ __forceinline__ void for_all(size_t n, bool wide, F visit) {
    constexpr int W = WIDE<T>;
    const size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x, step = (size_t)gridDim.x * blockDim.x;
    const size_t body = wide ? n / W : 0;
    for (size_t i = at; i < body; i += step) visit(i * W, Width<W>());
    for (size_t i = body * W + at; i < n; i += step) visit(i, Width<1>());
}

/// out = x + factor * y, product and sum each rounded (factor 1 is a plain sum); out may be x.
template <class X, class T>
__device__ __forceinline__ void add_scaled(const X* x, const T* y, float factor, X* out, size_t n) {
    for_all<T>(n, all_aligned(x, y, out), [&](size_t i, auto width) {
        constexpr int W = decltype(width)::value;
        float a[W], b[W];
        load<W>(x + i, a);
        load<W>(y + i, b);
#pragma unroll
        for (int j = 0; j < W; j++) a[j] = __fadd_rn(a[j], __fmul_rn(factor, b[j]));
        store<W>(out + i, a);
    });
}

template <class T>
__device__ __forceinline__ void scale(const T* x, float factor, T* out, size_t n) {
    for_all<T>(n, all_aligned(x, out), [&](size_t i, auto width) {
        constexpr int W = decltype(width)::value;
        float a[W];
        load<W>(x + i, a);
#pragma unroll
        for (int j = 0; j < W; j++) a[j] = __fmul_rn(factor, a[j]);
        store<W>(out + i, a);
    });
}

/// x += bias for every row of x.
template <class T>
__device__ __forceinline__ void add_bias(T* x, const float* bias, int rows, int cols) {
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        for (int i = threadIdx.x; i < cols; i += blockDim.x) {
            T* value = x + (size_t)row * cols + i;
            *value = from_f32<T>(__fadd_rn(to_f32(*value), bias[i]));
        }
    }
}

KERNEL(256) cast_f32_bf16(const float* x, bf16* y, size_t n) {
    for_all<bf16>(n, all_aligned(x, y), [&](size_t i, auto width) {
        constexpr int W = decltype(width)::value;
        float a[W];
        load<W>(x + i, a);
        store<W>(y + i, a);
    });
}

KERNEL(256) cast_bf16_f32(const bf16* x, float* y, size_t n) {
    for_all<bf16>(n, all_aligned(x, y), [&](size_t i, auto width) {
        constexpr int W = decltype(width)::value;
        float a[W];
        load<W>(x + i, a);
        store<W>(y + i, a);
    });
}

// ---- gates of feed-forwards (arXiv:2002.05202)

constexpr int SILU = 0;
constexpr int GELU_TANH = 1;

/// The activation's value, and its slope.
template <int KIND>
__device__ __forceinline__ float activation(float x, float& slope) {
    if constexpr (KIND == SILU) {
        const float s = 1.0f / (1.0f + expf(-x));
        slope = s * fmaf(x, 1.0f - s, 1.0f);
        return x * s;
    } else {
        // 0.5 (1 + tanh(u)) is the logistic function of 2u, without cancellation where u is far below 0
        constexpr float FACTOR = 1.5957691216057308f; // 2 sqrt(2 / pi)
        const float s = 1.0f / (1.0f + expf(-FACTOR * fmaf(0.044715f * x * x, x, x)));
        slope = s * fmaf(x * FACTOR * fmaf(3.0f * 0.044715f * x, x, 1.0f), 1.0f - s, 1.0f);
        return x * s;
    }
}

/// y = activation(gate) * up. Rows of gate and up are `stride` values apart (both may lie in one matrix), those of y are dense.
template <class T, int KIND>
__device__ __forceinline__ void gated(const T* gate, const T* up, T* y, int rows, int cols, int stride) {
    const bool wide = cols % WIDE<T> == 0 && stride % WIDE<T> == 0 && all_aligned(gate, up, y);
    const int width_of_run = wide ? WIDE<T> : 1, runs = cols / width_of_run;
    const auto step = [&](size_t in, size_t out, auto width) {
        constexpr int W = decltype(width)::value;
        float g[W], u[W], slope;
        load<W>(gate + in, g);
        load<W>(up + in, u);
#pragma unroll
        for (int j = 0; j < W; j++) g[j] = activation<KIND>(g[j], slope) * u[j];
        store<W>(y + out, g);
    };
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        for (int run = blockIdx.x * blockDim.x + threadIdx.x; run < runs; run += gridDim.x * blockDim.x) {
            const size_t at = (size_t)run * width_of_run;
            if (wide) step((size_t)row * stride + at, (size_t)row * cols + at, Width<WIDE<T>>());
            else step((size_t)row * stride + at, (size_t)row * cols + at, Width<1>());
        }
    }
}

/// dgate = dy * up * activation'(gate), dup = dy * activation(gate); they may be gate and up, whose stride they have. With y not
/// null the forward's result again, which the gradient of what follows needs.
template <class T, int KIND>
__device__ __forceinline__ void gated_backward(const T* gate, const T* up, const T* dy, T* dgate, T* dup, T* y, int rows,
                                               int cols, int stride) {
    const bool wide = cols % WIDE<T> == 0 && stride % WIDE<T> == 0 && all_aligned(gate, up, dy, dgate, dup, y);
    const int width_of_run = wide ? WIDE<T> : 1, runs = cols / width_of_run;
    const auto step = [&](size_t in, size_t out, auto width) {
        constexpr int W = decltype(width)::value;
        float g[W], u[W], d[W], product[W];
        load<W>(gate + in, g);
        load<W>(up + in, u);
        load<W>(dy + out, d);
#pragma unroll
        for (int j = 0; j < W; j++) {
            float slope;
            const float value = activation<KIND>(g[j], slope);
            product[j] = value * u[j];
            g[j] = d[j] * u[j] * slope;
            u[j] = d[j] * value;
        }
        store<W>(dgate + in, g);
        store<W>(dup + in, u);
        if (y) store<W>(y + out, product);
    };
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        for (int run = blockIdx.x * blockDim.x + threadIdx.x; run < runs; run += gridDim.x * blockDim.x) {
            const size_t at = (size_t)run * width_of_run;
            if (wide) step((size_t)row * stride + at, (size_t)row * cols + at, Width<WIDE<T>>());
            else step((size_t)row * stride + at, (size_t)row * cols + at, Width<1>());
        }
    }
}

// ---- rotary position embedding (arXiv:2104.09864)

/// Turns the first 2 * half values of every head in place, value i with i + half; a block has a row. `table` has per position the cosines
/// and then the sines. `turn` is 1, or -1 for the gradient. Every product and sum is rounded, as on the CPU.
template <class T>
__device__ __forceinline__ void rope(T* x, int stride, int n_heads, int head_dim, int half, const uint32_t* positions,
                                     const float* table, float turn) {
    T* row = x + (size_t)blockIdx.x * stride;
    const float* angles = table + (size_t)positions[blockIdx.x] * 2 * half;
    const auto step = [&](int head, int i, auto width) {
        constexpr int W = decltype(width)::value;
        T* low = row + (size_t)head * head_dim + i;
        float a[W], b[W], cosine[W], sine[W];
        load<W>(low, a);
        load<W>(low + half, b);
        load<W>(angles + i, cosine);
        load<W>(angles + half + i, sine);
#pragma unroll
        for (int j = 0; j < W; j++) {
            const float s = turn * sine[j], was = a[j];
            a[j] = __fsub_rn(__fmul_rn(a[j], cosine[j]), __fmul_rn(b[j], s));
            b[j] = __fadd_rn(__fmul_rn(b[j], cosine[j]), __fmul_rn(was, s));
        }
        store<W>(low, a);
        store<W>(low + half, b);
    };
    const bool wide = half % 4 == 0 && head_dim % 4 == 0 && stride % 4 == 0 && all_aligned(x) && all_aligned(table);
    const int per_head = wide ? half / 4 : half;
    for (int item = threadIdx.x; item < n_heads * per_head; item += blockDim.x) {
        const int head = item / per_head, i = item % per_head;
        if (wide) step(head, 4 * i, Width<4>());
        else step(head, i, Width<1>());
    }
}

// ---- rows by index

/// out[r] = scale * from[ids[r]]; a block has a row.
template <class T, class O>
__device__ __forceinline__ void gather_rows(const T* from, const uint32_t* ids, float scale, O* out, int cols) {
    const T* row = from + (size_t)ids[blockIdx.x] * cols;
    O* to = out + (size_t)blockIdx.x * cols;
    constexpr int W = WIDE<T> < WIDE<O> ? WIDE<T> : WIDE<O>;
    if (cols % WIDE<T> == 0 && cols % WIDE<O> == 0 && all_aligned(from) && all_aligned(out)) {
        for (int i = threadIdx.x * W; i < cols; i += blockDim.x * W) {
            float a[W];
            load<W>(row + i, a);
#pragma unroll
            for (int j = 0; j < W; j++) a[j] = __fmul_rn(scale, a[j]);
            store<W>(to + i, a);
        }
    } else {
        for (int i = threadIdx.x; i < cols; i += blockDim.x) to[i] = from_f32<O>(__fmul_rn(scale, to_f32(row[i])));
    }
}

/// out[ids[r]] = from[r]; a block has a row, ids are distinct.
template <class T>
__device__ __forceinline__ void scatter_rows(const T* from, const uint32_t* ids, T* out, int cols) {
    const T* row = from + (size_t)blockIdx.x * cols;
    T* to = out + (size_t)ids[blockIdx.x] * cols;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) to[i] = row[i];
}

/// out[ids[r]] += factors[r] * from[r], fused; without factors, which may be null, plain sums. A block has a row, ids are distinct.
template <class T>
__device__ __forceinline__ void combine_rows(const T* from, const uint32_t* ids, const float* factors, T* out, int cols) {
    const T* row = from + (size_t)blockIdx.x * cols;
    T* to = out + (size_t)ids[blockIdx.x] * cols;
    const float factor = factors ? factors[blockIdx.x] : 1.0f;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) to[i] = from_f32<T>(fmaf(to_f32(row[i]), factor, to_f32(to[i])));
}

/// The gradients of combine_rows by its rows x and by their factors, given that of the result: dx[r] = factors[r] * dy[ids[r]], and
/// dots[r] = the dot product of x[r] and dy[ids[r]]. A block has a row.
template <class T>
__device__ __forceinline__ void combine_rows_backward(const T* x, const T* dy, const uint32_t* ids, const float* factors, T* dx,
                                                      float* dots, int cols) {
    const size_t first = (size_t)blockIdx.x * cols, from = (size_t)ids[blockIdx.x] * cols;
    const float factor = factors[blockIdx.x];
    float sum[1] = {0.0f};
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        const float d = to_f32(dy[from + i]);
        sum[0] = fmaf(to_f32(x[first + i]), d, sum[0]);
        dx[first + i] = from_f32<T>(__fmul_rn(factor, d));
    }
    block_sum<256>(sum);
    if (threadIdx.x == 0) dots[blockIdx.x] = sum[0];
}

/// gradient[ids[b]] += scale * dx[t] for t in order[starts[b] .. starts[b + 1]], product and sum each rounded; ids are distinct,
/// order ascends within an id: the order of the CPU.
template <class T>
__device__ __forceinline__ void embedding_backward(const T* dx, const uint32_t* ids, const uint32_t* starts, const uint32_t* order,
                                                   float scale, float* gradient, int cols) {
    float* to = gradient + (size_t)ids[blockIdx.x] * cols;
    const uint32_t begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        float sum = to[i];
        for (uint32_t at = begin; at < end; at++) {
            sum = __fadd_rn(sum, __fmul_rn(scale, to_f32(dx[(size_t)order[at] * cols + i])));
        }
        to[i] = sum;
    }
}

// ---- dropout by counters: kernel::dropout

/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011).
__device__ __forceinline__ void philox(uint32_t (&counter)[4], uint32_t key0, uint32_t key1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t high0 = __umulhi(0xd2511f53u, counter[0]), low0 = 0xd2511f53u * counter[0];
        const uint32_t high1 = __umulhi(0xcd9e8d57u, counter[2]), low1 = 0xcd9e8d57u * counter[2];
        counter[0] = high1 ^ counter[1] ^ key0;
        counter[2] = high0 ^ counter[3] ^ key1;
        counter[1] = low1;
        counter[3] = low0;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
}

/// y = x * factor or 0, by the address of every value; a block has a row. y may be x.
template <class T>
__device__ __forceinline__ void dropout(const T* x, T* y, int cols, const uint32_t* documents, const uint32_t* positions,
                                        uint32_t seed0, uint32_t seed1, uint32_t step, uint32_t module, uint32_t threshold,
                                        float factor) {
    constexpr uint32_t PURPOSE = 6; // Purpose::Dropout
    uint32_t stream[4] = {step, documents[blockIdx.x], module, PURPOSE};
    philox(stream, seed0, seed1);
    const uint32_t position = positions[blockIdx.x];
    const size_t first = (size_t)blockIdx.x * cols;
    const int blocks = (cols + 63) / 64 * 16;
    for (int block = threadIdx.x; block < blocks; block += blockDim.x) {
        uint32_t words[4] = {position, (uint32_t)block, 0, PURPOSE};
        philox(words, stream[0], stream[1]);
        const int column = block / 16 * 64 + block % 16;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (column + 16 * i < cols) {
                const size_t at = first + column + 16 * i;
                y[at] = from_f32<T>(words[i] >= threshold ? __fmul_rn(to_f32(x[at]), factor) : 0.0f);
            }
        }
    }
}

#define ELEMENTWISE_KERNELS(T, name)                                                                                            \
    KERNEL(256) add_scaled_##name(const T* x, const T* y, float factor, T* out, size_t n) { add_scaled<T, T>(x, y, factor, out, n); } \
    KERNEL(256) scale_##name(const T* x, float factor, T* out, size_t n) { scale<T>(x, factor, out, n); }                        \
    KERNEL(256) add_bias_##name(T* x, const float* bias, int rows, int cols) { add_bias<T>(x, bias, rows, cols); }               \
    KERNEL(256) swiglu_##name(const T* gate, const T* up, T* y, int rows, int cols, int stride) {                                \
        gated<T, SILU>(gate, up, y, rows, cols, stride);                                                                        \
    }                                                                                                                           \
    KERNEL(256) geglu_##name(const T* gate, const T* up, T* y, int rows, int cols, int stride) {                                 \
        gated<T, GELU_TANH>(gate, up, y, rows, cols, stride);                                                                   \
    }                                                                                                                           \
    KERNEL(256)                                                                                                                 \
    swiglu_backward_##name(const T* gate, const T* up, const T* dy, T* dgate, T* dup, T* y, int rows, int cols, int stride) {    \
        gated_backward<T, SILU>(gate, up, dy, dgate, dup, y, rows, cols, stride);                                               \
    }                                                                                                                           \
    KERNEL(256)                                                                                                                 \
    geglu_backward_##name(const T* gate, const T* up, const T* dy, T* dgate, T* dup, T* y, int rows, int cols, int stride) {     \
        gated_backward<T, GELU_TANH>(gate, up, dy, dgate, dup, y, rows, cols, stride);                                          \
    }                                                                                                                           \
    KERNEL(256)                                                                                                                 \
    rope_##name(T* x, int stride, int n_heads, int head_dim, int half, const uint32_t* positions, const float* table,           \
                float turn) {                                                                                                   \
        rope<T>(x, stride, n_heads, head_dim, half, positions, table, turn);                                                    \
    }                                                                                                                           \
    KERNEL(256) gather_rows_##name(const T* from, const uint32_t* ids, float scale, T* out, int cols) {                          \
        gather_rows<T, T>(from, ids, scale, out, cols);                                                                         \
    }                                                                                                                           \
    KERNEL(256) scatter_rows_##name(const T* from, const uint32_t* ids, T* out, int cols) { scatter_rows<T>(from, ids, out, cols); } \
    KERNEL(256) combine_rows_##name(const T* from, const uint32_t* ids, const float* factors, T* out, int cols) {                \
        combine_rows<T>(from, ids, factors, out, cols);                                                                         \
    }                                                                                                                           \
    KERNEL(256)                                                                                                                 \
    combine_rows_backward_##name(const T* x, const T* dy, const uint32_t* ids, const float* factors, T* dx, float* dots,        \
                                 int cols) {                                                                                    \
        combine_rows_backward<T>(x, dy, ids, factors, dx, dots, cols);                                                          \
    }                                                                                                                           \
    KERNEL(256)                                                                                                                 \
    embedding_backward_##name(const T* dx, const uint32_t* ids, const uint32_t* starts, const uint32_t* order, float scale,     \
                              float* gradient, int cols) {                                                                      \
        embedding_backward<T>(dx, ids, starts, order, scale, gradient, cols);                                                   \
    }                                                                                                                           \
    KERNEL(256)                                                                                                                 \
    dropout_##name(const T* x, T* y, int cols, const uint32_t* documents, const uint32_t* positions, uint32_t seed0,            \
                   uint32_t seed1, uint32_t step, uint32_t module, uint32_t threshold, float factor) {                          \
        dropout<T>(x, y, cols, documents, positions, seed0, seed1, step, module, threshold, factor);                            \
    }

ELEMENTWISE_KERNELS(float, f32)
ELEMENTWISE_KERNELS(bf16, bf16)

KERNEL(256) add_scaled_f32_bf16(const float* x, const bf16* y, float factor, float* out, size_t n) {
    add_scaled<float, bf16>(x, y, factor, out, n);
}
KERNEL(256) gather_rows_bf16_f32(const bf16* from, const uint32_t* ids, float scale, float* out, int cols) {
    gather_rows<bf16, float>(from, ids, scale, out, cols);
}
