#!/usr/bin/env python3
"""How far gradients in bf16 are from those in f32, by transformers alone: what docs/cuda.md compares a device with.

usage: bf16_gradients.py CHECKPOINT...

For each checkpoint (tests/golden/decoder/NAME) prints |g - g32| / |g32| over all weights, for the model in bf16 and for the model
in f32 whose projections were moved by at most 2^-9 of their values, which is what rounding to bf16 does to a value.
Needs: transformers, torch.
"""
import sys

import torch
from transformers import AutoModelForCausalLM


def documents():
    """Those of tests/train/families.rs."""
    for i, n in enumerate([17, 5, 26, 9, 12, 1, 30, 7]):
        tokens = [3 + (7 * t * t + 13 * i + t) % 61 for t in range(n)]
        yield tokens, [token if i % 2 == 0 or t > 3 else -100 for t, token in enumerate(tokens)]


def gradients(model):
    loss = 0.0
    for tokens, labels in documents():
        if len(tokens) > 1:
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, :-1].float()
            loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum")
    loss.backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters()])


def load(path, dtype):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")


torch.set_num_threads(1)
for path in sys.argv[1:]:
    exact = gradients(load(path, torch.float32))
    off = lambda found: (torch.linalg.norm(found - exact) / torch.linalg.norm(exact)).item()
    moved = load(path, torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in moved.named_parameters():
            if "proj" in name:
                p.mul_(1 + 2**-9 * (2 * torch.rand_like(p) - 1))
    print(f"{path}: bf16 {off(gradients(load(path, torch.bfloat16))):.3f}, weights moved {off(gradients(moved)):.3f}")
