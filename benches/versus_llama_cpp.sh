#!/usr/bin/env bash
# Times `lctl quantize` and llama-quantize in alternating runs on the same input, and prints the ratio of medians.
#
#   benches/versus_llama_cpp.sh LLAMA_QUANTIZE MODEL OUT_DIR [TYPE[+imatrix] ...]
#
# MODEL is a GGUF; or a checkpoint's directory, with CONVERTER='python convert_hf_to_gguf.py' set: then the peer's time is that of
# the converter (to F16) and llama-quantize together, against one `lctl quantize`.
# Environment: LCTL (default target/release/lctl), LCTL_FLAGS, RUNS (5), THREADS (2), IMATRIX (file, for TYPE+imatrix),
#   SYNC=1 adds `sync FILE` to the peer's time: lctl always ends with fsync, llama-quantize never does.
# `same` says whether the last outputs are equal as files, or as far as `lctl inspect --diff --digest` sees (keys, tensors, data).
set -euo pipefail

peer=$1 model=$2 out=$3
shift 3
lctl=${LCTL:-target/release/lctl} runs=${RUNS:-5} threads=${THREADS:-2} with_sync=${SYNC:-0}
types=("$@")
[ ${#types[@]} -gt 0 ] || types=(Q4_K_M Q6_K Q8_0 Q4_0)
mkdir -p "$out"

# Runs a command, prints "wall_seconds user_seconds peak_kib".
timed() {
  local report
  report=$(mktemp)
  /usr/bin/time -f '%e %U %M' -o "$report" "$@" >/dev/null 2>&1 || { echo "failed: $*" >&2; exit 1; }
  tail -n 1 "$report"
  rm -f "$report"
}

run_peer() {
  local input=$model steps=()
  if [ -n "${CONVERTER:-}" ]; then
    input=$out/peer-f16.gguf
    steps+=("$CONVERTER '$model' --outtype f16 --outfile '$input'")
  fi
  steps+=("'$peer' ${peer_options[*]} '$input' '$out/peer.gguf' $type $threads")
  [ "$with_sync" = 1 ] && steps+=("sync '$out/peer.gguf'")
  local joined
  joined=$(printf ' && %s' "${steps[@]}")
  timed bash -c "${joined# && }"
}

median() { sort -n | awk '{v[NR]=$1} END {print (NR % 2) ? v[(NR+1)/2] : (v[NR/2] + v[NR/2+1]) / 2}'; }

find "$model" -type f -exec cat {} + >/dev/null # both sides start from a warm page cache
printf '%-16s %12s %12s %8s %12s %12s %14s %14s %8s\n' type lctl_wall_s peer_wall_s ratio lctl_user_s peer_user_s lctl_peak_MiB peer_peak_MiB same
for entry in "${types[@]}"; do
  type=${entry%+imatrix}
  lctl_options=() peer_options=()
  if [ "$entry" != "$type" ]; then
    lctl_options=(--imatrix "${IMATRIX:?set IMATRIX for $entry}")
    peer_options=(--imatrix "$IMATRIX")
  fi
  ours=() theirs=()
  for ((i = 0; i <= runs; i++)); do
    rm -f "$out/peer.gguf" "$out/peer-f16.gguf" "$out/lctl.gguf"
    a=$(timed "$lctl" quantize "$model" --type "$type" -o "$out/lctl.gguf" --threads "$threads" ${LCTL_FLAGS:-} "${lctl_options[@]}")
    b=$(run_peer)
    [ "$i" = 0 ] && continue # warm-up
    ours+=("$a") theirs+=("$b")
  done
  if cmp -s "$out/lctl.gguf" "$out/peer.gguf"; then
    same=file
  elif "$lctl" inspect "$out/lctl.gguf" --diff "$out/peer.gguf" --digest >"$out/$entry.diff" 2>&1; then
    same=tensors
  else
    same=no
    echo "note: $entry: the files differ, see $out/$entry.diff" >&2
  fi
  column() { printf '%s\n' "${@:2}" | awk -v c="$1" '{print $c}' | median; }
  aw=$(column 1 "${ours[@]}") bw=$(column 1 "${theirs[@]}")
  awk -v t="$entry" -v aw="$aw" -v bw="$bw" -v au="$(column 2 "${ours[@]}")" -v bu="$(column 2 "${theirs[@]}")" \
    -v am="$(column 3 "${ours[@]}")" -v bm="$(column 3 "${theirs[@]}")" -v s="$same" \
    'BEGIN {printf "%-16s %12.2f %12.2f %8.2f %12.2f %12.2f %14.0f %14.0f %8s\n", t, aw, bw, bw / aw, au, bu, am / 1024, bm / 1024, s}'
done
