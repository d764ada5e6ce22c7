#include "../../src/cuda/kernels/attention_mma.cu"
#include "attention.h"

namespace test {
namespace {

#define MMA(kernel, ...)                                \
    do {                                                \
        if constexpr (D == 64) kernel##_64(__VA_ARGS__);   \
        if constexpr (D == 96) kernel##_96(__VA_ARGS__);   \
        if constexpr (D == 128) kernel##_128(__VA_ARGS__); \
        if constexpr (D == 256) kernel##_256(__VA_ARGS__); \
    } while (0)

/// A product of integers, exact in bf16 and f32: any error of a fragment's layout shows.
void fragments() {
    constexpr int D = 64;
    Buffer<bf16> rows(16 * MMA_PITCH<D>), others(16 * MMA_PITCH<D>);
    Buffer<float> found(2 * 16 * 16), transposed(16 * 16);
    for (int i = 0; i < 16; i++) {
        for (int d = 0; d < D; d++) {
            rows[i * MMA_PITCH<D> + d] = from_f32<bf16>((float)((i * 7 + d * 3) % 11 - 5));
            others[i * MMA_PITCH<D> + d] = from_f32<bf16>((float)((i * 5 + d * 13) % 17 - 8));
        }
    }
    run("fragments", {&found, &transposed}, [&] {
        host::launch(1, 32, 0, [&] {
            float d[2][4];
            RowsOf<D, true> own(rows.data(), 0);
            own.load();
            products_of_rows<D, 16>(d, own, others.data());
            const int g = threadIdx.x / 4, t = threadIdx.x % 4;
            float sums[2][4] = {};
            // the products so far, which are bf16, as weights of the others' columns 16 .. 32
            add_weighted<D, 16, 16>(sums, d, others.data(), 16);
            for (int n = 0; n < 2; n++) {
                for (int i = 0; i < 4; i++) {
                    found[(g + 8 * (i / 2)) * 16 + 8 * n + 2 * t + i % 2] = d[n][i];
                    transposed[(g + 8 * (i / 2)) * 16 + 8 * n + 2 * t + i % 2] = sums[n][i];
                }
            }
        });
    });
    n_checks++;
    float products[16][16];
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j++) {
            float sum = 0.0f;
            for (int d = 0; d < D; d++) sum += to_f32(rows[i * MMA_PITCH<D> + d]) * to_f32(others[j * MMA_PITCH<D> + d]);
            products[i][j] = sum;
            if (found[i * 16 + j] != sum) return fail("products of rows");
        }
    }
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j++) {
            float sum = 0.0f;
            for (int l = 0; l < 16; l++) sum += to_f32(from_f32<bf16>(products[i][l])) * to_f32(others[l * MMA_PITCH<D> + 16 + j]);
            if (fabsf(transposed[i * 16 + j] - sum) > 1e-3f * fabsf(sum) + 1e-2f) return fail("weighted columns");
        }
    }
}

template <int D>
void one(Random& random, const AttentionCase& c) {
    const std::string name = c.name();
    const int rows = c.rows();
    auto q = Buffer<bf16>::random(random, (size_t)rows * c.q_stride(), 3.0f), dout = Buffer<bf16>::random(random, (size_t)rows * c.q_stride());
    auto k = Buffer<bf16>::random(random, (size_t)rows * c.kv_stride(), 3.0f), v = Buffer<bf16>::random(random, (size_t)rows * c.kv_stride());
    Buffer<bf16> out(q.size()), dq(q.size()), dk(k.size()), dv(v.size());
    Buffer<float> lse((size_t)rows * c.n_heads), delta((size_t)rows * c.n_heads);
    auto query_tiles = c.tiles(ForwardSizes<D>::QUERIES), key_tiles = c.tiles(KeySizes<D>::KEYS);
    static_assert(ForwardSizes<D>::QUERIES == QuerySizes<D>::QUERIES);
    // what a block of capability 8.6 and 8.9 can have
    static_assert(ForwardSizes<D>::SHARED <= 99 << 10 && QuerySizes<D>::SHARED <= 99 << 10 && KeySizes<D>::SHARED <= 99 << 10);
    const AttentionRules rules = c.rules();
    run("attention_mma" + name, {&out, &lse}, [&] {
        host::launch(dim3(c.n_heads, query_tiles.size()), ForwardSizes<D>::THREADS, ForwardSizes<D>::SHARED,
                     [&] { MMA(attention_mma, q.data(), k.data(), v.data(), out.data(), lse.data(), query_tiles.data(), rules); });
    });
    const std::vector<double> gradient = dout.wide();
    const AttentionResult want = attention_in_f64(c, q.wide(), k.wide(), v.wide(), &gradient);
    close("attention_mma" + name, out, want.out, BF16);
    close("attention_mma_lse" + name, lse, want.lse, F32);
    for (int row = 0; row < rows; row++) {
        for (int head = 0; head < c.n_heads; head++) {
            double sum = 0.0;
            for (int d = 0; d < D; d++) {
                const size_t at = (size_t)row * c.q_stride() + head * D + d;
                sum += (double)to_f32(out[at]) * to_f32(dout[at]);
            }
            delta[(size_t)row * c.n_heads + head] = (float)sum;
        }
    }
    run("attention_backward_mma" + name, {&dq, &dk, &dv}, [&] {
        host::launch(dim3(c.n_heads, query_tiles.size()), QuerySizes<D>::THREADS, QuerySizes<D>::SHARED, [&] {
            MMA(attention_dq_mma, q.data(), k.data(), v.data(), dout.data(), lse.data(), delta.data(), dq.data(), query_tiles.data(), rules);
        });
        host::launch(dim3(c.n_kv_heads, key_tiles.size()), KeySizes<D>::THREADS, KeySizes<D>::SHARED, [&] {
            MMA(attention_dkv_mma, q.data(), k.data(), v.data(), dout.data(), lse.data(), delta.data(), dk.data(), dv.data(), key_tiles.data(), rules);
        });
    });
    close("attention_mma_dq" + name, dq, want.dq, BF16, Against::largest);
    close("attention_mma_dk" + name, dk, want.dk, BF16, Against::largest);
    close("attention_mma_dv" + name, dv, want.dv, BF16, Against::largest);
}

