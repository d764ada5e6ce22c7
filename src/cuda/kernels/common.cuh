// Types, conversions, reductions and the operations of tensor cores; for nvcc, and for the host by host.h.
#pragma once

#ifdef __CUDACC__
#include <stdint.h>
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include "host.h"
#define DYNAMIC_SHARED(name) unsigned char* const name = host::dynamic_shared()
#endif

/// A kernel whose blocks have at most that many threads.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

constexpr unsigned WHOLE_WARP = 0xffffffffu;

struct bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }

template <class T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
    return x;
}
/// To nearest, ties to even.
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) {
    bf16 y;
#ifdef __CUDACC__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    const uint32_t bits = __float_as_uint(x);
    y.bits = x != x ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
    return y;
}

/// Two values as bf16 in one word, the first in its low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef __CUDACC__
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return from_f32<bf16>(low).bits | (uint32_t)from_f32<bf16>(high).bits << 16;
#endif
}

/// The value of a binary16.
__device__ __forceinline__ float half_to_f32(uint16_t bits) {
#ifdef __CUDACC__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
    const float magnitude = (float)mantissa * 0x1p-24f;
    return sign ? -magnitude : magnitude;
#endif
}

/// 2^x, to about 2 units in the last place; 0 for -infinity.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

/// tanh within 1e-6, absolute: enough beside bf16.
__device__ __forceinline__ float tanh_fast(float x) {
    const float e = exp2_fast(fminf(2.0f * LOG2_E * fabsf(x), 64.0f));
    return copysignf(1.0f - 2.0f / (e + 1.0f), x);
}

/// N values that are read and written at once.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    T values[N];
};

/// Values of a type in 16 bytes.
template <class T>
constexpr int WIDE = 16 / sizeof(T);

/// A width as a type, for lambdas.
template <int N>
struct Width {
    static constexpr int value = N;
};

/// Values of N that are moved at once: 16 bytes at most.
template <class T, int N>
constexpr int AT_ONCE = N < WIDE<T> ? N : WIDE<T>;

/// N values, 16 bytes at a time: N is 1, or `from` aligned and N a power of two.
template <int N, class T>
__device__ __forceinline__ void load(const T* from, float (&values)[N]) {
    constexpr int W = AT_ONCE<T, N>;
#pragma unroll
    for (int i = 0; i < N; i += W) {
        const Pack<T, W> pack = *reinterpret_cast<const Pack<T, W>*>(from + i);
#pragma unroll
        for (int j = 0; j < W; j++) values[i + j] = to_f32(pack.values[j]);
    }
}

template <int N, class T>
__device__ __forceinline__ void store(T* to, const float (&values)[N]) {
    constexpr int W = AT_ONCE<T, N>;
#pragma unroll
    for (int i = 0; i < N; i += W) {
        Pack<T, W> pack;
#pragma unroll
        for (int j = 0; j < W; j++) pack.values[j] = from_f32<T>(values[i + j]);
        *reinterpret_cast<Pack<T, W>*>(to + i) = pack;
    }
}

/// Whether a row can be read 16 bytes at a time: all null or aligned pointers count as one.
template <class... P>
__device__ __forceinline__ bool all_aligned(const P*... pointers) {
    return (((reinterpret_cast<uintptr_t>(pointers) & 15) == 0) && ...);
}

/// The sum of every value over the lanes of a warp, by one tree; every lane has it.
template <int N>
__device__ __forceinline__ void warp_sum(float (&values)[N]) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
#pragma unroll
        for (int i = 0; i < N; i++) values[i] += __shfl_xor_sync(WHOLE_WARP, values[i], mask);
    }
}

