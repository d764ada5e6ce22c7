// Optimizers over a range of one flat f32 vector, the norm of all gradients, and their sum over processes: the bits of finetune::optimizer,
// finetune::clip and finetune::parallel.
#include "common.cuh"

/// Values whose squares one block sums, and the chunk of finetune::clip.
constexpr int NORM_CHUNK = 1 << 16;

/// sums[b] = the sum of squares of chunk b in f64: value i in lane i % 8, ascending, the lanes by a tree.
KERNEL(256) sum_of_squares(const float* values, double* sums, size_t n) {
    constexpr int TILE = 2048;
    __shared__ float tile[TILE];
    __shared__ double lanes[8];
    const size_t begin = (size_t)blockIdx.x * NORM_CHUNK;
    const int count = n - begin < NORM_CHUNK ? (int)(n - begin) : NORM_CHUNK;
    double sum = 0.0;
    for (int first = 0; first < count; first += TILE) {
        const int here = min(TILE, count - first);
        __syncthreads(); // the last tile was read
        for (int i = threadIdx.x; i < here; i += 256) tile[i] = values[begin + first + i];
        __syncthreads();
        if (threadIdx.x < 8) {
            // the product of two f32 is exact in f64, so that fusing changes nothing
            for (int i = threadIdx.x; i < here; i += 8) sum += (double)tile[i] * (double)tile[i];
        }
    }
    if (threadIdx.x < 8) lanes[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
    }
}

/// norm = sqrt(sum of the chunks, ascending); factor = min(1, max_norm / (norm + 1e-6)), 1 where max_norm is 0. One block.
KERNEL(256) clip_factor(const double* sums, int n_chunks, double max_norm, double* norm, float* factor) {
    __shared__ double tile[256];
    double total = 0.0;
    for (int first = 0; first < n_chunks; first += 256) {
        __syncthreads();
        if (first + (int)threadIdx.x < n_chunks) tile[threadIdx.x] = sums[first + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int i = 0; i < min(256, n_chunks - first); i++) total += tile[i];
        }
    }
    if (threadIdx.x == 0) {
        const double root = sqrt(total), ratio = max_norm / (root + 1e-6);
        *norm = root;
        *factor = max_norm == 0.0 || ratio > 1.0 ? 1.0f : (float)ratio;
    }
}

/// out[i] = ((v0[i] + v1[i]) + v2[i]) + .., v being the vectors of all ranks one behind another: the bits of finetune::parallel.
KERNEL(256) sum_of_ranks(const float* values, float* out, int n_ranks, size_t n) {
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        float sum = values[i];
        for (int rank = 1; rank < n_ranks; rank++) sum = __fadd_rn(sum, values[rank * n + i]);
        out[i] = sum;
    }
}

/// A step of AdamW; every operation rounded, none fused. `rounded`, if not null, gets the parameters as bf16.
KERNEL(256)
adamw(float* params, float* first_moment, float* second_moment, const float* gradients, bf16* rounded, const float* gradient_factor,
      float keep, float first, float beta2, float second, float root, float eps, float step_size, size_t n) {
    const float factor = *gradient_factor;
    const size_t step = (size_t)gridDim.x * blockDim.x;
    const auto update = [&](float g, float& p, float& m, float& v) {
        g = __fmul_rn(g, factor);
        m = __fadd_rn(m, __fmul_rn(first, __fsub_rn(g, m)));
        v = __fadd_rn(__fmul_rn(beta2, v), __fmul_rn(second, __fmul_rn(g, g)));
        const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), root), eps);
        p = __fsub_rn(__fmul_rn(keep, p), __fmul_rn(step_size, __fdiv_rn(m, denominator)));
    };
    const bool wide = all_aligned(params, first_moment, second_moment, gradients) && (reinterpret_cast<uintptr_t>(rounded) & 7) == 0;
    const size_t body = wide ? n / 4 : 0, at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (size_t run = at; run < body; run += step) {
        const size_t i = 4 * run;
        float g[4], p[4], m[4], v[4];
        load<4>(gradients + i, g);
        load<4>(params + i, p);
        load<4>(first_moment + i, m);
        load<4>(second_moment + i, v);
#pragma unroll
        for (int j = 0; j < 4; j++) update(g[j], p[j], m[j], v[j]);
        store<4>(params + i, p);
        store<4>(first_moment + i, m);
        store<4>(second_moment + i, v);
        if (rounded) store<4>(rounded + i, p);
    }
    for (size_t i = 4 * body + at; i < n; i += step) {
        update(gradients[i], params[i], first_moment[i], second_moment[i]);
        if (rounded) rounded[i] = from_f32<bf16>(params[i]);
    }
}

/// A step of Lion (arXiv:2302.06675).
KERNEL(256)
lion(float* params, float* first_moment, const float* gradients, bf16* rounded, const float* gradient_factor, float keep, float beta1,
     float rest1, float beta2, float rest2, float lr, size_t n) {
    const float factor = *gradient_factor;
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const float g = __fmul_rn(gradients[i], factor), m = first_moment[i];
        const float direction = __fadd_rn(__fmul_rn(beta1, m), __fmul_rn(rest1, g));
        // zeros have no sign, and a NaN stays one
        const float sign = direction > 0.0f ? 1.0f : direction < 0.0f ? -1.0f : direction;
        const float p = __fsub_rn(__fmul_rn(keep, params[i]), __fmul_rn(lr, sign));
        params[i] = p;
        first_moment[i] = __fadd_rn(__fmul_rn(beta2, m), __fmul_rn(rest2, g));
        if (rounded) rounded[i] = from_f32<bf16>(p);
    }
}
