"""The transformers side of `lctl gpu-check`'s timing of questions: multiple choice of MMLU's shape, asked of a Llama of 8B's shape with random weights.

    lctl gpu-check --json kernels.json
    python benches/versus_transformers_gpu.py --lctl kernels.json --json transformers.json
    python benches/versus_transformers_gpu.py --device cpu --shape tiny

The same 738 questions as src/cli/gpu_check/evaluate.rs (a nineteenth of MMLU: 3 of 57 subjects, 246 questions each), four answers of one token
to each, behind five examples that the questions of a subject share; 517,245 tokens. Sorted by length, the longest first, in batches padded at
their right ends, without a mask (causal attention sees no padding), bf16, sdpa, no cache. lctl computes 2048 tokens at once, batches of 3.

The peers' loops.
    an answer a forward      whole context for each answer, log-softmax of all logits, as lm-eval's hf backend without its cache of logits
    a question a forward     as lm-eval's hf backend does where answers have one token: once for the four
    a question, one row      the same, but the last token's row alone goes through the output layer: what a careful user would write
    examples once            the same behind keys and values of a subject's examples, computed once and copied for each batch: as lctl does,
                             written for this task by hand

Batch sizes are tried in turn; where the time that a loop has is too short for all batches, evenly spaced ones are timed (of the last loop:
subjects), and a batch's result is read before the next one begins. Questions per second are those of the batches timed.

Arithmetic: a question of 701 tokens is 701 x 1.5e10 operations, 0.026 s at 4e14 a second, which an H100 and an H200 should reach: 19 s for all
questions, 78 s for all answers, 3 s with examples once. 55 s are allowed, loading of libraries included, and shared out among loops and batch
sizes.
"""

import sys
import time

import gpu_peers as peers
from gpu_peers import ANSWERS, Way, torch, transformers

ANSWER, QUESTION, ROW, ONCE = "an answer a forward", "a question a forward", "a question, one row", "examples once"
# loops and batch sizes; what counts most goes first
TRIES = [(ROW, 16), (ANSWER, 16), (QUESTION, 16), (ONCE, 16), (ONCE, 64), (ROW, 4), (ROW, 32), (QUESTION, 4), (ANSWER, 4)]
# the shortest examples, by which subjects differ
SHORTEST_EXAMPLES = 400
# fewer batches say nothing
LEAST_BATCHES = 3


def requests(loop, contexts):
    """Returns context, answers and question of each, the longest first."""
    each = [[answer] for answer in ANSWERS] if loop == ANSWER else [ANSWERS]
    found = [(context, answers, i) for i, context in enumerate(contexts) for answers in each]
    return sorted(found, key=lambda request: (-len(request[0]), request[0], request[1]))


def parts(loop, contexts, batch_size):
    """Returns what is timed at once, each a list of batches: a batch; where examples are computed once, a subject."""
    if loop != ONCE:
        return [[batch] for batch in batches(requests(loop, contexts), batch_size)]
    subjects = {}
    for context in contexts:
        subjects.setdefault(tuple(context[: SHORTEST_EXAMPLES]), []).append(context)
    order = {tuple(context): i for i, context in enumerate(contexts)}
    found = []
    for subject in subjects.values():
        ordered = [(context, answers, order[tuple(context)]) for context, answers, _ in requests(loop, subject)]
        found.append(batches(ordered, batch_size))
    return found


def batches(found, batch_size):
    return [found[first : first + batch_size] for first in range(0, len(found), batch_size)]


def padded(rows, device):
    """Returns rows of tokens with zeros at their right ends, and the place of the last token of each."""
    found = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for to, row in zip(found, rows):
        to[: len(row)] = torch.tensor(row)
    return found.to(device), torch.tensor([len(row) - 1 for row in rows], device=device)


def of_last(model, hidden, last):
    """Returns the answers' natural-log probabilities behind the last tokens."""
    rows = hidden[torch.arange(len(last), device=last.device), last]
    return torch.log_softmax(model.lm_head(rows).float(), dim=-1)[:, ANSWERS].tolist()


@torch.inference_mode()
def scores(model, loop, part, device):
    """Returns the natural-log probabilities of each request's answers behind its context, batch by batch, on the host."""
    if loop == ONCE:
        return scores_behind_examples(model, part, device)
    found = []
    for batch in part:
        rows, last = padded([context for context, _, _ in batch], device)
        if loop == ROW:
            found += of_last(model, model.model(input_ids=rows, use_cache=False).last_hidden_state, last)
            continue
        log_probs = torch.log_softmax(model(input_ids=rows, use_cache=False).logits, dim=-1)
        wanted = [[one, len(context) - 1, answer] for one, (context, answers, _) in enumerate(batch) for answer in answers]
        values = iter(log_probs[torch.tensor(wanted, device=device).unbind(1)].tolist())
        found += [[next(values) for _ in answers] for _, answers, _ in batch]
    return found


