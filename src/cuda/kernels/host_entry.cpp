// The stand-in device's side of C++: kernels by name, launches, products. The build script writes `host_tables.h`.
#include <algorithm>

#include "host_entry.h"

#include "host_tables.h"

namespace {

/// What kernels begin with in which no thread meets another: they need no fibers, which takes most of the time.
constexpr const char* APART[] = {"adamw", "add_", "cast_", "column_dots", "column_sums", "combine_rows_bf16", "combine_rows_f32", "dropout_", "embedding_backward",
                                 "gather_rows", "geglu", "lion", "rope_", "row_gains", "scale_", "scatter_rows", "score_targets", "softcap_", "store_paged",
                                 "sum_of_ranks", "swiglu"};

float widened(const void* values, size_t i, bool is_bf16) {
    return is_bf16 ? to_f32(static_cast<const bf16*>(values)[i]) : static_cast<const float*>(values)[i];
}

}  // namespace

extern "C" {

/// Returns the kernel of that name, or null.
const host::Entry* lctl_host_kernel(const char* name) {
    for (const host::Entry* table : LCTL_HOST_TABLES) {
        for (const host::Entry* entry = table; entry->name; entry++) {
            if (strcmp(entry->name, name) == 0) return entry;
        }
    }
    return nullptr;
}

/// Runs all blocks of a kernel, with threads and blocks in ascending or descending order. Not for two threads at once.
void lctl_host_launch(const host::Entry* entry, uint32_t grid_x, uint32_t grid_y, uint32_t threads, uint32_t shared_bytes,
                      void* const* arguments, bool descending) {
    host::machine.descending = descending;
    host::machine.apart = std::any_of(std::begin(APART), std::end(APART), [&](const char* start) {
        return strncmp(entry->name, start, strlen(start)) == 0;
    });
    host::launch(dim3(grid_x, grid_y), dim3(threads), shared_bytes, [=] { entry->call(arguments); });
}

/// out[rows][cols] = factor * (a b) + keep * out, sums in f32, ascending; a is [rows][inner], or [inner][rows] if `a_is_columns`; b is
/// [inner][cols], or [cols][inner] if `b_is_columns`. What is multiplied by a `keep` of 0 is not read.
void lctl_host_product(const void* a, const void* b, bool operands_are_bf16, bool a_is_columns, bool b_is_columns, size_t rows,
                       size_t cols, size_t inner, float factor, float keep, void* out, bool out_is_bf16) {
    std::vector<float> right(inner * cols), left(inner), sums(cols);
    for (size_t i = 0; i < inner; i++) {
        for (size_t c = 0; c < cols; c++) right[i * cols + c] = widened(b, b_is_columns ? c * inner + i : i * cols + c, operands_are_bf16);
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < inner; i++) left[i] = widened(a, a_is_columns ? i * rows + r : r * inner + i, operands_are_bf16);
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (size_t i = 0; i < inner; i++) {
            const float x = left[i];
            const float* row = right.data() + i * cols;
            for (size_t c = 0; c < cols; c++) sums[c] += x * row[c];
        }
        for (size_t c = 0; c < cols; c++) {
            const size_t at = r * cols + c;
            const float kept = keep == 0.0f ? 0.0f : keep * widened(out, at, out_is_bf16), value = factor * sums[c] + kept;
            if (out_is_bf16) static_cast<bf16*>(out)[at] = from_f32<bf16>(value);
            else static_cast<float*>(out)[at] = value;
        }
    }
}

}  // extern "C"
