#include "../../src/cuda/kernels/attention_paged.cu"
#include "../../src/cuda/kernels/attention_paged_mma.cu"
#include "attention.h"

namespace test {
namespace {

constexpr int N_LAYERS = 3, LAYER = 1;

/// Keys and values of a case's documents in pages that lie in another order; what nobody wrote is no number.
template <class T>
struct Paged {
    Buffer<T> pool;
    std::vector<uint64_t> addresses;
    std::vector<uint32_t> tables; // of each document, its first entry
    Buffer<uint64_t> table;
    uint64_t from;

    Paged(Random& random, const AttentionCase& c)
        : pool(0), table(1), from((uint64_t)LAYER * 2 * PAGE * c.kv_stride()) {
        size_t n = 0;
        for (size_t i = 0; i + 1 < c.bounds.size(); i++) {
            tables.push_back((uint32_t)n);
            n += (c.bounds[i + 1] - c.bounds[i] + PAGE - 1) / PAGE;
        }
        const size_t page = (size_t)N_LAYERS * 2 * PAGE * c.kv_stride();
        pool = Buffer<T>(n * page);
        memset(pool.bytes(), 0xff, pool.n_bytes());
        std::vector<size_t> slots(n);
        for (size_t i = 0; i < n; i++) slots[i] = i;
        for (size_t i = n; i > 1; i--) std::swap(slots[i - 1], slots[random.below((uint32_t)i)]);
        table = Buffer<uint64_t>(n);
        for (size_t i = 0; i < n; i++) table[i] = reinterpret_cast<uint64_t>(pool.data() + slots[i] * page);
    }
};

/// Tiles of every document, cut into calls behind `cut` positions, and again behind each `cut` more.
Buffer<PagedTile> tiles_of(const AttentionCase& c, const std::vector<uint32_t>& tables, int size, int cut) {
    std::vector<PagedTile> all;
    for (size_t i = 0; i + 1 < c.bounds.size(); i++) {
        const int n = c.bounds[i + 1] - c.bounds[i];
        for (int call = 0; call < n; call += cut) {
            const int end = call + cut < n ? call + cut : n;
            for (int first = call; first < end; first += size) {
                const int rows = first + size < end ? size : end - first;
                all.push_back({(uint32_t)(c.bounds[i] + first), (uint32_t)rows, (uint32_t)first, tables[i]});
            }
        }
    }
    Buffer<PagedTile> tiles(all.size());
    for (size_t i = 0; i < all.size(); i++) tiles[i] = all[all.size() - 1 - i];
    return tiles;
}

template <class T, int D, bool MMA>
void launch(const AttentionCase& c, const Buffer<T>& q, Buffer<T>& out, const Buffer<PagedTile>& tiles, const Paged<T>& paged) {
    const AttentionRules rules = c.rules();
    constexpr size_t PLAIN_SHARED = (2 * (size_t)PLAIN_ROWS<D> * PLAIN_PITCH<D> + (size_t)PLAIN_ROWS<D> * (PLAIN_ROWS<D> + 1)) * 4;
    const dim3 grid(c.n_heads, (unsigned)tiles.size());
    const PagedTile* of = tiles.data();
    const uint64_t* table = paged.table.data();
    if constexpr (MMA) {
        host::launch(grid, ForwardSizes<D>::THREADS, ForwardSizes<D>::SHARED, [&] {
            if constexpr (D == 64) attention_paged_mma_64(q.data(), out.data(), of, table, paged.from, rules);
            if constexpr (D == 96) attention_paged_mma_96(q.data(), out.data(), of, table, paged.from, rules);
            if constexpr (D == 128) attention_paged_mma_128(q.data(), out.data(), of, table, paged.from, rules);
            if constexpr (D == 256) attention_paged_mma_256(q.data(), out.data(), of, table, paged.from, rules);
        });
    } else {
        host::launch(grid, PLAIN_THREADS<D>, PLAIN_SHARED, [&] {
            if constexpr (sizeof(T) == 4 && D == 64) attention_paged_plain_f32_64(q.data(), out.data(), of, table, paged.from, rules);
            if constexpr (sizeof(T) == 4 && D == 128) attention_paged_plain_f32_128(q.data(), out.data(), of, table, paged.from, rules);
            if constexpr (sizeof(T) == 4 && D == 256) attention_paged_plain_f32_256(q.data(), out.data(), of, table, paged.from, rules);
            if constexpr (sizeof(T) == 2 && D == 64) attention_paged_plain_bf16_64(q.data(), out.data(), of, table, paged.from, rules);
            if constexpr (sizeof(T) == 2 && D == 128) attention_paged_plain_bf16_128(q.data(), out.data(), of, table, paged.from, rules);
            if constexpr (sizeof(T) == 2 && D == 256) attention_paged_plain_bf16_256(q.data(), out.data(), of, table, paged.from, rules);
        });
    }
}

/// Documents as sequences: against f64, then with the same bits in calls of other lengths.
template <class T, int D, bool MMA>
void one(Random& random, const AttentionCase& c) {
    const std::string name = std::string(MMA ? "_mma " : "_plain ") + std::to_string(sizeof(T)) + "-byte" + c.name();
    const int rows = c.rows();
    auto q = Buffer<T>::random(random, (size_t)rows * c.q_stride(), 3.0f);
    auto k = Buffer<T>::random(random, (size_t)rows * c.kv_stride(), 3.0f), v = Buffer<T>::random(random, (size_t)rows * c.kv_stride());
    Paged<T> paged(random, c);
    Buffer<PagedRow> to(rows);
    for (size_t i = 0; i + 1 < c.bounds.size(); i++) {
        for (int row = c.bounds[i]; row < c.bounds[i + 1]; row++) {
            const uint32_t position = (uint32_t)(row - c.bounds[i]);
            to[row] = {paged.table[paged.tables[i] + position / PAGE], position % PAGE, 0};
        }
    }
    run("store_paged" + name, {&paged.pool}, [&] {
        host::launch(rows, 256, 0, [&] {
            if constexpr (sizeof(T) == 4) store_paged_f32(k.data(), v.data(), to.data(), paged.from, c.kv_stride());
            else store_paged_bf16(k.data(), v.data(), to.data(), paged.from, c.kv_stride());
        });
    });
    constexpr int SIZE = MMA ? ForwardSizes<D>::QUERIES : PLAIN_ROWS<D>;
    static_assert(ForwardSizes<D>::SHARED <= 99 << 10); // what a block of capability 8.6 and 8.9 can have
    Buffer<T> out(q.size());
    const auto whole = tiles_of(c, paged.tables, SIZE, rows);
    run("attention_paged" + name, {&out}, [&] { launch<T, D, MMA>(c, q, out, whole, paged); });
    close("attention_paged" + name, out, attention_in_f64(c, q.wide(), k.wide(), v.wide(), nullptr).out, TOLERANCE<T>);
    // single rows, where that is no matter of minutes
    for (const int cut : {rows <= 100 ? 1 : 50, 7}) {
        Buffer<T> again(q.size());
        launch<T, D, MMA>(c, q, again, tiles_of(c, paged.tables, SIZE, cut), paged);
        same("attention_paged in calls" + name, again, std::vector<T>(out.data(), out.data() + out.size()));
    }
}

}  // namespace

void paged_attention() {
    Random random(8);
    one<float, 64, false>(random, {4, 2, 64, 0.0, 0, {0, 70, 71, 130}, 0});
    one<float, 64, false>(random, {2, 1, 10, 5.0, 7, {0, 33, 33, 96}, 0});
    one<float, 64, false>(random, {1, 1, 16, 0.0, 34, {0, 100}, 0});
    one<float, 128, false>(random, {3, 1, 128, 20.0, 0, {0, 31, 64}, 0});
    one<float, 128, false>(random, {2, 2, 80, 0.0, 40, {0, 100}, 0});
    one<float, 256, false>(random, {2, 1, 256, 0.0, 20, {0, 45}, 0});
    one<bf16, 64, false>(random, {2, 2, 64, 0.0, 0, {0, 65}, 0});
    one<bf16, 128, false>(random, {2, 1, 120, 0.0, 33, {0, 10, 80}, 0});
    one<bf16, 256, false>(random, {1, 1, 200, 10.0, 0, {0, 40}, 0});
    one<bf16, 64, true>(random, {4, 2, 64, 0.0, 0, {0, 70, 71, 200}, 0});
    one<bf16, 64, true>(random, {2, 1, 64, 0.0, 34, {0, 150}, 0});
    one<bf16, 96, true>(random, {2, 2, 96, 0.0, 0, {0, 33, 97}, 0});
    one<bf16, 128, true>(random, {2, 2, 128, 15.0, 70, {0, 5, 5, 150}, 0});
    one<bf16, 128, true>(random, {4, 1, 128, 0.0, 0, {0, 130}, 0});
    one<bf16, 256, true>(random, {2, 1, 256, 30.0, 40, {0, 90}, 0});
}

}  // namespace test
