#!/usr/bin/env bash
# The CUDA job of CI: fetches the pinned toolkit, checks the kernels on the host, lints and builds with feature cuda, and weighs the
# binary. DIR keeps the toolkit between runs (target/cuda-toolkit).
set -euo pipefail
cd "$(dirname "$0")/.."
toolkit=${1:-target/cuda-toolkit}
.ci/cuda-toolkit.sh "$toolkit"
CUDA_HOME=$(cd "$toolkit" && pwd)
export CUDA_HOME
.ci/cuda-host-check.sh
cargo clippy --locked --features cuda --all-targets -- -D warnings
cargo build --locked --release --features cuda
binary=target/release/lctl
size=$(wc -c < "$binary")
echo "$binary: $size bytes, $(gzip -9 -c "$binary" | wc -c) compressed"
[ "$size" -lt 60000000 ] || { echo "the binary must stay under 60 MB" >&2; exit 1; }
# no library of CUDA may be linked: the binary starts without a driver
if ldd "$binary" | grep -iE 'cuda|cublas|nvrtc'; then
  echo "the binary needs a library of CUDA to start" >&2
  exit 1
fi
"$binary" doctor | grep '^GPU'
