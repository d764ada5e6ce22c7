// Block formats to bf16 or f32: the values that tensor::format's decoders give, to the bit, then rounded to bf16 once.
//
// A thread decodes eight values of one block and writes them at once. A format is LEN values in BYTES bytes, `decode(block, i, table,
// out)` for values i .. i + 8 (i a multiple of 8), and TABLE values that a block's threads share. ALIGN is what the runs of eight bytes
// that it reads are aligned to where the first block is aligned to 8.
#include "common.cuh"

namespace formats {

/// Eight bytes in a row.
struct Bytes8 {
    uint32_t words[2];
    __device__ __forceinline__ int operator[](int i) const { return words[i / 4] >> 8 * (i % 4) & 255; }
};

/// Reads eight bytes that are aligned to A.
template <int A>
__device__ __forceinline__ Bytes8 load8(const uint8_t* from) {
    Bytes8 bytes;
#ifndef __CUDACC__
    if ((uintptr_t)from % A != 0) host::fail("a load of what is not aligned");
#endif
    if constexpr (A >= 8) {
        const Pack<uint32_t, 2> both = *reinterpret_cast<const Pack<uint32_t, 2>*>(from);
        bytes.words[0] = both.values[0];
        bytes.words[1] = both.values[1];
    } else {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint8_t* at = from + 4 * i;
            if constexpr (A == 4) {
                bytes.words[i] = *reinterpret_cast<const uint32_t*>(at);
            } else if constexpr (A == 2) {
                const uint16_t* halves = reinterpret_cast<const uint16_t*>(at);
                bytes.words[i] = halves[0] | (uint32_t)halves[1] << 16;
            } else {
                bytes.words[i] = at[0] | at[1] << 8 | at[2] << 16 | (uint32_t)at[3] << 24;
            }
        }
    }
    return bytes;
}

__device__ __forceinline__ float half_at(const uint8_t* block, int at) {
    return half_to_f32((uint16_t)(block[at] | block[at + 1] << 8));
}

/// No table.
struct Plain {
    static constexpr int TABLE = 0;
    static __device__ __forceinline__ float table_value(int) { return 0.0f; }
};

/// The 16 levels of IQ4_NL and IQ4_XS.
struct Iq4Table {
    static constexpr int TABLE = 16;
    static __device__ __forceinline__ float table_value(int i) {
        constexpr int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
        return (float)levels[i];
    }
};

/// The 16 levels of 4-bit NormalFloat (arXiv:2305.14314).
struct Nf4Table {
    static constexpr int TABLE = 16;
    static __device__ __forceinline__ float table_value(int i) {
        constexpr float levels[16] = {-1.0f,         -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                                      -0.091050036f, 0.0f,         0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                                      0.44070983f,   0.562617f,    0.72295684f,  1.0f};
        return levels[i];
    }
};

/// The values of E2M1, doubled; bit 3 is the sign, and -0 is 0.
struct E2m1Table {
    static constexpr int TABLE = 16;
    static __device__ __forceinline__ float table_value(int i) {
        constexpr float levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        return levels[i];
    }
};

struct Q8_0 : Plain {
    static constexpr int LEN = 32, BYTES = 34, ALIGN = 2;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float*, float (&out)[8]) {
        const float d = half_at(block, 0);
        const Bytes8 levels = load8<A>(block + 2 + i);
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = __fmul_rn((float)(int8_t)levels[j], d);
    }
};

/// Nibbles i .. i + 8 of a block of 32, which has the low ones first.
template <int A>
__device__ __forceinline__ void nibbles(const uint8_t* bytes, int i, int (&out)[8]) {
    const Bytes8 pairs = load8<A>(bytes + i % 16);
    const int shift = i < 16 ? 0 : 4;
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = pairs[j] >> shift & 15;
}

struct Q4_0 : Plain {
    static constexpr int LEN = 32, BYTES = 18, ALIGN = 2;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float*, float (&out)[8]) {
        const float d = half_at(block, 0);
        int q[8];
        nibbles<A>(block + 2, i, q);
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = __fmul_rn((float)(q[j] - 8), d);
    }
};

struct Q4_1 : Plain {
    static constexpr int LEN = 32, BYTES = 20, ALIGN = 4;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float*, float (&out)[8]) {
        const float d = half_at(block, 0), m = half_at(block, 2);
        int q[8];
        nibbles<A>(block + 4, i, q);
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = __fadd_rn(__fmul_rn((float)q[j], d), m);
    }
};

/// The fifth bits of values i .. i + 8 lie in one byte.
struct Q5_0 : Plain {
    static constexpr int LEN = 32, BYTES = 22, ALIGN = 2;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float*, float (&out)[8]) {
        const float d = half_at(block, 0);
        const int high = block[2 + i / 8];
        int q[8];
        nibbles<A>(block + 6, i, q);
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = __fmul_rn((float)((q[j] | (high >> j & 1) << 4) - 16), d);
    }
};

