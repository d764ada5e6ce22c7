"""Compares a tokenizer that `lctl tokenizer train` made with the one that `tokenizers` of PyPI learns from the same texts.

    python check_tokenizer_train.py DIR FILE..

DIR is what `lctl tokenizer train FILE.. -o DIR` wrote with its default special tokens. Prints OK, or says what differs and exits with 1:
vocabulary, merges, and the ids of every text by `tokenizers` and `transformers`.
"""

import json
import sys

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer


def texts_of(path):
    if not path.endswith(".jsonl"):
        return [open(path, encoding="utf-8").read()]
    texts = []
    for line in open(path, encoding="utf-8"):
        row = json.loads(line)
        for message in row.get("messages", []):
            texts += [message["role"], message["content"]]
        texts += [row[key] for key in ("text", "prompt", "completion") if isinstance(row.get(key), str)]
    return texts


def main():
    directory, files = sys.argv[1], sys.argv[2:]
    texts = [text for path in files for text in texts_of(path)]
    ours = json.load(open(f"{directory}/tokenizer.json", encoding="utf-8"))
    special = [token["content"] for token in ours["added_tokens"]]
    mine = Tokenizer.from_file(f"{directory}/tokenizer.json")
    reference = Tokenizer(models.BPE())
    if ours["normalizer"]:
        reference.normalizer = normalizers.NFC()
    reference.pre_tokenizer = mine.pre_tokenizer
    reference.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=len(ours["model"]["vocab"]),
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator(texts, trainer)
    theirs = json.loads(reference.to_str())["model"]
    failed = False
    for key in ("vocab", "merges"):
        if theirs[key] != ours["model"][key]:
            failed = True
            pairs = zip(theirs[key], ours["model"][key])
            print(f"{key} differs, first: {next((p for p in pairs if p[0] != p[1]), 'in number')}")
    through_transformers = AutoTokenizer.from_pretrained(directory)
    n = 0
    for text in texts:
        ids = mine.encode(text).ids
        n += len(ids)
        if ids != reference.encode(text).ids or ids != through_transformers(text)["input_ids"] or mine.decode(ids) != text:
            failed = True
            print(f"other ids: {text[:80]!r}")
            break
    print("FAILED" if failed else f"OK: {len(theirs['vocab'])} tokens, {len(theirs['merges'])} merges, {len(texts)} texts, {n} ids")
    sys.exit(failed)


if __name__ == "__main__":
    main()
