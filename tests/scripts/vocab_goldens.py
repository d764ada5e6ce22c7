"""Writes tests/golden/vocab/*.json: small tokenizers and the GGUF keys the reference converter makes of them.

usage: vocab_goldens.py --reference LLAMA_CPP_DIR [--data TEST_DATA_DIR] --out tests/golden/vocab

Needs: torch, numpy, transformers, tokenizers, sentencepiece, safetensors. The tokenizers are trained here, on the text
below, and stored in the golden beside the keys; `real.json` holds only digests, of tokenizers in the test data folder.
"""

import argparse
import base64
import hashlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

TEXT = """The harbour woke before the town did. Ropes creaked, gulls argued over scraps, and the first boats slid out
past the breakwater with their lamps still lit. By seven o'clock 12 crates of herring, 30 of mackerel and 145 of ice
stood on the quay; by eight they'd been weighed, priced and sold. "It's a fair catch," said Marta, who'd kept the books
since 1987. Nobody disagreed: she'll count twice what others count once. Le café d'à côté ouvrait à l'aube, 東京の市場
のように騒がしい, и чайки кричали над водой. def weigh(crates):\n    total = 0\n    for c in crates:\n        total += c.kg
    return total  # kilograms
We're told that fog hides the harbour; the harbour, though, hides nothing. The books balance, the ice melts, the boats
come home. """ * 4

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"


def added(id, content, special=True, normalized=False):
    return dict(id=id, content=content, single_word=False, lstrip=False, rstrip=False, normalized=normalized, special=special)


# ------------------------------------------------------------------ tokenizers


def sentencepiece_model(pieces=340, user_defined=(), **options):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")), model_writer=model, vocab_size=pieces, model_type="bpe", byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", user_defined_symbols=list(user_defined), minloglevel=2, num_threads=1,
        hard_vocab_limit=False, **options,
    )
    return model.getvalue()


