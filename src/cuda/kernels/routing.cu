// Which rows go to which expert of a mixture, and with what weight: model::moe. No atomics: lists are made by counting, so they ascend.
#include "common.cuh"

constexpr int ROUTING_WARPS = 8;

/// What a row's experts are ordered by, the first largest: by probability, of equal ones by the lowest index. Probabilities have no sign, so
/// their bits have their order; a NaN comes first. Never 0.
__device__ __forceinline__ uint64_t choice(float probability, int expert) {
    return (uint64_t)__float_as_uint(probability) << 32 | (0xffffffffu - (uint32_t)expert);
}

/// For every row: probabilities = softmax(logits); chosen = the n_used most probable experts, ascending; weights = their probabilities, divided by
/// their sum in the order of choice if `renormalize`. A warp has a row; 1 <= n_used <= n.
KERNEL(256)
route_rows(const float* logits, float* probabilities, uint32_t* chosen, float* weights, int rows, int n, int n_used, int renormalize) {
    const int row = blockIdx.x * ROUTING_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const float* x = logits + (size_t)row * n;
    float* p = probabilities + (size_t)row * n;
    float most = -INFINITY;
    for (int i = lane; i < n; i += 32) most = fmaxf(most, x[i]);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) most = fmaxf(most, __shfl_xor_sync(WHOLE_WARP, most, mask));
    // from here on a lane reads what it wrote itself
    float total[1] = {0.0f};
    for (int i = lane; i < n; i += 32) {
        p[i] = expf(x[i] - most);
        total[0] += p[i];
    }
    warp_sum(total);
    for (int i = lane; i < n; i += 32) p[i] = __fdiv_rn(p[i], total[0]);
    uint64_t last = ~(uint64_t)0;
    float sum = 0.0f;
    for (int i = 0; i < n_used; i++) {
        uint64_t best = 0;
        for (int e = lane; e < n; e += 32) {
            const uint64_t key = choice(p[e], e);
            if (key < last && key > best) best = key;
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) {
            const uint64_t other = __shfl_xor_sync(WHOLE_WARP, best, mask);
            if (other > best) best = other;
        }
        last = best;
        sum = __fadd_rn(sum, __uint_as_float((uint32_t)(best >> 32)));
    }
    const float by = renormalize ? sum : 1.0f;
    size_t at = (size_t)row * n_used;
    for (int first = 0; first < n; first += 32) {
        const int e = first + lane;
        const bool is_chosen = e < n && choice(p[e], e) >= last;
        const unsigned mask = __ballot_sync(WHOLE_WARP, is_chosen);
        if (is_chosen) {
            const size_t own = at + __popc(mask & ((1u << lane) - 1));
            chosen[own] = e;
            weights[own] = __fdiv_rn(p[e], by);
        }
        at += __popc(mask);
    }
}

/// The sum of a count over a block of 256; every thread has it.
__device__ __forceinline__ uint32_t block_count(uint32_t count) {
    __shared__ uint32_t counts[ROUTING_WARPS];
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) count += __shfl_xor_sync(WHOLE_WARP, count, mask);
    __syncthreads(); // the last call's counts were read
    if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = count;
    __syncthreads();
    uint32_t sum = 0;
    for (int warp = 0; warp < ROUTING_WARPS; warp++) sum += counts[warp];
    return sum;
}

/// The rows of every expert, ascending, one expert's behind another's, with their weights and places; how many each has; and for every choice of a
/// row where in these lists it stands. Without documents and positions no places. A block has an expert.
KERNEL(256)
list_rows(const uint32_t* chosen, const float* weights, const uint32_t* documents, const uint32_t* positions, int rows, int n_used,
          uint32_t* counts, uint32_t* ids, float* own_weights, uint32_t* own_documents, uint32_t* own_positions, uint32_t* slots) {
    __shared__ uint32_t of_warp[ROUTING_WARPS];
    const uint32_t expert = blockIdx.x;
    const size_t n = (size_t)rows * n_used;
    uint32_t before = 0;
    for (size_t i = threadIdx.x; i < n; i += 256) before += chosen[i] < expert;
    uint32_t at = block_count(before), own = 0;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int first = 0; first < rows; first += 256) {
        const int row = first + (int)threadIdx.x;
        int choice_of_row = -1;
        for (int i = 0; row < rows && i < n_used; i++) {
            if (chosen[(size_t)row * n_used + i] == expert) choice_of_row = i;
        }
        const unsigned mask = __ballot_sync(WHOLE_WARP, choice_of_row >= 0);
        __syncthreads(); // the last rows' counts were read
        if (lane == 0) of_warp[warp] = __popc(mask);
        __syncthreads();
        uint32_t here = 0, slot = at + __popc(mask & ((1u << lane) - 1));
        for (int other = 0; other < ROUTING_WARPS; other++) {
            if (other < warp) slot += of_warp[other];
            here += of_warp[other];
        }
        if (choice_of_row >= 0) {
            const size_t from = (size_t)row * n_used + choice_of_row;
            ids[slot] = row;
            own_weights[slot] = weights[from];
            if (documents) {
                own_documents[slot] = documents[row];
                own_positions[slot] = positions[row];
            }
            slots[from] = slot;
        }
        at += here;
        own += here;
    }
    if (threadIdx.x == 0) counts[expert] = own;
}

/// The gradient of the logits, given those of the listed weights: nn::expert_weights_backward and that of the softmax. A warp has a row.
KERNEL(256)
route_rows_backward(const float* probabilities, const uint32_t* chosen, const float* weights, const uint32_t* slots, const float* dlisted,
                    float* dlogits, int rows, int n, int n_used, int renormalize) {
    const int row = blockIdx.x * ROUTING_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const float* p = probabilities + (size_t)row * n;
    const size_t first = (size_t)row * n_used;
    // every lane by itself: a row has few experts
    float shift = 0.0f, by = 1.0f;
    if (renormalize) {
        by = 0.0f;
        for (int i = 0; i < n_used; i++) {
            shift = __fadd_rn(shift, __fmul_rn(weights[first + i], dlisted[slots[first + i]]));
            by = __fadd_rn(by, p[chosen[first + i]]);
        }
    }
    float dot = 0.0f;
    for (int i = 0; i < n_used; i++) {
        const float dp = __fdiv_rn(__fsub_rn(dlisted[slots[first + i]], shift), by);
        dot = fmaf(dp, p[chosen[first + i]], dot);
    }
    for (int e = lane; e < n; e += 32) {
        float dp = 0.0f;
        for (int i = 0; i < n_used; i++) {
            if (chosen[first + i] == (uint32_t)e) dp = __fdiv_rn(__fsub_rn(dlisted[slots[first + i]], shift), by);
        }
        dlogits[(size_t)row * n + e] = __fmul_rn(p[e], __fsub_rn(dp, dot));
    }
}
