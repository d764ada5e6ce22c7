// What the kernels need of CUDA, for a C++ compiler of the host: tests/cuda runs them so, and the stand-in device of feature
// `cuda-host`, both without a GPU.
//
// A block's threads are fibers of one thread of the host. __syncthreads and the operations of a warp are points where all
// of them meet; between two such points a fiber runs alone. Two runs, one with the fibers in ascending and one in descending
// order, give different results where a barrier is missing. Copies of cp.async are made as late as possible in the first, when
// they are waited for, and at once in the second.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

// also the mark by which the build script finds the kernels
#define __global__ __attribute__((noinline))
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static
#define __align__(n) alignas(n)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace host {

enum class Wait { none, warp, block, done };

/// A copy that cp.async was asked for.
struct Copy {
    void* to;
    const void* from; // null: zeros
};

struct Fiber {
    dim3 thread;
    unsigned index;
    Wait wait;
    /// The operation it waits in: lanes of a warp must agree.
    const char* operation;
    unsigned parity;
    jmp_buf state;
    ucontext_t start;
    bool started = false;
    std::unique_ptr<char[]> stack;
    std::vector<Copy> open;                 // not yet committed
    std::vector<std::vector<Copy>> groups;  // committed, oldest first
};

/// What lanes show each other; two, so that the next operation can write while the last is still read.
struct WarpSlots {
    uint32_t words[2][32][8];
};

/// Threads of a block at most.
constexpr unsigned MOST_THREADS = 1024;

struct Machine {
    dim3 grid, block, block_index;
    /// Never moved: a fiber that has returned from one block's kernel waits in its own stack for the next.
    std::unique_ptr<Fiber[]> fibers{new Fiber[MOST_THREADS]};
    unsigned n_threads = 0;
    std::vector<WarpSlots> warps;
    std::vector<unsigned char> dynamic_shared;
    Fiber* current = nullptr;
    jmp_buf scheduler;
    bool descending = false;
    /// No thread meets another: they run one after another, without stacks of their own.
    bool apart = false;
    const std::function<void()>* body = nullptr;
};

inline Machine machine;

[[noreturn]] inline void fail(const char* what) {
    fprintf(stderr, "block (%u, %u, %u): %s\n", machine.block_index.x, machine.block_index.y, machine.block_index.z, what);
    for (unsigned i = 0; i < machine.n_threads; i++) {
        const Fiber& fiber = machine.fibers[i];
        if (i % 32 == 0 || fiber.wait != machine.fibers[i - 1].wait) {
            fprintf(stderr, "  thread %u: %s\n", fiber.index, fiber.wait == Wait::done ? "has returned" : fiber.operation);
        }
    }
    abort();
}

inline void yield(Wait wait, const char* operation) {
    Fiber* self = machine.current;
    self->wait = wait;
    self->operation = operation;
    if (machine.apart) fail("threads meet in a kernel that was taken for one where none does");
    if (_setjmp(self->state) == 0) _longjmp(machine.scheduler, 1);
}

/// One thread of every block from now on: making a context takes system calls, going on in it takes none.
[[noreturn]] inline void enter() {
    for (;;) {
        (*machine.body)();
        if (!machine.current->open.empty()) fail("a thread returns with copies that no group has");
        yield(Wait::done, "nothing more");
    }
}

inline void resume(Fiber& fiber) {
    machine.current = &fiber;
    fiber.wait = Wait::none;
    if (_setjmp(machine.scheduler) == 0) {
        if (fiber.started) _longjmp(fiber.state, 1);
        fiber.started = true;
        setcontext(&fiber.start);
        fail("a thread does not start");
    }
}

/// Lets every lane of a warp go on if all are there. Returns whether it did.
inline bool release_warp(unsigned warp) {
    Fiber* lanes = &machine.fibers[warp * 32];
    for (int i = 0; i < 32; i++) {
        if (lanes[i].wait != Wait::warp) return false;
        if (strcmp(lanes[i].operation, lanes[0].operation) != 0) fail("lanes of a warp meet in different operations");
    }
    for (int i = 0; i < 32; i++) lanes[i].wait = Wait::none;
    return true;
}

