#!/usr/bin/env python3
"""Low-rank adapters on the tiny models of make_decoder_goldens.py, and what PEFT computes with them in f32.

usage: make_adapter_goldens.py CONVERTER MODELS OUT [NAME ...]

CONVERTER is convert_lora_to_gguf.py of a llama.cpp source tree, MODELS what make_decoder_goldens.py wrote. Each adapter
goes to OUT/NAME/ in PEFT's layout (BF16), with `logits` of the model's golden tokens in OUT/NAME.safetensors and, where
the converter takes it, to OUT/NAME.gguf. Needs: transformers, torch, safetensors, peft.
"""
import json
import subprocess
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# name: (model, settings, True if the converter keeps all of them)
ADAPTERS = {
    "llama": ("llama", dict(r=4, lora_alpha=6, target_modules=[*ALL, "lm_head"]), True),
    "llama-patterns": ("llama", dict(
        r=4, lora_alpha=6, target_modules=ALL, rank_pattern={r"layers\.1\.self_attn\.[qk]_proj": 2, "down_proj": 3},
        alpha_pattern={"up_proj": 12}), False),
    "qwen3-rslora": ("qwen3", dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], use_rslora=True), False),
    "phi3": ("phi3", dict(r=3, lora_alpha=6, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]), True),
    "qwen2-dora": ("qwen2", dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], use_dora=True), False),
    "tied-saved": ("llama3-scaled-tied", dict(
        r=2, lora_alpha=4, target_modules=["o_proj"], modules_to_save=["lm_head", "gate_proj"]), False),
    "gemma2-saved": ("gemma2", dict(
        r=2, lora_alpha=4, target_modules=["q_proj", "gate_proj"], use_dora=True,
        modules_to_save=["embed_tokens", "lm_head", "pre_feedforward_layernorm"]), False),
    "llama-vocabulary": ("llama", dict(r=3, lora_alpha=6, target_modules=["q_proj", "embed_tokens", "lm_head"]), False),
    "gemma2-embedding": ("gemma2", dict(r=2, lora_alpha=4, target_modules=["embed_tokens", "v_proj"]), False),
}

# with what lies under their pairs, as PEFT does unless told otherwise; it is not the base's, to show that it counts
WITH_BASE = ["llama-vocabulary"]


def make(name, converter, models, out):
    base, settings, gguf = ADAPTERS[name]
    load = lambda: AutoModelForCausalLM.from_pretrained(models / base, dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(load(), LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, weight in sorted(model.named_parameters()):
            if "lora_magnitude" in key:
                weight.mul_(1 + 0.2 * torch.rand(weight.shape, generator=generator)).copy_(weight.to(torch.bfloat16))
            elif "modules_to_save" in key:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator)).copy_(weight.to(torch.bfloat16))
            elif name in WITH_BASE and key.endswith(("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")):
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator)).copy_(weight.to(torch.bfloat16))
            elif "lora_" in key:
                weight.copy_((0.3 * torch.randn(weight.shape, generator=generator)).to(torch.bfloat16))
    model.to(torch.bfloat16).save_pretrained(out, save_embedding_layers=name in WITH_BASE)
    (out / "README.md").unlink(missing_ok=True)
    path = out / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=1) + "\n")
    model = PeftModel.from_pretrained(load(), out, autocast_adapter_dtype=True).float().eval()
    tokens = load_file(models / f"{base}.safetensors")["tokens"]
    with torch.no_grad():
        logits = model(tokens[None]).logits[0]
    save_file(dict(logits=logits.contiguous()), out.with_suffix(".safetensors"), metadata=dict(base=base))
    if gguf:
        subprocess.run([sys.executable, converter, out, "--base", models / base, "--outtype", "f32",
                        "--outfile", out.with_suffix(".gguf")], check=True)
    print(name, sum(path.stat().st_size for path in out.iterdir()), logits.abs().max())


def main():
    converter, models, out = map(Path, sys.argv[1:4])
    for name in sys.argv[4:] or ADAPTERS:
        (out / name).mkdir(parents=True, exist_ok=True)
        make(name, converter, models, out / name)


if __name__ == "__main__":
    main()
