#!/usr/bin/env bash
# The one check of a GPU machine. No network, no Rust, no data but what .ci/gpu-pack.sh packed.
#
#     .ci/gpu-check.sh PACK|LCTL [OUT]     PACK: the folder that .ci/gpu-pack.sh made; or LCTL, a binary with feature cuda: no tests then
#
# In this order: what is there; every kernel beside the CPU, f64 and finite differences; the tests that run on a device; curves of training;
# compute-sanitizer; timings; PEFT and transformers beside them; the CPU's tests in what time is left. Each has to end by its own time,
# all within 530 s: what one stage saves the later ones have. A stage that fails or is out of time makes the exit status 1, and those behind
# it run. OUT (gpu-check) gets gpu-check.json with everything and at most 7 files more, written anew behind every stage.
#
# LCTL_GPU_DEVICE   the device (cuda:0); host is the stand-in of a build with cuda-host, which is checked on small shapes and not timed
# LCTL_CUDA_LIBS    the folder of libcublas.so.13 and libcublasLt.so.13, if it is none of those that are looked into
# LCTL_GPU_TESTS    which tests run on the device, by parts of their names ("cuda device")
# LCTL_GPU_STEPS    steps of the curves (200; 8 on the stand-in)
# LCTL_GPU_TIMES    when each stage has to end, in seconds from the start
set -uo pipefail
[ $# -ge 1 ] && [ $# -le 2 ] || { echo "usage: $0 PACK|LCTL [OUT]" >&2; exit 2; }
[ -e "$1" ] || { echo "$1: there is no such pack or program" >&2; exit 2; }
given=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
mkdir -p "${2:-gpu-check}" || exit 2
out=$(cd "${2:-gpu-check}" && pwd)
device=${LCTL_GPU_DEVICE:-cuda:0}
tests=${LCTL_GPU_TESTS:-cuda device}
cpu_seconds=90
# machine, kernels, tests, curves, memcheck, racecheck, timings, PEFT, transformers, the CPU's tests
read -r -a times <<< "${LCTL_GPU_TIMES:-20 80 160 185 230 250 380 450 515 530}"
[ ${#times[@]} -eq 10 ] || { echo "LCTL_GPU_TIMES has ${#times[@]} numbers, not 10" >&2; exit 2; }
case $device in
  host) is_host=1 small=(--small) steps=${LCTL_GPU_STEPS:-8} ;;
  *) is_host=0 small=() steps=${LCTL_GPU_STEPS:-200} ;;
esac
loader_path=${LD_LIBRARY_PATH:-}
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
rm -f "$out"/{gpu-check,doctor,checks,curves,timings}.json "$out"/{tests,sanitizer,log}.txt
start=$(date +%s)
lctl='' tests_main='' tests_lib='' files=$(cd "$(dirname "$0")/.." && pwd)

# unpacked FILE: where the file of a pack lies unpacked
unpacked() {
  if command -v xz >/dev/null 2>&1; then xz -dc "$given/$1.xz"; else python3 -c 'import lzma, shutil, sys
shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$given/$1.xz"; fi > "$work/$1" || return 1
  chmod +x "$work/$1"
}

unpack() {
  if [ -d "$given" ]; then
    unpacked lctl && unpacked tests-main && unpacked tests-lib && unpacked files.tar || { echo "$given is no whole pack" >&2; return 1; }
    mkdir "$work/files" && tar -xf "$work/files.tar" -C "$work/files" && rm "$work/files.tar" || return 1
    lctl=$work/lctl tests_main=$work/tests-main tests_lib=$work/tests-lib files=$work/files
    cat "$given/pack.txt"
  else
    [ -x "$given" ] || { echo "$given is no program" >&2; return 1; }
    lctl=$given
  fi
}

# has_cublas FOLDER
has_cublas() { [ -e "$1/libcublas.so.13" ] && [ -e "$1/libcublasLt.so.13" ]; }

# Puts the folder of cuBLAS on the loader's path, if it is not there.
find_cublas() {
  local folder places=()
  [ -z "${LCTL_CUDA_LIBS:-}" ] || places+=("$LCTL_CUDA_LIBS")
  if [ ${#places[@]} -eq 0 ] && ldconfig -p 2>/dev/null | grep -q 'libcublas\.so\.13 '; then
    echo "cuBLAS: the loader knows it"
    return
  fi
  places+=(/usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib "${CUDA_HOME:-/usr/local/cuda}/lib64")
  while read -r folder; do
    places+=("$folder/nvidia/cu13/lib" "$folder/nvidia/cublas/lib")
  done < <(timeout 10 python3 -c 'import sys; print("\n".join(p for p in sys.path if p))' 2>/dev/null)
  for folder in "${places[@]}"; do
    if has_cublas "$folder"; then
      echo "cuBLAS: $folder"
      export LD_LIBRARY_PATH="$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
      return
    fi
  done
  folder=$(timeout 10 find /usr /opt /home /root -name libcublas.so.13 -print -quit 2>/dev/null)
  if [ -n "$folder" ] && has_cublas "$(dirname "$folder")"; then
    echo "cuBLAS: $(dirname "$folder")"
    LD_LIBRARY_PATH="$(dirname "$folder")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    export LD_LIBRARY_PATH
  else
    echo "cuBLAS: libcublas.so.13 was found nowhere; LCTL_CUDA_LIBS names its folder"
  fi
}

rows=() status=0
# noted NAME RESULT SECONDS WHAT: what is WHAT is said in words, without quotes and backslashes
noted() {
  rows+=("$1|$2|$3|$(printf '%s' "$4" | tr -d '"\\|' | tr '\n\t' '  ')")
  case $2 in passed | skipped) ;; *) status=1 ;; esac
  echo "-- $1: $2 in $3 s${4:+; $4}"
  local file
  rm -f "$out"/*.part
  for file in "$out/tests.txt" "$out/sanitizer.txt"; do
    [ ! -e "$file" ] || [ "$(wc -c < "$file")" -lt 15000000 ] || truncate -s 15000000 "$file"
  done
  whole > "$work/whole.json" && cp "$work/whole.json" "$out/gpu-check.json"
}

# part NAME FILE: a member of the JSON; null if the file is not there, or was cut short
part() {
  printf ',\n"%s": ' "$1"
  if [ -s "$2" ] && { ! command -v python3 >/dev/null 2>&1 || python3 -m json.tool "$2" >/dev/null 2>&1; }; then
    cat "$2"
  else
    printf null
  fi
}

# Prints all that there is so far as JSON.
whole() {
  local row name result seconds what comma=
  printf '{"status": %d,\n"device": "%s",\n"binary_bytes": %d,\n"seconds": %d,\n"stages": [' \
    "$status" "$device" "$(wc -c < "${lctl:-/dev/null}")" $(($(date +%s) - start))
  for row in "${rows[@]}"; do
    IFS='|' read -r name result seconds what <<< "$row"
    printf '%s\n  {"name": "%s", "result": "%s", "seconds": %d, "what": "%s"}' "$comma" "$name" "$result" "$seconds" "$what"
    comma=,
  done
  printf ']'
  part doctor "$out/doctor.json"
  part checks "$out/checks.json"
  part curves "$out/curves.json"
  part timings "$out/timings.json"
  part versus_peft "$work/peft.json"
  part versus_transformers "$work/transformers.json"
  printf '}\n'
}

# left I: seconds that stage I has
left() { echo $((start + times[$1] - $(date +%s))); }

# ran NAME I FUNCTION ...: runs a stage within its time; `said` prints what is noted of it
ran() {
  local name=$1 index=$2 begun result code seconds
  shift 2
  begun=$(date +%s)
  printf '\n== %s\n' "$name"
  if [ "$(left "$index")" -lt 5 ]; then
    noted "$name" "out of time" 0 "not begun"
    return
  fi
  # timeout runs programs alone: a shell that has the functions
  timeout -k 5 "$(left "$index")" bash -c 'set -o pipefail; "$@"' _ "$@"
  code=$?
  seconds=$(($(date +%s) - begun))
  case $code in
    0) result=passed ;;
    124 | 137) result="out of time" ;;
    *) result="failed with $code" ;;
  esac
  noted "$name" "$result" "$seconds" "$(said)"
}

skipped() { printf '\n== %s\nskipped: %s\n' "$1" "$2"; noted "$1" skipped 0 "$2"; }

said() { :; }

machine() {
  printf '\n== machine\n'
  unpack || { noted machine "failed with 1" 0 "nothing to run"; return 1; }
  find_cublas
  "$lctl" --version
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv 2>/dev/null || echo "no nvidia-smi"
  # problems of directories and the like are not ours here
  "$lctl" doctor --json > "$out/doctor.json" || true
  "$lctl" doctor | grep -E '^(lctl|build|CPU|GPU|memory)' || true
  noted machine passed $(($(date +%s) - start)) "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -1)"
}

# The first failures of a check, and its last line.
said_by_check() { grep -hE '^(failed: |error|[0-9]+ checks, )' "$work/said.txt" | tail -3; }

check() { "$lctl" gpu-check --device "$device" "$@" 2>&1 | tee "$work/said.txt"; }

# Runs a binary of tests on the device; the filter's words are apart.
on_device() {
  # shellcheck disable=SC2086
  LCTL_TEST_DEVICE=$device LCTL_TEST_ROOT=$files LCTL_TEST_PROGRAM=$lctl "$1" --show-output $tests 2>&1 | tee -a "$out/tests.txt" |
    grep -E '^(test .*(FAILED|ignored)|test result|error|thread .* panicked)'
}

both_on_device() {
  local code=0
  on_device "$tests_main" || code=1
  on_device "$tests_lib" || code=1
  return $code
}

# results FILE: what tests came to
results() { grep -h '^test result' "$1" | sed 's/^test result: //; s/; 0 measured.*//' | paste -sd ','; }

# The CPU's tests, with no GPU to be seen.
on_cpu() {
  local code=0 binary
  : > "$work/cpu.txt"
  for binary in "$tests_main" "$tests_lib"; do
    CUDA_VISIBLE_DEVICES='' LCTL_TEST_DEVICE=host LCTL_TEST_ROOT=$files LCTL_TEST_PROGRAM=$lctl "$binary" --skip cuda --skip device 2>&1 |
      tee -a "$work/cpu.txt" | grep -E '^(test .*FAILED|test result|error|thread .* panicked)' || code=1
  done
  cat "$work/cpu.txt" >> "$out/tests.txt"
  return $code
}

sanitized() {
  local tool=$1
  shift
  local code options=(--tool "$tool" --error-exitcode 9)
  # calls that ask the driver what it can do, as cuBLAS makes them, are no errors of memory; ours are checked by whoever makes them
  [ "$tool" != memcheck ] || options+=(--report-api-errors no)
  "$sanitizer" "${options[@]}" "$lctl" gpu-check --device "$device" --small "$@" > "$work/sanitizer.txt" 2>&1
  code=$?
  { echo "== $tool $*"; head -c 4000000 "$work/sanitizer.txt"; } >> "$out/sanitizer.txt"
  grep -E '^=========.*(Invalid|Error|hazard|SUMMARY)' "$work/sanitizer.txt" | head -20
  tail -1 "$work/sanitizer.txt"
  return $code
}

said_by_sanitizer() { grep -E 'SUMMARY' "$work/sanitizer.txt" | tail -1 | sed 's/^=* *//'; }

sanitize() {
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer /usr/local/cuda/compute-sanitizer/compute-sanitizer 2>/dev/null | head -1)
  if [ "$is_host" = 1 ] || [ -z "$sanitizer" ]; then
    local why="there is no compute-sanitizer"
    [ "$is_host" = 0 ] || why="the stand-in has no memory of a GPU"
    skipped memcheck "$why"
    skipped racecheck "$why"
    return
  fi
  export sanitizer
  said() { said_by_sanitizer; }
  ran memcheck 4 sanitized memcheck --only checks --skip evaluation,curves
  ran racecheck 5 sanitized racecheck --only attention
}

# peer NAME I MODULE
peer() {
  local name=$1 index=$2 module=$3 script=$files/benches/versus_$1_gpu.py seconds
  if [ "$is_host" = 1 ]; then skipped "$name" "the stand-in is not timed"; return; fi
  if [ ! -e "$script" ]; then skipped "$name" "there is no benches/versus_$1_gpu.py"; return; fi
  if ! timeout 10 python3 -c "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('torch', '$module'))))" 2>/dev/null; then
    skipped "$name" "python3 has no torch with $module"
    return
  fi
  if [ ! -s "$out/timings.json" ]; then skipped "$name" "nothing was timed"; return; fi
  # its own budget is a little less, so that it ends by itself
  seconds=$(($(left "$index") - 8))
  [ "$seconds" -lt 90 ] || seconds=90
  said() { grep -hE '^(error|skipped)' "$work/said.txt" | tail -2; }
  ran "$name" "$index" beside "$script" "$seconds" "$work/$name.json"
}

# Python's libraries find one another, without the path that ours needs.
beside() { LD_LIBRARY_PATH=$loader_path python3 "$1" --seconds "$2" --json "$3" --lctl "$out/timings.json" 2>&1 | tee "$work/said.txt"; }

export -f check on_device both_on_device on_cpu sanitized beside

main() {
  machine || return 1
  export lctl tests_main tests_lib files device tests out work loader_path
  said() { said_by_check; }
  ran kernels 1 check --only checks --skip curves "${small[@]}" --json "$out/checks.json"
  if [ -n "$tests_main" ]; then
    said() { results "$out/tests.txt"; }
    ran tests 2 both_on_device
  else
    skipped tests "a program alone has none: .ci/gpu-pack.sh packs them"
  fi
  said() { said_by_check; }
  ran curves 3 check --only curves --steps "$steps" --json "$out/curves.json"
  sanitize
  said() { said_by_check; }
  if [ "$is_host" = 1 ]; then
    skipped timings "the stand-in is not timed"
  else
    ran timings 6 check --only timings --json "$out/timings.json"
  fi
  peer peft 7 peft
  peer transformers 8 transformers
  said() { results "$work/cpu.txt"; }
  if [ -z "$tests_main" ]; then
    skipped "CPU tests" "a program alone has none"
  elif [ "$(left 9)" -lt "$cpu_seconds" ]; then
    skipped "CPU tests" "$(left 9) s are left, and $cpu_seconds may be needed"
  else
    ran "CPU tests" 9 on_cpu
  fi

  local row name result seconds what
  printf '\n== summary of %d s\n%-14s %-16s %5s  %s\n' $(($(date +%s) - start)) stage result s what
  for row in "${rows[@]}"; do
    IFS='|' read -r name result seconds what <<< "$row"
    printf '%-14s %-16s %5d  %s\n' "$name" "$result" "$seconds" "$what"
  done
  if [ "$status" -eq 0 ]; then echo "all passed; $out/gpu-check.json has everything"; else echo "FAILED; $out has the details"; fi
  return "$status"
}

main 2>&1 | tee "$out/log.txt"
exit "${PIPESTATUS[0]}"
