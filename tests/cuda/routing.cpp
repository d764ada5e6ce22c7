#include "../../src/cuda/kernels/routing.cu"

#include <algorithm>
#include <numeric>

#include "harness.h"

namespace test {
namespace {

using Values = std::vector<double>;

/// The softmax of a row, the experts that it chooses, ascending, and their weights: model::moe.
struct Route {
    Values probabilities, weights;
    std::vector<uint32_t> chosen;
};

Route route(const double* logits, int n, int n_used, bool renormalize) {
    Route route;
    double most = logits[0], total = 0.0;
    for (int i = 0; i < n; i++) most = fmax(most, logits[i]);
    for (int i = 0; i < n; i++) total += exp(logits[i] - most);
    for (int i = 0; i < n; i++) route.probabilities.push_back(exp(logits[i] - most) / total);
    route.chosen.resize(n);
    std::iota(route.chosen.begin(), route.chosen.end(), 0);
    // by the logits: equal ones are equally probable, and keep their order
    std::stable_sort(route.chosen.begin(), route.chosen.end(), [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
    route.chosen.resize(n_used);
    std::sort(route.chosen.begin(), route.chosen.end());
    double by = 0.0;
    for (uint32_t e : route.chosen) by += route.probabilities[e];
    for (uint32_t e : route.chosen) route.weights.push_back(route.probabilities[e] / (renormalize ? by : 1.0));
    return route;
}

/// `ties`: logits are few, so that many are equal.
void one(Random& random, int rows, int n, int n_used, bool renormalize, bool ties) {
    const std::string shape = " " + std::to_string(rows) + "x" + std::to_string(n) + " top " + std::to_string(n_used) +
                              (renormalize ? " renormalized" : "") + (ties ? " ties" : "");
    auto logits = Buffer<float>::random(random, (size_t)rows * n, 3.0f);
    if (ties) {
        for (size_t i = 0; i < logits.size(); i++) logits[i] = (float)random.below(3);
    }
    const size_t all = (size_t)rows * n_used;
    Buffer<float> probabilities(logits.size()), weights(all), listed(all), dlogits(logits.size());
    Buffer<uint32_t> chosen(all), counts(n), ids(all), documents(rows), positions(rows), own_documents(all), own_positions(all), slots(all);
    for (int row = 0; row < rows; row++) {
        documents[row] = random.bits();
        positions[row] = random.bits();
    }
    const int blocks = (rows + 7) / 8;
    run("route_rows" + shape, {&probabilities, &chosen, &weights}, [&] {
        host::launch(blocks, 256, 0, [&] {
            route_rows(logits.data(), probabilities.data(), chosen.data(), weights.data(), rows, n, n_used, renormalize);
        });
    });
    run("list_rows" + shape, {&counts, &ids, &listed, &own_documents, &own_positions, &slots}, [&] {
        host::launch(n, 256, 0, [&] {
            list_rows(chosen.data(), weights.data(), documents.data(), positions.data(), rows, n_used, counts.data(), ids.data(),
                      listed.data(), own_documents.data(), own_positions.data(), slots.data());
        });
    });
    Values want_probabilities, want_weights;
    std::vector<uint32_t> want_chosen;
    const Values wide = logits.wide();
    for (int row = 0; row < rows; row++) {
        const Route of_row = route(&wide[(size_t)row * n], n, n_used, renormalize);
        want_probabilities.insert(want_probabilities.end(), of_row.probabilities.begin(), of_row.probabilities.end());
        want_weights.insert(want_weights.end(), of_row.weights.begin(), of_row.weights.end());
        want_chosen.insert(want_chosen.end(), of_row.chosen.begin(), of_row.chosen.end());
    }
    close("route_rows probabilities" + shape, probabilities, want_probabilities, F32);
    close("route_rows weights" + shape, weights, want_weights, F32);
    same("route_rows" + shape, chosen, want_chosen);

    std::vector<uint32_t> want_counts, want_ids, want_documents, want_positions, want_slots(all);
    std::vector<float> want_listed;
    for (int expert = 0; expert < n; expert++) {
        const size_t before = want_ids.size();
        for (size_t i = 0; i < all; i++) {
            if (want_chosen[i] != (uint32_t)expert) continue;
            const uint32_t row = i / n_used;
            want_slots[i] = want_ids.size();
            want_ids.push_back(row);
            want_listed.push_back(weights[i]);
            want_documents.push_back(documents[row]);
            want_positions.push_back(positions[row]);
        }
        want_counts.push_back(want_ids.size() - before);
    }
    same("list_rows counts" + shape, counts, want_counts);
    same("list_rows ids" + shape, ids, want_ids);
    same("list_rows weights" + shape, listed, want_listed);
    same("list_rows documents" + shape, own_documents, want_documents);
    same("list_rows positions" + shape, own_positions, want_positions);
    same("list_rows slots" + shape, slots, want_slots);

    // of rows without places, too
    Buffer<uint32_t> own_counts(n), own_ids(all), own_slots(all);
    Buffer<float> own_listed(all);
    run("list_rows alone" + shape, {&own_counts, &own_ids, &own_listed, &own_slots}, [&] {
        host::launch(n, 256, 0, [&] {
            list_rows(chosen.data(), weights.data(), nullptr, nullptr, rows, n_used, own_counts.data(), own_ids.data(), own_listed.data(),
                      nullptr, nullptr, own_slots.data());
        });
    });
    same("list_rows counts alone" + shape, own_counts, want_counts);
    same("list_rows ids alone" + shape, own_ids, want_ids);
    same("list_rows weights alone" + shape, own_listed, want_listed);
    same("list_rows slots alone" + shape, own_slots, want_slots);

    // what is chosen stays so, whatever the logits do
    auto dlisted = Buffer<float>::random(random, all);
    run("route_rows_backward" + shape, {&dlogits}, [&] {
        host::launch(blocks, 256, 0, [&] {
            route_rows_backward(probabilities.data(), chosen.data(), weights.data(), slots.data(), dlisted.data(), dlogits.data(), rows, n,
                                n_used, renormalize);
        });
    });
    const auto loss_of = [&](int row, const Values& of_row) {
        double most = of_row[0], total = 0.0, by = 0.0, sum = 0.0;
        for (double x : of_row) most = fmax(most, x);
        for (double x : of_row) total += exp(x - most);
        for (int i = 0; i < n_used; i++) by += exp(of_row[want_chosen[(size_t)row * n_used + i]] - most) / total;
        for (int i = 0; i < n_used; i++) {
            const size_t at = (size_t)row * n_used + i;
            sum += exp(of_row[want_chosen[at]] - most) / total / (renormalize ? by : 1.0) * dlisted[want_slots[at]];
        }
        return sum;
    };
    Values want(logits.size());
    for (int row = 0; row < rows; row++) {
        const Values of_row(wide.begin() + (size_t)row * n, wide.begin() + (size_t)(row + 1) * n);
        const Values own = differences(of_row, [&](const Values& x) { return loss_of(row, x); });
        std::copy(own.begin(), own.end(), want.begin() + (size_t)row * n);
    }
    // of one expert whose weight is always 1 all are zeros
    if (n_used > 1 || !renormalize) close("route_rows_backward" + shape, dlogits, want, F32, Against::largest);
}

}  // namespace

void routing() {
    Random random(11);
    for (const bool renormalize : {true, false}) {
        one(random, 13, 8, 2, renormalize, false);
        one(random, 13, 8, 2, renormalize, true);
        one(random, 300, 5, 1, renormalize, false);
        one(random, 270, 33, 4, renormalize, true);
        one(random, 17, 128, 8, renormalize, false);
        one(random, 9, 7, 7, renormalize, true);
        one(random, 1, 1, 1, renormalize, false);
    }
}

}  // namespace test
