#!/usr/bin/env python3
"""Operands, results and gradients of decoder operations, from PyTorch's autograd in f64.

usage: make_nn_goldens.py OUT

Each case goes to OUT/NAME.safetensors, its settings to the file's metadata. Operands are f32 values; results and gradients
(`d` and the operand's name, of the sum of the result times `dy`) are computed in f64 from them and stored in f32.
Needs: torch, transformers, safetensors.
"""
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

torch.manual_seed(5)
OUT = Path(sys.argv[1])


def operand(*shape, scale=1.0):
    """Values of f32 as a leaf in f64."""
    return (scale * torch.randn(*shape)).float().double().requires_grad_()


def write(name, operands, y, **settings):
    dy = torch.randn(y.shape).float()
    (y * dy.double()).sum().backward()
    tensors = {key: value.detach() for key, value in operands.items()}
    tensors |= {"d" + key: value.grad for key, value in operands.items() if value.grad is not None}
    tensors |= {"y": y.detach(), "dy": dy}
    tensors = {key: value.contiguous() if value.dtype == torch.int64 else value.float().contiguous()
               for key, value in tensors.items()}
    save_file(tensors, OUT / f"{name}.safetensors", metadata={key: str(value) for key, value in settings.items()})


def rms_norm():
    for name, rows, n, heads in [("rms_norm", 7, 50, 1), ("rms_norm_heads", 5, 16, 3)]:
        norm = LlamaRMSNorm(n, eps=1e-5).double()
        x, weight = operand(rows, heads * n, scale=2.0), operand(n)
        variance = x.view(rows, heads, n).pow(2).mean(-1, keepdim=True)
        y = (weight * (x.view(rows, heads, n) * torch.rsqrt(variance + norm.variance_epsilon))).view(rows, heads * n)
        write(name, dict(x=x, weight=weight), y, eps=1e-5)


def rope():
    heads, head_dim, positions = 3, 16, torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 500]])
    config = LlamaConfig(hidden_size=heads * head_dim, num_attention_heads=heads, head_dim=head_dim,
                         rope_parameters=dict(rope_type="default", rope_theta=10000.0))
    x = operand(positions.shape[1], heads * head_dim)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    shaped = x.view(1, -1, heads, head_dim).transpose(1, 2)
    y, _ = apply_rotary_pos_emb(shaped, shaped, cos.double(), sin.double())
    write("rope", dict(x=x, positions=positions[0]), y.transpose(1, 2).reshape(x.shape), head_dim=head_dim, theta=10000.0)


def gated():
    for name, function in [("silu", "silu"), ("gelu_tanh", "gelu_pytorch_tanh")]:
        gate, up = operand(6, 70, scale=3.0), operand(6, 70)
        write(f"gated_{name}", dict(gate=gate, up=up), ACT2FN[function](gate) * up)


def softmax():
    x = operand(5, 9, scale=3.0)
    write("softmax", dict(x=x), F.softmax(x, -1))
    x = operand(4, 33, scale=20.0)
    write("softcap", dict(x=x), 30.0 * torch.tanh(x / 30.0), cap=30.0)


def embedding():
    table, ids = operand(11, 20), torch.tensor([3, 10, 3, 0, 3])
    write("embedding", dict(table=table, ids=ids), F.embedding(ids, table) * 4.5, scale=4.5)


def attention():
    cases = {
        "attention": (4, 4, 16, [21], None, None),
        "attention_groups": (6, 2, 20, [17, 1, 30], None, None),
        "attention_window": (4, 1, 8, [40, 9], None, 7),
        "attention_softcap": (2, 1, 24, [19], 2.0, None),
        "attention_gemma2": (4, 2, 16, [25, 12], 5.0, 10),
    }
    for name, (heads, kv_heads, head_dim, lens, cap, window) in cases.items():
        n, scale = sum(lens), head_dim ** -0.5
        q, k, v = (operand(n, h * head_dim, scale=f) for h, f in [(heads, 2.0), (kv_heads, 2.0), (kv_heads, 1.0)])
        document = torch.cat([torch.full((m,), i) for i, m in enumerate(lens)])
        i, j = torch.arange(n)[:, None], torch.arange(n)[None]
        seen = (document[:, None] == document[None]) & (j <= i)
        if window:
            seen &= i - j < window
        split = lambda x, h: x.view(n, h, head_dim).transpose(0, 1)
        group = heads // kv_heads
        keys, values = (split(x, kv_heads).repeat_interleave(group, 0) for x in (k, v))
        s = split(q, heads) @ keys.transpose(1, 2) * scale
        if cap:
            s = cap * torch.tanh(s / cap)
        s = s.masked_fill(~seen, float("-inf"))
        y = (F.softmax(s, -1) @ values).transpose(0, 1).reshape(n, heads * head_dim)
        lse = dict(lse=torch.logsumexp(s, -1).T)
        write(name, dict(q=q, k=k, v=v, cu=torch.tensor([0] + lens).cumsum(0), **{k: x.detach() for k, x in lse.items()}), y,
              heads=heads, kv_heads=kv_heads, head_dim=head_dim, cap=cap or 0, window=window or 0)


def experts():
    """Experts that multiply by a number: what is tested are routing, gathering and scattering."""
    for name, renormalize in [("experts", False), ("experts_renormalized", True)]:
        x, logits, factors = operand(8, 12), operand(8, 5, scale=2.0), operand(5)
        weights, chosen = F.softmax(logits, -1).topk(2, -1)
        if renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        y = sum(weights[:, i, None] * factors[chosen[:, i], None] * x for i in range(2))
        write(name, dict(x=x, logits=logits, factors=factors), y, n_used=2, renormalize=str(renormalize).lower())


OUT.mkdir(parents=True, exist_ok=True)
for case in [rms_norm, rope, gated, softmax, embedding, attention, experts]:
    case()
