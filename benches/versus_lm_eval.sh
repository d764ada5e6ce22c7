#!/usr/bin/env bash
# Times `lctl eval` and lm-eval's hf backend (f32, CPU) in alternating runs on the same questions, and prints the ratio of medians.
#
#   benches/versus_lm_eval.sh PYTHON MODEL CYBERMETRIC.json OUT_DIR
#
# PYTHON has lm_eval, torch and transformers. MODEL is a checkpoint's directory with a tokenizer both can read, e.g.
#   cargo run --release --example make_checkpoint -- --out DIR --shape smollm-135m --dtype f32 --tokenizer tokenizer.model
# lm-eval's seconds are those of the evaluation once the model is loaded, at the fastest of BATCH_SIZES (each is tried
# once on LIMIT questions); lctl's are those of the whole process.
# Environment: LCTL (default target/release/lctl), RUNS (3), THREADS (2), LIMIT (75 questions), BATCH_SIZES ("1 4 8 16"),
#   TASKS ("letter cloze").
set -euo pipefail

python=$1 model=$2 data=$3 out=$4
lctl=${LCTL:-target/release/lctl} runs=${RUNS:-3} threads=${THREADS:-2} limit=${LIMIT:-75}
helper=$(dirname "$0")/versus_lm_eval.py
export OMP_NUM_THREADS=$threads HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

"$python" "$helper" prepare "$data" "$out" "$limit"

# Both print "seconds accuracy".
run_peer() {
  "$python" "$helper" run "$out" "$model" "$1" "$2" "$threads" 2>"$out/peer.log" | tail -n 1 \
    || { tail -n 20 "$out/peer.log" >&2; exit 1; }
}

run_lctl() {
  local begun ended accuracy
  begun=$(date +%s.%N)
  "$lctl" eval "$model" --suite "$out/$1.suite.yaml" --compute f32 --threads "$threads" --quiet --json >"$out/lctl.json"
  ended=$(date +%s.%N)
  accuracy=$("$python" -c "
import json, sys
def find(node):
    if isinstance(node, dict):
        if node.get('name') == 'acc' and 'value' in node: return node['value']
        if isinstance(node.get('acc'), (int, float)): return node['acc']
        if isinstance(node.get('acc'), dict): return node['acc'].get('value')
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        found = find(child)
        if found is not None: return found
print(find(json.load(open(sys.argv[1]))))" "$out/lctl.json")
  echo "$(echo "$ended - $begun" | bc) $accuracy"
}

median() { sort -n | awk '{v[NR]=$1} END {print (NR % 2) ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }

for task in ${TASKS:-letter cloze}; do
  best='' best_seconds=''
  for size in ${BATCH_SIZES:-1 4 8 16}; do
    read -r seconds _ < <(run_peer "$task" "$size")
    echo "$task: lm-eval, batch size $size: $seconds s"
    if [ -z "$best" ] || [ "$(echo "$seconds < $best_seconds" | bc)" = 1 ]; then best=$size best_seconds=$seconds; fi
  done
  : >"$out/peer.times"
  : >"$out/lctl.times"
  for ((i = 0; i < runs; i++)); do
    run_peer "$task" "$best" | tee -a "$out/peer.times" >/dev/null
    run_lctl "$task" >>"$out/lctl.times"
  done
  peer=$(median <"$out/peer.times") ours=$(median <"$out/lctl.times")
  ratio=$(echo "scale=2; $peer / $ours" | bc)
  accuracy() { tail -n 1 "$1" | cut -d' ' -f2; }
  echo "$task, 5 examples: lm-eval $peer s (batch size $best), lctl $ours s: ${ratio}x; accuracy $(accuracy "$out/peer.times") and $(accuracy "$out/lctl.times")"
done