def byte_bpe(size, pre, specials, normalizer=None, post=None, pairs=False, ignore_merges=False):
    """A trained byte-level tokenizer.json (dict), with `specials` added after the model's tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    spec = json.loads(tokenizer.to_str())
    model = spec["model"]
    model["vocab"] = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    model["ignore_merges"] = ignore_merges
    if not pairs:
        model["merges"] = [" ".join(merge) for merge in model["merges"]]
    spec["pre_tokenizer"], spec["normalizer"], spec["post_processor"] = pre, normalizer, post
    spec["added_tokens"] = [added(len(model["vocab"]) + i, *rest) for i, rest in enumerate(specials)]
    return spec


def split_then_bytes(regex):
    split = dict(type="Split", pattern=dict(Regex=regex), behavior="Isolated", invert=False)
    return dict(type="Sequence", pretokenizers=[split, BYTES_ONLY])


BYTES_ONLY = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
BYTES = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)


def template_processing(single, pair, ids):
    item = lambda name, type_id: (
        {"Sequence": {"id": name, "type_id": type_id}} if name in "AB" else {"SpecialToken": {"id": name, "type_id": type_id}}
    )
    tokens = {name: dict(id=name, ids=[id], tokens=[name]) for name, id in ids.items()}
    return dict(type="TemplateProcessing", single=[item(n, 0) for n in single], pair=[item(n, 0) for n in pair], special_tokens=tokens)


# ----------------------------------------------------------------------- cases


def dumps(value):
    return json.dumps(value, ensure_ascii=False)


def cases():
    """Yields name, architecture class, GGUF architecture, pre-tokenizer (NAME! if it has to be forced), config, files."""
    llama = dict(architectures=["LlamaForCausalLM"], model_type="llama", bos_token_id=1, eos_token_id=2)

    model = sentencepiece_model()
    yield "spm_bare", "LlamaModel", "llama", None, {**llama, "vocab_size": 340}, {"tokenizer.model": model}
    yield "spm_padded_and_added", "LlamaModel", "llama", None, {**llama, "vocab_size": 348, "pad_token_id": 400}, {
        "tokenizer.model": model,
        "added_tokens.json": dumps({"<pad>": 340, "<far>": 900, "<extra>": 341}),
        "tokenizer_config.json": dumps(dict(
            add_prefix_space=True, add_bos_token=True, add_eos_token=False, bos_token="<s>", eos_token="</s>",
            unk_token=dict(content="<unk>"), pad_token="<pad>", chat_template=TEMPLATE,
            added_tokens_decoder={
                "0": dict(content="<unk>", special=True), "1": dict(content="<s>", special=True),
                "2": dict(content="</s>", special=True), "342": dict(content="<|im_end|>", special=False),
                "343": dict(content="▁▁two▁spaces", special=False), "344": dict(content="<unused7>", special=False),
                "345": dict(content="[INST]", special=True), "999": dict(content="<beyond>", special=True),
            },
        )),
    }
    ids = {"<s>": 1, "</s>": 2}
    with_json = dict(
        version="1.0", added_tokens=[added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        normalizer=dict(type="Sequence", normalizers=[dict(type="Lowercase"), dict(type="NFC")]), pre_tokenizer=None,
        post_processor=template_processing(["<s>", "A"], ["<s>", "A", "</s>", "<s>", "B"], ids), decoder=None,
        model=dict(type="BPE", vocab={"<unk>": 0, "<s>": 1, "</s>": 2}, merges=[]),
    )
    yield "spm_with_tokenizer_json", "LlamaModel", "llama", None, {**llama, "vocab_size": 340, "pad_token_id": 0}, {
        "tokenizer.model": model,
        "tokenizer.json": dumps(with_json),
        "tokenizer_config.json": dumps(dict(
            add_bos_token=False, add_eos_token=True, bos_token="<s>", eos_token=dict(content="</s>"), unk_token="<unk>",
            chat_template=[dict(name="default", template=TEMPLATE), dict(name="tool use", template="{{ tools }}")],
        )),
    }
    # the end-of-text token of the template differs from the configured one, which becomes eot
    with_eot = {**with_json, "post_processor": template_processing(["<s>", "A", "</s>"], ["<s>", "A", "</s>", "B", "</s>"], ids)}
    yield "spm_eot_from_template", "LlamaModel", "llama", None, {**llama, "vocab_size": 340}, {
        "tokenizer.model": model,
        "tokenizer.json": dumps(with_eot),
        "tokenizer_config.json": dumps(dict(bos_token=dict(content="<s>"), eos_token="<unk>", chat_template=None)),
        "chat_template.jinja": "never used",
    }
    yield "spm_code_llama_size", "LlamaModel", "llama", None, {**llama, "vocab_size": 32016}, {"tokenizer.model": model}
    user_defined = sentencepiece_model(350, ["<start_of_turn>", "<end_of_turn>", "[@BOS@]"], pad_id=0, eos_id=1, bos_id=2, unk_id=3)
    gemma_config = dumps(dict(
        add_bos_token=True, add_eos_token=False, bos_token="<bos>", eos_token="<eos>",
        added_tokens_decoder={"4": dict(content="<start_of_turn>", special=True), "6": dict(content="[@BOS@]", special=False)},
    ))
    for arch, cls in [("gemma", "GemmaModel"), ("gemma2", "Gemma2Model"), ("gemma3", "Gemma3Model")]:
        config = dict(architectures=["x"], model_type=arch, vocab_size=352, bos_token_id=2, eos_token_id=[1, 106], pad_token_id=0)
        yield f"spm_{arch}", cls, arch, None, config, {
            "tokenizer.model": user_defined, "tokenizer_config.json": gemma_config, "chat_template.jinja": "line\r\nline\n",
        }
    yield "spm_phi3", "Phi3MiniModel", "phi3", None, {**llama, "model_type": "phi3", "vocab_size": 348}, {
        "tokenizer.model": model,
        "added_tokens.json": dumps({"<|end|>": 342, "<|far|>": 999}),
        "tokenizer_config.json": dumps(dict(
            tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="<|endoftext|>",
            added_tokens_decoder={"340": dict(content="<|endoftext|>", special=True), "343": dict(content="<|sys▁tem|>", special=False)},
        )),
        "tokenizer.json": dumps({**with_json, "added_tokens": [added(0, "<unk>"), added(344, "<|user|>", False), added(340, "<|endoftext|>")]}),
    }
    yield "spm_qwen2", "Qwen2Model", "qwen2", None, {**llama, "model_type": "qwen2", "vocab_size": 330}, {"tokenizer.model": model}

    specials = [("<|begin_of_text|>",), ("<|end_of_text|>",), ("<|eot_id|>", False), ("<tool>", False), ("a▁b", False, True), ("<é>", False)]
    begin = dict(type="Sequence", processors=[
        dict(type="ByteLevel", add_prefix_space=True, trim_offsets=False, use_regex=True),
        template_processing(["<|begin_of_text|>", "A"], ["<|begin_of_text|>", "A", "<|begin_of_text|>", "B"], {"<|begin_of_text|>": 300}),
    ])
    bpe = byte_bpe(300, split_then_bytes(LLAMA3), specials, post=begin, ignore_merges=True)
    config = {**llama, "bos_token_id": 300, "eos_token_id": 301}
    tokenizer_config = dict(
        bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", chat_template=TEMPLATE, tokenizer_class="PreTrainedTokenizerFast",
        clean_up_tokenization_spaces=True,
    )
    yield "bpe_llama3", "LlamaModel", "llama", "llama-bpe", {**config, "vocab_size": 306}, {
        "tokenizer.json": dumps(bpe), "tokenizer_config.json": dumps(tokenizer_config),
    }
    pairs = byte_bpe(290, split_then_bytes(QWEN2), [("<|endoftext|>",), ("<|im_start|>",), ("<|im_end|>",), ("<think>", False)],
                     normalizer=dict(type="NFC"), post=BYTES_ONLY, pairs=True)
    qwen_config = dict(
        add_bos_token=False, add_prefix_space=False, bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None,
        tokenizer_class="Qwen2Tokenizer", clean_up_tokenization_spaces=False, chat_template=TEMPLATE,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        added_tokens_decoder={str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in pairs["added_tokens"]},
    )
    qwen = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=300, bos_token_id=290, eos_token_id=292)
    yield "bpe_qwen2", "Qwen2Model", "qwen2", "qwen2", qwen, {
        "tokenizer.json": dumps(pairs), "tokenizer_config.json": dumps(qwen_config),
    }
    yield "bpe_qwen3moe", "Qwen3MoeModel", "qwen3moe", "qwen2", {**qwen, "model_type": "qwen3_moe"}, {
        "tokenizer.json": dumps(pairs), "tokenizer_config.json": dumps({k: v for k, v in qwen_config.items() if k != "chat_template"}),
        "chat_template.jinja": "a jinja file", "additional_chat_templates/rag.jinja": "about rag",
    }
    merges = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in pairs["model"]["merges"])
    yield "bpe_qwen3_vocab_and_merges", "Qwen3Model", "qwen3", "qwen2", {**qwen, "model_type": "qwen3"}, {
        "vocab.json": dumps(pairs["model"]["vocab"]), "merges.txt": merges, "tokenizer_config.json": dumps(qwen_config),
    }
    legacy = {k: v for k, v in qwen_config.items() if k != "added_tokens_decoder"}
    yield "bpe_qwen3_added_tokens_json", "Qwen3Model", "qwen3", "qwen2", {**qwen, "model_type": "qwen3"}, {
        "vocab.json": dumps(pairs["model"]["vocab"]), "merges.txt": merges, "tokenizer_config.json": dumps(legacy),
        "added_tokens.json": dumps({t["content"]: t["id"] for t in pairs["added_tokens"]}),
        "special_tokens_map.json": dumps(dict(eos_token="<|im_end|>", pad_token="<|endoftext|>")),
    }
    gpt2 = byte_bpe(280, BYTES, [("<|endoftext|>",)])
    gpt2_config = dict(tokenizer_class="GPT2Tokenizer", bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    yield "bpe_gpt2_phi4", "Phi3MiniModel", "phi3", "gpt-2", {**llama, "model_type": "phi3", "vocab_size": 281, "bos_token_id": 280}, {
        "tokenizer.json": dumps(gpt2), "tokenizer_config.json": dumps(gpt2_config),
        "chat_template.json": dumps(dict(chat_template="from json")),
    }
    # merges between tokens that hold spaces
    spaced = byte_bpe(280, split_then_bytes(LLAMA3), [("<s>",), ("</s>",)], pairs=True, ignore_merges=True)
    model = spaced["model"]
    for left, right in [(" ", "a"), (" ", " ")]:
        for token in (left, right, left + right):
            model["vocab"].setdefault(token, len(model["vocab"]))
        model["merges"].append([left, right])
    spaced["added_tokens"] = [added(len(model["vocab"]), "<s>"), added(len(model["vocab"]) + 1, "</s>")]
    yield "bpe_merges_with_spaces", "LlamaModel", "llama", "llama-bpe", {**llama, "vocab_size": 290}, {
        "tokenizer.json": dumps(spaced), "tokenizer_config.json": dumps(dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>")),
    }
    roberta = byte_bpe(280, BYTES, [("<s>",), ("</s>",), ("<mask>", False)],
                       post=dict(type="RobertaProcessing", sep=["</s>", 281], cls=["<s>", 280], trim_offsets=True, add_prefix_space=False))
    yield "bpe_roberta", "LlamaModel", "llama", "gpt-2", {**llama, "vocab_size": 283}, {
        "tokenizer.json": dumps(roberta),
        "tokenizer_config.json": dumps(dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="</s>", mask_token="<mask>")),
    }
    alone = byte_bpe(270, BYTES, [("<s>",), ("</s>",), ("<unk>",)],
                     post=template_processing(["<s>", "A", "</s>"], ["<s>", "A", "</s>", "B", "</s>"], {"<s>": 270, "</s>": 271}))
    yield "bpe_no_tokenizer_config", "LlamaModel", "llama", "gpt-2", {**llama, "vocab_size": 273, "unk_token_id": 5, "sep_token_id": 6}, {
        "tokenizer.json": dumps(alone),
    }
    granite = byte_bpe(270, dict(type="Sequence", pretokenizers=[dict(type="Digits", individual_digits=True), BYTES]), [("<|endoftext|>",)])
    yield "bpe_granite_size", "LlamaModel", "llama", "refact", {**llama, "vocab_size": 49152, "bos_token_id": 270}, {
        "tokenizer.json": dumps(granite),
        "tokenizer_config.json": dumps({**gpt2_config, "add_prefix_space": False, "add_bos_token": True, "clean_up_tokenization_spaces": True}),
    }
    spaces = llama_json()
    spaces["pre_tokenizer"] = dict(type="Split", pattern=dict(String=" "), behavior="MergedWithPrevious", invert=False)
    spaces["added_tokens"] += [added(len(spaces["model"]["vocab"]) + 2, "▁▁indent", False), added(len(spaces["model"]["vocab"]) + 3, "<unused0>", False)]
    yield "bpe_gemma3_forced", "Gemma3Model", "gemma3", "gemma4!", {**llama, "model_type": "gemma3_text", "vocab_size": 400}, {
        "tokenizer.json": dumps(spaces),
        "tokenizer_config.json": dumps(dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>", unk_token="<unk>")),
    }
    pieces = llama_json()
    yield "json_llama2", "LlamaModel", "llama", None, {**llama, "vocab_size": len(pieces["model"]["vocab"]) + 2}, {
        "tokenizer.json": dumps(pieces),
        "tokenizer_config.json": dumps(dict(
            tokenizer_class="LlamaTokenizer", bos_token=dict(__type="AddedToken", content="<s>", lstrip=False, normalized=True, rstrip=False, single_word=False),
            eos_token="</s>", unk_token="<unk>", add_bos_token=True, add_eos_token=False, legacy=False,
        )),
    }


def llama_json():
    """A tokenizer.json of Llama 2's kind: BPE over ▁-escaped text with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    start = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(TEXT.split("\n"), trainers.BpeTrainer(vocab_size=380, special_tokens=start, show_progress=False))
    spec = json.loads(tokenizer.to_str())
    spec["model"]["vocab"] = dict(sorted(spec["model"]["vocab"].items(), key=lambda item: item[1]))
    spec["model"]["merges"] = [" ".join(merge) if isinstance(merge, list) else merge for merge in spec["model"]["merges"]]
    end = len(spec["model"]["vocab"])
    spec["added_tokens"] = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(end, "[TOOL]", False), added(end + 1, "[CTRL]")]
    spec["post_processor"] = template_processing(["<s>", "A"], ["<s>", "A", "<s>", "B"], {"<s>": 1})
    return spec


