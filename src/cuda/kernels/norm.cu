// Root-mean-square norms (arXiv:1910.07467), as kernel::norm has them: y = (x * f) * w with f = 1 / sqrt(mean(x^2) + eps).
// A weight is `weight + offset`, rounded: Gemma stores w - 1. GROUP threads share a row: a warp for heads, a block of 256 else.
// x may be the residual stream, which is f32 (X) where what goes into products is bf16 (T).
#include "common.cuh"

/// Calls `visit(i, width)` for every run of values that this thread has of a row: 16 bytes of T wide if `wide`, else 1.
template <class T, int GROUP, class F>
__device__ __forceinline__ void for_row(int cols, bool wide, F visit) {
    const int at = threadIdx.x % GROUP;
    constexpr int W = WIDE<T>;
    if (wide) {
        for (int i = at * W; i < cols; i += GROUP * W) visit(i, Width<W>());
    } else {
        for (int i = at; i < cols; i += GROUP) visit(i, Width<1>());
    }
}

/// y = rms_norm(x); with `residual` of rms_norm(x + residual), the sum rounded to X and written to `sum`.
template <class X, class T, int GROUP>
__device__ __forceinline__ void rms_norm(const X* x, const T* residual, const float* weight, float offset, float eps, X* sum,
                                         T* y, int rows, int cols) {
    const int row = blockIdx.x * (256 / GROUP) + threadIdx.x / GROUP;
    if (GROUP == 32 && row >= rows) return;
    const size_t first = (size_t)row * cols;
    const bool wide = cols % WIDE<T> == 0 && all_aligned(x, residual, sum, y, weight);
    const X* from = residual ? sum : x;
    float squares[1] = {0.0f};
    for_row<T, GROUP>(cols, wide, [&](int i, auto width) {
        constexpr int W = decltype(width)::value;
        float a[W];
        load<W>(x + first + i, a);
        if (residual) {
            float b[W];
            load<W>(residual + first + i, b);
#pragma unroll
            for (int j = 0; j < W; j++) a[j] = to_f32(from_f32<X>(__fadd_rn(a[j], b[j])));
            store<W>(sum + first + i, a);
        }
#pragma unroll
        for (int j = 0; j < W; j++) squares[0] = fmaf(a[j], a[j], squares[0]);
    });
    group_sum<GROUP>(squares);
    const float f = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares[0], (float)cols), eps)));
    // every thread reads what it wrote itself
    for_row<T, GROUP>(cols, wide, [&](int i, auto width) {
        constexpr int W = decltype(width)::value;
        float a[W], w[W];
        load<W>(from + first + i, a);
        load<W>(weight + i, w);
#pragma unroll
        for (int j = 0; j < W; j++) a[j] = __fmul_rn(__fmul_rn(a[j], f), __fadd_rn(w[j], offset));
        store<W>(y + first + i, a);
    });
}

/// dx = (dy w) f - x f^3 (sum of (dy w) x) / C, plus `residual` if there is one; the factors f of all rows if they are wanted.
template <class X, class T, int GROUP>
__device__ __forceinline__ void rms_norm_backward(const X* x, const float* weight, float offset, float eps, const T* dy,
                                                  const X* residual, X* dx, float* factors, int rows, int cols) {
    const int row = blockIdx.x * (256 / GROUP) + threadIdx.x / GROUP;
    if (GROUP == 32 && row >= rows) return;
    const size_t first = (size_t)row * cols;
    const bool wide = cols % WIDE<T> == 0 && all_aligned(x, dy, residual, dx, weight);
    float sums[2] = {0.0f, 0.0f};
    for_row<T, GROUP>(cols, wide, [&](int i, auto width) {
        constexpr int W = decltype(width)::value;
        float a[W], d[W], w[W];
        load<W>(x + first + i, a);
        load<W>(dy + first + i, d);
        load<W>(weight + i, w);
#pragma unroll
        for (int j = 0; j < W; j++) {
            sums[0] = fmaf(a[j], a[j], sums[0]);
            sums[1] = fmaf(__fmul_rn(d[j], __fadd_rn(w[j], offset)), a[j], sums[1]);
        }
    });
    group_sum<GROUP>(sums);
    const float f = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sums[0], (float)cols), eps)));
    const float r = f * f * f * __fdiv_rn(sums[1], (float)cols);
    if (factors && threadIdx.x % GROUP == 0) factors[row] = f;
    for_row<T, GROUP>(cols, wide, [&](int i, auto width) {
        constexpr int W = decltype(width)::value;
        float a[W], d[W], w[W];
        load<W>(x + first + i, a);
        load<W>(dy + first + i, d);
        load<W>(weight + i, w);
#pragma unroll
        for (int j = 0; j < W; j++) {
            d[j] = fmaf(-a[j], r, __fmul_rn(__fmul_rn(d[j], __fadd_rn(w[j], offset)), f));
        }
        if (residual) {
            float b[W];
            load<W>(residual + first + i, b);
#pragma unroll
            for (int j = 0; j < W; j++) d[j] += b[j];
        }
        store<W>(dx + first + i, d);
    });
}

/// partial[part][column] = the sum of dy (x f) over the part's rows, ascending: the first of two steps of a weight's gradient.
/// Without x and factors the sum of dy: a bias's. Blocks are (columns / 256, parts).
template <class X, class T>
__device__ __forceinline__ void column_sums(const X* x, const float* factors, const T* dy, float* partial, int rows, int cols,
                                            int rows_per_part) {
    const int column = blockIdx.x * 256 + threadIdx.x;
    if (column >= cols) return;
    const int begin = blockIdx.y * rows_per_part, end = min(rows, begin + rows_per_part);
    float sum = 0.0f;
    for (int row = begin; row < end; row++) {
        const size_t i = (size_t)row * cols + column;
        const float d = to_f32(dy[i]);
        sum = x ? fmaf(d, __fmul_rn(to_f32(x[i]), factors[row]), sum) : sum + d;
    }
    partial[(size_t)blockIdx.y * cols + column] = sum;
}

