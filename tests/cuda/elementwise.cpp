#include "../../src/cuda/kernels/elementwise.cu"
#include <array>

#include "harness.h"

namespace test {
namespace {

using Values = std::vector<double>;

/// Calls the kernel of a type.
#define BY_TYPE(name, ...)                                  \
    do {                                                    \
        if constexpr (sizeof(T) == 4) name##_f32(__VA_ARGS__); \
        else name##_bf16(__VA_ARGS__);                      \
    } while (0)

double activation_of(int kind, double x) {
    if (kind == SILU) return x / (1.0 + exp(-x));
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

double slope_of(int kind, double x) { return (activation_of(kind, x + 1e-5) - activation_of(kind, x - 1e-5)) / 2e-5; }

template <class T>
void gates(Random& random, int rows, int cols, int stride, size_t offset) {
    const std::string shape = " " + std::to_string(sizeof(T)) + "-byte " + std::to_string(rows) + "x" + std::to_string(cols) + " of " +
                              std::to_string(stride);
    for (const int kind : {SILU, GELU_TANH}) {
        const std::string name = kind == SILU ? "swiglu" : "geglu";
        auto both = Buffer<T>::random(random, (size_t)rows * stride, 6.0f, offset);
        auto dy = Buffer<T>::random(random, (size_t)rows * cols);
        // gate and up lie in one matrix if the stride has room for both
        const int up_at = stride >= 2 * cols ? cols : 0;
        auto other = Buffer<T>::random(random, (size_t)rows * stride);
        Buffer<T> y((size_t)rows * cols), again((size_t)rows * cols), dgate((size_t)rows * stride), dup((size_t)rows * stride);
        const T* up = up_at ? both.data() + up_at : other.data();
        const dim3 grid(2, 3);
        run(name + shape, {&y}, [&] {
            host::launch(grid, 256, 0, [&] {
                if (kind == SILU) BY_TYPE(swiglu, both.data(), up, y.data(), rows, cols, stride);
                else BY_TYPE(geglu, both.data(), up, y.data(), rows, cols, stride);
            });
        });
        run(name + "_backward" + shape, {&dgate, &dup, &again}, [&] {
            host::launch(grid, 256, 0, [&] {
                if (kind == SILU) BY_TYPE(swiglu_backward, both.data(), up, dy.data(), dgate.data(), dup.data(), again.data(), rows, cols, stride);
                else BY_TYPE(geglu_backward, both.data(), up, dy.data(), dgate.data(), dup.data(), again.data(), rows, cols, stride);
            });
        });
        Values want_y, want_gate((size_t)rows * stride), want_up((size_t)rows * stride);
        for (int row = 0; row < rows; row++) {
            for (int i = 0; i < cols; i++) {
                const double g = to_f32(both[(size_t)row * stride + i]), u = to_f32(up[(size_t)row * stride + i]), d = to_f32(dy[(size_t)row * cols + i]);
                want_y.push_back(activation_of(kind, g) * u);
                want_gate[(size_t)row * stride + i] = d * u * slope_of(kind, g);
                want_up[(size_t)row * stride + i] = d * activation_of(kind, g);
            }
        }
        close(name + shape, y, want_y, TOLERANCE<T>);
        same(name + " again" + shape, again, std::vector<T>(y.data(), y.data() + y.size()));
        close(name + "_backward" + shape, dgate, want_gate, TOLERANCE<T>);
        close(name + "_backward" + shape, dup, want_up, TOLERANCE<T>);
    }
}

/// By kernel::rope's definition, in f32: the same bits.
std::vector<float> turned(const Buffer<float>& x, int stride, int n_heads, int head_dim, int half, const std::vector<uint32_t>& positions,
                          const Buffer<float>& table, bool back) {
    std::vector<float> y(x.data(), x.data() + x.size());
    for (size_t row = 0; row < positions.size(); row++) {
        const float* angles = &table[positions[row] * 2 * half];
        for (int head = 0; head < n_heads; head++) {
            float* at = &y[row * stride + head * head_dim];
            for (int i = 0; i < half; i++) {
                const float a = at[i], b = at[half + i], c = angles[i], s = back ? -angles[half + i] : angles[half + i];
                volatile float ac = a * c, bs = b * s, bc = b * c, as = a * s;
                at[i] = ac - bs;
                at[half + i] = bc + as;
            }
        }
    }
    return y;
}

template <class T>
void ropes(Random& random, int n_heads, int head_dim, int dim, int gap) {
    const int half = dim / 2, stride = n_heads * head_dim + gap;
    const std::vector<uint32_t> positions = {0, 3, 9, 1, 1};
    const std::string shape = " " + std::to_string(sizeof(T)) + "-byte " + std::to_string(n_heads) + "x" + std::to_string(head_dim) + " turning " +
                              std::to_string(dim);
    Buffer<uint32_t> places(positions.size());
    for (size_t i = 0; i < positions.size(); i++) places[i] = positions[i];
    Buffer<float> table(10 * dim);
    for (int p = 0; p < 10; p++) {
        for (int i = 0; i < half; i++) {
            table[p * dim + i] = (float)cos(p * pow(100.0, -i / (double)half));
            table[p * dim + half + i] = (float)sin(p * pow(100.0, -i / (double)half));
        }
    }
    auto x = Buffer<T>::random(random, positions.size() * stride);
    for (const bool back : {false, true}) {
        auto y = x;
        run("rope" + shape, {&y}, [&] {
            host::launch(positions.size(), 256, 0, [&] { BY_TYPE(rope, y.data(), stride, n_heads, head_dim, half, places.data(), table.data(), back ? -1.0f : 1.0f); });
        });
        Buffer<float> wide(x.size());
        for (size_t i = 0; i < x.size(); i++) wide[i] = to_f32(x[i]);
        const std::vector<float> want = turned(wide, stride, n_heads, head_dim, half, positions, table, back);
        std::vector<T> rounded;
        for (float value : want) rounded.push_back(from_f32<T>(value));
        same("rope" + shape, y, rounded);
        if (!back) continue;
        // turning back what was turned gives x
        run("rope there and back" + shape, {&y}, [&] {
            for (const float turn : {1.0f, -1.0f}) {
                host::launch(positions.size(), 256, 0, [&] { BY_TYPE(rope, y.data(), stride, n_heads, head_dim, half, places.data(), table.data(), turn); });
            }
        });
        const auto before = rounded;
        Values before_wide;
        for (const T& value : before) before_wide.push_back(to_f32(value));
        close("rope there and back" + shape, y, before_wide, sizeof(T) == 4 ? 1e-6 : BF16);
    }
}

template <class T>
void sums(Random& random, size_t n, size_t offset) {
    const std::string shape = " " + std::to_string(sizeof(T)) + "-byte " + std::to_string(n) + (offset ? " misaligned" : "");
    auto x = Buffer<T>::random(random, n, 1.0f, offset), y = Buffer<T>::random(random, n);
    Buffer<T> out(n), scaled(n);
    run("add_scaled" + shape, {&out, &scaled}, [&] {
        host::launch(3, 256, 0, [&] { BY_TYPE(add_scaled, x.data(), y.data(), 0.3f, out.data(), n); });
        host::launch(2, 256, 0, [&] { BY_TYPE(scale, x.data(), 1.7f, scaled.data(), n); });
    });
    std::vector<T> want, want_scaled;
    for (size_t i = 0; i < n; i++) {
        volatile float product = 0.3f * to_f32(y[i]);
        want.push_back(from_f32<T>(to_f32(x[i]) + product));
        want_scaled.push_back(from_f32<T>(1.7f * to_f32(x[i])));
    }
    same("add_scaled" + shape, out, want);
    same("scale" + shape, scaled, want_scaled);
    if constexpr (sizeof(T) == 2) {
        auto wide = Buffer<float>::random(random, n, 1.0f, offset);
        Buffer<float> sum(n);
        run("add_scaled to f32" + shape, {&sum}, [&] {
            host::launch(3, 256, 0, [&] { add_scaled_f32_bf16(wide.data(), y.data(), 0.3f, sum.data(), n); });
        });
        std::vector<float> want_sum;
        for (size_t i = 0; i < n; i++) {
            volatile float product = 0.3f * to_f32(y[i]);
            want_sum.push_back(wide[i] + product);
        }
        same("add_scaled to f32" + shape, sum, want_sum);
    }
    if (n % 5 == 0) {
        auto bias = Buffer<float>::random(random, 5);
        auto biased = x;
        run("add_bias" + shape, {&biased}, [&] { host::launch(2, 256, 0, [&] { BY_TYPE(add_bias, biased.data(), bias.data(), (int)(n / 5), 5); }); });
        std::vector<T> want_biased;
        for (size_t i = 0; i < n; i++) want_biased.push_back(from_f32<T>(to_f32(x[i]) + bias[i % 5]));
        same("add_bias" + shape, biased, want_biased);
    }
}

void casts(Random& random, size_t n, size_t offset) {
    auto x = Buffer<float>::random(random, n, 3.0f, offset);
    if (n > 8) {
        x[0] = INFINITY;
        x[1] = -0.0f;
        x[2] = 0x1.010000p0f;   // a tie: to even, down
        x[3] = 0x1.030000p0f;   // a tie: to even, up
        x[4] = 0x1p-140f;       // a denormal
        x[5] = 0x1.fffffep127f; // beyond the largest bf16
    }
    Buffer<bf16> narrow(n, offset);
    Buffer<float> back(n);
    run("casts", {&narrow, &back}, [&] {
        host::launch(2, 256, 0, [&] { cast_f32_bf16(x.data(), narrow.data(), n); });
        host::launch(2, 256, 0, [&] { cast_bf16_f32(narrow.data(), back.data(), n); });
    });
    n_checks++;
    for (size_t i = 0; i < n; i++) {
        const double error = fabs((double)back[i] - x[i]);
        const bool is_big = x[i] > 3.38e38f;
        if (!(is_big ? back[i] == INFINITY : error <= fmax(fabs(x[i]) / 256, 0x1p-134)) || signbit(back[i]) != signbit(x[i])) fail("cast of " + std::to_string(x[i]));
    }
    if (n > 8 && (back[2] != 1.0f || back[3] != 0x1.04p0f)) fail("ties of casts");
}

template <class T>
void rows(Random& random, int cols) {
    const std::string shape = " " + std::to_string(sizeof(T)) + "-byte " + std::to_string(cols);
    const std::vector<uint32_t> ids = {4, 0, 4, 6, 2, 4};
    auto table = Buffer<T>::random(random, 7 * (size_t)cols);
    Buffer<uint32_t> index(ids.size());
    for (size_t i = 0; i < ids.size(); i++) index[i] = ids[i];
    Buffer<T> out(ids.size() * cols), spread(7 * (size_t)cols);
    Buffer<float> widened(ids.size() * cols);
    Buffer<uint32_t> distinct(3);
    distinct[0] = 5, distinct[1] = 0, distinct[2] = 3;
    run("rows" + shape, {&out, &spread}, [&] {
        host::launch(ids.size(), 256, 0, [&] { BY_TYPE(gather_rows, table.data(), index.data(), 2.5f, out.data(), cols); });
        host::launch(3, 256, 0, [&] { BY_TYPE(scatter_rows, out.data(), distinct.data(), spread.data(), cols); });
    });
    std::vector<T> want, want_spread(7 * (size_t)cols, T{});
    for (size_t row = 0; row < ids.size(); row++) {
        for (int i = 0; i < cols; i++) want.push_back(from_f32<T>(2.5f * to_f32(table[ids[row] * cols + i])));
    }
    for (int row = 0; row < 3; row++) {
        for (int i = 0; i < cols; i++) want_spread[distinct[row] * cols + i] = want[row * cols + i];
    }
    same("gather_rows" + shape, out, want);
    same("scatter_rows" + shape, spread, want_spread);
    if constexpr (sizeof(T) == 2) {
        run("gather_rows to f32" + shape, {&widened}, [&] {
            host::launch(ids.size(), 256, 0, [&] { gather_rows_bf16_f32(table.data(), index.data(), 2.5f, widened.data(), cols); });
        });
        std::vector<float> want_wide;
        for (size_t row = 0; row < ids.size(); row++) {
            for (int i = 0; i < cols; i++) want_wide.push_back(2.5f * to_f32(table[ids[row] * cols + i]));
        }
        same("gather_rows to f32" + shape, widened, want_wide);
    }
    // rows times factors onto others, and back
    auto factors = Buffer<float>::random(random, 3);
    auto sum = Buffer<T>::random(random, 7 * (size_t)cols), plain = sum;
    const Buffer<T> before = sum;
    Buffer<T> by_rows(3 * (size_t)cols);
    Buffer<float> dots(3);
    run("combine_rows" + shape, {&sum, &plain, &by_rows, &dots}, [&] {
        host::launch(3, 256, 0, [&] { BY_TYPE(combine_rows, out.data(), distinct.data(), factors.data(), sum.data(), cols); });
        host::launch(3, 256, 0, [&] { BY_TYPE(combine_rows, out.data(), distinct.data(), nullptr, plain.data(), cols); });
        host::launch(3, 256, 0, [&] {
            BY_TYPE(combine_rows_backward, out.data(), table.data(), distinct.data(), factors.data(), by_rows.data(), dots.data(), cols);
        });
    });
    std::vector<double> want_sum = before.wide(), want_plain = want_sum, want_rows(3 * (size_t)cols), want_dots(3);
    for (int row = 0; row < 3; row++) {
        for (int i = 0; i < cols; i++) {
            const double x = to_f32(out[row * cols + i]), d = to_f32(table[distinct[row] * cols + i]);
            want_sum[distinct[row] * cols + i] += factors[row] * x;
            want_plain[distinct[row] * cols + i] += x;
            want_rows[row * cols + i] = factors[row] * d;
            want_dots[row] += x * d;
        }
    }
    close("combine_rows" + shape, sum, want_sum, TOLERANCE<T>);
    close("combine_rows plain" + shape, plain, want_plain, TOLERANCE<T>);
    close("combine_rows_backward" + shape, by_rows, want_rows, TOLERANCE<T>);
    close("combine_rows_backward dots" + shape, dots, want_dots, 1e-5);
    // the embedding's gradient, in the order of the CPU
    auto dx = Buffer<T>::random(random, ids.size() * cols);
    auto gradient = Buffer<float>::random(random, 7 * (size_t)cols);
    std::vector<float> want_gradient(gradient.data(), gradient.data() + gradient.size());
    for (size_t row = 0; row < ids.size(); row++) {
        for (int i = 0; i < cols; i++) {
            volatile float product = 0.7f * to_f32(dx[row * cols + i]);
            want_gradient[ids[row] * cols + i] += product;
        }
    }
    const uint32_t unique[] = {0, 2, 4, 6}, starts[] = {0, 1, 2, 5, 6}, order[] = {1, 4, 0, 2, 5, 3};
    run("embedding_backward" + shape, {&gradient}, [&] {
        host::launch(4, 256, 0, [&] { BY_TYPE(embedding_backward, dx.data(), unique, starts, order, 0.7f, gradient.data(), cols); });
    });
    same("embedding_backward" + shape, gradient, want_gradient);
}

/// kernel::dropout, word for word.
bool is_kept(uint64_t seed, uint32_t step, uint32_t module, uint32_t document, uint32_t position, uint32_t column, uint32_t threshold) {
    const auto block = [](uint32_t a, uint64_t index, uint32_t k0, uint32_t k1, uint32_t (&out)[4]) {
        out[0] = a;
        out[1] = (uint32_t)index;
        out[2] = (uint32_t)(index >> 32);
        out[3] = 6;
        for (int round = 0; round < 10; round++) {
            const uint64_t first = 0xd2511f53ull * out[0], second = 0xcd9e8d57ull * out[2];
            const uint32_t words[4] = {(uint32_t)(second >> 32) ^ out[1] ^ k0, (uint32_t)second, (uint32_t)(first >> 32) ^ out[3] ^ k1, (uint32_t)first};
            memcpy(out, words, sizeof words);
            k0 += 0x9e3779b9;
            k1 += 0xbb67ae85;
        }
    };
    uint32_t key[4], words[4];
    block(step, (uint64_t)module << 32 | document, (uint32_t)seed, (uint32_t)(seed >> 32), key);
    block(position, column / 64 * 16 + column % 16, key[0], key[1], words);
    return words[column % 64 / 16] >= threshold;
}

template <class T>
void drops(Random& random, int cols) {
    const uint64_t seed = 0x123456789abcdefull;
    const float rate = 0.1f, factor = 1.0f / (1.0f - rate);
    const uint32_t threshold = (uint32_t)((double)rate * 4294967296.0), step = 17, module = 5;
    Buffer<uint32_t> documents(3), positions(3);
    documents[0] = 0, documents[1] = 0, documents[2] = 7;
    positions[0] = 0, positions[1] = 1, positions[2] = 4000;
    auto x = Buffer<T>::random(random, 3 * (size_t)cols);
    Buffer<T> y(x.size());
    run("dropout", {&y}, [&] {
        host::launch(3, 256, 0, [&] {
            BY_TYPE(dropout, x.data(), y.data(), cols, documents.data(), positions.data(), (uint32_t)seed, (uint32_t)(seed >> 32), step, module, threshold, factor);
        });
    });
    std::vector<T> want;
    for (int row = 0; row < 3; row++) {
        for (int i = 0; i < cols; i++) {
            const bool kept = is_kept(seed, step, module, documents[row], positions[row], i, threshold);
            want.push_back(from_f32<T>(kept ? to_f32(x[(size_t)row * cols + i]) * factor : 0.0f));
        }
    }
    same("dropout of " + std::to_string(cols), y, want);
}

}  // namespace

void elementwise() {
    Random random(2);
    for (const auto& [rows, cols, stride] : {std::array<int, 3>{5, 96, 192}, {3, 33, 33}, {7, 512, 1024}, {4, 40, 83}}) {
        gates<float>(random, rows, cols, stride, 0);
        gates<bf16>(random, rows, cols, stride, 0);
    }
    gates<bf16>(random, 3, 64, 64, 1);
    for (const auto& [heads, head_dim, dim, gap] : {std::array<int, 4>{4, 64, 64, 0}, {3, 80, 20, 0}, {2, 10, 10, 3}, {2, 256, 128, 64}}) {
        ropes<float>(random, heads, head_dim, dim, gap);
        ropes<bf16>(random, heads, head_dim, dim, gap);
    }
    for (const size_t n : {1, 7, 800, 4095, 10000}) {
        sums<float>(random, n, 0);
        sums<bf16>(random, n, n % 3);
        casts(random, n, n % 2);
    }
    for (const int cols : {1, 30, 64, 1024}) {
        rows<float>(random, cols);
        rows<bf16>(random, cols);
        drops<float>(random, cols);
        drops<bf16>(random, cols);
    }
    // Random123's known answer for the digits of pi
    uint32_t counter[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
    philox(counter, 0xa4093822, 0x299f31d0);
    if (counter[0] != 0xd16cfe09 || counter[1] != 0x94fdcceb || counter[2] != 0x5001e420 || counter[3] != 0x24126ea1) fail("philox");
}

}  // namespace test
