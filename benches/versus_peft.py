"""Times LoRA steps of PEFT on a checkpoint: python step.py CHECKPOINT STEPS [THREADS].

Rank 16, all linear layers, bf16 weights, f32 adapters, one sequence of 512 tokens a step, AdamW, no recomputation.
Prints seconds and tokens per second of each step, and the process's peak memory.
"""

import resource
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

checkpoint, n_steps = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(int(sys.argv[3]) if len(sys.argv) > 3 else 2)
model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa")
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
model.train()
model.config.use_cache = False
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-4)
generator = torch.Generator().manual_seed(0)
for step in range(n_steps):
    ids = torch.randint(3, 500, (1, 512), generator=generator)
    start = time.perf_counter()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    seconds = time.perf_counter() - start
    print(f"step {step}: loss {loss.item():.4f}, {seconds:.3f} s, {512 / seconds:.1f} tokens/s", flush=True)
print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")
