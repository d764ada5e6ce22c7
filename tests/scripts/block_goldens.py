#!/usr/bin/env python3
"""Digests of the reference's block encoders and decoders, for src/tensor/format/testing.rs.

usage: block_goldens.py LIBGGML_BASE_SO OUT.json

LIBGGML_BASE_SO is libggml-base.so of a stock x86-64 build of llama.cpp (a native build may contract
products into fused multiply-adds). Every input value is `integer * 2^exponent`, exact in float32, with the integers
taken from a counter-based 32-bit hash, so that Rust makes the same inputs: see KINDS here and there.
"""
import ctypes
import hashlib
import json
import sys

import numpy as np

ROWS, COLS = 3, 768  # an odd number of 256-blocks per row and in all
TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30, "MXFP4": 39,
}
DECODERS = {t: "dequantize_row_" + t.lower().replace("_k", "_K") for t in TYPES}
DECODERS["F16"], DECODERS["BF16"] = "ggml_fp16_to_fp32_row", "ggml_bf16_to_fp32_row"
MASK = np.uint64(0xFFFFFFFF)


def mix(seed, index):
    """32-bit hash of a counter: the finalizer of MurmurHash3 over index * golden ratio + seed."""
    x = (np.asarray(index, np.uint64) * np.uint64(0x9E3779B9) + np.uint64(seed)) & MASK
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & MASK
    x = ((x ^ (x >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & MASK
    return (x ^ (x >> np.uint64(16))).astype(np.int64)


def trailing_zeros(h, limit):
    return sum(((h & ((1 << k) - 1)) == 0).astype(np.int64) for k in range(1, limit + 1))


def bell(seed, i):
    """Sum of four 20-bit uniform integers, centred: |value| <= 2097150, standard deviation about 605400."""
    return sum(mix(seed, 4 * i + k) & 0xFFFFF for k in range(4)) - 2 * 0xFFFFF


def top_bits(g, bits):
    """Clears all but the highest `bits` bits of the magnitude."""
    out = []
    for v in g.tolist():
        shift = max(0, abs(v).bit_length() - bits)
        out.append((abs(v) >> shift << shift) * (-1 if v < 0 else 1))
    return np.array(out, np.int64)


def outlier(i):
    row, col = i // COLS, i % COLS
    return col == mix(77, row) % COLS


# name -> function of the flat index giving (integers, exponents)
KINDS = {
    "gaussian": lambda i: (bell(1, i), -25),
    "heavy_tailed": lambda i: (bell(2, i), trailing_zeros(mix(3, i), 10) - 30),
    "zero": lambda i: (0 * i, 0),
    "constant": lambda i: (0 * i + 5033165, -24),
    "negative_constant": lambda i: (0 * i - 5033165, -24),
    "outlier": lambda i: (bell(4, i), np.where(outlier(i), -17, -25)),
    "sparse": lambda i: (np.where(mix(5, i) % 37 == 0, bell(6, i), 0), -25),
    "uneven_blocks": lambda i: (bell(7, i), -25 - mix(8, i // 16) % 16),
    "ramp": lambda i: (2 * (i % COLS) - (COLS - 1), -11),
    "negative": lambda i: (-np.abs(bell(9, i)) - 1, -25),
    "positive": lambda i: (np.abs(bell(10, i)) + 1, -25),
    "grid": lambda i: (mix(11, i) % 15 - 7, -6),
    "signs": lambda i: (1 - 2 * (mix(12, i) & 1), -6),
    "bf16": lambda i: (top_bits(bell(13, i), 8), -25),
    "half_subnormal": lambda i: (bell(14, i), -35),
    "half_underflow": lambda i: (bell(15, i), -45),
    "denormal": lambda i: (bell(16, i) >> 8, -149),
    "large": lambda i: (bell(17, i), -8),
    "half_overflow": lambda i: (bell(18, i), 8),
}


def values(kind):
    integers, exponents = KINDS[kind](np.arange(ROWS * COLS, dtype=np.int64))
    return np.ldexp(integers.astype(np.float64), exponents).astype(np.float32).reshape(ROWS, COLS)


def importance():
    """Heavy-tailed, one weight in 19 zero, columns 256..320 zero."""
    c = np.arange(COLS, dtype=np.int64)
    integers = (mix(21, c) & 0xFFFF) + 1
    zero = (mix(22, c) % 19 == 0) | ((c >= 256) & (c < 320))
    return np.ldexp(np.where(zero, 0, integers).astype(np.float64), trailing_zeros(mix(23, c), 10) - 16).astype(np.float32)


class Reference:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.ggml_row_size.restype = ctypes.c_size_t
        self.lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]

    def encode(self, name, x, weights):
        size = self.lib.ggml_row_size(TYPES[name], COLS) * ROWS
        out = ctypes.create_string_buffer(size)
        pointer = None if weights is None else weights.ctypes.data
        done = self.lib.ggml_quantize_chunk(TYPES[name], x.ctypes.data, out, 0, ROWS, COLS, pointer)
        assert done == size, (name, done, size)
        return out.raw

    def decode(self, name, data):
        if name == "F32":
            return np.frombuffer(data, np.float32)
        y = np.empty(ROWS * COLS, np.float32)
        decode = getattr(self.lib, DECODERS[name])
        decode.restype, decode.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        decode(ctypes.create_string_buffer(data, len(data)), y.ctypes.data, y.size)
        return y


def digest(data):
    return hashlib.sha256(data).hexdigest()


def main():
    reference = Reference(sys.argv[1])
    weights = importance()
    types = {}
    for name in TYPES:
        cases, first = {}, None
        for kind in KINDS:
            x = values(kind)
            plain = reference.encode(name, x, None)
            decoded = reference.decode(name, plain).copy()
            decoded[np.isnan(decoded)] = np.float32(np.nan)  # sign and payload of a NaN are not promised
            first = first or plain[: len(plain) // (ROWS * COLS // 256)].hex()
            cases[kind] = {
                "plain": digest(plain),
                "importance": digest(reference.encode(name, x, weights)),
                "decoded": digest(decoded.astype("<f4").tobytes()),
            }
        types[name] = {"first_256_gaussian": first, "cases": cases}
    inputs = {kind: digest(values(kind).astype("<f4").tobytes()) for kind in KINDS}
    inputs["importance"] = digest(weights.astype("<f4").tobytes())
    with open(sys.argv[2], "w") as out:
        json.dump({"rows": ROWS, "cols": COLS, "inputs": inputs, "types": types}, out, indent=1)
        out.write("\n")


if __name__ == "__main__":
    main()
