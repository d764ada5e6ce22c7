#include "../../src/cuda/kernels/loss.cu"
#include "harness.h"

namespace test {
namespace {

using Values = std::vector<double>;

double nll_of(const double* logits, int cols, uint32_t target, double cap) {
    double largest = -INFINITY, sum = 0.0;
    const auto capped = [&](double x) { return cap > 0 ? cap * tanh(x / cap) : x; };
    for (int i = 0; i < cols; i++) largest = fmax(largest, capped(logits[i]));
    for (int i = 0; i < cols; i++) sum += exp(capped(logits[i]) - largest);
    return largest + log(sum) - capped(logits[target]);
}

Values gradient_of(const double* logits, int cols, uint32_t target, double cap) {
    double largest = -INFINITY, sum = 0.0;
    Values c(cols), slope(cols, 1.0);
    for (int i = 0; i < cols; i++) {
        const double t = cap > 0 ? tanh(logits[i] / cap) : 0.0;
        c[i] = cap > 0 ? cap * t : logits[i];
        slope[i] = 1.0 - t * t;
        largest = fmax(largest, c[i]);
    }
    for (double x : c) sum += exp(x - largest);
    for (int i = 0; i < cols; i++) c[i] = (exp(c[i] - largest) / sum - ((uint32_t)i == target)) * slope[i];
    return c;
}

template <class T, class O>
void one(Random& random, int cols, float cap, size_t offset) {
    constexpr int ROWS = 5;
    const std::string shape = " " + std::to_string(sizeof(T)) + " to " + std::to_string(sizeof(O)) + " bytes, " + std::to_string(cols) +
                              " classes, cap " + std::to_string(cap);
    auto logits = Buffer<T>::random(random, (size_t)ROWS * cols, 12.0f, offset);
    Buffer<uint32_t> targets(ROWS);
    Buffer<float> factors(ROWS), nll(ROWS);
    for (int row = 0; row < ROWS; row++) {
        targets[row] = row == 3 ? NO_TARGET : random.below(cols);
        factors[row] = 0.25f * (float)(row + 1) * (row == 2 ? -1.0f : 1.0f);
    }
    targets[0] = 0;
    targets[1] = cols - 1;
    Buffer<O> gradient((size_t)ROWS * cols, offset);
    for (size_t i = 0; i < gradient.size(); i++) gradient[i] = from_f32<O>(NAN);
    const auto kernel = [&](const T* in, O* out) {
        if constexpr (sizeof(T) == 2) cross_entropy_bf16(in, targets.data(), factors.data(), cap, nll.data(), out, cols);
        else if constexpr (sizeof(O) == 2) cross_entropy_f32_bf16(in, targets.data(), factors.data(), cap, nll.data(), out, cols);
        else cross_entropy_f32(in, targets.data(), factors.data(), cap, nll.data(), out, cols);
    };
    Values want_nll(ROWS, 0.0), want((size_t)ROWS * cols, 0.0);
    const Values wide = logits.wide();
    for (int row = 0; row < ROWS; row++) {
        if (targets[row] == NO_TARGET) continue;
        want_nll[row] = nll_of(&wide[row * cols], cols, targets[row], cap);
        const Values of_row = gradient_of(&wide[row * cols], cols, targets[row], cap);
        for (int i = 0; i < cols; i++) want[row * cols + i] = factors[row] * of_row[i];
    }
    run("cross_entropy" + shape, {&nll, &gradient}, [&] {
        host::launch(ROWS, LOSS_THREADS, 0, [&] { kernel(logits.data(), gradient.data()); });
    });
    close("nll" + shape, nll, want_nll, F32);
    close("cross_entropy" + shape, gradient, want, TOLERANCE<O>);
    // in place, where types allow, and without a gradient
    if constexpr (sizeof(T) == sizeof(O)) {
        auto place = logits;
        run("cross_entropy in place" + shape, {&place}, [&] {
            host::launch(ROWS, LOSS_THREADS, 0, [&] { kernel(place.data(), place.data()); });
        });
        same("cross_entropy in place" + shape, place, std::vector<O>(gradient.data(), gradient.data() + gradient.size()));
    }
    const std::vector<float> with_gradient(nll.data(), nll.data() + ROWS);
    run("nll alone" + shape, {&nll}, [&] { host::launch(ROWS, LOSS_THREADS, 0, [&] { kernel(logits.data(), nullptr); }); });
    same("nll alone" + shape, nll, with_gradient);
}

}  // namespace

void losses() {
    Random random(3);
    for (const double cap : {0.0, 3.0}) {
        Values logits = Buffer<float>::random(random, 9, 4.0f).wide();
        agree("derivative of cross_entropy", gradient_of(logits.data(), 9, 4, cap),
              differences(logits, [&](const Values& x) { return nll_of(x.data(), 9, 4, cap); }));
    }
    for (const int cols : {1, 11, 1000, 4099, 8192}) {
        for (const float cap : {0.0f, 30.0f}) {
            if (cols == 1 && cap > 0) continue;
            one<float, float>(random, cols, cap, 0);
            one<float, bf16>(random, cols, cap, cols % 2);
            one<bf16, bf16>(random, cols, cap, 0);
        }
    }
}

}  // namespace test
