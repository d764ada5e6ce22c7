"""Writes tests/golden/tokenizer.json: token ids and texts that Python's tokenizers give for hard strings.

usage: tokenizer_goldens.py --vocab tests/golden/vocab --data TEST_DATA_DIR --out tests/golden/tokenizer.json

Needs: transformers, tokenizers, sentencepiece. For every small tokenizer of tests/golden/vocab and every tokenizer of the test
data folder:
- library: `tokenizers` on tokenizer.json, special tokens parsed, nothing added around the text; `literal` with special tokens
  as text;
- transformers: AutoTokenizer's ids where they differ from the library's; around: what it adds around a text;
- sentencepiece: on tokenizer.model (special tokens are text there), with `remove_extra_whitespaces` off;
- decoded: the ids' text with special tokens, and without them; decoded_random: texts of random ids;
- corpora: number of ids and SHA-256 (over little-endian u32) of whole files, from the library, else sentencepiece.
"""

import argparse
import base64
import hashlib
import json
import random
import struct
import tempfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
import tokenizers
import transformers

STRINGS = [
    "",
    " ",
    "  ",
    "   leading and trailing   ",
    "\t\ttabs\tinside\t",
    "line\nbreaks\n\nand\n\n\nmore \n \n  end\n",
    "windows\r\nends\r\n\r\nhere\r",
    "Hello world",
    " Hello world",
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～",
    "don't DON'T We'Ll I'm you'RE they've he'd 'tis ''s",
    "3 33 333 3333 33333 333333 3333333 33333333 3.14159 1,000,000 ٣٤٥ ½ ² Ⅷ",
    "CamelCaseWordsAndSNAKE_CASE_words and kebab-case",
    "def f(x):\n    return {\"a\": [1, 2, 3], 'b': x ** 2}  # comment\n\n\tpass",
    "https://example.com/path?q=1&r=%20#frag user@example.org 10.0.0.1:8080",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "....!!!!????,,,,;;;;",
    "Ελληνικά русский العربية עברית हिन्दी ไทย 한국어 日本語 中文",
    "e\u0301 é n\u0303 ñ a\u030a å \u1100\u1161\u11a8 각 \u2126 Ω ﬁ ﬀ ①",
    "Z\u0351\u036b\u0343\u036aa\u0304lgo\u0322\u0327",
    "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇫🇷 ❤️ ☠",
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333",
    "\u00a0nbsp\u00a0\u2003em\u3000ideographic\u200bzero\ufeffbom\u2028sep\u0085nel",
    "\x00nul\x01\x02\x1b[31m\x7f",
    "\U0010ffff \ue000 \ufffd \ufffe",
    "▁lower▁block ▁▁ ▁",
    "Ġword ĊĉĠĠ <0x0A> <0xFF>",
    "a" * 200,
    " " * 70 + "x" + " " * 5,
    "\n" * 20 + " \n" * 5,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "<s>special</s> <unk> <pad>",
    "<s> text <s>text</s>text </s>",
    "before<|im_start|>user\nhi<|im_end|>\nafter <|endoftext|> end",
    "[INST] instruction [/INST] answer</s>[INST]again[/INST]",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<start_of_turn>user\nhi<end_of_turn>\n<bos><eos>",
    "<|user|> hi<|end|> \n <|assistant|>   spaces",
    "<think>\nhm\n</think>\n\n<tool_call>{}</tool_call>",
    "The quick brown fox jumps over the lazy dog. 12 crates of herring, weighed by seven o'clock.",
    "ﷺ ﷽ \u0f3a\u0f3b ᚠᚢᚦ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 🜁",
    "ﾊﾝｶｸ ＦＵＬＬ ｗｉｄｔｈ １２３",
    "İstanbul ıspanak ſharp ß ẞ ŉ",
    "x\u0300\u0301\u0302\u0303y ́ ̈",
]


def digest(ids):
    return [len(ids), hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()]


def random_ids(n):
    rng = random.Random(7)
    return [[rng.randrange(n) for _ in range(rng.randrange(1, 30))] for _ in range(24)]


