"""Greedy continuations by transformers' generate, as token ids.

    python3 tests/scripts/generate_goldens.py MODELS_DIR

MODELS_DIR holds the models, which are not part of the repository. A continuation ends before
the first token whose logit leads the next one's by less than 1e-4 of the logits' range: rounding could turn it.
"""

import json
import pathlib
import sys

import torch
import transformers

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
MODELS = ["stories260K-hf", "llama2xs-hf"]
PROMPTS = [[1], [1, 403, 407, 261, 378], [1, 338, 400, 286, 333, 266, 297, 309], [1] + [260 + i * 7 % 200 for i in range(40)]]
N_TOKENS = 48


@torch.no_grad()
def continuation(model, prompt):
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=N_TOKENS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = out.sequences[0, len(prompt):].tolist()
    for at, logits in enumerate(out.logits):
        best = logits[0].topk(2).values
        if (best[0] - best[1]) < 1e-4 * (logits.max() - logits.min()):
            return tokens[:at]
    return tokens


def main():
    folders = {name: pathlib.Path(sys.argv[1]) / name for name in MODELS}
    models = {}
    for name, folder in folders.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        model.generation_config = transformers.GenerationConfig(pad_token_id=0)
        rows = [{"prompt": prompt, "tokens": continuation(model, prompt)} for prompt in PROMPTS]
        models[name] = rows
        print(name, [len(row["tokens"]) for row in rows], [len(set(row["tokens"])) for row in rows])
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__}: tests/scripts/generate_goldens.py"
    out = json.dumps({"made_by": made_by, "models": models}, indent=None).replace("}, {", "},\n {").replace("], \"", "],\n \"")
    (GOLDEN / "generate.json").write_text(out + "\n")


if __name__ == "__main__":
    main()
