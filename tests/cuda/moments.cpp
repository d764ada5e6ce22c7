#include "../../src/cuda/kernels/moments.cu"

#include <limits>

#include "harness.h"

namespace test {
namespace {

template <class T>
void launch(const Buffer<T>& x, const uint32_t* ids, Buffer<double>& values, Buffer<double>& squares, Buffer<uint32_t>& beyond,
            Buffer<uint32_t>& refused, int first, int rows, int cols) {
    host::launch((cols + MOMENT_COLUMNS - 1) / MOMENT_COLUMNS, MOMENT_COLUMNS, 0, [&] {
        const T* from = x.data() + (size_t)first * cols;
        if constexpr (sizeof(T) == 4) {
            column_moments_f32(from, ids, values.data(), squares.data(), beyond.data(), refused.data(), rows, cols);
        } else {
            column_moments_bf16(from, ids, values.data(), squares.data(), beyond.data(), refused.data(), rows, cols);
        }
    });
}

/// Bits of the chain over rows, whole and in two calls; columns are not aligned if `offset`.
template <class T>
void one(Random& random, int rows, int cols, size_t offset) {
    const std::string type = sizeof(T) == 4 ? "f32" : "bf16";
    const std::string name = "column_moments_" + type + " " + std::to_string(rows) + "x" + std::to_string(cols);
    Buffer<T> x((size_t)rows * cols, offset);
    // over many magnitudes, so that another order shows
    for (size_t i = 0; i < x.size(); i++) x[i] = from_f32<T>(ldexpf(random.value(), (int)random.below(40) - 20));
    Buffer<double> values(cols), squares(cols);
    Buffer<uint32_t> beyond(cols), refused(1);
    for (int c = 0; c < cols; c++) {
        values[c] = random.value();
        squares[c] = 1.0 + random.value();
    }
    std::vector<double> want_values(values.data(), values.data() + cols), want_squares(squares.data(), squares.data() + cols);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < cols; c++) {
            const double wide = to_f32(x[(size_t)r * cols + c]);
            want_values[c] += wide;
            want_squares[c] += wide * wide;
        }
    }
    const auto check = [&](const std::string& how, int cut) {
        Buffer<double> own_values = values, own_squares = squares;
        run(name + how, {&own_values, &own_squares, &beyond, &refused}, [&] {
            if (cut > 0) launch<T>(x, nullptr, own_values, own_squares, beyond, refused, 0, cut, cols);
            launch<T>(x, nullptr, own_values, own_squares, beyond, refused, cut, rows - cut, cols);
        });
        // run leaves the sums of the second of two runs from the same start
        same(name + how + " values", own_values, want_values);
        same(name + how + " squares", own_squares, want_squares);
        same(name + how + " beyond", beyond, std::vector<uint32_t>(cols));
        same(name + how + " refused", refused, std::vector<uint32_t>(1));
    };
    check("", 0);
    if (rows > 1) check(" cut", rows / 2);
}

/// Sums that f32 does not hold: the row is named once, by its id, and no other column.
void refusals(Random& random) {
    constexpr int ROWS = 70, COLS = 37;
    constexpr float INF = std::numeric_limits<float>::infinity(), NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();
    auto x = Buffer<float>::random(random, ROWS * COLS);
    Buffer<uint32_t> ids(ROWS), beyond(COLS), refused(1);
    for (int r = 0; r < ROWS; r++) ids[r] = 3 * r + 5;
    Buffer<double> values(COLS), squares(COLS);
    x[41 * COLS + 3] = NOT_A_NUMBER;
    x[0 * COLS + 8] = INF;
    x[69 * COLS + 36] = -INF;
    // not one of them alone is too much
    squares[20] = 2e38;
    x[33 * COLS + 20] = x[34 * COLS + 20] = 1e19f;
    // and what was too much before is not named again
    squares[21] = 1e39;
    for (const bool named : {true, false}) {
        const std::string name = named ? "column_moments_f32 beyond by id" : "column_moments_f32 beyond";
        for (int c = 0; c < COLS; c++) beyond[c] = 0;
        refused[0] = 0;
        Buffer<double> own_values = values, own_squares = squares;
        run(name, {&own_values, &own_squares, &beyond, &refused},
            [&] { launch<float>(x, named ? ids.data() : nullptr, own_values, own_squares, beyond, refused, 0, ROWS, COLS); });
        std::vector<uint32_t> want(COLS);
        const auto row = [&](uint32_t r) { return 1 + (named ? 3 * r + 5 : r); };
        want[3] = row(41);
        want[8] = row(0);
        want[36] = row(69);
        want[20] = row(34);
        same(name, beyond, want);
        same(name + " flag", refused, {1});
        // a second call says nothing new
        run(name + " again", {&own_values, &own_squares, &beyond, &refused},
            [&] { launch<float>(x, nullptr, own_values, own_squares, beyond, refused, 0, ROWS, COLS); });
        same(name + " again", beyond, want);
    }
}

}  // namespace

void moments() {
    Random random(17);
    const int shapes[][2] = {{1, 1}, {2, 31}, {31, 33}, {32, 32}, {33, 64}, {64, 7}, {97, 100}, {300, 45}, {5, 1000}};
    for (const auto& shape : shapes) {
        for (const size_t offset : {0, 1}) {
            one<float>(random, shape[0], shape[1], offset);
            one<bf16>(random, shape[0], shape[1], offset);
        }
    }
    refusals(random);
}

}  // namespace test
