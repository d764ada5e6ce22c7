"""What benches/versus_peft_gpu.py and benches/versus_transformers_gpu.py share: the shapes, tokens and questions of `lctl gpu-check`
(src/cli/gpu_check/train.rs and evaluate.rs), models of random weights made on the device, options, budgets, and ratios to lctl's figures.
"""

import argparse
import dataclasses
import gc
import json
import os
import pathlib
import sys
import time

STARTED = time.monotonic()
# what torch has of memory is less in pieces then, and goes further; versions before 2.9 pass over it
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

try:
    import torch
    import transformers
except ImportError as error:
    print(f"error: {error}\nhint: torch and transformers must be importable", file=sys.stderr)
    sys.exit(2)

SHAPES = {
    "8b": dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256,
    ),
    "tiny": dict(
        hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=300,
    ),
}
# of LoRA of rank 16 on all linear layers but the output layer; lctl's counts: `n_parameters` of kernels.json, and a test of train.rs
LORA_PARAMETERS = {"8b": 41_943_040, "tiny": 59_392}

# subjects, questions of each; how many tokens they have together, and the sum of these: evaluate.rs has a test of the same
SUBJECTS, QUESTIONS = 3, 246
QUESTION_TOKENS, QUESTION_SUM = 517_245, 30_945_237_765
ANSWERS = [32, 33, 34, 35]


def options(about, seconds):
    """Returns what the command line says, checked; ends with status 2 if it cannot be done here."""
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures and ratios there")
    parser.add_argument("--lctl", type=pathlib.Path, metavar="FILE", help="what `lctl gpu-check --json FILE` wrote: gives ratios")
    parser.add_argument("--seconds", type=float, default=seconds, metavar="N", help=f"most seconds, counted from the start ({seconds})")
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu (cuda:0)")
    parser.add_argument("--shape", default="8b", choices=sorted(SHAPES), help="Llama 3.1 8B, or a tiny one to try this on a CPU (8b)")
    args = parser.parse_args()
    try:
        device = torch.device(args.device)
    except RuntimeError:
        parser.error(f"--device {args.device}: no device is called so")
    if device.type not in ("cuda", "cpu"):
        parser.error(f"--device {args.device}: cuda:N or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        parser.error(f"--device {args.device}: torch sees {torch.cuda.device_count()} GPUs; `--device cpu --shape tiny` tries the script")
    if device.type == "cpu" and args.shape != "tiny":
        parser.error("--device cpu has no time for 8B: add `--shape tiny`")
    if not args.seconds > 0:
        parser.error("--seconds must be above 0")
    args.ours = read(parser, args.lctl) if args.lctl else None
    args.device = device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return args


def read(parser, path):
    """Returns what gpu-check wrote."""
    try:
        ours = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"--lctl {path}: {error}")
    if not isinstance(ours, dict) or "trainings" not in ours or "evaluations" not in ours:
        parser.error(f"--lctl {path}: not what `lctl gpu-check --json` writes")
    return ours


def spent():
    """Returns the seconds since the start."""
    return time.monotonic() - STARTED


def say(text):
    print(text, flush=True)


def config(shape):
    """Returns the sizes that train.rs has."""
    return transformers.LlamaConfig(
        **SHAPES[shape], max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, use_cache=False,
    )


def model(shape, device, seed=1):
    """Returns a Llama in bf16 whose matrices were drawn on the device from a normal distribution of 0.02; norms are 1. Its shape is made
    without memory: nothing is drawn by transformers, which would do so in f32 on the host."""
    with torch.device("meta"):
        made = transformers.AutoModelForCausalLM.from_config(config(shape), dtype=torch.bfloat16, attn_implementation="sdpa")
    made.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
    # what a model has besides parameters came without values, too
    made.model.rotary_emb = type(made.model.rotary_emb)(made.config).to(device)
    assert all(parameter.dtype == torch.bfloat16 for parameter in made.parameters())
    assert made.config._attn_implementation == "sdpa"
    made.requires_grad_(False)
    return made


def token(i, shape):
    """As `Shape::tokens`."""
    return (i * i % 7919 * 31 + i) % SHAPES[shape]["vocab_size"]


def tokens(shape, n, length):
    return [[token(d * length + t, shape) for t in range(length)] for d in range(n)]


def questions(shape):
    """Returns the contexts of `questions` of evaluate.rs: subjects' examples, a question's number, and the question."""
    shots = tokens(shape, SUBJECTS, 800)
    contexts = []
    for i, question in enumerate(tokens(shape, SUBJECTS * QUESTIONS, 160)):
        subject = i // QUESTIONS
        number = (i + 1) % SHAPES[shape]["vocab_size"]
        contexts.append(shots[subject][: 400 + subject % 3 * 200] + [number] + question[: 40 + i * 37 % 121])
    assert sum(map(len, contexts)) == QUESTION_TOKENS
    assert shape != "8b" or sum(map(sum, contexts)) == QUESTION_SUM
    return contexts


@dataclasses.dataclass
class Way:
    """A figure of the peer, or why there is none."""

    # how the peer computes, and the `what` and `shape` of lctl's figure beside it
    peer: str
    what: str
    shape: str
    # measured, out of memory, failed, left out, skipped
    state: str = ""
    reason: str = ""
    figures: dict = dataclasses.field(default_factory=dict)


