"""The lm-eval side of versus_lm_eval.sh.

    python versus_lm_eval.py prepare CYBERMETRIC.json OUT_DIR LIMIT
        writes data and task files for both programs: the first 5 questions are the examples, the next LIMIT the test.
    python versus_lm_eval.py run OUT_DIR MODEL TASK BATCH_SIZE THREADS
        evaluates TASK (letter or cloze) with 5 examples by lm-eval's hf backend in f32 on the CPU, and prints the
        seconds it took once the model was loaded, and the accuracy.
"""

import json
import pathlib
import sys
import time

SYSTEM = "The following are multiple choice questions (with answers) about cybersecurity.\n\n"
PROMPTS = {
    "letter": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
    "cloze": "Question: {{question.strip()}}\nAnswer:",
}


def prepare(source, out, limit):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    questions = json.loads(pathlib.Path(source).read_text())["questions"]
    rows = [
        {
            "question": question["question"],
            "choices": [question["answers"][letter] for letter in "ABCD"],
            "answer": "ABCD".index(question["solution"].strip()),
        }
        for question in questions
        if all(letter in question["answers"] for letter in "ABCD")
    ]
    for name, part in (("dev", rows[:5]), ("test", rows[5 : 5 + int(limit)])):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for name, prompt in PROMPTS.items():
        choices = list("ABCD") if name == "letter" else "choices"
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {split: str(out / f"{split}.jsonl") for split in ("test", "dev")}},
            "test_split": "test",
            "fewshot_split": "dev",
            "fewshot_config": {"sampler": "first_n"},
            "output_type": "multiple_choice",
            "description": SYSTEM,
            "doc_to_text": prompt,
            "doc_to_target": "answer",
            "doc_to_choice": choices,
            "metric_list": [{"metric": "acc"}],
        }
        (out / f"{name}.lm-eval.yaml").write_text(json.dumps(task))
        suite = {
            "version": 1,
            "name": name,
            "data": {split: {"path": f"{split}.jsonl", "format": "jsonl"} for split in ("test", "dev")},
            "tasks": [
                {
                    "id": name,
                    "type": "multiple_choice",
                    "data": "test",
                    "system": SYSTEM,
                    "few_shot": {"n": 5, "from": "dev"},
                    "prompt": prompt,
                    "choices": choices if name == "letter" else {"field": "choices"},
                    "target": {"index": "{{ answer }}"},
                    "metrics": ["acc"],
                }
            ],
        }
        (out / f"{name}.suite.yaml").write_text(json.dumps(suite))


def run(out, model, task, batch_size, threads):
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(int(threads))
    lm = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=int(batch_size))
    config = json.loads((pathlib.Path(out) / f"{task}.lm-eval.yaml").read_text())
    begun = time.perf_counter()
    results = simple_evaluate(
        model=lm, tasks=[config], num_fewshot=5, task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0, log_samples=False,
    )
    seconds = time.perf_counter() - begun
    print(f"{seconds:.3f} {results['results'][task]['acc,none']}")


if __name__ == "__main__":
    {"prepare": prepare, "run": run}[sys.argv[1]](*sys.argv[2:])
