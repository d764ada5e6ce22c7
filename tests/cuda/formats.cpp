#include "../../src/cuda/kernels/dequantize.cu"
#include "harness.h"

namespace test {
namespace {

float half(const uint8_t* at) {
    const int bits = at[0] | at[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY) : exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return (float)(bits & 0x8000 ? -magnitude : magnitude);
}

const float IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const float E2M1[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
// bitsandbytes 0.49, `create_normal_map`
const float NF4[16] = {-1.0f, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
                       0.0795803f, 0.1609302f, 0.2461123f, 0.33791524f, 0.44070983f, 0.562617f, 0.72295684f, 1.0f};

/// Value i of a block, one at a time, as the oracles of tensor::format have it; `volatile` keeps every rounding.
float value(const std::string& format, const uint8_t* b, int i) {
    const auto nibble = [&](int at) { return b[at + i % 16] >> (i < 16 ? 0 : 4) & 15; };
    const auto fifth = [&](int at) { return (b[at + i / 8] >> (i % 8) & 1) << 4; };
    const auto affine = [&](float d, int code, float dmin, int min_code, int level) {
        volatile float scale = d * (float)code, min = dmin * (float)min_code, product = scale * (float)level;
        return product - min;
    };
    const auto codes = [&](int j, int& scale, int& min) {
        const uint8_t* c = b + 4;
        scale = j < 4 ? c[j] & 63 : (c[4 + j] & 15) | (c[j - 4] >> 6) << 4;
        min = j < 4 ? c[4 + j] & 63 : c[4 + j] >> 4 | (c[j] >> 6) << 4;
    };
    if (format == "F32") {
        float x;
        memcpy(&x, b + 4 * i, 4);
        return x;
    }
    if (format == "F16") return half(b + 2 * i);
    if (format == "BF16") return __uint_as_float((uint32_t)(b[2 * i] | b[2 * i + 1] << 8) << 16);
    if (format == "F8_E4M3") {
        const int magnitude = b[i] & 0x7f, exponent = magnitude >> 3, mantissa = magnitude & 7;
        const double x = magnitude == 0x7f ? NAN : exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
        return (float)(b[i] & 0x80 ? -x : x);
    }
    if (format == "F8_E5M2") {
        const uint8_t wide[2] = {0, b[i]};
        return half(wide);
    }
    if (format == "Q8_0") return (float)(int8_t)b[2 + i] * half(b);
    if (format == "Q4_0") return (float)(nibble(2) - 8) * half(b);
    if (format == "Q5_0") return (float)((nibble(6) | fifth(2)) - 16) * half(b);
    if (format == "Q4_1" || format == "Q5_1") {
        const int level = format == "Q4_1" ? nibble(4) : nibble(8) | fifth(4);
        volatile float product = (float)level * half(b);
        return product + half(b + 2);
    }
    if (format == "MXFP4") {
        const int code = nibble(1);
        const double magnitude = E2M1[code & 7] * ldexp(1.0, b[0] - 127);
        return (float)(code > 8 ? -magnitude : magnitude);
    }
    if (format == "IQ4_NL") return half(b) * IQ4[nibble(2)];
    if (format == "IQ4_XS") {
        const int j = i / 32, code = (b[4 + j / 2] >> (4 * (j % 2)) & 15) | ((b[2] | b[3] << 8) >> (2 * j) & 3) << 4;
        volatile float scale = half(b) * (float)(code - 32);
        return scale * IQ4[b[8 + 16 * j + i % 16] >> (4 * (i % 32 / 16)) & 15];
    }
    if (format == "Q2_K") {
        const int code = b[i / 16], level = b[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        return affine(half(b + 80), code % 16, half(b + 82), code / 16, level);
    }
    if (format == "Q3_K") {
        const int j = i / 16, code = (b[96 + j % 8] >> (4 * (j / 8)) & 15) | (b[104 + j % 4] >> (2 * (j / 4)) & 3) << 4;
        const int low = b[32 + 32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32)) & 3, high = b[i % 32] >> (i / 32) & 1;
        volatile float scale = half(b + 108) * (float)(code - 32);
        return scale * (float)((low | high << 2) - 4);
    }
    if (format == "Q4_K" || format == "Q5_K") {
        int code, min_code;
        codes(i / 32, code, min_code);
        const int at = format == "Q4_K" ? 16 : 48;
        int level = b[at + 32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2)) & 15;
        if (format == "Q5_K") level |= (b[16 + i % 32] >> (i / 32) & 1) << 4;
        return affine(half(b), code, half(b + 2), min_code, level);
    }
    if (format == "Q6_K") {
        const int r = i % 128, part = i / 128;
        const int low = b[64 * part + r % 64] >> (4 * (r / 64)) & 15, high = b[128 + 32 * part + r % 32] >> (2 * (r / 32)) & 3;
        volatile float scale = half(b + 208) * (float)(int8_t)b[192 + i / 16];
        return scale * (float)((low | high << 4) - 32);
    }
    if (format == "NF4") {
        float absmax;
        memcpy(&absmax, b, 4);
        return absmax * NF4[b[4 + i % 32] >> (4 * (i / 32)) & 15];
    }
    fail("no oracle for " + format);
    return NAN;
}

using ToBf16 = void (*)(const uint8_t*, bf16*, size_t);
using ToF32 = void (*)(const uint8_t*, float*, size_t);

struct Case {
    const char* name;
    int len, bytes;
    /// Where a block has binary16 numbers, whose upper bytes are kept finite; -1: nowhere.
    int halves[2];
    ToBf16 to_bf16;
    ToF32 to_f32;
};

#define CASE(name, len, bytes, a, b) {#name, len, bytes, {a, b}, dequantize_##name##_bf16, dequantize_##name##_f32}
const Case CASES[] = {
    CASE(F32, 1, 4, -1, -1),        CASE(F16, 1, 2, 0, -1),       CASE(BF16, 1, 2, -1, -1),      CASE(F8_E4M3, 1, 1, -1, -1),
    CASE(F8_E5M2, 1, 1, -1, -1),    CASE(Q8_0, 32, 34, 0, -1),    CASE(Q4_0, 32, 18, 0, -1),     CASE(Q4_1, 32, 20, 0, 2),
    CASE(Q5_0, 32, 22, 0, -1),      CASE(Q5_1, 32, 24, 0, 2),     CASE(MXFP4, 32, 17, -1, -1),   CASE(IQ4_NL, 32, 18, 0, -1),
    CASE(IQ4_XS, 256, 136, 0, -1),  CASE(Q2_K, 256, 84, 80, 82),  CASE(Q3_K, 256, 110, 108, -1), CASE(Q4_K, 256, 144, 0, 2),
    CASE(Q5_K, 256, 176, 0, 2),     CASE(Q6_K, 256, 210, 208, -1), CASE(NF4, 64, 36, -1, -1),
};

bool same_value(float a, float b) { return (a != a && b != b) || memcmp(&a, &b, 4) == 0 || (a == 0.0f && b == 0.0f); }

void one(Random& random, const Case& format, size_t n, size_t offset) {
    const size_t n_blocks = n / format.len;
    Buffer<uint8_t> blocks(n_blocks * format.bytes, offset);
    for (size_t i = 0; i < blocks.size(); i++) blocks[i] = (uint8_t)random.bits();
    for (size_t block = 0; block < n_blocks; block++) {
        uint8_t* at = &blocks[block * format.bytes];
        for (int half_at : format.halves) {
            if (half_at >= 0) at[half_at + 1] &= 0xbb; // no infinities; denormals occur
        }
        if (std::string(format.name) == "NF4" || std::string(format.name) == "F32") at[3] = 0x3c;
        if (std::string(format.name) == "BF16") at[1] &= 0xbf;
        if (std::string(format.name) == "MXFP4" && block % 3) at[0] = (uint8_t)(block % 2 ? block % 4 : 120 + block % 16);
    }
    Buffer<bf16> narrow(n);
    Buffer<float> wide(n);
    run(format.name, {&narrow, &wide}, [&] {
        host::launch(2, 256, 0, [&] { format.to_bf16(blocks.data(), narrow.data(), n); });
        host::launch(2, 256, 0, [&] { format.to_f32(blocks.data(), wide.data(), n); });
    });
    n_checks++;
    for (size_t i = 0; i < n; i++) {
        const float want = value(format.name, &blocks[i / format.len * format.bytes], (int)(i % format.len));
        if (!same_value(wide[i], want) || !same_value(to_f32(narrow[i]), to_f32(from_f32<bf16>(want)))) {
            fail(std::string(format.name) + ": value " + std::to_string(i) + " is " + std::to_string(wide[i]) + ", not " + std::to_string(want));
            return;
        }
    }
}

void nested(Random& random) {
    const size_t n_blocks = 300, n = n_blocks * 64;
    Buffer<uint8_t> indices(n_blocks * 32), scales(n_blocks);
    for (size_t i = 0; i < indices.size(); i++) indices[i] = (uint8_t)random.bits();
    for (size_t i = 0; i < n_blocks; i++) scales[i] = (uint8_t)random.bits();
    auto steps = Buffer<float>::random(random, 2), dynamic = Buffer<float>::random(random, 256);
    Buffer<bf16> narrow(n);
    Buffer<float> wide(n);
    run("nested NF4", {&narrow, &wide}, [&] {
        host::launch(2, 256, 0, [&] { dequantize_nested_bf16(indices.data(), scales.data(), steps.data(), 0.03f, dynamic.data(), narrow.data(), n); });
        host::launch(2, 256, 0, [&] { dequantize_nested_f32(indices.data(), scales.data(), steps.data(), 0.03f, dynamic.data(), wide.data(), n); });
    });
    std::vector<float> want;
    for (size_t i = 0; i < n; i++) {
        const size_t block = i / 64, at = i % 64;
        volatile float product = dynamic[scales[block]] * steps[block / 256], absmax = product + 0.03f;
        want.push_back(absmax * NF4[indices[block * 32 + at % 32] >> (at < 32 ? 0 : 4) & 15]);
    }
    same("nested NF4", wide, want);
    std::vector<bf16> rounded;
    for (float x : want) rounded.push_back(from_f32<bf16>(x));
    same("nested NF4", narrow, rounded);
}

}  // namespace

void formats() {
    Random random(5);
    for (const Case& format : CASES) {
        for (const size_t n : {256, 768, 20480}) one(random, format, n, 0);
        if (format.len == 1) {
            for (const size_t n : {1, 7, 9, 1001}) one(random, format, n, n % 4);
        } else {
            one(random, format, 1024, 1);
        }
    }
    nested(random);
}

}  // namespace test
