"""Writes tests/golden/quantize_files.json: SHA-256 of whole files that llama-quantize makes.

    LCTL_MODELS=MADE cargo test -- --ignored write_models_for_the_reference
    python tests/scripts/quantize_goldens.py LLAMA_QUANTIZE MADE TEST_DATA_DIR OUT.json

Each key is `MODEL TYPE OPTIONS`, run in the section's directory, so that the path of an importance matrix,
which the file records, is the same for whoever repeats it.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TYPES = "Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ4_NL IQ4_XS".split()


def digest(program, cwd, model, kind, options):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.gguf"
        command = [program, *options, str(model), str(out), kind, "2"]
        subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return hashlib.sha256(out.read_bytes()).hexdigest()


def main():
    program, made, data, out = Path(sys.argv[1]).resolve(), *map(Path, sys.argv[2:5])
    result = {"made": {}, "checkpoints": {}, "casts": {}}

    for name in ["dense", "odd", "moe8", "moe3"]:
        model, imatrix = f"{name}.gguf", ["--imatrix", f"{name}.dat"]
        for kind in TYPES + ["MXFP4_MOE"]:
            for options in [[], imatrix]:
                result["made"][" ".join([model, kind, *options])] = digest(program, made, model, kind, options)
        result["made"][" ".join([model, "Q2_K_S", *imatrix])] = digest(program, made, model, "Q2_K_S", imatrix)
    for line in [
        "dense.gguf Q4_K_M --pure",
        "dense.gguf Q4_K_M --leave-output-tensor --token-embedding-type q5_1",
        "dense.gguf Q5_K_M --output-tensor-type f16 --tensor-type blk\\.[12]\\.attn_v=q8_0 --tensor-type ffn_down=iq4_xs",
        "dense.gguf Q8_0 --override-kv llama.context_length=int:99 --override-kv general.name=str:abc",
        "dense.gguf F16",
        "dense.gguf BF16",
        "dense.gguf F32",
        "odd.gguf Q6_K --output-tensor-type q4_0",
        "moe8.gguf Q4_K_M --tensor-type ffn_down=q8_0",
    ]:
        model, kind, *options = line.split(" ")
        result["made"][line] = digest(program, made, model, kind, options)

    for name in ["stories260K-hf", "llama2xs-hf"]:
        model = data / "models" / name / f"{name}-f32.gguf"
        for kind in ["Q8_0", "Q4_0", "Q4_K_M", "Q6_K"]:
            result["checkpoints"][f"{name} {kind}"] = digest(program, data, model, kind, [])

    folder = data / "golden/quantize"
    with tempfile.TemporaryDirectory() as casts:
        for cast in ["F16", "F32"]:
            model = Path(casts) / f"probe-llama-{cast}.gguf"
            source = folder / "probe-llama-bf16.gguf"
            subprocess.run([program, source, model, cast], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for kind in TYPES:
                for options in [[], ["--imatrix", "probe-llama.imatrix.gguf"]]:
                    key = " ".join([model.name, kind, *options])
                    result["casts"][key] = digest(program, folder, model, kind, options)

    Path(out).write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
