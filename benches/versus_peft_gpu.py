"""The PEFT side of `lctl gpu-check`'s timings of training: LoRA of rank 16 on all linear layers of a Llama of 8B's shape with random weights.

    lctl gpu-check --json kernels.json
    python benches/versus_peft_gpu.py --lctl kernels.json --json peft.json
    python benches/versus_peft_gpu.py --device cpu --shape tiny

The same micro-batches as src/cli/gpu_check/train.rs: 4 rows of 2048 tokens with and without recomputation of blocks, 1 of 8192 with it; no
padding. A step is forward, mean loss over targets, backward, norm of the gradients and clipping, and fused AdamW; the median of up to 5 steps
behind one that warms up, the device waited for before and behind each. No torch.compile: it takes minutes of such a model.

How PEFT is run. All have weights in bf16 and sdpa.
    f32 adapters            as get_peft_model makes them; their products are f32
    f32 adapters, autocast  the same under torch.autocast to bf16, as transformers' Trainer does with bf16=True; nearest to lctl's arithmetic
    bf16 adapters           autocast_adapter_dtype=False: adapters and moments are bf16; lctl keeps f32
    nf4, autocast           bitsandbytes' Linear4bit, if it can be imported

Memory: the most bytes of live tensors in the timed steps (torch.cuda.max_memory_allocated); lctl's is the most bytes of its buffers. Neither
has the context and the code of kernels, nor what an allocator holds beyond (`reserved_bytes` has that of torch); lctl's lacks cuBLAS's workspace,
32 MiB. lctl keeps the embedding (1.05e9 bytes) on the host and copies rows of it, which is in its time.

Arithmetic: a step of 8192 tokens is 2 products of 7.5e9 weights, 2.5e14 operations, and with recomputation 3.6e14: 0.6 and 0.9 s at 4e14
operations a second, which an H100 and an H200 should reach. 6 steps of 8 ways are 40 s then, and what is not a product may double it; 90 s are
allowed, loading of libraries included, and what finds no time is left out and said.
"""

import sys
import time

import gpu_peers as peers
from gpu_peers import Way, torch, transformers

try:
    import peft
except ImportError as error:
    print(f"error: {error}\nhint: peft must be importable", file=sys.stderr)
    sys.exit(2)

STEPS = 5
# most seconds of the timed steps of a way: a few steps say enough of a slow one
WAY_SECONDS = 12

PLAIN = ("lora r 16, bf16", False, 4, 2048)
ANEW = ("lora r 16, bf16, blocks computed anew", True, 4, 2048)
LONG = ("lora r 16, bf16, blocks computed anew", True, 1, 8192)
NF4 = ("lora r 16, nf4, blocks computed anew", True, 4, 2048)
F32, AUTOCAST, BF16, BITS = "f32 adapters", "f32 adapters, autocast", "bf16 adapters", "nf4, autocast"
# what counts most goes first
WAYS = [
    (F32, PLAIN), (F32, ANEW), (AUTOCAST, PLAIN), (AUTOCAST, ANEW), (F32, LONG), (AUTOCAST, LONG), (BITS, NF4), (BF16, PLAIN), (BF16, ANEW),
]


