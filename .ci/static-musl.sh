#!/usr/bin/env bash
# Builds one static program without networking: target/TARGET/release/lctl (docs/airgap.md).
#
#     .ci/static-musl.sh [TARGET]        # default: this machine's architecture with musl
#
# Needs the target (`rustup target add TARGET`) and, where a dependency has C parts, musl-gcc (Debian: musl-tools); readelf (binutils).
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-$(uname -m)-unknown-linux-musl}
program=target/$target/release/lctl

if ! rustc --print target-libdir --target "$target" >/dev/null 2>&1 || [ ! -d "$(rustc --print target-libdir --target "$target")" ]; then
  echo "the target $target is not installed: rustup target add $target" >&2
  exit 1
fi

command -v readelf >/dev/null 2>&1 || { echo "readelf is missing: it has to say that the program is static (binutils)" >&2; exit 1; }

# rust-lld links without a C compiler for musl; paths of the machine do not get into the program
flags="-C target-feature=+crt-static -C linker=rust-lld -C link-self-contained=yes"
flags="$flags --remap-path-prefix=$PWD=/lctl --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
variable=CARGO_TARGET_$(echo "$target" | tr 'a-z-' 'A-Z_')_RUSTFLAGS
env "$variable=$flags" cargo build --release --locked --no-default-features --features parquet --target "$target"

# a program that is linked statically has program headers, and none that names a loader
headers=$(LC_ALL=C readelf --wide --program-headers "$program")
case $headers in
  *INTERP*)
    echo "$program is linked dynamically" >&2
    exit 1
    ;;
  *LOAD*) ;;
  *)
    echo "$program: readelf shows no program headers" >&2
    exit 1
    ;;
esac
sha256sum "$program"
