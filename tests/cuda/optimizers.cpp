#include "../../src/cuda/kernels/optimizer.cu"
#include "harness.h"

namespace test {
namespace {

using Values = std::vector<double>;

/// finetune::optimizer and finetune::clip, word for word: the same bits.
struct Slow {
    std::vector<float> p, m, v;

    static double norm(const Buffer<float>& g) {
        double total = 0.0;
        for (size_t first = 0; first < g.size(); first += 65536) {
            double lanes[8] = {};
            for (size_t i = first; i < g.size() && i < first + 65536; i++) lanes[(i - first) % 8] += (double)g[i] * (double)g[i];
            total += ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
        }
        return sqrt(total);
    }

    void adamw(const Buffer<float>& gradients, float factor, float keep, float first, float beta2, float second, float root, float eps, float step_size) {
        for (size_t i = 0; i < p.size(); i++) {
            const float g = gradients[i] * factor;
            m[i] += first * (g - m[i]);
            v[i] = beta2 * v[i] + second * (g * g);
            p[i] = keep * p[i] - step_size * (m[i] / (sqrtf(v[i]) / root + eps));
        }
    }

    void lion(const Buffer<float>& gradients, float factor, float keep, float beta1, float rest1, float beta2, float rest2, float lr) {
        for (size_t i = 0; i < p.size(); i++) {
            const float g = gradients[i] * factor, direction = beta1 * m[i] + rest1 * g;
            const float sign = direction == 0.0f ? direction : copysignf(1.0f, direction);
            p[i] = keep * p[i] - lr * sign;
            m[i] = beta2 * m[i] + rest2 * g;
        }
    }
};

void steps(Random& random, size_t n, size_t offset) {
    const std::string shape = " " + std::to_string(n) + (offset ? " misaligned" : "");
    auto p = Buffer<float>::random(random, n, 1.0f, offset), m = Buffer<float>::random(random, n, 0.1f), v = Buffer<float>::random(random, n, 0.1f);
    auto g = Buffer<float>::random(random, n);
    for (size_t i = 0; i < n; i++) v[i] = fabsf(v[i]);
    g[0] = 0.0f;
    const int chunks = (int)((n + NORM_CHUNK - 1) / NORM_CHUNK);
    Buffer<double> sums(chunks), norm(1);
    Buffer<float> factor(1);
    Buffer<bf16> rounded(n);
    auto lion_p = p, lion_m = m;
    const auto start_p = p, start_m = m, start_v = v;
    run("adamw" + shape, {&p, &m, &v, &rounded, &lion_p, &lion_m, &sums, &norm, &factor}, [&] {
        host::launch(chunks, 256, 0, [&] { sum_of_squares(g.data(), sums.data(), n); });
        host::launch(1, 256, 0, [&] { clip_factor(sums.data(), chunks, 0.5, norm.data(), factor.data()); });
        host::launch(2, 256, 0, [&] {
            adamw(p.data(), m.data(), v.data(), g.data(), rounded.data(), factor.data(), 0.999f, 0.1f, 0.999f, 0.001f, 0.0316f, 1e-8f, 0.01f, n);
        });
        host::launch(2, 256, 0, [&] {
            lion(lion_p.data(), lion_m.data(), g.data(), nullptr, factor.data(), 0.999f, 0.9f, 0.1f, 0.99f, 0.01f, 0.01f, n);
        });
    });
    const double want_norm = Slow::norm(g), ratio = 0.5 / (want_norm + 1e-6);
    const float want_factor = ratio > 1.0 ? 1.0f : (float)ratio;
    n_checks++;
    if (memcmp(&norm[0], &want_norm, 8) != 0 || factor[0] != want_factor) fail("norm" + shape);
    Slow slow{std::vector<float>(start_p.data(), start_p.data() + n), std::vector<float>(start_m.data(), start_m.data() + n),
              std::vector<float>(start_v.data(), start_v.data() + n)};
    Slow slow_lion = slow;
    slow.adamw(g, want_factor, 0.999f, 0.1f, 0.999f, 0.001f, 0.0316f, 1e-8f, 0.01f);
    same("adamw" + shape, p, slow.p);
    same("adamw m" + shape, m, slow.m);
    same("adamw v" + shape, v, slow.v);
    std::vector<bf16> want_rounded;
    for (float x : slow.p) want_rounded.push_back(from_f32<bf16>(x));
    same("adamw rounded" + shape, rounded, want_rounded);
    slow_lion.lion(g, want_factor, 0.999f, 0.9f, 0.1f, 0.99f, 0.01f, 0.01f);
    same("lion" + shape, lion_p, slow_lion.p);
    same("lion m" + shape, lion_m, slow_lion.m);
}

/// More chunks than a block has threads.
void many_chunks(Random& random) {
    const int n = 700;
    Buffer<double> sums(n), norm(1);
    Buffer<float> factor(1);
    double total = 0.0;
    for (int i = 0; i < n; i++) total += sums[i] = fabs((double)random.value());
    for (const double max_norm : {0.0, 0.5, 1e9}) {
        run("clip_factor", {&norm, &factor}, [&] {
            host::launch(1, 256, 0, [&] { clip_factor(sums.data(), n, max_norm, norm.data(), factor.data()); });
        });
        n_checks++;
        const float want = max_norm == 0.5 ? (float)(0.5 / (sqrt(total) + 1e-6)) : 1.0f;
        if (norm[0] != sqrt(total) || factor[0] != want) fail("clip_factor of " + std::to_string(max_norm));
    }
}

/// Some steps against AdamW in f64.
void formula(Random& random) {
    const size_t n = 1000;
    auto p = Buffer<float>::random(random, n);
    Buffer<float> m(n), v(n), one(1);
    one[0] = 1.0f;
    Values want = p.wide(), first(n, 0.0), second(n, 0.0);
    for (int step = 1; step <= 5; step++) {
        auto g = Buffer<float>::random(random, n);
        const double bias1 = 1 - pow(0.9, step), bias2 = 1 - pow(0.999, step);
        host::launch(1, 256, 0, [&] {
            adamw(p.data(), m.data(), v.data(), g.data(), nullptr, one.data(), (float)(1 - 0.01 * 0.1), 1.0f - 0.9f, 0.999f, (float)(1 - 0.999), (float)sqrt(bias2),
                  1e-8f, (float)(0.01 / bias1), n);
        });
        for (size_t i = 0; i < n; i++) {
            first[i] = 0.9 * first[i] + 0.1 * g[i];
            second[i] = 0.999 * second[i] + 0.001 * (double)g[i] * g[i];
            want[i] = want[i] * (1 - 0.01 * 0.1) - 0.01 * (first[i] / bias1) / (sqrt(second[i] / bias2) + 1e-8);
        }
    }
    close("adamw against f64", p, want, F32);
}

/// Sums of several vectors in their order.
void ranks(Random& random, size_t n, int n_ranks) {
    const std::string shape = " " + std::to_string(n_ranks) + "x" + std::to_string(n);
    auto values = Buffer<float>::random(random, n * n_ranks);
    for (size_t i = 0; i < values.size(); i++) values[i] *= (float)(1u << random.below(20));
    Buffer<float> out(n);
    run("sum_of_ranks" + shape, {&out}, [&] { host::launch(2, 256, 0, [&] { sum_of_ranks(values.data(), out.data(), n_ranks, n); }); });
    std::vector<float> want(values.data(), values.data() + n);
    for (int rank = 1; rank < n_ranks; rank++) {
        for (size_t i = 0; i < n; i++) want[i] += values[rank * n + i];
    }
    same("sum_of_ranks" + shape, out, want);
}

}  // namespace

void optimizers() {
    Random random(4);
    for (const size_t n : {1, 1023, 65536, 65537, 200001}) steps(random, n, 0);
    steps(random, 515, 1);
    many_chunks(random);
    ranks(random, 1, 3);
    ranks(random, 1000, 1);
    ranks(random, 4097, 5);
    formula(random);
}

}  // namespace test