# ------------------------------------------------------------------- reference


def reference_keys(reference, folder, class_name, arch, pre, config):
    """The keys, in order, that the converter's own class writes for the folder."""
    import gguf
    import conversion.base
    from conversion import gemma, llama, phi, qwen

    cls = next(getattr(module, class_name) for module in (llama, qwen, gemma, phi) if hasattr(module, class_name))
    model = object.__new__(cls)
    model.dir_model, model.hparams = folder, config
    model.is_mistral_format, model.target_model_dir = False, None
    model.origin_hf_arch = config["architectures"][0]
    model.gguf_writer = gguf.GGUFWriter(None, arch)
    # the converter knows pre-tokenizers by a digest of the vocabulary too, which a made-up vocabulary cannot have
    model.get_vocab_base_pre = lambda tokenizer: pre
    before = list(model.gguf_writer.kv_data[0])
    model.set_vocab()
    keys = []
    for key, value in model.gguf_writer.kv_data[0].items():
        if key not in before:
            keys.append([key, type_name(gguf, value), plain(value.value)])
    return keys


def type_name(gguf, value):
    if value.type == gguf.GGUFValueType.ARRAY:
        return f"[{gguf.GGUFValueType.get_type(value.value[0]).name.lower()}]"
    return value.type.name.lower()


