#!/usr/bin/env bash
# The one check of a GPU machine: what is there, every kernel beside the CPU and f64, then timings. No network, no Rust, no data.
#
#     .ci/gpu-check.sh LCTL [OUT]      LCTL: a binary built with --features cuda; OUT: a directory for the JSON (gpu-check)
#
# LCTL_CUDA_LIBS names the folder of libcublas.so.13 and libcublasLt.so.13 if the loader does not find them. SANITIZE=1 also runs the
# checks under compute-sanitizer, if it is there. Everything ends within 9 minutes; exit status 0 if all checks passed.
set -euo pipefail
[ $# -ge 1 ] && [ $# -le 2 ] || { echo "usage: $0 LCTL [OUT]" >&2; exit 2; }
lctl=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
out=${2:-gpu-check}
[ -x "$lctl" ] || { echo "$1 is no program" >&2; exit 2; }
mkdir -p "$out"
[ -z "${LCTL_CUDA_LIBS:-}" ] || export LD_LIBRARY_PATH="$LCTL_CUDA_LIBS${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

deadline=$(($(date +%s) + 530))
status=0
step() { printf '\n== %s\n' "$*"; }
# limited SECONDS COMMAND...: what is left of the nine minutes is a limit too
limited() {
  local left=$((deadline - $(date +%s))) most=$1
  shift
  [ "$left" -gt 5 ] || { echo "no time is left for: $*" >&2; return 124; }
  timeout "$((left < most ? left : most))" "$@"
}

step "machine"
"$lctl" --version
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv 2>/dev/null || echo "no nvidia-smi"
# problems of directories and the like are not ours here
"$lctl" doctor --json > "$out/doctor.json" || true
"$lctl" doctor | grep -E '^(lctl|build|CPU|GPU|memory)' || true

step "kernels, a training step and an evaluation: correctness, then timings"
limited 500 "$lctl" gpu-check --json "$out/kernels.json" || status=$?

if [ "${SANITIZE:-0}" = 1 ]; then
  step "compute-sanitizer"
  if command -v compute-sanitizer >/dev/null 2>&1; then
    limited 400 compute-sanitizer --tool memcheck --error-exitcode 9 "$lctl" gpu-check --no-timings > "$out/memcheck.txt" 2>&1 || status=$?
    tail -3 "$out/memcheck.txt"
  else
    echo "skipped: there is no compute-sanitizer"
  fi
fi

# Training and evaluation are part of gpu-check: a step and logits beside the CPU, then tokens/s and peak memory on Llama-3.1-8B shapes with
# LoRA r 16 all-linear and QLoRA; requests of MMLU's shape, and single tokens of 1 and of 64 texts.

step "summary"
{
  printf '{"doctor": '
  cat "$out/doctor.json"
  printf ', "kernels": '
  if [ -s "$out/kernels.json" ]; then cat "$out/kernels.json"; else printf null; fi
  printf ', "status": %d}\n' "$status"
} > "$out/gpu-check.json"
if [ "$status" -eq 0 ]; then echo "all checks passed; $out/gpu-check.json has everything"; else echo "FAILED with status $status; see above and $out/gpu-check.json"; fi
exit "$status"