struct Q5_1 : Plain {
    static constexpr int LEN = 32, BYTES = 24, ALIGN = 8;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float*, float (&out)[8]) {
        const float d = half_at(block, 0), m = half_at(block, 2);
        const int high = block[4 + i / 8];
        int q[8];
        nibbles<A>(block + 8, i, q);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            out[j] = __fadd_rn(__fmul_rn((float)(q[j] | (high >> j & 1) << 4), d), m);
        }
    }
};

struct Mxfp4 : E2m1Table {
    static constexpr int LEN = 32, BYTES = 17, ALIGN = 1;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float* table, float (&out)[8]) {
        const uint32_t e = block[0];
        // 2^(e - 128), the scale of the doubled values; denormal for e < 2
        const float d = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        int q[8];
        nibbles<A>(block + 1, i, q);
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = __fmul_rn(table[q[j]], d);
    }
};

struct Iq4Nl : Iq4Table {
    static constexpr int LEN = 32, BYTES = 18, ALIGN = 2;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float* table, float (&out)[8]) {
        const float d = half_at(block, 0);
        int q[8];
        nibbles<A>(block + 2, i, q);
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = __fmul_rn(d, table[q[j]]);
    }
};

struct Iq4Xs : Iq4Table {
    static constexpr int LEN = 256, BYTES = 136, ALIGN = 8;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float* table, float (&out)[8]) {
        const int sub = i / 32, high = block[2] | block[3] << 8;
        const int code = (block[4 + sub / 2] >> 4 * (sub % 2) & 15) | (high >> 2 * sub & 3) << 4;
        const float scale = __fmul_rn(half_at(block, 0), (float)(code - 32));
        int q[8];
        nibbles<A>(block + 8 + 16 * sub, i % 32, q);
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = __fmul_rn(scale, table[q[j]]);
    }
};

struct Q2K : Plain {
    static constexpr int LEN = 256, BYTES = 84, ALIGN = 4;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float*, float (&out)[8]) {
        const int code = block[i / 16];
        const float scale = __fmul_rn(half_at(block, 80), (float)(code & 15)), min = __fmul_rn(half_at(block, 82), (float)(code >> 4));
        const Bytes8 levels = load8<A>(block + 16 + i / 128 * 32 + i % 32);
        const int shift = i / 32 % 4 * 2;
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = __fsub_rn(__fmul_rn(scale, (float)(levels[j] >> shift & 3)), min);
    }
};

struct Q3K : Plain {
    static constexpr int LEN = 256, BYTES = 110, ALIGN = 2;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float*, float (&out)[8]) {
        const int sub = i / 16;
        const int code = (block[96 + sub % 8] >> 4 * (sub / 8) & 15) | (block[104 + sub % 4] >> 2 * (sub / 4) & 3) << 4;
        const float scale = __fmul_rn(half_at(block, 108), (float)(code - 32));
        const Bytes8 low = load8<A>(block + 32 + 32 * (i / 128) + i % 32);
        const Bytes8 high = load8<A>(block + i % 32);
        const int shift = 2 * (i % 128 / 32);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            out[j] = __fmul_rn(scale, (float)(((low[j] >> shift & 3) | (high[j] >> (i / 32) & 1) << 2) - 4));
        }
    }
};

/// Codes of 6 bits of sub-block j's scale and min, in 12 bytes.
__device__ __forceinline__ void six_bit(const uint8_t* codes, int j, int& scale, int& min) {
    if (j < 4) {
        scale = codes[j] & 63;
        min = codes[4 + j] & 63;
    } else {
        scale = (codes[4 + j] & 15) | (codes[j - 4] >> 6) << 4;
        min = codes[4 + j] >> 4 | (codes[j] >> 6) << 4;
    }
}

struct Q4K : Plain {
    static constexpr int LEN = 256, BYTES = 144, ALIGN = 8;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float*, float (&out)[8]) {
        int code, min_code;
        six_bit(block + 4, i / 32, code, min_code);
        const float scale = __fmul_rn(half_at(block, 0), (float)code), min = __fmul_rn(half_at(block, 2), (float)min_code);
        const Bytes8 levels = load8<A>(block + 16 + i / 64 * 32 + i % 32);
        const int shift = i / 32 % 2 * 4;
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = __fsub_rn(__fmul_rn(scale, (float)(levels[j] >> shift & 15)), min);
    }
};