def scores_behind_examples(model, part, device):
    contexts = [context for batch in part for context, _, _ in batch]
    n_shared = shared(contexts)
    examples = model.model(input_ids=torch.tensor([contexts[0][:n_shared]], device=device), use_cache=True).past_key_values
    found = []
    for batch in part:
        cache = transformers.DynamicCache()
        for number, layer in enumerate(examples.layers):
            copies = [values.expand(len(batch), -1, -1, -1) for values in (layer.keys, layer.values)]
            cache.update(*copies, number)
        rows, last = padded([context[n_shared:] for context, _, _ in batch], device)
        # it adds the questions to the copy
        hidden = model.model(input_ids=rows, past_key_values=cache, use_cache=True).last_hidden_state
        found += of_last(model, hidden, last)
    return found


def shared(contexts):
    """Returns how many tokens all begin with."""
    first, last = min(contexts), max(contexts)
    return next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))


@torch.inference_mode()
def check(device):
    """All loops give what each request alone gives: a tiny model in f32, a part of the questions, batches of 5."""
    model = peers.model("tiny", device).float().eval()
    contexts = peers.questions("tiny")[::67]
    direct = []
    for context in contexts:
        logits = model(input_ids=torch.tensor([context], device=device), use_cache=False).logits[0, -1]
        direct.append([(logits[answer] - logits.logsumexp(-1)).item() for answer in ANSWERS])
    for loop in (ANSWER, QUESTION, ROW, ONCE):
        found = [[None] * len(ANSWERS) for _ in contexts]
        for part in parts(loop, contexts, 5):
            done = [request for batch in part for request in batch]
            for (_, answers, i), values in zip(done, scores(model, loop, part, device)):
                for answer, value in zip(answers, values):
                    found[i][ANSWERS.index(answer)] = value
        worst = max(abs(a - b) for one, other in zip(direct, found) for a, b in zip(one, other))
        # log-probabilities of about -6 in f32, products in another order
        assert worst < 1e-4, f"{loop}: {worst} from each request alone"


def spaced(n, k):
    """Returns k of n places, evenly spaced; all if k is as many."""
    k = min(n, k)
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]


def measure(args, model, loop, batch_size, contexts, seconds_allowed):
    """Returns the figures of a loop."""
    all_parts = parts(loop, contexts, batch_size)
    memory = peers.Memory(args.device)

    def timed(part):
        memory.synchronize()
        begun = time.perf_counter()
        values = scores(model, loop, part, args.device)
        taken = time.perf_counter() - begun
        assert all(value <= 0 for row in values for value in row), "a log-probability is not a number, or above 0"
        return taken

    begun = time.perf_counter()
    # the first one has the longest, or all of a subject: it warms up, and then says how many there is time for
    warm_up = timed(all_parts[0])
    memory.reset()
    once = timed(all_parts[0])
    left = seconds_allowed - (time.perf_counter() - begun)
    places = spaced(len(all_parts), max(1 if loop == ONCE else LEAST_BATCHES, int(left / once)))
    seconds = sum(timed(all_parts[place]) for place in places)
    done = [request for place in places for batch in all_parts[place] for request in batch]
    n_questions = len(done) / (len(ANSWERS) if loop == ANSWER else 1)
    return {
        "requests_per_second": n_questions / seconds, "batch_size": batch_size, "parts_timed": len(places), "parts": len(all_parts),
        "questions_timed": n_questions, "seconds": seconds, "warm_up_seconds": round(warm_up, 4), **memory.peaks(),
    }


def main():
    args = peers.options(__doc__.splitlines()[0], 55)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    peers.say(f"{versions}; {peers.spent():.0f} s to load them")
    shape = f"{args.shape.upper()}, {peers.SUBJECTS * peers.QUESTIONS} questions of MMLU's shape"
    ours = [figure for figure in args.ours["evaluations"] if figure["shape"] == shape] if args.ours else []
    for figure in ours:
        if figure.get("plain_tokens") != peers.QUESTION_TOKENS:
            print(
                f"error: --lctl {args.lctl}: questions of {figure.get('plain_tokens')} tokens, these have {peers.QUESTION_TOKENS}\n"
                "hint: take scripts and lctl of one version", file=sys.stderr,
            )
            return 2
    contexts = peers.questions(args.shape)
    check(args.device)
    findings = peers.Findings(args, versions, ours, "requests_per_second")
    model = None

    def run(loop, batch_size, seconds_allowed):
        nonlocal model
        if model is None:
            model = peers.model(args.shape, args.device).eval()
        return measure(args, model, loop, batch_size, contexts, seconds_allowed)

    for number, (loop, batch_size) in enumerate(TRIES):
        way = Way(f"{loop}, batches of {batch_size}", "bf16", shape)
        left = args.seconds - peers.spent()
        if left < 2:
            way.state, way.reason = "left out", f"{max(left, 0):.0f} s are left"
            findings.add(way)
            continue
        seconds_allowed = left / (len(TRIES) - number)
        findings.measure(way, lambda: run(loop, batch_size, seconds_allowed))
    return findings.close()


if __name__ == "__main__":
    sys.exit(main())
