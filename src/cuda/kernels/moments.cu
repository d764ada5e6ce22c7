// Running sums of a matrix's columns, of the values and of their squares: kernel::column_moments.
#include "common.cuh"

/// Threads of a block, a column each. Small, so that the columns of a narrow matrix are spread over all multiprocessors.
constexpr int MOMENT_COLUMNS = 32;

/// Rows that a thread reads before it adds the first: as many reads are on their way at once.
constexpr int MOMENT_ROWS = 32;

/// Whether a sum fits an f32, which is what files hold.
__device__ __forceinline__ bool fits_f32(double sum) { return fabsf((float)sum) <= 3.402823466e38f; }

/// values[c] += x[r][c] and squares[c] += x[r][c]^2, r ascending. Where that takes a sum of squares beyond f32, beyond[c] is one more than the row of
/// which it does, by ids[r] if there are ids, and *refused is 1. A thread has a column.
///
/// One chain of f64 additions for each column, and the square of an f32 is exact in f64: the CPU's bits, however rows are cut into calls. The
/// reads do not wait for the additions, so a thread has many rows under way.
template <class T>
__device__ __forceinline__ void column_moments(const T* x, const uint32_t* ids, double* values, double* squares, uint32_t* beyond,
                                               uint32_t* refused, int rows, int cols) {
    const int c = blockIdx.x * MOMENT_COLUMNS + threadIdx.x;
    if (c >= cols) return;
    const T* column = x + c;
    const double before = squares[c];
    double value = values[c], square = before;
    int first = 0;
    for (; first + MOMENT_ROWS <= rows; first += MOMENT_ROWS) {
        float held[MOMENT_ROWS];
#pragma unroll
        for (int i = 0; i < MOMENT_ROWS; i++) held[i] = to_f32(column[(size_t)(first + i) * cols]);
#pragma unroll
        for (int i = 0; i < MOMENT_ROWS; i++) {
            value += (double)held[i];
            square += (double)held[i] * (double)held[i];
        }
    }
    if (first < rows) {
        float held[MOMENT_ROWS];
#pragma unroll
        for (int i = 0; i < MOMENT_ROWS; i++) held[i] = first + i < rows ? to_f32(column[(size_t)(first + i) * cols]) : 0.0f;
#pragma unroll
        for (int i = 0; i < MOMENT_ROWS; i++) {
            if (first + i < rows) {
                value += (double)held[i];
                square += (double)held[i] * (double)held[i];
            }
        }
    }
    values[c] = value;
    squares[c] = square;
    if (fits_f32(square) || !fits_f32(before)) return;
    // the same chain once more, up to the row in question
    square = before;
    int row = 0;
    for (; row < rows - 1; row++) {
        const double wide = (double)to_f32(column[(size_t)row * cols]);
        square += wide * wide;
        if (!fits_f32(square)) break;
    }
    beyond[c] = 1 + (ids ? ids[row] : (uint32_t)row);
    *refused = 1; // whichever thread writes it, it is this
}

KERNEL(MOMENT_COLUMNS)
column_moments_f32(const float* x, const uint32_t* ids, double* values, double* squares, uint32_t* beyond, uint32_t* refused, int rows,
                   int cols) {
    column_moments(x, ids, values, squares, beyond, refused, rows, cols);
}

KERNEL(MOMENT_COLUMNS)
column_moments_bf16(const bf16* x, const uint32_t* ids, double* values, double* squares, uint32_t* beyond, uint32_t* refused, int rows,
                    int cols) {
    column_moments(x, ids, values, squares, beyond, refused, rows, cols);
}