struct Q5K : Plain {
    static constexpr int LEN = 256, BYTES = 176, ALIGN = 8;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float*, float (&out)[8]) {
        int code, min_code;
        six_bit(block + 4, i / 32, code, min_code);
        const float scale = __fmul_rn(half_at(block, 0), (float)code), min = __fmul_rn(half_at(block, 2), (float)min_code);
        const Bytes8 low = load8<A>(block + 48 + i / 64 * 32 + i % 32);
        const Bytes8 high = load8<A>(block + 16 + i % 32);
        const int shift = i / 32 % 2 * 4;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int level = (low[j] >> shift & 15) | (high[j] >> (i / 32) & 1) << 4;
            out[j] = __fsub_rn(__fmul_rn(scale, (float)level), min);
        }
    }
};

struct Q6K : Plain {
    static constexpr int LEN = 256, BYTES = 210, ALIGN = 2;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float*, float (&out)[8]) {
        const int half = i / 128, r = i % 128;
        const float scale = __fmul_rn(half_at(block, 208), (float)(int8_t)block[192 + i / 16]);
        const Bytes8 low = load8<A>(block + 64 * half + r % 64);
        const Bytes8 high = load8<A>(block + 128 + 32 * half + r % 32);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int level = (low[j] >> 4 * (r / 64) & 15) | (high[j] >> 2 * (r / 32) & 3) << 4;
            out[j] = __fmul_rn(scale, (float)(level - 32));
        }
    }
};

struct Nf4 : Nf4Table {
    static constexpr int LEN = 64, BYTES = 36, ALIGN = 4;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int i, const float* table, float (&out)[8]) {
        const float absmax = __uint_as_float(block[0] | block[1] << 8 | block[2] << 16 | (uint32_t)block[3] << 24);
        const Bytes8 pairs = load8<A>(block + 4 + i % 32);
        const int shift = i < 32 ? 0 : 4;
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = __fmul_rn(absmax, table[pairs[j] >> shift & 15]);
    }
};

/// Eight values at a time of types without blocks.
struct F16 : Plain {
    static constexpr int LEN = 8, BYTES = 16, ALIGN = 8;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int, const float*, float (&out)[8]) {
        const Bytes8 halves[2] = {load8<A>(block), load8<A>(block + 8)};
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = half_to_f32((uint16_t)(halves[j / 4].words[j / 2 % 2] >> 16 * (j % 2)));
    }
};

struct Bf16 : Plain {
    static constexpr int LEN = 8, BYTES = 16, ALIGN = 8;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int, const float*, float (&out)[8]) {
        const Bytes8 halves[2] = {load8<A>(block), load8<A>(block + 8)};
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const uint32_t word = halves[j / 4].words[j / 2 % 2];
            out[j] = __uint_as_float(j % 2 ? word & 0xffff0000u : word << 16);
        }
    }
};

struct F32 : Plain {
    static constexpr int LEN = 8, BYTES = 32, ALIGN = 8;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int, const float*, float (&out)[8]) {
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            const Bytes8 both = load8<A>(block + 4 * j);
            out[j] = __uint_as_float(both.words[0]);
            out[j + 1] = __uint_as_float(both.words[1]);
        }
    }
};

/// OCP E4M3 without infinities: 0x7f and 0xff are NaN.
struct E4m3 : Plain {
    static constexpr int LEN = 8, BYTES = 8, ALIGN = 8;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int, const float*, float (&out)[8]) {
        const Bytes8 codes = load8<A>(block);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const uint32_t code = codes[j], sign = (code & 0x80) << 24, magnitude = code & 0x7f;
            const float small = (float)magnitude * 0x1p-9f; // exponent 0: mantissa / 8 * 2^-6
            const uint32_t bits = magnitude == 0x7f ? 0x7fc00000u : magnitude < 8 ? __float_as_uint(small) : (magnitude << 20) + (120u << 23);
            out[j] = __uint_as_float(sign | bits);
        }
    }
};

/// OCP E5M2: the upper byte of a binary16.
struct E5m2 : Plain {
    static constexpr int LEN = 8, BYTES = 8, ALIGN = 8;
    template <int A>
    static __device__ __forceinline__ void decode(const uint8_t* block, int, const float*, float (&out)[8]) {
        const Bytes8 codes = load8<A>(block);
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = half_to_f32((uint16_t)(codes[j] << 8));
    }
};

}  // namespace formats

/// Writes eight values, as many of them as are left.
template <class O>
__device__ __forceinline__ void store_eight(O* out, const float (&values)[8], size_t left) {
    if (left >= 8 && (reinterpret_cast<uintptr_t>(out) & 15) == 0) {
        constexpr int W = WIDE<O> < 8 ? WIDE<O> : 8;
#pragma unroll
        for (int j = 0; j < 8; j += W) {
            float part[W];
#pragma unroll
            for (int l = 0; l < W; l++) part[l] = values[j + l];
            store<W>(out + j, part);
        }
    } else {
        for (size_t j = 0; j < 8 && j < left; j++) out[j] = from_f32<O>(values[j]);
    }
}

