#!/usr/bin/env python3
"""Tiny checkpoints of every architecture, and what llama.cpp's converter makes of them.

usage: tiny_checkpoints.py CONVERTER OUT [NAME...]

CONVERTER is convert_hf_to_gguf.py of a llama.cpp source tree (its gguf-py lies beside it). Each
checkpoint goes to OUT/NAME/, its golden to OUT/NAME.json: keys in order (long arrays as SHA-256 of
their text), tensors in order with type, shape (innermost first) and SHA-256 of the data.
Needs: transformers, torch, tokenizers, sentencepiece, safetensors, numpy.
"""
import hashlib
import io
import json
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

TEXT = """The quick brown fox jumps over the lazy dog. A tensor is a block of numbers; a model is a pile of tensors.
Read the header, check the lengths, map the names, write the file. What is not checked is not true.
0 1 2 3 4 5 6 7 8 9 10 100 1000 one two three four five six seven eight nine ten hundred thousand.
def main(): return [x for x in range(10) if x % 2 == 0]  # even numbers
Error: row length 11000 is not a multiple of 256. Hint: use another type, whose block is 32.
We write what we know, we know what we read, we read what was written."""

# sizes shared by most checkpoints; rows are multiples of 32
BASE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, rms_norm_eps=1e-5, initializer_range=0.02, torch_dtype="bfloat16",
            bos_token_id=1, eos_token_id=2, pad_token_id=None)
LLAMA3_ROPE = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64, rope_theta=500000.0)
MOE = dict(num_local_experts=4, num_experts_per_tok=2)
N_VOCAB = {"spm": 352, "bpe": 288}


def longrope(n):
    return dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0 + i / 16 for i in range(n)],
                long_factor=[1.0 + i * i / 4 for i in range(n)])


