// How the stand-in device (feature `cuda-host`) finds a kernel by its name and calls it with addresses of arguments. The build script
// writes a table per file of kernels, by what it finds in the preprocessed source.
#pragma once
#include <type_traits>
#include <utility>

#include "common.cuh"

namespace host {

/// A kernel, as Rust has it, too (src/cuda/host.rs).
struct Entry {
    const char* name;
    void (*call)(void* const* arguments);
    /// A letter for each argument: p pointer, i and l integers of 4 and 8 bytes, f and d floats of as many, s a struct.
    const char* kinds;
};

template <class A>
constexpr char kind() {
    if constexpr (std::is_pointer_v<A>) return 'p';
    else if constexpr (std::is_floating_point_v<A>) return sizeof(A) == 4 ? 'f' : 'd';
    else if constexpr (std::is_integral_v<A>) return sizeof(A) == 4 ? 'i' : 'l';
    else return 's';
}

template <auto F>
struct Caller;

template <class... A, void (*F)(A...)>
struct Caller<F> {
    static constexpr char KINDS[] = {kind<A>()..., 0};

    template <size_t... I>
    static void with(void* const* arguments, std::index_sequence<I...>) {
        F(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
    }
    static void call(void* const* arguments) { with(arguments, std::index_sequence_for<A...>()); }
};

template <auto F>
constexpr Entry entry(const char* name) {
    return {name, Caller<F>::call, Caller<F>::KINDS};
}

}  // namespace host
