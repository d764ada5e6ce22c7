#!/usr/bin/env bash
# Lays out a CUDA toolkit that compiles kernels, from wheels pinned by SHA-256: no GPU, no driver, no root.
#
#     .ci/cuda-toolkit.sh DIR         then: CUDA_HOME=DIR cargo build --release --features cuda
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
if [ -x "$1/bin/nvcc" ]; then
  echo "$1 has an nvcc already: $("$1/bin/nvcc" --version | tail -1)"
  exit 0
fi
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "the pinned wheels are for x86-64 Linux, not $(uname -sm)" >&2; exit 1; }
command -v g++ >/dev/null 2>&1 || command -v c++ >/dev/null 2>&1 || { echo "nvcc needs a host compiler: install g++" >&2; exit 1; }

mkdir -p "$1"
to=$(cd "$1" && pwd)
work=$(mktemp -d "$to/.unpacking.XXXXXX")
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
  --dest "$work/wheels" --requirement "$here/cuda-requirements.txt"
for wheel in "$work"/wheels/*.whl; do
  python3 -m zipfile -e "$wheel" "$work/root"
done
root=$work/root/nvidia/cu13
# zipfile drops the executable bits
chmod +x "$root"/bin/* "$root"/nvvm/bin/*
for part in bin include nvvm lib; do
  rm -rf "${to:?}/$part"
  mv "$root/$part" "$to/$part"
done
mv "$work"/root/*.dist-info "$to/" # the licences
"$to/bin/nvcc" --version | tail -1
