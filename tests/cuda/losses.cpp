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

/// What evaluation asks of logits: pieces of the log-softmax, the first largest, targets of rows.
void scores(Random& random, int cols, float cap) {
    constexpr int ROWS = 4;
    const std::string shape = " " + std::to_string(cols) + " classes, cap " + std::to_string(cap);
    auto logits = Buffer<float>::random(random, (size_t)ROWS * cols, 12.0f);
    // the same largest value twice, and a row that begins with it
    logits[(size_t)cols + cols / 2] = logits[(size_t)cols + cols - 1] = 20.0f;
    logits[(size_t)2 * cols] = 30.0f;
    Buffer<float> pieces(2 * ROWS), log_probs(2 * ROWS), capped = logits;
    Buffer<uint32_t> best(ROWS), targets(4 * ROWS);
    std::vector<double> want(2 * ROWS);
    std::vector<uint32_t> want_best(ROWS);
    const std::vector<double> wide = logits.wide();
    for (int row = 0; row < ROWS; row++) {
        uint32_t first = 0;
        for (int i = 0; i < cols; i++) {
            if (logits[(size_t)row * cols + i] > logits[(size_t)row * cols + first]) first = (uint32_t)i;
        }
        want_best[row] = first;
        for (int i = 0; i < 2; i++) {
            const uint32_t token = i == 0 ? first : random.below(cols);
            targets[4 * row + 2 * i] = (uint32_t)row;
            targets[4 * row + 2 * i + 1] = token;
            want[2 * row + i] = -nll_of(&wide[(size_t)row * cols], cols, token, cap);
        }
    }
    run("score" + shape, {&pieces, &best, &log_probs}, [&] {
        host::launch(ROWS, LOSS_THREADS, 0, [&] { score_rows_f32(logits.data(), cap, pieces.data(), best.data(), cols); });
        host::launch(1, 256, 0, [&] {
            score_targets_f32(logits.data(), pieces.data(), targets.data(), cap, log_probs.data(), 2 * ROWS, cols);
        });
    });
    close("score" + shape, log_probs, want, F32);
    same("largest of a row" + shape, best, want_best);
    if (cap == 0.0f) return;
    std::vector<double> want_capped(wide.size());
    for (size_t i = 0; i < wide.size(); i++) want_capped[i] = cap * tanh(wide[i] / cap);
    run("softcap" + shape, {&capped}, [&] { host::launch(2, 256, 0, [&] { softcap_f32(capped.data(), cap, capped.size()); }); });
    close("softcap" + shape, capped, want_capped, F32);
}

/// A row without numbers has no probability, and its first index.
void scores_of_no_number() {
    constexpr int COLS = 700;
    Buffer<float> logits(2 * COLS), pieces(4);
    Buffer<uint32_t> best(2);
    for (int i = 0; i < COLS; i++) {
        logits[i] = i == 600 ? 1.0f : i == 5 ? NAN : 0.0f;
        logits[COLS + i] = NAN;
    }
    run("score of NaN", {&pieces, &best}, [&] {
        host::launch(2, LOSS_THREADS, 0, [&] { score_rows_f32(logits.data(), 0.0f, pieces.data(), best.data(), COLS); });
    });
    if (best[0] != 600 || best[1] != 0 || pieces[1] == pieces[1] || pieces[3] == pieces[3]) fail("score of NaN");
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
    for (const int cols : {2, 11, 1000, 4099}) {
        scores(random, cols, 0.0f);
        scores(random, cols, 30.0f);
    }
    scores_of_no_number();
}

}  // namespace test
