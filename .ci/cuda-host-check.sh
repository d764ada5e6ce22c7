#!/usr/bin/env bash
# Runs the CUDA kernels' logic on the host: every kernel against f64, no GPU and no toolkit needed (docs/cuda.md).
# CXX chooses the compiler (g++).
set -euo pipefail
cd "$(dirname "$0")/.."
cxx=${CXX:-g++}
command -v "$cxx" >/dev/null 2>&1 || { echo "$cxx is missing: install a C++17 compiler, or set CXX" >&2; exit 1; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for source in tests/cuda/*.cpp; do
  # contraction would fuse what the kernels round; .cu files are included, so their pragmas are nvcc's
  printf '%s\0' "$source"
done | xargs -0 -P "$(nproc)" -I{} bash -c \
  '"$1" -std=c++17 -O1 -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas -x c++ -c "$2" -o "$3/$(basename "$2").o"' _ "$cxx" {} "$out"
"$cxx" "$out"/*.o -o "$out/check"
"$out/check"
