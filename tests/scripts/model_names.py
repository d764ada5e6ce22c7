#!/usr/bin/env python3
"""What llama.cpp's converter takes model ids apart into, for src/model/name.rs.

usage: model_names.py GGUF_PY OUT.json     (GGUF_PY: the gguf-py folder of a llama.cpp source tree)
"""
import json
import sys

B, M = 10**9, 10**6
NAMES = [
    ("meta-llama/Llama-2-7b-chat-hf", 7 * B), ("Meta-Llama-3.1-70B-Instruct", 70 * B), ("Llama-3.2-1B", B),
    ("mistralai/Mistral-7B-Instruct-v0.3", 7 * B), ("Mixtral-8x22B-v0.1", 141 * B), ("WizardLM-2-8x22B", 141 * B),
    ("Qwen/Qwen2.5-Coder-32B-Instruct-GPTQ-Int4", 32 * B), ("Qwen3-30B-A3B-Instruct-2507", 30 * B),
    ("Qwen3-0.6B-Base", 600 * M), ("google/gemma-3-27b-it", 27 * B), ("gemma-3-270m", 270 * M), ("gemma-2b", 2 * B),
    ("microsoft/Phi-3.5-mini-instruct", 4 * B), ("Phi-3-medium-128k-instruct", 14 * B), ("phi-4", 14 * B),
    ("Phi-4-mini-instruct", 4 * B), ("CodeLlama-34b-Python-hf", 34 * B), ("bigscience/bloom-7b1-petals", 7 * B),
    ("TinyLlama-1.1B-Chat-v1.0", 1100 * M), ("Yi-34B-200K", 34 * B), ("llama-3-8b-256k-PoSE", 8 * B),
    ("Hermes-2-Pro-Llama-3-8B-DPO", 8 * B), ("c4ai-command-r-v01", 35 * B), ("grok-1", 314 * B), ("Smaug-34b-v0.1", 34 * B),
    ("SmolLM2-135M-Instruct", 135 * M), ("OLMo-2-1124-7B", 7 * B), ("model-q4_0-v2", B), ("a/b/c-7B", 7 * B), ("-x--7B-", 7 * B),
    ("./local-model-v1", B), ("../7B", 7 * B), ("My nice model 7B", 7 * B), ("", B), ("v1.0", B), ("iter1-7B-v2-iter3", 7 * B),
    ("Base-fp16", B), ("Some_Model_7B", 7 * B), ("Flan-T5-xxl", 11 * B), ("nomic-embed-text-v1.5", 137 * M), ("A-7B-7B-chat-chat", 7 * B),
    ("x-1_5B-small", 1500 * M), ("x-lora-7B", 7 * B), ("vision-7B", 7 * B), ("Nemotron-4-340B-Instruct", 340 * B), ("9b-it", 9 * B),
    ("tiny-1T", 10**12), ("x-7B", 0), ("x-32k-instruct", 0), ("ünicode-Ärger-7B", 7 * B), ("stories260K-hf", 260_000),
    ("llama2xs-hf", 200_000), ("Llama3-8B-1.58-100B-tokens", 8 * B), ("granite-3.1-3b-a800m-instruct", 3 * B),
]
TITLES = ["llama2xs-hf", "stories260K-hf", "Mistral-7B-v0.2", "a-b7c-d", "  x--y  ", "v2-beta-v3x", "meta-llama", "o'neill-x", "ünïcode-ß", "7b-it"]


def main():
    sys.path.insert(0, sys.argv[1])
    import gguf

    names = [[name, total, list(gguf.Metadata.get_model_id_components(name, total))] for name, total in NAMES]
    titles = [[text, gguf.Metadata.id_to_title(text)] for text in TITLES]
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in names)
        out.write('{"names": [\n' + rows + '\n],\n"titles": ' + json.dumps(titles, ensure_ascii=False) + "}\n")


if __name__ == "__main__":
    main()