/// A document alone has the bits that it has behind others.
template <int D>
void packed(Random& random, const AttentionCase& alone, int before) {
    AttentionCase both = alone;
    both.bounds = {0, before, before + alone.rows()};
    const auto launch = [&](const AttentionCase& c, const Buffer<bf16>& q, const Buffer<bf16>& k, const Buffer<bf16>& v) {
        std::vector<Buffer<bf16>> r = {q, q, k, v}; // out, dq, dk, dv
        Buffer<float> lse((size_t)c.rows() * c.n_heads), delta(lse.size());
        auto query_tiles = c.tiles(ForwardSizes<D>::QUERIES), key_tiles = c.tiles(KeySizes<D>::KEYS);
        const AttentionRules rules = c.rules();
        host::launch(dim3(c.n_heads, query_tiles.size()), ForwardSizes<D>::THREADS, ForwardSizes<D>::SHARED,
                     [&] { MMA(attention_mma, q.data(), k.data(), v.data(), r[0].data(), lse.data(), query_tiles.data(), rules); });
        // any gradient will do: the queries
        host::launch(dim3(c.n_heads, query_tiles.size()), QuerySizes<D>::THREADS, QuerySizes<D>::SHARED,
                     [&] { MMA(attention_dq_mma, q.data(), k.data(), v.data(), q.data(), lse.data(), delta.data(), r[1].data(), query_tiles.data(), rules); });
        host::launch(dim3(c.n_kv_heads, key_tiles.size()), KeySizes<D>::THREADS, KeySizes<D>::SHARED, [&] {
            MMA(attention_dkv_mma, q.data(), k.data(), v.data(), q.data(), lse.data(), delta.data(), r[2].data(), r[3].data(), key_tiles.data(), rules);
        });
        return r;
    };
    const size_t q_row = both.q_stride(), kv_row = both.kv_stride();
    auto q = Buffer<bf16>::random(random, both.rows() * q_row, 3.0f), k = Buffer<bf16>::random(random, both.rows() * kv_row, 3.0f);
    auto v = Buffer<bf16>::random(random, both.rows() * kv_row, 3.0f);
    const auto tail = [&](const Buffer<bf16>& all, size_t row) {
        Buffer<bf16> part(alone.rows() * row);
        memcpy(part.data(), all.data() + before * row, part.n_bytes());
        return part;
    };
    const auto of_both = launch(both, q, k, v), of_one = launch(alone, tail(q, q_row), tail(k, kv_row), tail(v, kv_row));
    for (int i = 0; i < 4; i++) {
        const Buffer<bf16> want = tail(of_both[i], i < 2 ? q_row : kv_row);
        same("packed attention" + alone.name(), of_one[i], std::vector<bf16>(want.data(), want.data() + want.size()));
    }
}

}  // namespace

void mma_attention() {
    Random random(7);
    fragments();
    one<64>(random, {4, 2, 64, 0.0, 0, {0, 70, 71, 200}, 0});
    one<64>(random, {2, 1, 64, 0.0, 50, {0, 150}, 8});
    // the last query that sees a tile's keys begins a tile of its own
    one<64>(random, {2, 1, 64, 0.0, 34, {0, 150}, 0});
    one<96>(random, {2, 2, 96, 0.0, 0, {0, 33, 97}, 0});
    one<128>(random, {2, 1, 128, 0.0, 0, {0, 130}, 0});
    one<128>(random, {2, 2, 128, 15.0, 70, {0, 5, 5, 150}, 8});
    one<256>(random, {2, 1, 256, 30.0, 40, {0, 90}, 0});
    packed<64>(random, {4, 2, 64, 0.0, 0, {0, 75}, 0}, 37);
    packed<128>(random, {2, 1, 128, 10.0, 50, {0, 100}, 0}, 9);
}

}  // namespace test