class Memory:
    """Peak memory of a device: bytes of live tensors at a time, as torch counts them."""

    def __init__(self, device):
        self.device = device

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self):
        """Gives back what nothing refers to."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def reset(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peaks(self):
        """Returns the most bytes of tensors, and of what torch took of the driver for them; nothing for a CPU."""
        if self.device.type != "cuda":
            return {"peak_bytes": None, "reserved_bytes": None}
        return {
            "peak_bytes": torch.cuda.max_memory_allocated(self.device),
            "reserved_bytes": torch.cuda.max_memory_reserved(self.device),
        }


def is_out_of_memory(error):
    text = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in text or "CUBLAS_STATUS_ALLOC_FAILED" in text


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def gibibytes(count):
    return "" if count is None else f"{count / 2**30:.1f}"


def compare(ways, ours, speed):
    """Returns lctl's figure, the peer's and the ratios of `speed` and of peak memory, for every way that both have, and the fastest and the
    smallest peer of each: `ours / theirs`, so above 1 lctl is faster, below 1 it takes less memory."""
    ratios = []
    for key in dict.fromkeys((way.what, way.shape) for way in ways):
        mine = next((figure for figure in ours if (figure["what"], figure["shape"]) == key), None)
        theirs = [way for way in ways if (way.what, way.shape) == key and way.state == "measured"]
        for way in theirs if mine else []:
            ratios.append(ratio(mine, way.peer, way.figures, speed))
        if mine and len(theirs) > 1:
            fastest = max(theirs, key=lambda way: way.figures[speed])
            smallest = min(theirs, key=lambda way: way.figures["peak_bytes"] or 0)
            best = {speed: fastest.figures[speed], "peak_bytes": smallest.figures["peak_bytes"]}
            ratios.append(ratio(mine, "the best of each", best, speed))
    return ratios


def ratio(mine, peer, theirs, speed):
    def over(name):
        return mine[name] / theirs[name] if theirs[name] else None

    return {
        "what": mine["what"], "shape": mine["shape"], "peer": peer,
        "lctl": {name: mine[name] for name in (speed, "peak_bytes")},
        "theirs": {name: theirs[name] for name in (speed, "peak_bytes")},
        f"{speed}_ratio": over(speed), "peak_bytes_ratio": over("peak_bytes"),
    }


class Findings:
    """The figures of all ways so far, written whenever there is one more: a job that is cut off leaves them."""

    def __init__(self, args, versions, ours, speed):
        self.args, self.versions, self.ours, self.speed = args, versions, ours or [], speed
        self.ways, self.ratios = [], []

    def add(self, way):
        self.ways.append(way)
        self.ratios = compare(self.ways, self.ours, self.speed)
        say(self.line(way) + f"; at {spent():.0f} s")
        self.write(is_whole=False)

    def measure(self, way, run):
        """Adds a way with the figures that `run` returns, or with what went wrong; returns the figures."""
        memory = Memory(self.args.device)
        try:
            way.figures = run()
            way.state = "measured"
        except Exception as error:
            way.state = "out of memory" if is_out_of_memory(error) else "failed"
            way.reason = "" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        # the error is gone here, and with it the tensors of the frames that it went through
        memory.free()
        self.add(way)
        return way.figures

    def line(self, way):
        start = f"{way.peer}: {way.what}, {way.shape}: "
        if way.state != "measured":
            return start + way.state + (f" ({way.reason})" if way.reason else "")
        peak = gibibytes(way.figures["peak_bytes"])
        return start + f"{way.figures[self.speed]:.1f} {self.unit()}" + (f", {peak} GiB" if peak else "")

    def unit(self):
        return self.speed.replace("_per_second", "/s")

    def write(self, is_whole):
        if not self.args.json:
            return
        device = self.args.device
        found = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "shape": self.args.shape, "versions": self.versions, "is_whole": is_whole,
            "seconds": round(spent(), 1), "seconds_allowed": self.args.seconds,
            "ways": [dataclasses.asdict(way) for way in self.ways], "ratios": self.ratios,
        }
        try:
            self.args.json.write_text(json.dumps(found, indent=2) + "\n")
        except OSError as error:
            print(f"error: --json {self.args.json}: {error}", file=sys.stderr)
            sys.exit(2)

    def close(self):
        """Prints the ratios; returns the exit status: 1 if a way failed."""
        for found in self.ratios:
            mine, theirs, peak = found["lctl"], found["theirs"], found["peak_bytes_ratio"]
            text = f"lctl beside {found['peer']}: {found['what']}, {found['shape']}: {mine[self.speed]:.1f} and {theirs[self.speed]:.1f} {self.unit()}, "
            text += f"{found[f'{self.speed}_ratio']:.2f} times as fast"
            if peak:
                text += f"; {gibibytes(mine['peak_bytes'])} and {gibibytes(theirs['peak_bytes'])} GiB, {peak:.2f} of the memory"
            say(text)
        beside = {(found["what"], found["shape"]) for found in self.ratios}
        for what, shape in dict.fromkeys((way.what, way.shape) for way in self.ways):
            if self.args.ours and (what, shape) not in beside:
                say(f"no ratio for {what}, {shape}: lctl, the peer or both have no figure")
        self.write(is_whole=True)
        say(f"{spent():.0f} s")
        return int(any(way.state == "failed" for way in self.ways))
