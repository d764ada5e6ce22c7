// Buffers with guards, random values, launches in both orders, and comparisons with f64.
#pragma once

#include <math.h>

#include <functional>
#include <string>
#include <vector>

#include "../../src/cuda/kernels/common.cuh"

namespace test {

constexpr double F32 = 1e-5;
constexpr double BF16 = 2e-2;

template <class T>
constexpr double TOLERANCE = sizeof(T) == 4 ? F32 : BF16;

extern int n_failures;
extern int n_checks;
/// Keeps the largest error by the name's first word and what is allowed.
void note_error(const std::string& name, double error, double tolerance);
void fail(const std::string& what);

/// xorshift64*
class Random {
  public:
    explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 1) {}
    uint32_t bits() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return (uint32_t)(state * 0x2545f4914f6cdd1dull >> 32);
    }
    uint32_t below(uint32_t n) { return (uint32_t)((uint64_t)bits() * n >> 32); }
    /// Uniform in (-1, 1).
    float value() { return (float)(int32_t)(bits() | 1) * 0x1p-31f; }

  private:
    uint64_t state;
};

struct AnyBuffer {
    virtual unsigned char* bytes() = 0;
    virtual size_t n_bytes() const = 0;
    virtual bool guards_hold() const = 0;
    virtual ~AnyBuffer() = default;
};

/// Memory between guards. `offset` values move it away from 16-byte alignment.
template <class T>
class Buffer : public AnyBuffer {
  public:
    explicit Buffer(size_t n, size_t offset = 0) : n(n), first(GUARD / sizeof(T) + offset), all(n + 2 * (GUARD / sizeof(T)) + offset) {
        memset(all.data(), 0xa5, all.size() * sizeof(T));
        memset(bytes(), 0, n_bytes());
    }
    static Buffer random(Random& random, size_t n, float scale = 1.0f, size_t offset = 0) {
        Buffer buffer(n, offset);
        for (size_t i = 0; i < n; i++) buffer[i] = from_f32<T>(random.value() * scale);
        return buffer;
    }
    T* data() { return all.data() + first; }
    const T* data() const { return all.data() + first; }
    size_t size() const { return n; }
    T& operator[](size_t i) { return data()[i]; }
    const T& operator[](size_t i) const { return data()[i]; }
    std::vector<double> wide() const {
        std::vector<double> out(n);
        for (size_t i = 0; i < n; i++) out[i] = to_f32(data()[i]);
        return out;
    }
    unsigned char* bytes() override { return reinterpret_cast<unsigned char*>(data()); }
    size_t n_bytes() const override { return n * sizeof(T); }
    bool guards_hold() const override {
        const unsigned char* raw = reinterpret_cast<const unsigned char*>(all.data());
        for (size_t i = 0; i < all.size() * sizeof(T); i++) {
            const bool inside = i >= first * sizeof(T) && i < (first + n) * sizeof(T);
            if (!inside && raw[i] != 0xa5) return false;
        }
        return true;
    }

  private:
    static constexpr size_t GUARD = 256;
    struct Aligned {
        alignas(16) unsigned char unused[16];
    };
    size_t n, first;
    // vectors of what needs 16 bytes of alignment have it
    struct Storage {
        std::vector<Aligned> blocks;
        size_t n;
        explicit Storage(size_t n) : blocks((n * sizeof(T) + 15) / 16), n(n) {}
        T* data() { return reinterpret_cast<T*>(blocks.data()); }
        const T* data() const { return reinterpret_cast<const T*>(blocks.data()); }
        size_t size() const { return n; }
    } all;
};

/// Runs launches with threads and blocks in ascending order, then from the same start in descending order; results must have the
/// same bits and guards must hold.
void run(const std::string& name, const std::vector<AnyBuffer*>& results, const std::function<void()>& launches);

/// What an error is set against.
enum class Against {
    /// The value, or the root mean square of all if that is larger.
    value,
    /// The largest of all: for differences of what was rounded to bf16 before, whose small values are mostly that rounding.
    largest,
};

/// Compares with f64.
template <class T>
void close(const std::string& name, const Buffer<T>& found, const std::vector<double>& want, double tolerance,
           Against against = Against::value) {
    n_checks++;
    double squares = 0.0, largest = 0.0;
    for (double x : want) {
        squares += x * x;
        largest = fmax(largest, fabs(x));
    }
    const double rms = sqrt(squares / (want.size() ? want.size() : 1)), least = against == Against::value ? rms : largest;
    double worst = 0.0;
    size_t at = 0;
    if (found.size() != want.size()) return fail(name + ": lengths differ");
    for (size_t i = 0; i < want.size(); i++) {
        const double error = fabs(to_f32(found[i]) - want[i]) / fmax(fmax(fabs(want[i]), least), 1e-30);
        if (!(error <= worst)) {
            worst = error;
            at = i;
        }
        if (error != error) break;
    }
    note_error(name, worst, tolerance);
    if (!(worst <= tolerance)) {
        char text[256];
        snprintf(text, sizeof text, ": [%zu] is %.9g for %.9g (rms %.3g): error %.3g > %.3g", at, (double)to_f32(found[at]), want[at], rms,
                 worst, tolerance);
        fail(name + text);
    }
}

/// Compares bits.
template <class T>
void same(const std::string& name, const Buffer<T>& found, const std::vector<T>& want) {
    n_checks++;
    if (found.size() != want.size()) return fail(name + ": lengths differ");
    for (size_t i = 0; i < want.size(); i++) {
        if (memcmp(&found[i], &want[i], sizeof(T)) != 0) {
            char text[128];
            snprintf(text, sizeof text, ": [%zu] has other bits: %.9g for %.9g", i, (double)to_f32(found[i]), (double)to_f32(want[i]));
            return fail(name + text);
        }
    }
}

/// Derivatives of f at x by central differences.
std::vector<double> differences(std::vector<double> x, const std::function<double(const std::vector<double>&)>& f);

/// Compares two vectors of doubles, of which one comes from finite differences.
void agree(const std::string& name, const std::vector<double>& a, const std::vector<double>& b);

void norms();
void elementwise();
void losses();
void optimizers();
void formats();
void plain_attention();
void mma_attention();
void routing();
void moments();
void paged_attention();

}  // namespace test
