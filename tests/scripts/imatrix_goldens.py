"""Importance matrices of llama-imatrix for the tiny checkpoints of tests/golden/convert.

    python tests/scripts/imatrix_goldens.py LLAMA_IMATRIX LCTL tests/golden [TEST_DATA_DIR]

and, with the test data that is not in the repository, some of what it gives for real models (needs the package gguf of PyPI).
LLAMA_IMATRIX is llama.cpp's tool, LCTL makes the F32 GGUF that it reads (the reference converter's, byte for byte: tests/convert).
Each run is one line of RUNS; tests/imatrix/golden.rs repeats it with `lctl imatrix`.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

# keys and values in f32, as lctl keeps them
COMMON = ["-t", "1", "--no-ppl", "-ngl", "0", "-ctk", "f32", "-ctv", "f32", "-fa", "off"]

# output, checkpoint, options
RUNS = [
    ("mistral.gguf", "Mistral-7B-v0.1", ["-c", "32", "-b", "32", "--chunks", "4", "--process-output"]),
    ("mixtral.gguf", "Mixtral-8x7B-Instruct-v0.1", ["-c", "32", "-b", "32", "--chunks", "4", "--process-output"]),
    ("phi3.gguf", "Phi-3-mini-4k-instruct", ["-c", "32", "-b", "32", "--chunks", "4"]),
    ("gemma2.gguf", "gemma-2-2b-it", ["-c", "32", "-b", "32", "--chunks", "4", "--process-output"]),
    ("qwen3.gguf", "Qwen3-0.6B", ["-c", "32", "-b", "32", "--chunks", "4"]),
    ("qwen3moe.gguf", "qwen3moe", ["-c", "32", "-b", "32", "--chunks", "4"]),
    ("mistral-part.gguf", "Mistral-7B-v0.1", ["-c", "64", "-b", "64", "--chunk", "2", "--chunks", "3", "--parse-special"]),
    ("mistral.dat", "Mistral-7B-v0.1", ["-c", "32", "-b", "32", "--chunks", "4", "--output-format", "dat"]),
    ("mixtral.dat", "Mixtral-8x7B-Instruct-v0.1", ["-c", "32", "-b", "32", "--chunks", "4", "--output-format", "dat"]),
    ("mistral-added.gguf", "Mistral-7B-v0.1", ["-c", "32", "-b", "32", "--chunks", "2", "--in-file", "mistral.gguf"]),
    ("mixtral-added.gguf", "Mixtral-8x7B-Instruct-v0.1", ["-c", "32", "-b", "32", "--chunks", "2", "--in-file", "mixtral.dat"]),
]

# output, model, text, options
REAL = [
    ("stories260K.json", "stories260K-hf", "tinystories-197k.txt", []),
    ("llama2xs.json", "llama2xs-hf", "tinystories-197k.txt", []),
    ("sec-llama-21m.json", "sec-llama-21m", "wiki.test.raw", ["--process-output"]),
]


def convert(lctl, source, model):
    if not model.exists():
        subprocess.run([lctl, "quantize", source, "-t", "F32", "-o", model, "--quiet", "--no-manifest"], check=True)


def make_real(llama_imatrix, lctl, golden, data, models):
    """Writes per tensor every 31st sum of squares, and the sum of all."""
    from gguf import GGUFReader

    for output, name, text, options in REAL:
        model, imatrix = models / f"{name}.gguf", models / f"{name}.imatrix.gguf"
        convert(lctl, data / "models" / name, model)
        command = [llama_imatrix, "-m", model, "-f", data / "corpora" / text, "-o", imatrix, "-c", "256", "-b", "256", "--chunks", "40"]
        subprocess.run([*command, *COMMON, *options], check=True, capture_output=True)
        found = {}
        for tensor in GGUFReader(imatrix).tensors:
            if tensor.name.endswith(".in_sum2"):
                values = tensor.data.ravel().astype(float)
                total = [float(f"{values.sum():.9g}")]
                some = [float(f"{value:.9g}") for value in values[::31]]
                found[tensor.name.removesuffix(".in_sum2")] = {"total": total, "every_31st": some}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(sums)}" for name, sums in sorted(found.items()))
        (golden / "imatrix" / output).write_text("{\n" + lines + "\n}\n")


def main():
    llama_imatrix, lctl, golden = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]).resolve()
    with tempfile.TemporaryDirectory() as models:
        for output, checkpoint, options in RUNS:
            model = pathlib.Path(models) / f"{checkpoint}.gguf"
            convert(lctl, golden / "convert" / checkpoint, model)
            # the output names the text as it was given, so it is given without a directory
            command = [llama_imatrix, "-m", model, "-f", "text.txt", "-o", output, *COMMON, *options]
            subprocess.run(command, check=True, cwd=golden / "imatrix", capture_output=True)
        if len(sys.argv) > 4:
            make_real(llama_imatrix, lctl, golden, pathlib.Path(sys.argv[4]), pathlib.Path(models))


main()