# name: (model_type, tokenizer, config beyond BASE); `raw` replaces or removes keys of the saved config.json
CHECKPOINTS = {
    "Tiny-Llama-2-7b-chat-hf": ("llama", "spm", dict()),
    "llama3-scaled": ("llama", "llama-bpe", dict(rope_parameters=LLAMA3_ROPE, head_dim=16, tie_word_embeddings=True)),
    # two of these factors show how each step rounds
    "llama3-factors": ("llama", "llama-bpe", dict(
        hidden_size=8, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=64,
        tie_word_embeddings=True, rope_parameters=dict(LLAMA3_ROPE, factor=32.0, original_max_position_embeddings=512))),
    "llama-biased-linear": ("llama", "spm", dict(
        attention_bias=True, mlp_bias=True, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0))),
    "llama-old-spelling": ("llama", "spm", dict(raw=dict(
        rope_parameters=None, rope_theta=1000000.0, rope_scaling=dict(type="linear", factor=2.0), head_dim=None,
        dtype=None, torch_dtype="bfloat16", num_key_value_heads=2))),
    "CodeLlama-7b-Instruct": ("llama", "spm", dict(vocab_size=32016, hidden_size=8, intermediate_size=32,
                                                   num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
                                                   tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "Mistral-7B-v0.1": ("mistral", "spm", dict(sliding_window=128)),
    "Mixtral-8x7B-Instruct-v0.1": ("mixtral", "spm", dict(MOE)),
    "qwen2": ("qwen2", "qwen2", dict(tie_word_embeddings=True)),
    "qwen2-yarn": ("qwen2", "qwen2", dict(rope_parameters=dict(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=128, rope_theta=1000000.0))),
    "Qwen3-0.6B": ("qwen3", "qwen2", dict(head_dim=16, tie_word_embeddings=True)),
    "qwen3moe": ("qwen3_moe", "qwen2", dict(head_dim=16, num_experts=4, num_experts_per_tok=2,
                                            moe_intermediate_size=32)),
    "qwen3moe-stacked": ("qwen3_moe", "qwen2", dict(head_dim=16, num_experts=4, num_experts_per_tok=2,
                                                    moe_intermediate_size=32, stack=True)),
    "mistral-shards": ("mistral", "spm", dict(sliding_window=None, shard="20KB")),
    "gemma": ("gemma", "spm", dict(head_dim=16, num_key_value_heads=1)),
    "gemma-2-2b-it": ("gemma2", "spm", dict(head_dim=16, sliding_window=128)),
    "gemma3": ("gemma3_text", "spm", dict(head_dim=16, sliding_window=128)),
    "gemma3-unused-vocab": ("gemma3_text", "gpt2", dict(head_dim=16, sliding_window=128, vocab_size=320)),
    "gemma3-vision": ("gemma3", "spm", dict()),
    "Phi-3-mini-4k-instruct": ("phi3", "spm", dict(num_key_value_heads=4, sliding_window=255)),
    "phi3-longrope": ("phi3", "spm", dict(rope_parameters=longrope(4), max_position_embeddings=2048,
                                          original_max_position_embeddings=256)),
    "phi4": ("phi3", "gpt2", dict(partial_rotary_factor=0.75, tie_word_embeddings=True, rope_parameters=longrope(3),
                                  max_position_embeddings=2048, original_max_position_embeddings=256)),
    "qwen3-fp8-block": ("qwen3", "qwen2", dict(
        head_dim=16, hidden_size=96, intermediate_size=160, num_hidden_layers=1, fp8="block")),
    "llama-fp8-channel": ("llama", "spm", dict(fp8="channel")),
    "mistral-fp8-tensor": ("mistral", "spm", dict(fp8="tensor")),
}
CARDS = {
    "qwen2": "---\nlicense: apache-2.0\nlanguage:\n- en\n- no\npipeline_tag: text-generation\n"
             "base_model: Qwen/Qwen2.5-0.5B\ntags: [chat, tiny]\ndatasets:\n- org/Some-Data-v1.0\n"
             "- https://example.org/data\n---\n# A card\n",
    "phi4": "---\nlicense: mit\nlicense_link: https://example.org/LICENSE\nmodel_creator: Nobody\n"
            "base_model:\n- microsoft/Phi-4-mini-instruct\n- https://huggingface.co/org/Other-7B-v2\n---\n",
}
GENERATION = {
    "qwen2": dict(top_k=20, top_p=0.8, temperature=0.7, repetition_penalty=1.05),
    "gemma3": dict(top_k=64, top_p=0.95, do_sample=True),
}
SPLITS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
             r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def write_spm(out):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()), model_writer=model, vocab_size=N_VOCAB["spm"], model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", minloglevel=2, num_threads=1, unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    (out / "tokenizer.model").write_bytes(model.getvalue())
    config = dict(tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                  add_bos_token=True, add_eos_token=False, legacy=False)
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def write_bpe(out, kind):
    """Byte-level BPE; the pre-tokenizer is the real family's, the merges are of TEXT."""
    # Llama 3 takes whole words that are tokens as they are, which tells its pre-tokenizer from an equal one
    tok = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=kind == "llama-bpe"))
    pre = tokenizers.pre_tokenizers
    if kind in SPLITS:
        tok.pre_tokenizer = pre.Sequence([
            pre.Split(tokenizers.Regex(SPLITS[kind]), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        tok.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    tok.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=N_VOCAB["bpe"] - len(special), show_progress=False,
                                             initial_alphabet=pre.ByteLevel.alphabet())
    tok.train_from_iterator(TEXT.splitlines(), trainer)
    tok.add_special_tokens(special)
    tok.save(str(out / "tokenizer.json"))
    config = dict(tokenizer_class="GPT2Tokenizer" if kind == "gpt2" else "PreTrainedTokenizerFast",
                  bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def values(name, shape):
    """Values k / 64 that repeat every 61 columns and rows: they compress well, and bf16 and f16 hold them exactly."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") % 61
    cols = shape[-1] if shape else 1
    i = np.arange(int(np.prod(shape)), dtype=np.int64)
    v = (i // cols * 37 + i % cols * 11 + seed) % 61 - 30
    return torch.from_numpy((v.astype(np.float32) / 64).reshape(tuple(shape)))


def model_config(model_type, vocab, extra):
    settings = {**BASE, "vocab_size": vocab, **extra}
    if model_type == "gemma3":
        text = dict(settings, head_dim=16, sliding_window=128)
        vision = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                      patch_size=14)
        return transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return transformers.AutoConfig.for_model(model_type, **settings)


def make(name, out):
    model_type, tokenizer, extra = CHECKPOINTS[name]
    extra = dict(extra)
    raw, fp8, stack = extra.pop("raw", None), extra.pop("fp8", None), extra.pop("stack", False)
    shard = extra.pop("shard", "1GB")
    out.mkdir(parents=True)
    config = model_config(model_type, N_VOCAB["spm" if tokenizer == "spm" else "bpe"], extra)
    cls = Gemma3ForConditionalGeneration if model_type == "gemma3" else AutoModelForCausalLM
    with torch.no_grad():
        model = cls(config) if model_type == "gemma3" else cls.from_config(config)
        for key, parameter in model.named_parameters():
            parameter.copy_(values(key, parameter.shape))
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size=shard)
    (out / "generation_config.json").unlink(missing_ok=True)
    write_spm(out) if tokenizer == "spm" else write_bpe(out, tokenizer)
    if raw:
        path = out / "config.json"
        saved = {**json.loads(path.read_text()), **raw}
        path.write_text(json.dumps({k: v for k, v in saved.items() if v is not None}, indent=1))
    if stack:
        stack_experts(out)
    if fp8:
        quantize_fp8(out, fp8)
    if name in CARDS:
        (out / "README.md").write_text(CARDS[name])
    if name in GENERATION:
        (out / "generation_config.json").write_text(json.dumps(GENERATION[name], indent=1))


def stack_experts(out):
    """From one tensor per expert to transformers 5's own layout: stacks, gate above up."""
    path = out / "model.safetensors"
    tensors = load_file(path)
    for layer in range(BASE["num_hidden_layers"]):
        experts = f"model.layers.{layer}.mlp.experts."
        take = lambda what: [tensors.pop(f"{experts}{i}.{what}.weight") for i in range(4)]
        pairs = zip(take("gate_proj"), take("up_proj"))
        tensors[experts + "gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
        tensors[experts + "down_proj"] = torch.stack(take("down_proj"))
    save_file(tensors, path, metadata={"format": "pt"})


def quantize_fp8(out, kind):
    """Linear layers to e4m3: one scale per 64 x 64 block (DeepSeek's layout), per row (compressed-tensors) or per tensor."""
    path = out / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if "_proj.weight" in name]:
        w = tensors[name].float()
        rows, cols = w.shape
        if kind == "block":
            shape, repeat, key = (-(-rows // 64), -(-cols // 64)), (64, 64), "_scale_inv"
        elif kind == "channel":
            shape, repeat, key = (rows, 1), (1, cols), "_scale"
        else:
            shape, repeat, key = (1, 1), (rows, cols), "_scale_inv"
        scale = 0.5 + values(name + key, shape).abs()
        full = scale.repeat_interleave(repeat[0], 0).repeat_interleave(repeat[1], 1)[:rows, :cols]
        tensors[name] = (w / full).to(torch.float8_e4m3fn)
        tensors[name + key] = scale.to(torch.bfloat16) if kind == "channel" else scale.float()
        if kind == "tensor":
            tensors[name + key] = tensors[name + key].reshape(())
            tensors[name.replace(".weight", ".activation_scale")] = torch.tensor(1.0)
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = dict(
        quant_method="fp8", weight_block_size=[64, 64], fmt="e4m3", activation_scheme="dynamic",
    ) if kind == "block" else dict(quant_method="fp8", activation_scheme="static") if kind == "tensor" else dict(
        quant_method="compressed-tensors", format="float-quantized", config_groups=dict(group_0=dict(
            targets=["Linear"], weights=dict(num_bits=8, type="float", strategy="channel", symmetric=True))))
    (out / "config.json").write_text(json.dumps(config, indent=1))


def convert(converter, checkpoint, outtype, path, pre):
    """Runs the converter in this process. It knows a BPE pre-tokenizer by a hash over a real vocabulary's ids: a tiny
    one's name is given to it, everything else is its own work."""
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    argv, sys.argv = sys.argv, [converter, str(checkpoint), "--outtype", outtype, "--outfile", str(path)]
    try:
        runpy.run_path(converter, run_name="__main__")
    finally:
        sys.argv = argv


def golden(converter, checkpoint, outtype):
    import gguf

    kind = CHECKPOINTS[checkpoint.name][1]
    pre = "gpt-2" if kind == "gpt2" else kind
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "out.gguf"
        convert(converter, checkpoint, outtype, path, pre)
        reader = gguf.GGUFReader(path)
        kv = {}
        for key, field in reader.fields.items():
            if key.startswith("GGUF."):
                continue
            value = field.contents()
            if isinstance(value, list) and len(value) > 16:
                # length-prefixed items, so that no two arrays have the same text
                text = "".join(f"{len(str(x).encode())}:{x}" for x in map(plain, value))
                value = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
            kv[key] = [[t.name for t in field.types], value]
        tensors = {t.name: [t.tensor_type.name, [int(n) for n in t.shape], hashlib.sha256(t.data.tobytes()).hexdigest()]
                   for t in reader.tensors}
    return dict(kv=kv, order=list(tensors), tensors=tensors)


def plain(value):
    """Floats as their bits, so that the text does not depend on a printer."""
    return str(np.float32(value).view(np.uint32)) if isinstance(value, float) else value


def main():
    converter, out = sys.argv[1], Path(sys.argv[2])
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path[1:1] = [str(Path(converter).parent / "gguf-py"), str(Path(converter).parent)]
    for name in sys.argv[3:] or CHECKPOINTS:
        shutil.rmtree(out / name, ignore_errors=True)
        make(name, out / name)
        types = ["bf16", "f16", "f32"] if name in ("qwen2", "gemma-2-2b-it") else ["bf16"]
        goldens = {outtype: golden(converter, out / name, outtype) for outtype in types}
        # f16 and f32 share everything but types and digests
        (out / f"{name}.json").write_text(json.dumps(goldens, indent=1, ensure_ascii=False) + "\n")
        print(name, len(goldens["bf16"]["kv"]), "keys", len(goldens["bf16"]["order"]), "tensors")


if __name__ == "__main__":
    main()
