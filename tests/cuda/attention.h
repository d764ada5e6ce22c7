// Attention in f64, and the cases that both families of kernels are run on.
#pragma once

#include "../../src/cuda/kernels/attention.cuh"
#include "harness.h"

namespace test {

struct AttentionCase {
    int n_heads, n_kv_heads, head_dim;
    double cap;
    unsigned window;
    /// Where documents begin, and the end.
    std::vector<int> bounds;
    /// Values between rows, beyond what a row has.
    int gap;

    int rows() const { return bounds.back(); }
    int q_stride() const { return n_heads * head_dim + gap; }
    int kv_stride() const { return n_kv_heads * head_dim + gap; }
    float scale() const { return 1.0f / sqrtf((float)head_dim); }
    AttentionRules rules() const;
    std::string name() const;
    /// Tiles of `size` rows, the last first: a result must not depend on their order.
    Buffer<Tile> tiles(int size) const;
};

struct AttentionResult {
    std::vector<double> out, lse, dq, dk, dv;
};

/// q and k, v have the strides of the case; out is that of q. Without dout no gradients.
AttentionResult attention_in_f64(const AttentionCase& c, const std::vector<double>& q, const std::vector<double>& k,
                                 const std::vector<double>& v, const std::vector<double>* dout);

}  // namespace test
