// Runs every kernel on the host and compares it with f64: .ci/cuda-host-check.sh
#include <chrono>
#include <map>

#include "harness.h"

namespace test {

int n_failures = 0;
int n_checks = 0;
static std::map<std::pair<std::string, double>, double> worst; // by name and what is allowed

void note_error(const std::string& name, double error, double tolerance) {
    auto& entry = worst[{name.substr(0, name.find(' ')), tolerance}];
    entry = fmax(entry, error);
}

void fail(const std::string& what) {
    n_failures++;
    if (n_failures <= 40) fprintf(stderr, "FAILED %s\n", what.c_str());
}

void run(const std::string& name, const std::vector<AnyBuffer*>& results, const std::function<void()>& launches) {
    n_checks++;
    std::vector<std::vector<unsigned char>> before, ascending;
    for (AnyBuffer* result : results) before.emplace_back(result->bytes(), result->bytes() + result->n_bytes());
    host::machine.descending = false;
    launches();
    for (AnyBuffer* result : results) ascending.emplace_back(result->bytes(), result->bytes() + result->n_bytes());
    for (size_t i = 0; i < results.size(); i++) memcpy(results[i]->bytes(), before[i].data(), before[i].size());
    host::machine.descending = true;
    launches();
    host::machine.descending = false;
    for (size_t i = 0; i < results.size(); i++) {
        if (memcmp(results[i]->bytes(), ascending[i].data(), ascending[i].size()) != 0) {
            fail(name + ": the order of threads shows in result " + std::to_string(i));
        }
        if (!results[i]->guards_hold()) fail(name + ": wrote beyond result " + std::to_string(i));
    }
}

std::vector<double> differences(std::vector<double> x, const std::function<double(const std::vector<double>&)>& f) {
    const double step = 1e-5;
    std::vector<double> out(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        const double at = x[i];
        x[i] = at + step;
        const double above = f(x);
        x[i] = at - step;
        out[i] = (above - f(x)) / (2 * step);
        x[i] = at;
    }
    return out;
}

void agree(const std::string& name, const std::vector<double>& a, const std::vector<double>& b) {
    n_checks++;
    double scale = 0.0, worst_difference = 0.0;
    for (double x : b) scale = fmax(scale, fabs(x));
    for (size_t i = 0; i < b.size(); i++) worst_difference = fmax(worst_difference, fabs(a[i] - b[i]));
    note_error(name, worst_difference / scale, 1e-7);
    if (!(worst_difference <= 1e-7 * scale)) fail(name + ": the reference is not the derivative");
}

}  // namespace test

int main() {
    const struct {
        const char* name;
        void (*run)();
    } suites[] = {
        {"norms", test::norms},
        {"elementwise", test::elementwise},
        {"losses", test::losses},
        {"optimizers", test::optimizers},
        {"formats", test::formats},
        {"plain attention", test::plain_attention},
        {"mma attention", test::mma_attention},
        {"routing", test::routing},
        {"moments", test::moments},
        {"paged attention", test::paged_attention},
    };
    for (const auto& suite : suites) {
        const auto start = std::chrono::steady_clock::now();
        suite.run();
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        printf("%-16s %6.2f s\n", suite.name, took.count());
    }
    printf("\n%-32s %-10s %s\n", "largest error of", "", "allowed");
    for (const auto& [name, error] : test::worst) printf("%-32s %-10.2e %.0e\n", name.first.c_str(), error, name.second);
    printf("\n%d checks, %d failed\n", test::n_checks, test::n_failures);
    return test::n_failures == 0 ? 0 : 1;
}
