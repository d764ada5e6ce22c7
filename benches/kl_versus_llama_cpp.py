#!/usr/bin/env python3
"""Mean KL divergence of each compute mode, and of llama.cpp, from exact f32 on the same file.

    kl_versus_llama_cpp.py LCTL LLAMA_LOGITS TEXT CHUNK N_CHUNKS MODEL.gguf...

LCTL is the program, LLAMA_LOGITS the one of llama_logits.c. The base is `lctl --compute f32`; the mean is over the second half of
every chunk, in f64, in nats. Prints a Markdown table. Needs numpy.
"""

import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np


def ours(lctl, model, mode, text, chunk, n_chunks, out):
    command = [lctl, "eval", model, "--perplexity", text, "--context", str(chunk), "--limit", str(n_chunks)]
    command += ["--compute", mode, "--save-logits", out, "--force", "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    data = pathlib.Path(out).read_bytes()[:-32]
    assert data[:8] == b"lctlLGTS"
    _, vocab, _, _, n_tokens = struct.unpack("<4IQ", data[8:32])
    (length,) = struct.unpack("<I", data[64:68])
    tokens = np.frombuffer(data, "<i4", n_tokens, 68 + length)
    # behind the logits stands a SHA-256
    return tokens, np.frombuffer(data, "<f4", offset=68 + length + 4 * n_tokens).reshape(-1, vocab)


def theirs(program, model, text, chunk, n_chunks, out):
    subprocess.run([program, model, text, str(chunk), str(n_chunks), out], check=True)
    data = pathlib.Path(out).read_bytes()
    _, _, vocab = struct.unpack("=3i", data[:12])
    tokens = np.frombuffer(data, "i4", chunk * n_chunks, 12)
    logits = np.frombuffer(data, "f4", offset=12 + 4 * len(tokens)).reshape(n_chunks, chunk, vocab)
    return tokens, logits[:, chunk // 2 : -1].reshape(-1, vocab)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def ratio(ours, theirs, n_chunks):
    """Returns the ratio of the means with its standard error, the chunks being the independent units (delta method)."""
    if not theirs.any():
        return "-"
    a, b = (x.reshape(n_chunks, -1).mean(axis=1) for x in (ours, theirs))
    r = a.mean() / b.mean()
    error = (a - r * b).std(ddof=1) / np.sqrt(n_chunks) / b.mean()
    return f"{r:.3f} +/- {error:.3f}"


def main():
    lctl, program, text, chunk, n_chunks = sys.argv[1:6]
    chunk, n_chunks = int(chunk), int(n_chunks)
    print("| file | default | bf16 | int8 | llama.cpp | default / llama.cpp |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        out = str(pathlib.Path(folder) / "logits")
        for model in sys.argv[6:]:
            tokens, base = ours(lctl, model, "f32", text, chunk, n_chunks, out)
            base = log_softmax(base)
            kl = []
            for mode in ["auto", "bf16", "int8", None]:
                if mode:
                    other_tokens, logits = ours(lctl, model, mode, text, chunk, n_chunks, out)
                else:
                    other_tokens, logits = theirs(program, model, text, chunk, n_chunks, out)
                assert (tokens == other_tokens).all() or (tokens.reshape(-1, chunk)[:, 1:] == other_tokens.reshape(-1, chunk)[:, 1:]).all()
                kl.append((np.exp(base) * (base - log_softmax(logits))).sum(axis=1))
            mean = [x.mean() for x in kl]
            row = " | ".join(f"{x:.3g}" for x in mean)
            print(f"| {pathlib.Path(model).stem} | {row} | {ratio(kl[0], kl[3], n_chunks)} |", flush=True)


main()
