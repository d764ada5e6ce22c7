"""Importance matrices of llama-imatrix for the tiny checkpoints of tests/golden/convert.

    python tests/scripts/imatrix_goldens.py LLAMA_IMATRIX LCTL tests/golden

LLAMA_IMATRIX is llama.cpp's tool, LCTL makes the F32 GGUF that it reads (the reference converter's, byte for byte: tests/convert).
Each run is one line of RUNS; tests/imatrix/golden.rs repeats it with `lctl imatrix`.
"""

import pathlib
import subprocess
import sys
import tempfile

# keys and values in f32, as lctl keeps them
COMMON = ["-b", "32", "-t", "1", "--no-ppl", "-ngl", "0", "-f", "text.txt", "-ctk", "f32", "-ctv", "f32", "-fa", "off"]

# output, checkpoint, options
RUNS = [
    ("mistral.gguf", "Mistral-7B-v0.1", ["-c", "32", "--chunks", "4", "--process-output"]),
    ("mixtral.gguf", "Mixtral-8x7B-Instruct-v0.1", ["-c", "32", "--chunks", "4", "--process-output"]),
    ("phi3.gguf", "Phi-3-mini-4k-instruct", ["-c", "32", "--chunks", "4"]),
    ("gemma2.gguf", "gemma-2-2b-it", ["-c", "32", "--chunks", "4", "--process-output"]),
    ("qwen3.gguf", "Qwen3-0.6B", ["-c", "32", "--chunks", "4"]),
    ("qwen3moe.gguf", "qwen3moe", ["-c", "32", "--chunks", "4"]),
    ("mistral-part.gguf", "Mistral-7B-v0.1", ["-c", "64", "-b", "64", "--chunk", "2", "--chunks", "3", "--parse-special"]),
    ("mistral.dat", "Mistral-7B-v0.1", ["-c", "32", "--chunks", "4", "--output-format", "dat"]),
    ("mixtral.dat", "Mixtral-8x7B-Instruct-v0.1", ["-c", "32", "--chunks", "4", "--output-format", "dat"]),
    ("mistral-added.gguf", "Mistral-7B-v0.1", ["-c", "32", "--chunks", "2", "--in-file", "mistral.gguf"]),
    ("mixtral-added.gguf", "Mixtral-8x7B-Instruct-v0.1", ["-c", "32", "--chunks", "2", "--in-file", "mixtral.dat"]),
]


def main():
    llama_imatrix, lctl, golden = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]).resolve()
    with tempfile.TemporaryDirectory() as models:
        for output, checkpoint, options in RUNS:
            model = pathlib.Path(models) / f"{checkpoint}.gguf"
            if not model.exists():
                source = golden / "convert" / checkpoint
                subprocess.run([lctl, "quantize", source, "-t", "F32", "-o", model, "--quiet", "--no-manifest"], check=True)
            # the output names the text as it was given, so it is given without a directory
            command = [llama_imatrix, "-m", model, "-o", output, *COMMON, *options]
            subprocess.run(command, check=True, cwd=golden / "imatrix", capture_output=True)


main()
