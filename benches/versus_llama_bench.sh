#!/usr/bin/env bash
# Prompt and generation speed against llama-bench, in alternating runs on the same files:
#
#     benches/versus_llama_bench.sh LLAMA_BENCH ROUNDS MODEL.gguf...
#
# THREADS (2), PROMPT (512) and GENERATE (32) are taken from the environment. Prints one line per run and tool, tokens/s.
set -euo pipefail
peer=$1 rounds=$2
shift 2
threads=${THREADS:-2} prompt=${PROMPT:-512} generate=${GENERATE:-32}
bench=$(ls -t target/release/deps/decoder-* | grep -v '\.d$' | head -1)
for model in "$@"; do
    for ((round = 0; round < rounds; round++)); do
        ours=$("$bench" "$model" --threads "$threads" --prompt "$prompt" --generate "$generate" --repeat 1 | tail -1)
        theirs=$("$peer" -m "$model" -t "$threads" -p "$prompt" -n "$generate" -r 1 -o csv 2>/dev/null |
            python3 -c 'import csv, sys
for row in csv.DictReader(sys.stdin): print(("prompt " + row["n_prompt"] if row["n_prompt"] != "0" else "generate " + row["n_gen"]), row["avg_ts"], end="  ")')
        echo "$(basename "$model") round $round: ours $ours | theirs $theirs"
    done
done
