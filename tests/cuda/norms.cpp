#include "../../src/cuda/kernels/norm.cu"
#include "harness.h"

namespace test {
namespace {

using Values = std::vector<double>;

Values norm(const Values& x, const Values& w, double eps) {
    Values y(x.size());
    for (size_t row = 0; row < x.size() / w.size(); row++) {
        double squares = 0.0;
        for (size_t i = 0; i < w.size(); i++) squares += x[row * w.size() + i] * x[row * w.size() + i];
        const double f = 1.0 / sqrt(squares / w.size() + eps);
        for (size_t i = 0; i < w.size(); i++) y[row * w.size() + i] = x[row * w.size() + i] * f * w[i];
    }
    return y;
}

/// Gradients by x and by the weight.
Values norm_backward(const Values& x, const Values& w, double eps, const Values& dy, Values* dw) {
    const size_t cols = w.size();
    Values dx(x.size());
    if (dw) dw->assign(cols, 0.0);
    for (size_t row = 0; row < x.size() / cols; row++) {
        const double *a = &x[row * cols], *d = &dy[row * cols];
        double squares = 0.0, product = 0.0;
        for (size_t i = 0; i < cols; i++) {
            squares += a[i] * a[i];
            product += d[i] * w[i] * a[i];
        }
        const double f = 1.0 / sqrt(squares / cols + eps);
        for (size_t i = 0; i < cols; i++) {
            dx[row * cols + i] = d[i] * w[i] * f - a[i] * f * f * f * product / cols;
            if (dw) (*dw)[i] += d[i] * a[i] * f;
        }
    }
    return dx;
}

template <class X, class T, unsigned GROUP>
struct Kernels;
template <class X, class T>
struct Columns;

#define KERNELS(X, T, GROUP, name)                                 \
    template <>                                                    \
    struct Kernels<X, T, GROUP> {                                  \
        static constexpr auto forward = rms_norm_##name;           \
        static constexpr auto backward = rms_norm_backward_##name; \
    };
#define COLUMNS(X, T, name)                             \
    template <>                                         \
    struct Columns<X, T> {                              \
        static constexpr auto sums = column_sums_##name; \
    };

KERNELS(float, float, 32, warp_f32)
KERNELS(bf16, bf16, 32, warp_bf16)
KERNELS(float, bf16, 32, warp_f32_bf16)
KERNELS(float, float, 256, block_f32)
KERNELS(bf16, bf16, 256, block_bf16)
KERNELS(float, bf16, 256, block_f32_bf16)
COLUMNS(float, float, f32)
COLUMNS(bf16, bf16, bf16)
COLUMNS(float, bf16, f32_bf16)

/// x is of X, what is added to it and comes out of T; gradients the other way round.
template <class X, class T, unsigned GROUP>
void one(Random& random, int rows, int cols, float offset, size_t misaligned) {
    const std::string shape = " " + std::to_string(sizeof(X)) + "-byte to " + std::to_string(sizeof(T)) + "-byte group " +
                              std::to_string(GROUP) + " " + std::to_string(rows) + "x" + std::to_string(cols) +
                              (misaligned ? " misaligned" : "");
    const float eps = 1e-5f;
    auto x = Buffer<X>::random(random, (size_t)rows * cols, 2.0f, misaligned);
    auto residual = Buffer<T>::random(random, (size_t)rows * cols);
    auto residual_gradient = Buffer<X>::random(random, (size_t)rows * cols);
    auto dy = Buffer<T>::random(random, (size_t)rows * cols);
    auto weight = Buffer<float>::random(random, cols);
    Buffer<T> y(x.size());
    Buffer<X> sum(x.size()), dx(x.size());
    Buffer<float> factors(rows);
    const dim3 grid((rows + 256 / GROUP - 1) / (256 / GROUP));
    Values w = weight.wide();
    for (double& value : w) value = (float)(value + offset);
    const auto forward = [&](const T* added) {
        Kernels<X, T, GROUP>::forward(x.data(), added, weight.data(), offset, eps, sum.data(), y.data(), rows, cols);
    };
    const auto backward = [&](const X* added) {
        Kernels<X, T, GROUP>::backward(x.data(), weight.data(), offset, eps, dy.data(), added, dx.data(), factors.data(), rows, cols);
    };
    run("rms_norm" + shape, {&y, &sum}, [&] { host::launch(grid, 256, 0, [&] { forward(nullptr); }); });
    close("rms_norm" + shape, y, norm(x.wide(), w, eps), TOLERANCE<T>);
    run("rms_norm of a sum" + shape, {&y, &sum}, [&] { host::launch(grid, 256, 0, [&] { forward(residual.data()); }); });
    Values total = x.wide();
    for (size_t i = 0; i < total.size(); i++) total[i] += to_f32(residual[i]);
    close("residual_sum" + shape, sum, total, sizeof(X) == 4 ? 1e-7 : 1e-2);
    close("rms_norm of a sum" + shape, y, norm(sum.wide(), w, eps), TOLERANCE<T>);

    Values dw;
    Values want = norm_backward(x.wide(), w, eps, dy.wide(), &dw);
    run("rms_norm_backward" + shape, {&dx, &factors}, [&] { host::launch(grid, 256, 0, [&] { backward(nullptr); }); });
    close("rms_norm_backward" + shape, dx, want, TOLERANCE<X>);
    for (size_t i = 0; i < want.size(); i++) want[i] += to_f32(residual_gradient[i]);
    run("rms_norm_backward and residual" + shape, {&dx},
        [&] { host::launch(grid, 256, 0, [&] { backward(residual_gradient.data()); }); });
    close("rms_norm_backward and residual" + shape, dx, want, TOLERANCE<X>);

    const int rows_per_part = 7, parts = (rows + rows_per_part - 1) / rows_per_part;
    Buffer<float> partial((size_t)parts * cols), gradient = Buffer<float>::random(random, cols);
    const Values before = gradient.wide();
    for (const bool is_weight : {true, false}) {
        auto result = gradient;
        const dim3 columns((cols + 255) / 256, parts);
        run("weight_gradient" + shape, {&result, &partial}, [&] {
            host::launch(columns, 256, 0, [&] {
                const X* of = is_weight ? x.data() : nullptr;
                const float* by = is_weight ? factors.data() : nullptr;
                Columns<X, T>::sums(of, by, dy.data(), partial.data(), rows, cols, rows_per_part);
            });
            host::launch(columns.x, 256, 0, [&] { add_parts(partial.data(), result.data(), parts, cols); });
        });
        Values total_gradient = before;
        for (int row = 0; row < rows; row++) {
            for (int i = 0; i < cols; i++) total_gradient[i] += is_weight ? 0.0 : to_f32(dy[(size_t)row * cols + i]);
        }
        if (is_weight) {
            for (int i = 0; i < cols; i++) total_gradient[i] += dw[i];
        }
        close(std::string(is_weight ? "weight_gradient" : "bias_gradient") + shape, result, total_gradient, F32);
    }
}

/// Columns times factors, and their dots over rows.
template <class T>
void columns(Random& random, int rows, int cols) {
    const std::string shape = " " + std::to_string(sizeof(T)) + "-byte " + std::to_string(rows) + "x" + std::to_string(cols);
    auto x = Buffer<T>::random(random, (size_t)rows * cols), dy = Buffer<T>::random(random, (size_t)rows * cols);
    auto factors = Buffer<float>::random(random, cols);
    for (int i = 0; i < cols; i++) factors[i] += factors[i] < 0.0f ? -1.0f : 1.0f;
    Buffer<T> y(x.size());
    const int rows_per_part = 5, parts = (rows + rows_per_part - 1) / rows_per_part;
    Buffer<float> partial((size_t)parts * cols), gradient = Buffer<float>::random(random, cols);
    Values want = gradient.wide(), want_y(x.size());
    run("columns" + shape, {&y, &partial, &gradient}, [&] {
        host::launch(rows, 256, 0, [&] {
            if constexpr (sizeof(T) == 4) scale_columns_f32(x.data(), factors.data(), y.data(), rows, cols);
            else scale_columns_bf16(x.data(), factors.data(), y.data(), rows, cols);
        });
        const dim3 grid((cols + 255) / 256, parts);
        host::launch(grid, 256, 0, [&] {
            if constexpr (sizeof(T) == 4) column_dots_f32(x.data(), factors.data(), dy.data(), partial.data(), rows, cols, rows_per_part);
            else column_dots_bf16(x.data(), factors.data(), dy.data(), partial.data(), rows, cols, rows_per_part);
        });
        host::launch(grid.x, 256, 0, [&] { add_parts(partial.data(), gradient.data(), parts, cols); });
    });
    for (int row = 0; row < rows; row++) {
        for (int i = 0; i < cols; i++) {
            const size_t at = (size_t)row * cols + i;
            want_y[at] = (double)to_f32(x[at]) * factors[i];
            want[i] += (double)to_f32(dy[at]) * to_f32(x[at]) / factors[i];
        }
    }
    close("scale_columns" + shape, y, want_y, TOLERANCE<T>);
    close("column_dots" + shape, gradient, want, F32);
}

/// Norms of the rows of W + s B A, against W + s B A itself.
void gains(Random& random, int rows, int cols, int rank) {
    const std::string shape = " " + std::to_string(rows) + "x" + std::to_string(cols) + " rank " + std::to_string(rank);
    const float scale = 1.5f;
    auto w = Buffer<float>::random(random, (size_t)rows * cols), a = Buffer<float>::random(random, (size_t)rank * cols);
    auto b = Buffer<float>::random(random, (size_t)rows * rank), magnitude = Buffer<float>::random(random, rows);
    Buffer<double> squares(rows);
    Buffer<float> through_base((size_t)rank * rows), gram((size_t)rank * rank), norms(rows), found(rows);
    const auto dot = [&](const float* x, const float* y) {
        double sum = 0.0;
        for (int i = 0; i < cols; i++) sum += (double)x[i] * y[i];
        return sum;
    };
    Values want_norms(rows), want(rows);
    for (int row = 0; row < rows; row++) {
        const float* own = w.data() + (size_t)row * cols;
        squares[row] = dot(own, own);
        double square = 0.0;
        for (int i = 0; i < cols; i++) {
            double sum = own[i];
            for (int r = 0; r < rank; r++) sum += (double)scale * b[row * rank + r] * a[r * cols + i];
            square += sum * sum;
        }
        want_norms[row] = sqrt(square);
        want[row] = magnitude[row] / want_norms[row];
        for (int r = 0; r < rank; r++) through_base[r * rows + row] = (float)dot(a.data() + (size_t)r * cols, own);
    }
    for (int i = 0; i < rank * rank; i++) gram[i] = (float)dot(a.data() + (size_t)(i / rank) * cols, a.data() + (size_t)(i % rank) * cols);
    run("row_gains" + shape, {&norms, &found}, [&] {
        host::launch((rows + 255) / 256, 256, 0, [&] {
            row_gains(squares.data(), through_base.data(), gram.data(), b.data(), magnitude.data(), scale, norms.data(), found.data(), rank, rows);
        });
    });
    close("row_gains norms" + shape, norms, want_norms, F32);
    close("row_gains" + shape, found, want, F32);
}

}  // namespace

void norms() {
    Random random(1);
    // the references' own derivatives
    const auto x = Buffer<float>::random(random, 15).wide(), w = Buffer<float>::random(random, 5).wide(), dy = Buffer<float>::random(random, 15).wide();
    const auto loss = [&](const Values& x, const Values& w) {
        const Values y = norm(x, w, 1e-5);
        double sum = 0.0;
        for (size_t i = 0; i < y.size(); i++) sum += y[i] * dy[i];
        return sum;
    };
    Values dw;
    agree("derivative of norm by x", norm_backward(x, w, 1e-5, dy, &dw), differences(x, [&](const Values& x) { return loss(x, w); }));
    agree("derivative of norm by weight", dw, differences(w, [&](const Values& w) { return loss(x, w); }));
    for (const int cols : {3, 33, 64, 80, 128, 256}) {
        one<float, float, 32>(random, 11, cols, 0.0f, 0);
        one<bf16, bf16, 32>(random, 11, cols, 1.0f, 0);
        one<float, bf16, 32>(random, 11, cols, 1.0f, 0);
    }
    for (const int cols : {64, 1000, 2047, 4096}) {
        one<float, float, 256>(random, 9, cols, 1.0f, 0);
        one<bf16, bf16, 256>(random, 9, cols, 0.0f, 0);
        one<float, bf16, 256>(random, 9, cols, 1.0f, 0);
    }
    for (const int cols : {3, 80, 1000}) {
        columns<float>(random, 13, cols);
        columns<bf16>(random, 13, cols);
        gains(random, cols, 40, 4);
    }
    one<float, float, 256>(random, 3, 512, 0.0f, 1);
    one<bf16, bf16, 256>(random, 3, 512, 0.0f, 3);
    one<float, bf16, 256>(random, 3, 512, 0.0f, 2);
}

}  // namespace test
