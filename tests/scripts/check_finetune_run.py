"""Reads what `lctl finetune` wrote with the tools it is for: tensorboard, PEFT, transformers, safetensors.

    python check_finetune_run.py BASE RUN

BASE is the checkpoint that the run began with; the recipe logs `tensorboard` and exports `peft` and `merged-safetensors`.
Checked: the scalars of the event file are those of metrics.jsonl; the adapter in stock PEFT and the merged model have the
same logits within 1e-4.
"""

import json
import sys

import torch
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM


def check_scalars(run):
    events = EventAccumulator(f"{run}/tensorboard")
    events.Reload()
    with open(f"{run}/metrics.jsonl", encoding="utf-8") as lines:
        logged = [json.loads(line) for line in lines]
    names = {"train/loss": ("step", "loss"), "train/grad_norm": ("step", "grad_norm"), "validation/loss": ("validation", "loss")}
    for tag, (event, key) in names.items():
        expected = [(row["step"], row[key]) for row in logged if row["event"] == event]
        found = [(scalar.step, scalar.value) for scalar in events.Scalars(tag)] if expected else []
        assert [step for step, _ in found] == [step for step, _ in expected], tag
        # f32 in the event file
        assert all(abs(a - b) <= 1e-6 * abs(b) for (_, a), (_, b) in zip(found, expected)), tag
        print(f"{tag}: {len(found)} scalars")


def check_logits(base, run):
    def load(path):
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        plain = load(base)(tokens).logits
        adapted = PeftModel.from_pretrained(load(base), f"{run}/result/adapter").eval()(tokens).logits
        merged = load(f"{run}/result/merged")(tokens).logits
    off = (adapted - merged).abs().max().item()
    print(f"PEFT and merged: {off:.1e} apart; the adapter moves logits by {(adapted - plain).abs().max().item():.2f}")
    assert off <= 1e-4


if __name__ == "__main__":
    check_scalars(sys.argv[2])
    check_logits(sys.argv[1], sys.argv[2])
