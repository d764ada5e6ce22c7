#!/usr/bin/env bash
# Builds one static program without networking: target/TARGET/release/lctl (docs/airgap.md).
#
#     scripts/static-musl.sh [TARGET]        # default: this machine's architecture with musl
#
# Needs the target (`rustup target add TARGET`) and, where a dependency has C parts, musl-gcc (Debian: musl-tools).
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-$(uname -m)-unknown-linux-musl}
program=target/$target/release/lctl

if ! rustc --print target-libdir --target "$target" >/dev/null 2>&1 || [ ! -d "$(rustc --print target-libdir --target "$target")" ]; then
  echo "the target $target is not installed: rustup target add $target" >&2
  exit 1
fi

# a clone knows its commit, a source archive may be told it
if [ -z "${LCTL_COMMIT:-}" ] && commit=$(git rev-parse HEAD 2>/dev/null); then
  [ -z "$(git status --porcelain)" ] || commit=$commit-changed
  export LCTL_COMMIT=$commit
fi

# rust-lld links without a C compiler for musl; paths of the machine do not get into the program
flags="-C target-feature=+crt-static -C linker=rust-lld -C link-self-contained=yes"
flags="$flags --remap-path-prefix=$PWD=/lctl --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
variable=CARGO_TARGET_$(echo "$target" | tr 'a-z-' 'A-Z_')_RUSTFLAGS
env "$variable=$flags" cargo build --release --locked --no-default-features --features parquet --target "$target"

if readelf -l "$program" 2>/dev/null | grep -q INTERP; then
  echo "$program is linked dynamically" >&2
  exit 1
fi
sha256sum "$program"
