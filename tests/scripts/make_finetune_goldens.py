#!/usr/bin/env python3
"""Short training runs of PEFT and TRL in f32 on the tiny models of make_decoder_goldens.py.

usage: make_finetune_goldens.py MODELS OUT [NAME...]

MODELS is what make_decoder_goldens.py wrote. Each run goes to OUT/NAME/: `init.safetensors` and `final.safetensors` (the
adapter, PEFT's names; experts and routers under the names of Mixtral's own checkpoints), and `run.json`: the settings, and per step the
documents (`input_ids`; for `dpo` the prompts, chosen and rejected answers), loss, gradient norm before clipping, and learning rate.
A loss is the sum over all targets of a step divided by their number; every document is a forward of its own.
Needs: transformers, torch, safetensors, peft, and for `dpo` trl, datasets, tokenizers.
"""
import json
import math
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCAB, STEPS, DOCUMENTS, WARMUP = 64, 24, 4, 4
RUNS = {
    "dora": ("llama", dict(target_modules=ALL, use_dora=True)),
    "mixtral": ("mixtral", dict(target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "one", "two", "three", "gate"])),
    "gemma2": ("gemma2", dict(target_modules=ALL)),
    "dpo": ("llama", dict(target_modules=ALL)),
}


class Experts(nn.Module):
    """A mixture with linear layers, as transformers had it before it stacked them: PEFT adapts linear layers."""

    def __init__(self, block, config):
        super().__init__()
        state = block.state_dict()
        gate_up, down = state["experts.gate_up_proj"], state["experts.down_proj"]
        n, double, d_model = gate_up.shape
        linear = lambda weight: nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.gate, self.n_used = linear(state["gate.weight"]), config.num_experts_per_tok
        self.gate.weight.data = state["gate.weight"]
        self.experts = nn.ModuleList()
        for expert in range(n):
            parts = dict(one=gate_up[expert, :double // 2], three=gate_up[expert, double // 2:], two=down[expert])
            module = nn.ModuleDict({name: linear(weight) for name, weight in parts.items()})
            for name, weight in parts.items():
                module[name].weight.data = weight.clone()
            self.experts.append(module)

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        weights, chosen = torch.topk(torch.softmax(self.gate(x), -1), self.n_used, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == index)
            own = x[rows]
            out = expert["two"](nn.functional.silu(expert["one"](own)) * expert["three"](own))
            y = y.index_add(0, rows, out * weights[rows, slot, None])
        return y.reshape(shape)


def load(models, base):
    model = AutoModelForCausalLM.from_pretrained(models / base, dtype=torch.float32, attn_implementation="eager")
    if base == "mixtral":
        tokens = torch.arange(3, 20)[None]
        with torch.no_grad():
            before = model(tokens).logits
            for layer in model.model.layers:
                layer.mlp = Experts(layer.mlp, model.config)
            assert (model(tokens).logits - before).abs().max() < 1e-5
    return model


def adapter_of(model):
    # PEFT takes w1, w2 and w3 for the stacks of transformers 5, so they are renamed only here
    changes = {".mlp.experts.": ".block_sparse_moe.experts.", ".mlp.gate.": ".block_sparse_moe.gate.", ".one.": ".w1.",
               ".two.": ".w2.", ".three.": ".w3."}

    def names(key):
        for old, new in changes.items():
            key = key.replace(old, new)
        return key

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {names(key): value.detach().clone().contiguous() for key, value in state.items()}


def adapted(name, models):
    base, settings = RUNS[name]
    torch.manual_seed(5)
    model = load(models, base)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings)
    return get_peft_model(model, config)


def rate(step, lr):
    if step < WARMUP:
        return lr * (step + 1) / WARMUP
    return lr * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def train(name, models, out):
    model = adapted(name, models).train()
    save_file(adapter_of(model), out / "init.safetensors")
    lr = 4e-3
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    generator = torch.Generator().manual_seed(11)
    # few tokens, so that there is something to learn
    draw = lambda n: (torch.randint(0, 12, (n,), generator=generator) ** 2 % VOCAB).tolist()
    run = dict(base=RUNS[name][0], r=4, alpha=8, lr=lr, weight_decay=0.01, warmup_steps=WARMUP, max_grad_norm=1.0,
               input_ids=[], losses=[], grad_norms=[], lrs=[])
    for step in range(STEPS):
        documents = [draw(int(torch.randint(6, 28, (1,), generator=generator))) for _ in range(DOCUMENTS)]
        n_targets = sum(len(document) - 1 for document in documents)
        optimizer.zero_grad()
        total = 0.0
        for document in documents:
            logits = model(torch.tensor([document])).logits[0, :-1]
            loss = nn.functional.cross_entropy(logits, torch.tensor(document[1:]), reduction="sum") / n_targets
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, lr)
        optimizer.step()
        run["input_ids"].append(documents)
        run["losses"].append(total)
        run["grad_norms"].append(norm.item())
        run["lrs"].append(rate(step, lr))
    save_file(adapter_of(model), out / "final.safetensors")
    return run


def prefer(models, out):
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    steps, pairs, lr, beta = 20, 2, 2e-3, 0.25
    words = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t2", pad_token="t0")
    generator = torch.Generator().manual_seed(12)
    text = lambda low, high: " ".join(f"t{i}" for i in torch.randint(
        3, VOCAB, (int(torch.randint(low, high, (1,), generator=generator)),), generator=generator).tolist())
    rows = [dict(prompt=text(4, 9), chosen=" " + text(3, 9) + " t2", rejected=" " + text(3, 9) + " t2")
            for _ in range(steps * pairs)]
    model = adapted("dpo", models)
    save_file(adapter_of(model), out / "init.safetensors")
    losses = []

    class Recorded(DPOTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *args, **kwargs):
            result = super().compute_loss(*args, **kwargs)
            losses.append((result[0] if isinstance(result, tuple) else result).item())
            return result

    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(output_dir=folder, beta=beta, learning_rate=lr, lr_scheduler_type="constant", weight_decay=0.01,
                           per_device_train_batch_size=pairs, gradient_accumulation_steps=1, max_steps=steps, logging_steps=1,
                           max_grad_norm=1.0, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
                           gradient_checkpointing=False, max_length=None, disable_tqdm=True)
        trainer = Recorded(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        dataset = trainer.train_dataset
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    save_file(adapter_of(trainer.model), out / "final.safetensors")
    part = lambda key: [[list(dataset[step * pairs + i][key]) for i in range(pairs)] for step in range(steps)]
    assert len(losses) == len(logged) == steps
    return dict(base="llama", r=4, alpha=8, lr=lr, weight_decay=0.01, beta=beta, max_grad_norm=1.0, prompts=part("prompt_ids"),
                chosen=part("chosen_ids"), rejected=part("rejected_ids"), losses=losses,
                grad_norms=[float(entry["grad_norm"]) for entry in logged], lrs=[entry["learning_rate"] for entry in logged])


def main():
    models, out = Path(sys.argv[1]), Path(sys.argv[2])
    for name in sys.argv[3:] or RUNS:
        (out / name).mkdir(parents=True, exist_ok=True)
        run = prefer(models, out / name) if name == "dpo" else train(name, models, out / name)
        (out / name / "run.json").write_text(json.dumps(run) + "\n")
        print(name, [round(loss, 4) for loss in run["losses"][:2] + run["losses"][-2:]], run["grad_norms"][0])


if __name__ == "__main__":
    main()