/// gradient += the parts, ascending.
KERNEL(256) add_parts(const float* partial, float* gradient, int parts, int cols) {
    const int column = blockIdx.x * 256 + threadIdx.x;
    if (column >= cols) return;
    float sum = gradient[column];
    for (int part = 0; part < parts; part++) sum += partial[(size_t)part * cols + column];
    gradient[column] = sum;
}

// ---- rows' norms apart from their directions (DoRA, arXiv:2402.09353): model::dora

/// norm = |w + s b A| of every row w of a matrix, by |w|^2 + 2 s b (A w) + s^2 b (A A^T) b, and gain = magnitude / norm. `through_base` is
/// A W^T, [rank][rows]; gram is A A^T; b is [rows][rank]. A thread has a row; sums in f64, ascending.
KERNEL(256)
row_gains(const double* squares, const float* through_base, const float* gram, const float* b, const float* magnitude, float scale,
          float* norms, float* gains, int rank, int rows) {
    const int row = blockIdx.x * 256 + threadIdx.x;
    if (row >= rows) return;
    const float* own = b + (size_t)row * rank;
    double linear = 0.0, quadratic = 0.0;
    for (int i = 0; i < rank; i++) {
        linear += (double)own[i] * (double)through_base[(size_t)i * rows + row];
        double sum = 0.0;
        for (int j = 0; j < rank; j++) sum += (double)own[j] * (double)gram[(size_t)i * rank + j];
        quadratic += (double)own[i] * sum;
    }
    const double s = scale, square = squares[row] + 2.0 * s * linear + s * s * quadratic;
    const float norm = (float)sqrt(square > 0.0 ? square : 0.0);
    norms[row] = norm;
    gains[row] = __fdiv_rn(magnitude[row], norm);
}

/// y = x with column i times factors[i]; y may be x.
template <class T>
__device__ __forceinline__ void scale_columns(const T* x, const float* factors, T* y, int rows, int cols) {
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        for (int i = threadIdx.x; i < cols; i += blockDim.x) {
            const size_t at = (size_t)row * cols + i;
            y[at] = from_f32<T>(__fmul_rn(to_f32(x[at]), factors[i]));
        }
    }
}

/// partial[part][column] = the sum of dy (x / norm) over the part's rows, ascending: as column_sums.
template <class T>
__device__ __forceinline__ void column_dots(const T* x, const float* norms, const T* dy, float* partial, int rows, int cols,
                                            int rows_per_part) {
    const int column = blockIdx.x * 256 + threadIdx.x;
    if (column >= cols) return;
    const int begin = blockIdx.y * rows_per_part, end = min(rows, begin + rows_per_part);
    const float norm = norms[column];
    float sum = 0.0f;
    for (int row = begin; row < end; row++) {
        const size_t i = (size_t)row * cols + column;
        sum = fmaf(to_f32(dy[i]), __fdiv_rn(to_f32(x[i]), norm), sum);
    }
    partial[(size_t)blockIdx.y * cols + column] = sum;
}

#define COLUMN_KERNELS(T, name)                                                                                                 \
    KERNEL(256) scale_columns_##name(const T* x, const float* factors, T* y, int rows, int cols) {                               \
        scale_columns<T>(x, factors, y, rows, cols);                                                                            \
    }                                                                                                                           \
    KERNEL(256)                                                                                                                 \
    column_dots_##name(const T* x, const float* norms, const T* dy, float* partial, int rows, int cols, int rows_per_part) {    \
        column_dots<T>(x, norms, dy, partial, rows, cols, rows_per_part);                                                       \
    }

COLUMN_KERNELS(float, f32)
COLUMN_KERNELS(bf16, bf16)

#define NORM_KERNELS(X, T, GROUP, name)                                                                                         \
    KERNEL(256)                                                                                                                 \
    rms_norm_##name(const X* x, const T* residual, const float* weight, float offset, float eps, X* sum, T* y, int rows,        \
                    int cols) {                                                                                                 \
        rms_norm<X, T, GROUP>(x, residual, weight, offset, eps, sum, y, rows, cols);                                            \
    }                                                                                                                           \
    KERNEL(256)                                                                                                                 \
    rms_norm_backward_##name(const X* x, const float* weight, float offset, float eps, const T* dy, const X* residual, X* dx,   \
                             float* factors, int rows, int cols) {                                                              \
        rms_norm_backward<X, T, GROUP>(x, weight, offset, eps, dy, residual, dx, factors, rows, cols);                          \
    }

NORM_KERNELS(float, float, 256, block_f32)
NORM_KERNELS(bf16, bf16, 256, block_bf16)
NORM_KERNELS(float, bf16, 256, block_f32_bf16)
NORM_KERNELS(float, float, 32, warp_f32)
NORM_KERNELS(bf16, bf16, 32, warp_bf16)
NORM_KERNELS(float, bf16, 32, warp_f32_bf16)

#define COLUMN_SUMS(X, T, name)                                                                                                 \
    KERNEL(256)                                                                                                                 \
    column_sums_##name(const X* x, const float* factors, const T* dy, float* partial, int rows, int cols, int rows_per_part) {  \
        column_sums<X, T>(x, factors, dy, partial, rows, cols, rows_per_part);                                                  \
    }

COLUMN_SUMS(float, float, f32)
COLUMN_SUMS(bf16, bf16, bf16)
COLUMN_SUMS(float, bf16, f32_bf16)