def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8")
    return value if isinstance(value, (str, float, bool)) else int(value)


def write_folder(folder, config, files):
    (folder / "config.json").write_text(dumps(config))
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


REAL = [
    # name, folder in the test data, class, GGUF architecture, pre-tokenizer, config
    ("qwen3", "vocab/hf/qwen3", "Qwen3Model", "qwen3", "qwen2",
     dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", vocab_size=151936, bos_token_id=151643, eos_token_id=151645)),
    ("mistral-v0.3", "vocab/hf/mistral-7b-instruct-v0.3", "LlamaModel", "llama", None,
     dict(architectures=["MistralForCausalLM"], model_type="mistral", vocab_size=32768, bos_token_id=1, eos_token_id=2)),
    ("sec-llama-21m", "models/sec-llama-21m", "LlamaModel", "llama", None, None),
]


def digest(value):
    """What the test computes too: lengths and little-endian bytes of every element."""
    sha = hashlib.sha256()
    for item in value:
        data = item.encode() if isinstance(item, str) else (f"{item:.9g}" if isinstance(item, float) else str(item)).encode()
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()


def real(reference, data):
    for name, folder, class_name, arch, pre, config in REAL:
        with tempfile.TemporaryDirectory() as target:
            target = Path(target) / name
            shutil.copytree(Path(data) / folder, target, copy_function=shutil.copyfile)
            target.chmod(0o755)
            if config is None:
                config = json.loads((target / "config.json").read_text())
            else:
                (target / "config.json").write_text(dumps(config))
            keys = reference_keys(reference, target, class_name, arch, pre, config)
        keys = [[k, t, dict(len=len(v), sha256=digest(v)) if isinstance(v, list) else v] for k, t, v in keys]
        yield dict(name=name, folder=folder, arch=arch, config=config, keys=keys)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, type=Path, help="llama.cpp sources, with conversion/ and gguf-py/")
    parser.add_argument("--data", type=Path, help="the test data folder; without it real.json is left as it is")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    sys.path[:0] = [str(args.reference / "gguf-py"), str(args.reference)]
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for name, class_name, arch, pre, config, files in cases():
            folder = Path(work) / name
            folder.mkdir()
            write_folder(folder, config, files)
            force = pre is not None and pre.endswith("!")
            pre = pre.rstrip("!") if pre else None
            keys = reference_keys(args.reference, folder, class_name, arch, pre, config)
            stored = {n: base64.b64encode(c).decode() if isinstance(c, bytes) else c for n, c in files.items()}
            keys = [[k, t, v if not (isinstance(v, list) and len(v) > 1000) else dict(len=len(v), sha256=digest(v))] for k, t, v in keys]
            golden = dict(arch=arch, force=pre if force else None, config=config, base64=[n for n, c in files.items() if isinstance(c, bytes)], files=stored, keys=keys)
            text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
            (args.out / f"{name}.json").write_text(text + "\n")
            print(f"{name}: {len(keys)} keys")
    if args.data:
        golden = list(real(args.reference, args.data))
        (args.out / "real.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