def repaired(text):
    """Returns a tokenizer.json whose no-break spaces were once replaced by spaces, with them back."""
    parsed = json.loads(text)
    model = parsed["model"]
    model["vocab"] = {token.replace(" ", "\u00a0"): id for token, id in model["vocab"].items()}
    merges = []
    for merge in model["merges"]:
        words = merge.split(" ")
        if len(words) != 2:
            at = merge.index(" ", 1) if merge[0] == "\u2581" else len(merge) // 2
            words = [merge[:at].replace(" ", "\u00a0"), merge[at + 1 :].replace(" ", "\u00a0")]
        merges.append(words)
    model["merges"] = merges
    return json.dumps(parsed)


def goldens(folder, corpora, repair=False):
    out = {}
    special = library = None
    try:
        auto = transformers.AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # transformers 5 refuses some files that the library reads
        auto = None
        out["transformers_refuses"] = repr(error).split("(")[0]
    if (folder / "tokenizer.json").is_file():
        text = (folder / "tokenizer.json").read_text()
        if repair:
            text = repaired(text)
        library = tokenizers.Tokenizer.from_str(text)
        library.no_padding()
        library.no_truncation()
    elif not (folder / "tokenizer.model").is_file():
        library = auto.backend_tokenizer
    if library is not None:
        plain = [library.encode(s, add_special_tokens=False).ids for s in STRINGS]
        out["library"] = plain
        library.encode_special_tokens = True
        literal = [library.encode(s, add_special_tokens=False).ids for s in STRINGS]
        library.encode_special_tokens = False
        out["literal"] = {str(i): b for i, (a, b) in enumerate(zip(plain, literal)) if a != b}
        decode = lambda ids, skip: library.decode(ids, skip_special_tokens=skip)
        corpus = lambda text: library.encode(text, add_special_tokens=False).ids
        n_tokens = library.get_vocab_size()
    else:
        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString((folder / "tokenizer.model").read_bytes())
        proto.normalizer_spec.remove_extra_whitespaces = False
        spm = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        plain = [spm.encode(s) for s in STRINGS]
        out["sentencepiece"] = plain
        decode = lambda ids, skip: spm.decode(ids)
        corpus = spm.encode
    if auto is not None:
        around = auto("x").input_ids
        middle = auto("x", add_special_tokens=False).input_ids
        at = next((i for i in range(len(around)) if middle and around[i : i + len(middle)] == middle), None)
        out["around"] = None if at is None else [around[:at], around[at + len(middle) :]]
        ids = [auto(s, add_special_tokens=False).input_ids for s in STRINGS]
        if library is not None:
            out["transformers"] = {str(i): b for i, (a, b) in enumerate(zip(plain, ids)) if a != b}
        out["eos"] = auto.eos_token_id
        out["bos"] = auto.bos_token_id
        out["special_tokens_map"] = auto.special_tokens_map
    out["decoded"] = [[decode(i, False), decode(i, True)] for i in plain]
    if library is not None:
        out["decoded_random"] = [[i, decode(i, False), decode(i, True)] for i in random_ids(n_tokens)]
    out["corpora"] = {name: digest(corpus(text)) for name, text in corpora.items()}
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    names = ["tinystories-197k.txt", "wiki.test.raw", "imatrix-calibration_datav3.txt"]
    corpora = {name: (args.data / "corpora" / name).read_bytes().decode() for name in names}
    out = {"strings": STRINGS, "small": {}, "data": {}}
    for path in sorted(args.vocab.glob("*.json")):
        golden = json.loads(path.read_text())
        if isinstance(golden, list):
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "config.json").write_text(json.dumps(golden["config"]))
            for name, content in golden["files"].items():
                (folder / name).parent.mkdir(exist_ok=True, parents=True)
                binary = name in golden["base64"]
                (folder / name).write_bytes(base64.b64decode(content) if binary else content.encode())
            out["small"][path.stem] = goldens(folder, {})
    for name in ["vocab/hf/llama2", "vocab/hf/mistral-7b-instruct-v0.3", "vocab/hf/qwen3", "models/sec-llama-21m", "models/llama2xs-hf", "models/stories260K-hf"]:
        out["data"][name] = goldens(args.data / name, corpora, repair=name == "vocab/hf/llama2")
    for group in ("small", "data"):
        for name, golden in out[group].items():
            differs = [int(i) for i in golden.get("transformers", {})]
            print(name, golden.get("around"), "literal", len(golden.get("literal", [])), "transformers differs in", differs, golden.get("transformers_refuses", ""))
    lines = json.dumps(out, ensure_ascii=True, separators=(",", ":"))
    args.out.write_text(lines + "\n")


main()
