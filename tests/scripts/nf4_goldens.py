#!/usr/bin/env python3
"""What bitsandbytes makes of the inputs of block_goldens.py in NF4, for src/tensor/format/nf4.rs and src/kernel/product/nested.rs.

usage: nf4_goldens.py OUT.json

Codes, absmax and the values read back of every kind of input; and of some kinds one after another with double quantization.
There bitsandbytes' own map and reader are used. The mean is rounded once, where torch sums in f32; codes of scales are
the nearest of the map, as its CUDA kernel finds them: its search on the CPU is a table that is a step off for some.
"""
import json
import sys

import bitsandbytes.functional as F
import numpy as np
import torch

from block_goldens import KINDS, digest, values

NESTED = ["gaussian", "heavy_tailed", "outlier", "sparse", "uneven_blocks", "ramp", "bf16", "zero"]


def floats(x):
    return digest(np.asarray(x, "<f4").tobytes())


def quantized(x):
    packed, state = F.quantize_4bit(torch.tensor(x), blocksize=64, quant_type="nf4")
    pairs = packed.numpy().reshape(-1)
    codes = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1).astype(np.uint8)
    return packed, state, codes


def plain(x):
    packed, state, codes = quantized(x)
    return {
        "codes": digest(codes.tobytes()),
        "first_64": "".join(f"{code:x}" for code in codes[:64]),
        "absmax": floats(state.absmax),
        "decoded": floats(F.dequantize_4bit(packed, state)),
    }


def nested(x):
    packed, state, _ = quantized(x)
    code = F.create_dynamic_map()
    offset = state.absmax.double().mean().float()
    rest = (state.absmax - offset).numpy()
    steps = np.array([np.abs(rest[i : i + 256]).max() for i in range(0, len(rest), 256)], np.float32)
    scaled = rest * (np.float32(1) / np.repeat(steps, 256)[: len(rest)])
    scales = np.abs(scaled[:, None] - code.numpy()[None]).argmin(axis=1).astype(np.uint8)
    state2 = F.QuantState(absmax=torch.tensor(steps), code=code, blocksize=256, dtype=torch.float32)
    state = F.QuantState(
        absmax=torch.tensor(scales), shape=packed.shape, dtype=torch.float32, blocksize=64, code=state.code,
        quant_type="nf4", offset=offset, state2=state2,
    )
    state.shape = torch.Size(x.shape)
    return {
        "map": floats(code),
        "scales": digest(scales.tobytes()),
        "steps": [float(s) for s in steps],
        "offset": float(offset),
        "decoded": floats(F.dequantize_4bit(packed, state)),
    }


def main():
    torch.set_num_threads(1)
    out = {
        "plain": {kind: plain(values(kind)) for kind in KINDS},
        "nested_kinds": NESTED,
        "nested": nested(np.concatenate([values(kind) for kind in NESTED])),
    }
    with open(sys.argv[1], "w") as file:
        json.dump(out, file, indent=1)
        file.write("\n")


main()