/// The sum of every value over a block: the lanes of each warp by a tree, the warps ascending; every thread has it.
template <int THREADS, int N>
__device__ __forceinline__ void block_sum(float (&values)[N]) {
    constexpr int WARPS = THREADS / 32;
    __shared__ float sums[N][WARPS];
    warp_sum(values);
    __syncthreads(); // the last call's sums were read
    if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (int i = 0; i < N; i++) sums[i][threadIdx.x / 32] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) {
        float sum = sums[i][0];
        for (int warp = 1; warp < WARPS; warp++) sum += sums[i][warp];
        values[i] = sum;
    }
}

/// The sum over the GROUP threads that share a row: a warp, or a block.
template <int GROUP, int N>
__device__ __forceinline__ void group_sum(float (&values)[N]) {
    if constexpr (GROUP == 32) {
        warp_sum(values);
    } else {
        block_sum<GROUP>(values);
    }
}

// ---- tensor cores: mma.sync.m16n8k16 of bf16 with f32 sums, and the loads of its fragments (PTX ISA, "Matrix Fragments for mma.m16n8k16")

/// d += a b; a is 16 x 16, b is 16 x 8 (by columns), d is 16 x 8.
///
/// With g = lane / 4 and t = lane % 4: a has (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8) and each one's right
/// neighbour; b has (2t, g), (2t + 8, g) and each one's lower neighbour; d has (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const uint32_t(*all)[8] = host::exchange(words, "mma");
    auto half = [](uint32_t word, int i) { return to_f32(bf16{(uint16_t)(word >> 16 * i)}); };
    const int g = host::lane() / 4, t = host::lane() % 4;
    for (int i = 0; i < 4; i++) {
        const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        float sum = d[i];
        for (int k = 0; k < 16; k++) {
            const uint32_t* of_a = all[row % 8 * 4 + k % 8 / 2];
            const uint32_t* of_b = all[column * 4 + k % 8 / 2];
            sum += half(of_a[row / 8 + 2 * (k / 8)], k % 2) * half(of_b[4 + k / 8], k % 2);
        }
        d[i] = sum;
    }
#endif
}

/// Four 8 x 8 matrices of 16-bit values. Lane i gives the address of row i % 8 of matrix i / 8; of every matrix a lane gets
/// (lane / 4, 2 (lane % 4)) and its right neighbour, or if TRANSPOSED (2 (lane % 4), lane / 4) and its lower neighbour.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const bf16* row) {
#ifdef __CUDACC__
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    }
#else
    if ((uintptr_t)row % 16 != 0) host::fail("ldmatrix of a row that is not aligned");
    uint32_t words[2];
    memcpy(words, &row, 8);
    const uint32_t(*all)[8] = host::exchange(words, TRANSPOSED ? "ldmatrix.trans" : "ldmatrix");
    const int g = host::lane() / 4, t = host::lane() % 4;
    for (int i = 0; i < 4; i++) {
        const bf16* rows[8];
        for (int j = 0; j < 8; j++) memcpy(&rows[j], all[8 * i + j], 8);
        r[i] = TRANSPOSED ? rows[2 * t][g].bits | (uint32_t)rows[2 * t + 1][g].bits << 16
                          : rows[g][2 * t].bits | (uint32_t)rows[g][2 * t + 1].bits << 16;
    }
#endif
}

/// Copies 16 bytes to shared memory in the background; zeros if not `valid`, and nothing is read then.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
#ifdef __CUDACC__
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
#else
    if (((uintptr_t)to | (uintptr_t)from) % 16 != 0) host::fail("cp.async of what is not aligned");
    host::start_copy({to, valid ? from : nullptr});
#endif
}

/// Makes a group of this thread's copies since the last.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    host::machine.current->groups.push_back(host::machine.current->open);
    host::machine.current->open.clear();
#endif
}

/// Waits until at most N groups of this thread are not done; others' copies are seen behind a barrier.
template <int N>
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
    auto& groups = host::machine.current->groups;
    while (groups.size() > (size_t)N) {
        for (const host::Copy& copy : groups.front()) host::make_copy(copy);
        groups.erase(groups.begin());
    }
#endif
}
