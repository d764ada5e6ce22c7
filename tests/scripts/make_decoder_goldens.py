#!/usr/bin/env python3
"""Tiny random models of every family and rope scaling, and what transformers computes with them in f32.

usage: make_decoder_goldens.py OUT [NAME...]

Each model goes to OUT/NAME/: config.json, model.safetensors (weights in BF16, so that files are small and f32 sees the
same values); its golden to OUT/NAME.safetensors. The golden holds `tokens` (I64), `logits` (F32, a row per token, of one forward over
all tokens), and `steps` (F32, a row per token from the last of the first `n_prompt` on: a forward over the prompt, then
one token at a time over the cache), with `n_prompt` and `gguf` ("true" if a GGUF holds all of the config) as metadata.
Needs: transformers, torch, safetensors.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

BASE = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=None)
N_TOKENS, N_PROMPT = 30, 22
MOE = dict(num_local_experts=4, num_experts_per_tok=2)
QWEN_MOE = dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
# the original context ends inside the prompt
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)
GEMMA = dict(head_dim=8)


def longrope(n):
    return dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0 + i / 16 for i in range(n)],
                long_factor=[1.0 + i * i / 4 for i in range(n)])


# name: (model_type, config beyond BASE, True if a GGUF has keys for all of it, or llama.cpp assumes it)
MODELS = {
    "llama": ("llama", dict(), True),
    "llama3-scaled-tied": ("llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=True, head_dim=16), True),
    "llama-linear-biased": ("llama", dict(
        attention_bias=True, mlp_bias=True, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0)), True),
    "llama-yarn": ("llama", dict(rope_parameters=YARN, head_dim=16), True),
    "llama-yarn-every-setting": ("llama", dict(head_dim=16, rope_parameters=dict(
        YARN, beta_fast=16.0, beta_slow=2.0, truncate=False, mscale=0.8, mscale_all_dim=0.5)), False),
    "llama-yarn-attention-factor": ("llama", dict(head_dim=16, rope_parameters=dict(YARN, attention_factor=1.25)), True),
    "mistral-window": ("mistral", dict(sliding_window=8), False),
    "mistral-nemo": ("mistral", dict(sliding_window=None, head_dim=16), True),
    "mixtral": ("mixtral", MOE, True),
    "mixtral-window-stacked": ("mixtral", dict(MOE, sliding_window=8), False),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True), True),
    "qwen2-window": ("qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=1), False),
    "qwen2-yarn": ("qwen2", dict(rope_parameters=dict(YARN, rope_theta=1000000.0)), True),
    "qwen3": ("qwen3", dict(head_dim=16), True),
    "qwen3-layer-types": ("qwen3", dict(
        head_dim=16, attention_bias=True, use_sliding_window=True, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"]), False),
    "qwen3moe": ("qwen3_moe", dict(QWEN_MOE, norm_topk_prob=True), True),
    "qwen3moe-plain-stacked": ("qwen3_moe", dict(QWEN_MOE, norm_topk_prob=False), False),
    "gemma": ("gemma", dict(GEMMA, num_key_value_heads=1), True),
    "gemma2": ("gemma2", dict(GEMMA, sliding_window=8, query_pre_attn_scalar=8), True),
    "gemma2-scalar": ("gemma2", dict(
        GEMMA, sliding_window=8, query_pre_attn_scalar=32, final_logit_softcapping=5.0, attn_logit_softcapping=2.0), False),
    "gemma3": ("gemma3_text", dict(
        GEMMA, intermediate_size=16, num_hidden_layers=6, sliding_window=8, query_pre_attn_scalar=8, rope_parameters=dict(
            full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
            sliding_attention=dict(rope_type="default", rope_theta=10000.0))), True),
    "gemma3-pattern": ("gemma3_text", dict(
        GEMMA, num_hidden_layers=3, sliding_window=8, query_pre_attn_scalar=16, final_logit_softcapping=4.0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"]), False),
    "phi3": ("phi3", dict(sliding_window=8), True),
    "phi3-longrope": ("phi3", dict(
        num_attention_heads=2, num_key_value_heads=1, original_max_position_embeddings=16, partial_rotary_factor=0.75,
        rope_parameters=dict(longrope(6), partial_rotary_factor=0.75)), True),
    "phi3-longrope-short": ("phi3", dict(original_max_position_embeddings=26, rope_parameters=longrope(4)), True),
}


def randomize(model):
    """Weights large enough that every part of the model shows in the logits."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                value = noise * (0.7 if "embed" in name else 1.2) / weight.shape[-1] ** 0.5
            elif name.endswith("norm.weight") and "Gemma" not in type(model).__name__:
                value = 1 + 0.2 * noise
            else:
                value = 0.2 * noise
            weight.copy_(value.to(torch.bfloat16))


def save(model, name, out):
    model.to(torch.bfloat16).save_pretrained(out)
    if name.endswith("-stacked"):
        # as transformers holds it: a layer's experts in one tensor
        state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
        save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    for path in out.glob("generation_config.json"):
        path.unlink()


def step_logits(model, tokens, original_context):
    """Returns the logits of each forward of a generation: the prompt, then one token at a time."""
    rows, cache = [], DynamicCache(config=model.config)
    rows.append(model(tokens[:, :N_PROMPT], past_key_values=cache, use_cache=True).logits[:, -1])
    for i in range(N_PROMPT, tokens.shape[1]):
        start = i
        if original_context is not None and i == original_context:
            # what Phi3ForCausalLM.prepare_inputs_for_generation does where the factors change
            start, cache = 0, DynamicCache(config=model.config)
        rows.append(model(tokens[:, start:i + 1], past_key_values=cache, use_cache=True).logits[:, -1])
    return torch.cat(rows)


def make(name, out):
    model_type, settings, gguf = MODELS[name]
    config = AutoConfig.for_model(model_type, **{**BASE, **settings})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomize(model)
    out.mkdir(parents=True, exist_ok=True)
    save(model, name, out)
    stacked = name.endswith("-stacked")
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    if stacked:
        saved = load_file(out / "model.safetensors")
        for key, value in model.state_dict().items():
            assert torch.equal(value, saved[key].float()), key
    tokens = torch.randint(3, BASE["vocab_size"], (1, N_TOKENS), generator=torch.Generator().manual_seed(2))
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    original = config.original_max_position_embeddings if kind == "longrope" else None
    with torch.no_grad():
        logits = model(tokens).logits[0]
        steps = step_logits(model, tokens, original)
    if original is None:
        assert (steps - logits[N_PROMPT - 1:]).abs().max() < 1e-4 * logits.abs().max()
    save_file(dict(tokens=tokens[0], logits=logits.contiguous(), steps=steps.contiguous()), out.with_suffix(".safetensors"),
              metadata=dict(n_prompt=str(N_PROMPT), gguf=json.dumps(gguf)))
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{name}: {size} bytes, logits up to {logits.abs().max():.2f}, standard deviation {logits.std():.3f}")


def main():
    out, names = Path(sys.argv[1]), sys.argv[2:] or list(MODELS)
    for name in names:
        make(name, out / name)


if __name__ == "__main__":
    main()