/// out = the values of whole blocks, n of them.
template <class F, class O>
__device__ __forceinline__ void dequantize(const uint8_t* blocks, O* out, size_t n) {
    __shared__ float table[F::TABLE + 1];
    if constexpr (F::TABLE > 0) {
        if (threadIdx.x < F::TABLE) table[threadIdx.x] = F::table_value(threadIdx.x);
        __syncthreads();
    }
    const bool is_aligned = reinterpret_cast<uintptr_t>(blocks) % 8 == 0;
    const size_t step = (size_t)gridDim.x * blockDim.x * 8;
    for (size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8; at < n; at += step) {
        float values[8];
        const size_t block = at / F::LEN;
        if (F::LEN == 8 && n - at < 8) {
            // the tail of a type without blocks: no byte beyond it is read
            uint8_t bytes[F::LEN == 8 ? F::BYTES : 1] = {};
            const int count = (int)(n - at) * (F::BYTES / 8);
            for (int i = 0; i < count; i++) bytes[i] = blocks[block * F::BYTES + i];
            F::template decode<1>(bytes, 0, table, values);
        } else {
            const uint8_t* from = blocks + block * F::BYTES;
            if (is_aligned) F::template decode<F::ALIGN>(from, (int)(at % F::LEN), table, values);
            else F::template decode<1>(from, (int)(at % F::LEN), table, values);
        }
        store_eight(out + at, values, n - at);
    }
}

/// NF4 whose scales are quantized: absmax = dynamic[scales[b]] * steps[b / 256] + offset (kernel::product::nested).
template <class O>
__device__ __forceinline__ void dequantize_nested(const uint8_t* indices, const uint8_t* scales, const float* steps, float offset,
                                                  const float* dynamic, O* out, size_t n) {
    __shared__ float levels[16];
    __shared__ float map[256];
    if (threadIdx.x < 16) levels[threadIdx.x] = formats::Nf4Table::table_value(threadIdx.x);
    map[threadIdx.x] = dynamic[threadIdx.x];
    __syncthreads();
    const size_t step = (size_t)gridDim.x * blockDim.x * 8;
    for (size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8; at < n; at += step) {
        const size_t block = at / 64;
        const int i = (int)(at % 64);
        const float absmax = __fadd_rn(__fmul_rn(map[scales[block]], steps[block / 256]), offset);
        const uint8_t* pairs = indices + block * 32 + i % 32;
        float values[8];
#pragma unroll
        for (int j = 0; j < 8; j++) values[j] = __fmul_rn(absmax, levels[pairs[j] >> (i < 32 ? 0 : 4) & 15]);
        store_eight(out + at, values, n - at);
    }
}

#define DEQUANTIZE_KERNELS(F, name)                                                                                             \
    KERNEL(256) dequantize_##name##_bf16(const uint8_t* blocks, bf16* out, size_t n) { dequantize<formats::F, bf16>(blocks, out, n); } \
    KERNEL(256) dequantize_##name##_f32(const uint8_t* blocks, float* out, size_t n) { dequantize<formats::F, float>(blocks, out, n); }

DEQUANTIZE_KERNELS(F32, F32)
DEQUANTIZE_KERNELS(F16, F16)
DEQUANTIZE_KERNELS(Bf16, BF16)
DEQUANTIZE_KERNELS(E4m3, F8_E4M3)
DEQUANTIZE_KERNELS(E5m2, F8_E5M2)
DEQUANTIZE_KERNELS(Q8_0, Q8_0)
DEQUANTIZE_KERNELS(Q4_0, Q4_0)
DEQUANTIZE_KERNELS(Q4_1, Q4_1)
DEQUANTIZE_KERNELS(Q5_0, Q5_0)
DEQUANTIZE_KERNELS(Q5_1, Q5_1)
DEQUANTIZE_KERNELS(Mxfp4, MXFP4)
DEQUANTIZE_KERNELS(Iq4Nl, IQ4_NL)
DEQUANTIZE_KERNELS(Iq4Xs, IQ4_XS)
DEQUANTIZE_KERNELS(Q2K, Q2_K)
DEQUANTIZE_KERNELS(Q3K, Q3_K)
DEQUANTIZE_KERNELS(Q4K, Q4_K)
DEQUANTIZE_KERNELS(Q5K, Q5_K)
DEQUANTIZE_KERNELS(Q6K, Q6_K)
DEQUANTIZE_KERNELS(Nf4, NF4)

#define NESTED_KERNEL(O, name)                                                                                                  \
    KERNEL(256)                                                                                                                 \
    dequantize_nested_##name(const uint8_t* indices, const uint8_t* scales, const float* steps, float offset,                   \
                             const float* dynamic, O* out, size_t n) {                                                          \
        dequantize_nested<O>(indices, scales, steps, offset, dynamic, out, n);                                                  \
    }

NESTED_KERNEL(bf16, bf16)
NESTED_KERNEL(float, f32)
