#!/usr/bin/env bash
# Packs what .ci/gpu-check.sh needs on a machine with a GPU that has neither Rust nor the repository: the program, the tests, what they read.
#
#     CUDA_HOME=TOOLKIT .ci/gpu-pack.sh DIR      TOOLKIT: as .ci/cuda-toolkit.sh lays it out; DIR: what to carry, under 60 MB
#     DIR/gpu-check.sh DIR OUT                   there
#
# LCTL_PACK_PROFILE=dev packs the debug build, LCTL_PACK_FEATURES other features than "cuda cuda-host": to try the scripts.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
dir=$1
most=60000000
profile=${LCTL_PACK_PROFILE:-release}
features=${LCTL_PACK_FEATURES:-cuda cuda-host}
command -v xz >/dev/null 2>&1 || { echo "xz is missing" >&2; exit 1; }
mkdir -p "$dir"
[ -z "$(ls -A "$dir")" ] || [ -e "$dir/pack.txt" ] || { echo "$dir has other files in it" >&2; exit 2; }
rm -f "$dir"/*.xz "$dir/pack.txt" "$dir/gpu-check.sh"

# all files of the repository that are there: tests read goldens, recipes, suites, data, documentation, some sources
list=$(mktemp)
trap 'rm -f "$list"' EXIT
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
  [ ! -e "$file" ] || printf '%s\0' "$file"
done > "$list"

cargo build --locked --profile "$profile" --features "$features"
# tests in the profile that they are made for; it takes long to optimise them, and they would show nothing else
artifacts=$(cargo test --locked --no-run --features "$features" --lib --test main --message-format json)
# executable NAME: of the tests' artifacts, the path that ends in NAME and a hash
executable() {
  printf '%s\n' "$artifacts" | grep '"test":true' | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | grep -E "/$1-[0-9a-f]+\$"
}

folder=$profile
[ "$profile" != dev ] || folder=debug
target=${CARGO_TARGET_DIR:-target}
# pack FILE NAME
pack() {
  [ -x "$1" ] || { echo "$2: no program at \`$1\`" >&2; exit 1; }
  cp "$1" "$dir/$2"
  strip "$dir/$2"
  printf '%-12s %10d bytes' "$2" "$(wc -c < "$dir/$2")" >> "$dir/pack.txt"
  xz -6 -T0 -f "$dir/$2"
  printf ', %10d compressed\n' "$(wc -c < "$dir/$2.xz")" >> "$dir/pack.txt"
}
printf 'commit %s, profile %s, features %s\n' "$(git rev-parse HEAD 2>/dev/null || echo unknown)" "$profile" "$features" > "$dir/pack.txt"
size=$(wc -c < "$target/$folder/lctl")
pack "$target/$folder/lctl" lctl
pack "$(executable main)" tests-main
pack "$(executable lctl)" tests-lib
tar --null --files-from="$list" -cf - | xz -6 -T0 > "$dir/files.tar.xz"
printf '%-12s %10s        %10d compressed\n' files '' "$(wc -c < "$dir/files.tar.xz")" >> "$dir/pack.txt"
cp .ci/gpu-check.sh "$dir/gpu-check.sh"
if command -v objdump >/dev/null 2>&1; then
  echo "needs $(objdump -T "$target/$folder/lctl" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1) or newer" >> "$dir/pack.txt"
fi
total=$(cat "$dir"/* | wc -c)
echo "all $total bytes" >> "$dir/pack.txt"
cat "$dir/pack.txt"
[ "$profile" != release ] || [ "$size" -lt "$most" ] || { echo "the binary must stay under $most bytes, it has $size" >&2; exit 1; }
[ "$total" -lt "$most" ] || { echo "what is carried must stay under $most bytes, it has $total" >&2; exit 1; }