def adapted(base):
    """Returns the model with adapters, whose B are zero as PEFT begins, and what is trained of it."""
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    model.train()
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def check(model, trained, shape, n_layers):
    """The linear layers that lctl trains, and as many parameters."""
    names = {name.rsplit(".lora_A", 1)[0] for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_A" in name}
    kinds = {name.rsplit(".", 1)[1] for name in names}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, kinds
    assert len(names) == 7 * n_layers, len(names)
    n = sum(parameter.numel() for parameter in trained)
    assert n == peers.LORA_PARAMETERS[shape], f"PEFT trains {n} parameters, lctl {peers.LORA_PARAMETERS[shape]}"
    return n


def in_four_bits(base, bitsandbytes):
    """Replaces the linear layers of blocks by bitsandbytes' in NF4, with scales in f32 as lctl's `nf4`."""
    for block in base.model.layers:
        for module in (block.self_attn, block.mlp):
            for name, linear in list(module.named_children()):
                if not isinstance(linear, torch.nn.Linear):
                    continue
                packed = bitsandbytes.nn.Linear4bit(
                    linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16,
                    compress_statistics=False, quant_type="nf4", device="meta",
                )
                packed.weight = bitsandbytes.nn.Params4bit(
                    linear.weight.data, requires_grad=False, compress_statistics=False, quant_type="nf4", module=packed
                ).to(linear.weight.device)
                setattr(module, name, packed)
    base.is_loaded_in_4bit = True
    return base


class Trainer:
    """A model with adapters on a device, which is one way after another trained."""

    def __init__(self, args, bitsandbytes=None):
        self.args, self.memory, self.is_packed = args, peers.Memory(args.device), bitsandbytes is not None
        base = peers.model(args.shape, args.device)
        if bitsandbytes:
            base = in_four_bits(base, bitsandbytes)
        n_layers = base.config.num_hidden_layers
        self.model, self.trained = adapted(base)
        self.n_parameters = check(self.model, self.trained, args.shape, n_layers)

    def recompute(self, is_on):
        inner = self.model.get_base_model()
        # the newer name first: the older one goes
        if is_on:
            enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        else:
            (getattr(inner, "activation_checkpointing_disable", None) or inner.gradient_checkpointing_disable)()
        assert all(block.gradient_checkpointing == is_on for block in inner.model.layers)

    def adapters(self, dtype):
        for parameter in self.trained:
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)

    def step(self, optimizer, ids, is_autocast):
        self.memory.synchronize()
        begun = time.perf_counter()
        rows = torch.tensor(ids).to(self.args.device)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=is_autocast):
            loss = self.model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        self.memory.synchronize()
        return time.perf_counter() - begun, loss.detach()

    def measure(self, peer, is_recomputed, n_rows, length):
        """Returns the figures of a way. Steps of one before it have changed the adapters, which changes no speed."""
        self.adapters(torch.bfloat16 if peer == BF16 else torch.float32)
        self.recompute(is_recomputed)
        optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0, fused=True)
        ids = peers.tokens(self.args.shape, n_rows, length)
        is_autocast = peer in (AUTOCAST, BITS)
        warm_up, loss = self.step(optimizer, ids, is_autocast)
        self.memory.reset()
        seconds = []
        while len(seconds) < STEPS and (not seconds or (sum(seconds) < WAY_SECONDS and peers.spent() < self.args.seconds)):
            taken, loss = self.step(optimizer, ids, is_autocast)
            seconds.append(taken)
        assert torch.isfinite(loss), f"the loss is {loss.item()}"
        step_seconds = peers.median(seconds)
        return {
            "step_seconds": step_seconds, "each_step_seconds": [round(x, 4) for x in seconds], "warm_up_seconds": round(warm_up, 4),
            "tokens_per_second": n_rows * length / step_seconds, "n_parameters": self.n_parameters, "loss": loss.item(),
            **self.memory.peaks(),
        }


def importable():
    try:
        import bitsandbytes
    except Exception as error:  # what fails in loading a library of it is no ImportError
        return None, f"bitsandbytes cannot be imported: {error}"
    return bitsandbytes, ""


def main():
    args = peers.options(__doc__.splitlines()[0], 90)
    bitsandbytes, why_not = importable()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    peers.say(f"{versions}; {peers.spent():.0f} s to load them")
    findings = peers.Findings(args, versions, args.ours and args.ours["trainings"], "tokens_per_second")
    trainer, slowest = None, 0.0

    def run(peer, is_recomputed, n_rows, length):
        nonlocal trainer
        is_packed = peer == BITS
        if trainer is None or trainer.is_packed != is_packed:
            # one model at a time
            trainer = None
            peers.Memory(args.device).free()
            trainer = Trainer(args, bitsandbytes if is_packed else None)
        return trainer.measure(peer, is_recomputed, n_rows, length)

    # the model in four bits takes the place of the other, so it is the last
    for peer, (what, is_recomputed, n_rows, length) in sorted(WAYS, key=lambda way: way[0] == BITS):
        length //= 1 if args.shape == "8b" else 32
        way = Way(peer, what, f"{args.shape.upper()}, {n_rows} x {length} tokens")
        left = args.seconds - peers.spent()
        if peer == BITS and not bitsandbytes:
            way.state, way.reason = "skipped", why_not
            findings.add(way)
        # a step that warms up and one that counts, with recomputation even if there was none yet
        elif left < max(2.0, 3 * slowest):
            way.state, way.reason = "left out", f"{left:.0f} s are left"
            findings.add(way)
        else:
            figures = findings.measure(way, lambda: run(peer, is_recomputed, n_rows, length))
            slowest = max(slowest, figures.get("step_seconds", 0.0))
    return findings.close()


if __name__ == "__main__":
    sys.exit(main())
