#include "../../src/cuda/kernels/attention_plain.cu"
#include "attention.h"

namespace test {

AttentionRules AttentionCase::rules() const {
    AttentionRules rules;
    rules.n_heads = n_heads;
    rules.group = n_heads / n_kv_heads;
    rules.window = window;
    rules.head_dim = head_dim;
    rules.scale = scale();
    rules.cap = (float)cap;
    rules.q_stride = rules.out_stride = q_stride();
    rules.kv_stride = kv_stride();
    return rules;
}

std::string AttentionCase::name() const {
    std::string text = " " + std::to_string(n_heads) + "/" + std::to_string(n_kv_heads) + " heads of " + std::to_string(head_dim) + ", cap " +
                       std::to_string((int)cap) + ", window " + std::to_string(window) + ", documents";
    for (int bound : bounds) text += " " + std::to_string(bound);
    return text;
}

Buffer<Tile> AttentionCase::tiles(int size) const {
    std::vector<Tile> all;
    for (size_t i = 0; i + 1 < bounds.size(); i++) {
        for (int first = bounds[i]; first < bounds[i + 1]; first += size) {
            all.push_back({(uint32_t)first, (uint32_t)bounds[i], (uint32_t)bounds[i + 1], 0});
        }
    }
    Buffer<Tile> tiles(all.size());
    for (size_t i = 0; i < all.size(); i++) tiles[i] = all[all.size() - 1 - i];
    return tiles;
}

AttentionResult attention_in_f64(const AttentionCase& c, const std::vector<double>& q, const std::vector<double>& k,
                                 const std::vector<double>& v, const std::vector<double>* dout) {
    const int D = c.head_dim, qs = c.q_stride(), kvs = c.kv_stride();
    AttentionResult r;
    r.out.assign(q.size(), 0.0);
    r.lse.assign((size_t)c.rows() * c.n_heads, 0.0);
    if (dout) {
        r.dq.assign(q.size(), 0.0);
        r.dk.assign(k.size(), 0.0);
        r.dv.assign(v.size(), 0.0);
    }
    const double scale = c.scale();
    std::vector<double> p(c.rows()), slope(c.rows());
    for (size_t document = 0; document + 1 < c.bounds.size(); document++) {
        const int begin = c.bounds[document], end = c.bounds[document + 1];
        for (int i = begin; i < end; i++) {
            const int first = c.window && i - (int)c.window + 1 > begin ? i - (int)c.window + 1 : begin;
            for (int head = 0; head < c.n_heads; head++) {
                const size_t at = (size_t)i * qs + head * D, kv = (size_t)(head / (c.n_heads / c.n_kv_heads)) * D;
                double largest = -INFINITY, sum = 0.0;
                for (int j = first; j <= i; j++) {
                    double x = 0.0;
                    for (int d = 0; d < D; d++) x += q[at + d] * k[(size_t)j * kvs + kv + d];
                    x *= scale;
                    const double t = c.cap > 0 ? tanh(x / c.cap) : 0.0;
                    p[j] = c.cap > 0 ? c.cap * t : x;
                    slope[j] = 1.0 - t * t;
                    largest = fmax(largest, p[j]);
                }
                for (int j = first; j <= i; j++) sum += p[j] = exp(p[j] - largest);
                r.lse[(size_t)i * c.n_heads + head] = largest + log(sum);
                for (int j = first; j <= i; j++) {
                    p[j] /= sum;
                    for (int d = 0; d < D; d++) r.out[at + d] += p[j] * v[(size_t)j * kvs + kv + d];
                }
                if (!dout) continue;
                double delta = 0.0;
                for (int d = 0; d < D; d++) delta += r.out[at + d] * (*dout)[at + d];
                for (int j = first; j <= i; j++) {
                    double dp = 0.0;
                    for (int d = 0; d < D; d++) dp += (*dout)[at + d] * v[(size_t)j * kvs + kv + d];
                    const double ds = p[j] * (dp - delta) * slope[j] * scale;
                    for (int d = 0; d < D; d++) {
                        r.dq[at + d] += ds * k[(size_t)j * kvs + kv + d];
                        r.dk[(size_t)j * kvs + kv + d] += ds * q[at + d];
                        r.dv[(size_t)j * kvs + kv + d] += p[j] * (*dout)[at + d];
                    }
                }
            }
        }
    }
    return r;
}

namespace {

#define PLAIN(kernel, ...)                                                                        \
    do {                                                                                          \
        if constexpr (sizeof(T) == 4 && D == 64) kernel##_f32_64(__VA_ARGS__);                    \
        if constexpr (sizeof(T) == 4 && D == 128) kernel##_f32_128(__VA_ARGS__);                  \
        if constexpr (sizeof(T) == 4 && D == 256) kernel##_f32_256(__VA_ARGS__);                  \
        if constexpr (sizeof(T) == 2 && D == 64) kernel##_bf16_64(__VA_ARGS__);                   \
        if constexpr (sizeof(T) == 2 && D == 128) kernel##_bf16_128(__VA_ARGS__);                 \
        if constexpr (sizeof(T) == 2 && D == 256) kernel##_bf16_256(__VA_ARGS__);                 \
    } while (0)

template <class T, int D>
void one(Random& random, const AttentionCase& c) {
    const std::string name = " " + std::to_string(sizeof(T)) + "-byte" + c.name();
    const int rows = c.rows();
    auto q = Buffer<T>::random(random, (size_t)rows * c.q_stride(), 3.0f), dout = Buffer<T>::random(random, (size_t)rows * c.q_stride());
    auto k = Buffer<T>::random(random, (size_t)rows * c.kv_stride(), 3.0f), v = Buffer<T>::random(random, (size_t)rows * c.kv_stride());
    // what lies between rows belongs to nobody
    Buffer<T> out(q.size()), dq(q.size()), dk(k.size()), dv(v.size());
    Buffer<float> lse((size_t)rows * c.n_heads), delta((size_t)rows * c.n_heads);
    auto tiles = c.tiles(PLAIN_ROWS<D>);
    const AttentionRules rules = c.rules();
    const size_t tile_bytes = (size_t)PLAIN_ROWS<D> * PLAIN_PITCH<D> * 4, weights = (size_t)PLAIN_ROWS<D> * (PLAIN_ROWS<D> + 1) * 4;
    run("attention_plain" + name, {&out, &lse}, [&] {
        host::launch(dim3(c.n_heads, tiles.size()), PLAIN_THREADS<D>, 2 * tile_bytes + weights,
                     [&] { PLAIN(attention_plain, q.data(), k.data(), v.data(), out.data(), lse.data(), tiles.data(), rules); });
    });
    const std::vector<double> gradient = dout.wide();
    const AttentionResult want = attention_in_f64(c, q.wide(), k.wide(), v.wide(), &gradient);
    close("attention_plain" + name, out, want.out, TOLERANCE<T>);
    close("attention_plain_lse" + name, lse, want.lse, F32);
    run("attention_backward_plain" + name, {&delta, &dq, &dk, &dv}, [&] {
        host::launch((rows * c.n_heads + 7) / 8, 256, 0, [&] {
            if constexpr (sizeof(T) == 4) attention_delta_f32(out.data(), dout.data(), delta.data(), rows, c.n_heads, c.head_dim, c.q_stride());
            else attention_delta_bf16(out.data(), dout.data(), delta.data(), rows, c.n_heads, c.head_dim, c.q_stride());
        });
        host::launch(dim3(c.n_heads, tiles.size()), PLAIN_THREADS<D>, 3 * tile_bytes + weights, [&] {
            PLAIN(attention_dq_plain, q.data(), k.data(), v.data(), dout.data(), lse.data(), delta.data(), dq.data(), tiles.data(), rules);
        });
        host::launch(dim3(c.n_kv_heads, tiles.size()), PLAIN_THREADS<D>, 3 * tile_bytes + weights, [&] {
            PLAIN(attention_dkv_plain, q.data(), k.data(), v.data(), dout.data(), lse.data(), delta.data(), dk.data(), dv.data(), tiles.data(), rules);
        });
    });
    const Against against = sizeof(T) == 4 ? Against::value : Against::largest;
    close("attention_plain_dq" + name, dq, want.dq, TOLERANCE<T>, against);
    close("attention_plain_dk" + name, dk, want.dk, TOLERANCE<T>, against);
    close("attention_plain_dv" + name, dv, want.dv, TOLERANCE<T>, against);
}

}  // namespace

void plain_attention() {
    Random random(6);
    // the reference's own derivatives
    const AttentionCase small = {4, 2, 3, 2.0, 3, {0, 4, 4, 9}, 1};
    auto wide = [&](size_t n) { return Buffer<float>::random(random, n, 2.0f).wide(); };
    const auto q = wide(9 * small.q_stride()), k = wide(9 * small.kv_stride()), v = wide(9 * small.kv_stride()), dout = wide(9 * small.q_stride());
    const auto loss = [&](const std::vector<double>& q, const std::vector<double>& k, const std::vector<double>& v) {
        const auto out = attention_in_f64(small, q, k, v, nullptr).out;
        double sum = 0.0;
        for (size_t i = 0; i < out.size(); i++) sum += out[i] * dout[i];
        return sum;
    };
    const AttentionResult r = attention_in_f64(small, q, k, v, &dout);
    agree("derivative of attention by q", r.dq, differences(q, [&](const std::vector<double>& x) { return loss(x, k, v); }));
    agree("derivative of attention by k", r.dk, differences(k, [&](const std::vector<double>& x) { return loss(q, x, v); }));
    agree("derivative of attention by v", r.dv, differences(v, [&](const std::vector<double>& x) { return loss(q, k, x); }));

    one<float, 64>(random, {4, 2, 64, 0.0, 0, {0, 70, 71, 130}, 0});
    one<float, 64>(random, {2, 1, 10, 5.0, 7, {0, 33, 33, 96}, 3});
    // the last query that sees a tile's keys begins a tile of its own
    one<float, 64>(random, {1, 1, 16, 0.0, 34, {0, 100}, 0});
    one<float, 128>(random, {2, 2, 80, 0.0, 40, {0, 100}, 0});
    one<float, 128>(random, {3, 1, 128, 20.0, 0, {0, 31, 64}, 0});
    one<float, 256>(random, {2, 1, 256, 0.0, 20, {0, 45}, 0});
    one<bf16, 64>(random, {2, 2, 64, 0.0, 0, {0, 65}, 0});
    one<bf16, 128>(random, {2, 1, 120, 0.0, 33, {0, 10, 80}, 1});
    one<bf16, 256>(random, {1, 1, 200, 10.0, 0, {0, 40}, 0});
}

}  // namespace test