inline void run_block() {
    const unsigned n = machine.block.x * machine.block.y * machine.block.z;
    if (n % 32 != 0) fail("a block of whole warps is expected");
    if (n > MOST_THREADS) fail("a block has too many threads");
    machine.n_threads = n;
    machine.warps.resize(n / 32);
    // what is read before it is written shows as NaN
    memset(machine.dynamic_shared.data(), 0xff, machine.dynamic_shared.size());
    for (unsigned i = 0; i < n; i++) {
        Fiber& fiber = machine.fibers[i];
        fiber.index = i;
        fiber.thread = dim3(i % machine.block.x, i / machine.block.x % machine.block.y, i / machine.block.x / machine.block.y);
        fiber.wait = Wait::none;
        fiber.operation = "not started";
        fiber.parity = 0;
        fiber.open.clear();
        fiber.groups.clear();
        if (fiber.stack || machine.apart) continue;
        constexpr size_t STACK_BYTES = 96 << 10;
        fiber.stack.reset(new char[STACK_BYTES]);
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = STACK_BYTES;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, enter, 0);
    }
    if (machine.apart) {
        for (unsigned i = 0; i < n; i++) {
            machine.current = &machine.fibers[machine.descending ? n - 1 - i : i];
            (*machine.body)();
        }
        return;
    }
    for (;;) {
        bool moved = false;
        unsigned n_done = 0, n_at_barrier = 0;
        for (unsigned step = 0; step < n / 32; step++) {
            const unsigned warp = machine.descending ? n / 32 - 1 - step : step;
            do {
                for (unsigned at = 0; at < 32; at++) {
                    Fiber& fiber = machine.fibers[warp * 32 + (machine.descending ? 31 - at : at)];
                    if (fiber.wait == Wait::none) {
                        resume(fiber);
                        moved = true;
                    }
                }
            } while (release_warp(warp));
            for (unsigned at = 0; at < 32; at++) {
                n_done += machine.fibers[warp * 32 + at].wait == Wait::done;
                n_at_barrier += machine.fibers[warp * 32 + at].wait == Wait::block;
            }
        }
        if (n_done == n) return;
        if (n_at_barrier == n) {
            for (unsigned i = 0; i < n; i++) machine.fibers[i].wait = Wait::none;
        } else if (!moved) {
            fail("threads wait for others that never come");
        }
    }
}

/// Runs `body` as every thread of every block.
inline void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
    machine.grid = grid;
    machine.block = block;
    machine.body = &body;
    machine.dynamic_shared.resize(shared_bytes + 16);
    for (unsigned i = 0, n = grid.x * grid.y * grid.z; i < n; i++) {
        const unsigned at = machine.descending ? n - 1 - i : i;
        machine.block_index = dim3(at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y);
        run_block();
    }
}

inline unsigned char* dynamic_shared() {
    unsigned char* data = machine.dynamic_shared.data();
    return data + (16 - (uintptr_t)data % 16) % 16;
}

/// Shows N words to the warp; returns what all lanes show.
template <int N>
inline const uint32_t (*exchange(const uint32_t (&words)[N], const char* operation))[8] {
    static_assert(N <= 8);
    Fiber* self = machine.current;
    WarpSlots& slots = machine.warps[self->index / 32];
    const unsigned parity = self->parity;
    self->parity ^= 1;
    for (int i = 0; i < N; i++) slots.words[parity][self->index % 32][i] = words[i];
    yield(Wait::warp, operation);
    return slots.words[parity];
}

template <class T>
inline T shuffle(T value, unsigned source, const char* operation) {
    static_assert(sizeof(T) % 4 == 0 && sizeof(T) <= 8);
    uint32_t words[sizeof(T) / 4];
    memcpy(words, &value, sizeof(T));
    const uint32_t(*all)[8] = exchange(words, operation);
    memcpy(&value, all[source % 32], sizeof(T));
    return value;
}

inline void make_copy(const Copy& copy) {
    if (copy.from) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
}

inline void start_copy(const Copy& copy) {
    if (machine.descending) make_copy(copy);
    else machine.current->open.push_back(copy);
}

inline unsigned lane() { return machine.current->index % 32; }

}  // namespace host

#define threadIdx (host::machine.current->thread)
#define blockIdx (host::machine.block_index)
#define blockDim (host::machine.block)
#define gridDim (host::machine.grid)

inline void __syncthreads() { host::yield(host::Wait::block, "__syncthreads"); }
inline void __syncwarp() { host::yield(host::Wait::warp, "__syncwarp"); }

template <class T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
    return host::shuffle(value, host::lane() ^ mask, "__shfl_xor_sync");
}
template <class T>
inline T __shfl_sync(unsigned, T value, int source) {
    return host::shuffle(value, source, "__shfl_sync");
}

inline unsigned __ballot_sync(unsigned, bool is) {
    const uint32_t words[1] = {is};
    const uint32_t(*all)[8] = host::exchange(words, "__ballot_sync");
    unsigned mask = 0;
    for (int i = 0; i < 32; i++) mask |= all[i][0] << i;
    return mask;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
// compiled with -ffp-contract=off: each is rounded
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
