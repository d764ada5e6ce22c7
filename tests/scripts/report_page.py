"""Looks at the HTML page of a report in headless Chromium, and checks what the Rust tests cannot.

    python tests/scripts/report_page.py --lctl target/debug/lctl --chromium /usr/bin/chromium --out DIR [--page FILE]...

makes two runs of 10,000 samples with hostile texts, renders them with `lctl report` and `lctl gate`, and opens every page
(and each --page) as a file, light and dark, at 1600 and 360 pixels. Screenshots go to DIR. It fails on: a message of the
console, an error, a request; text that became markup; a page wider than the window; something focusable that the Tab
key does not reach or whose focus does not show; a field without a name; text with a contrast below 4.5; filters that give
another count than counting gives; a filter that takes longer than a second.

Needs playwright from PyPI (`pip install playwright`, no browser of its own).
"""

import argparse
import hashlib
import json
import math
import pathlib
import random
import subprocess
import sys
import time

from playwright.sync_api import sync_playwright

HOSTILE = "</script><script>window.pwned=1</script><!-- \"><img src=x onerror=window.pwned=1> ]]> & {{ 7*7 }} \u2028"
TOPICS = ["ports", "crypto", "event ids", "weaknesses", "techniques", "phishing", "response", "protocols"]
LABELS = ["benign", "malicious", "suspicious"]


def choice(rng, index, skill):
    target = rng.randrange(4)
    logits = [rng.gauss(0, 1) for _ in range(4)]
    logits[target] += skill
    top = max(logits)
    total = sum(math.exp(value - top) for value in logits)
    log_probs = [value - top - math.log(total) for value in logits]
    prediction = log_probs.index(max(log_probs))
    question = f"Question {index}: which of these is right about {TOPICS[index % 8]}? " + "More context follows. " * (index % 7)
    if index % 1000 == 3:
        question = HOSTILE
    return {
        "item": f"q{index:05}", "cluster": f"{TOPICS[index % 8]}/{index // 40}", "truncated": index % 500 == 7, "question": question,
        "target": target, "prediction": prediction, "choices": [f"answer {letter} of {index}" for letter in "abcd"],
        "log_probs": log_probs, "is_greedy": [False] * 4, "scores": {"acc": float(target == prediction)},
    }


def label(rng, index, skill):
    target = LABELS[index % 3]
    roll = rng.random()
    answer = target if roll < skill else rng.choice(LABELS) if roll < 0.95 else None
    text = f"The log lines show that this is {answer or 'unclear'}." + (HOSTILE if index % 700 == 5 else "")
    line = {"truncated": False, "question": f"Log line {index}:\nsshd[{index}]: Failed password for root from 192.0.2.{index % 250}\nVerdict:"}
    if index % 997 == 11:
        return line | {"error": "the prompt has 9000 tokens, the context has room for 512", "scores": {"acc": 0.0}}
    return line | {
        "target": target, "prediction": answer, "text": text, "n_tokens": 12, "finish_reason": "stop",
        "scores": {"acc": float(target == answer)},
    }


def figure(name, scores):
    n, mean = len(scores), sum(scores) / len(scores)
    error = math.sqrt(mean * (1 - mean) / n)
    interval = {"lower": max(0, mean - 1.96 * error), "upper": min(1, mean + 1.96 * error)}
    return {"name": name, "value": mean, "stderr": error, "ci95": interval, "n": n, "higher_is_better": True}


def task(suite, name, kind, lines, gate, more):
    texts = [
        json.dumps({"suite": suite, "task": name, "document": index, "line": index + 1} | line)
        for index, line in enumerate(lines)
    ]
    samples = "".join(text + "\n" for text in texts)
    report = {
        "id": name, "type": kind, "description": f"{name}, made up", "data": {"file": f"{name}.jsonl", "sha256": f"data-{name}"},
        "few_shot": None, "chat": False, "documents": len(lines), "errors": sum("error" in line for line in lines),
        "truncated": sum(line["truncated"] for line in lines), "gate": gate, "task_sha256": "t", "prompts_sha256": "p",
        "requests_sha256": "r", "samples_sha256": hashlib.sha256(samples.encode()).hexdigest(),
        "metrics": [figure("acc", [line["scores"]["acc"] for line in lines])], "first_prompt": HOSTILE,
    }
    return report | more, samples


def make_run(directory, name, skill, n, base=None):
    """Writes a run; where `base` is one, most of its answers are taken over."""
    rng = random.Random(1)
    other = random.Random(2)
    plain = {"critical": False, "margin": None, "zero_tolerance": False}
    choices, labels = [], []
    for index in range(n * 7 // 10):
        line = choice(rng, index, 1.5)
        if skill and other.random() < 0.1:
            line = choice(random.Random(index), index, skill) | {"target": line["target"], "question": line["question"]}
            line["scores"] = {"acc": float(line["target"] == line["prediction"])}
        choices.append(line)
    for index in range(n - len(choices)):
        line = label(rng, index, 0.8)
        if skill and other.random() < 0.1 and "error" not in line:
            line = label(random.Random(index), index, 0.6)
        labels.append(line)
    matrix = [[sum(1 for line in labels if line.get("target") == row and line.get("prediction") == column) for column in LABELS] for row in LABELS]
    none = [sum(1 for i, line in enumerate(labels) if LABELS[i % 3] == row and line.get("prediction") is None) for row in LABELS]
    confusion = {"labels": LABELS, "matrix": matrix, "no_label": none, "per_label": []}
    critical = {"critical": True, "margin": 0.02, "zero_tolerance": False}
    first = task("soc-quiz", "letter", "multiple_choice", choices, critical, {})
    second = task("log-triage", "verdict", "classification", labels, plain, {"confusion": confusion})
    report = {
        "lctl_report": 2, "lctl": "0.1.0",
        "model": {"name": name, "sha256": "ab" * 32, "adapter": None, "tokenizer_sha256": "cd" * 32, "chat_template": None},
        "settings": {"compute": "f32", "context": 512, "seed": 0, "limit": None, "few_shot": None, "chat_template": "auto"},
        "suites": [
            {"name": "soc-quiz", "description": "made-up questions", "sha256": "ef" * 32, "tasks": [first[0]]},
            {"name": "log-triage", "description": "made-up log lines", "sha256": "01" * 32, "tasks": [second[0]]},
        ],
        "run": {"isa": "avx2", "threads": 2, "engine_seconds": 12.5},
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (directory / "samples.jsonl").write_text(first[1] + second[1])
    return choices + labels


def run(*args, expect=(0,)):
    done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True)
    assert done.returncode in expect, f"{args}: {done.returncode}\n{done.stderr}"


# Every visible text's contrast with the nearest background that is not transparent, WCAG 2.
CONTRAST = """() => {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const colour = (text) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = text;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => value / 255).map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const low = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility() || element.closest('svg, script, .hidden, button:disabled')) continue;
    const chain = [];
    for (let at = element; at; at = at.parentElement) chain.push(colour(getComputedStyle(at).backgroundColor));
    const back = chain.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    const front = over(colour(getComputedStyle(element).color), back);
    const [x, y] = [luminance(front), luminance(back)].sort((a, b) => b - a);
    const ratio = (x + 0.05) / (y + 0.05);
    if (ratio < 4.5) low.set(`${element.tagName}.${element.className}: ${node.textContent.trim().slice(0, 40)}`, ratio.toFixed(2));
  }
  return [...low];
}"""

FOCUSABLE = """() => [...document.querySelectorAll('a[href], button:not(:disabled), input, select, summary, [tabindex="0"]')]
  .filter((element) => element.checkVisibility() && !element.closest('[hidden]'))
  .map((element, index) => { element.dataset.tab = index; return element.tagName + ' ' + (element.textContent || element.name || '').trim().slice(0, 30); })"""

FOCUSED = """() => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  return { tab: element.dataset ? element.dataset.tab : undefined, shows: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 };
}"""


def check_tabs(page, problems, what):
    names = page.evaluate(FOCUSABLE)
    page.evaluate("() => { document.activeElement.blur(); window.scrollTo(0, 0); }")
    page.evaluate("() => getSelection().removeAllRanges()")
    reached = set()
    for _ in range(len(names) + 30):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused.get("tab") is None:
            continue
        if focused["tab"] in reached and len(reached) == len(names):
            break
        reached.add(focused["tab"])
        if not focused["shows"]:
            problems.append(f"{what}: the focus does not show on {names[int(focused['tab'])]}")
    missed = [name for index, name in enumerate(names) if str(index) not in reached]
    if missed:
        problems.append(f"{what}: Tab does not reach {len(missed)} of {len(names)}: {missed[:5]}")
    return len(names)


def count(page):
    page.wait_for_timeout(250)
    return int(page.text_content("#count").split(" of ")[0].replace(",", ""))


def check_filters(page, samples, other, problems, what):
    def expect(name, wanted):
        found = count(page)
        if found != wanted:
            problems.append(f"{what}: {name}: {found} samples, not {wanted}")

    expect("no filter", len(samples))
    page.select_option("[name=grade]", "wrong")
    wrong = [line for line in samples if line["scores"]["acc"] == 0 and "error" not in line]
    expect("wrong", len(wrong))
    page.select_option("[name=suite]", "log-triage")
    expect("wrong in a suite", sum("choices" not in line for line in wrong))
    page.click("button[type=reset]")
    expect("cleared", len(samples))
    page.select_option("[name=grade]", "error")
    expect("errors", sum("error" in line for line in samples))
    page.click("button[type=reset]")
    started = time.monotonic()
    page.fill("[name=text]", "Question 1234:")
    expect("search", 1)
    if time.monotonic() - started > 1:
        problems.append(f"{what}: the search took {time.monotonic() - started:.1f} s")
    page.fill("[name=text]", "")
    page.fill("[name=cluster]", "crypto/1")
    expect("cluster", sum((line.get("cluster") or "").startswith("crypto/1") for line in samples))
    page.click("button[type=reset]")
    if other is not None:
        page.select_option("[name=change]", "lost")
        lost = [line for line, base in zip(samples, other) if line["scores"]["acc"] < base["scores"]["acc"]]
        expect("lost", len(lost))
        page.click("button[type=reset]")
        page.click("#gate a[href*=gained]")
        expect("a link to what was gained", sum(
            line["scores"]["acc"] > base["scores"]["acc"] for line, base in zip(samples, other) if "choices" in line))
        page.click("button[type=reset]")
    page.select_option("[name=order]", "sure")
    count(page)
    page.click("#list > li:first-child summary")
    page.wait_for_selector("#list .sample")
    page.click("button[type=reset]")
    count(page)
    before = page.text_content("#range")
    page.click("#next")
    if page.text_content("#range") == before:
        problems.append(f"{what}: the next page is the same")
    page.click("button[type=reset]")
    count(page)


def look(browser, path, out, problems, samples=None, other=None):
    for scheme in ("light", "dark"):
        for width in (1600, 360):
            what = f"{path.stem} {scheme} {width}"
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
            page = context.new_page()
            page.on("console", lambda message: problems.append(f"{what}: console: {message.text}"))
            page.on("pageerror", lambda error: problems.append(f"{what}: error: {error}"))
            page.on("request", lambda request: request.url.startswith(("file:", "data:")) or problems.append(f"{what}: asks for {request.url}"))
            started = time.monotonic()
            page.goto(path.resolve().as_uri())
            page.wait_for_selector("#list > li")
            loaded = time.monotonic() - started
            if scheme == "light" and samples is not None:
                check_filters(page, samples, other, problems, what)
                # something hostile, opened
                page.fill("[name=text]", "onerror=window.pwned")
                count(page)
                page.click("#open-all")
                page.wait_for_timeout(100)
                shot(page, out / f"{what} hostile.png")
                page.click("button[type=reset]")
                count(page)
            for details in page.query_selector_all("#clusters details, #calibration details"):
                details.evaluate("node => { node.open = true; }")
            for index in (1, 2):
                page.click(f"#list > li:nth-child({index}) summary")
            page.wait_for_timeout(100)
            if page.evaluate("() => window.pwned") is not None:
                problems.append(f"{what}: a text became a script")
            if page.evaluate("() => document.images.length") != 0:
                problems.append(f"{what}: a text became an image")
            wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                problems.append(f"{what}: {wide} pixels wider than the window")
            for text, ratio in page.evaluate(CONTRAST):
                problems.append(f"{what}: contrast {ratio}: {text}")
            page.evaluate("() => window.scrollTo(0, 0)")
            shot(page, out / f"{what}.png")
            stops = check_tabs(page, problems, what)
            print(f"{what}: loaded in {loaded:.2f} s, {stops} stops of the Tab key", flush=True)
            if (scheme, width) == ("light", 1600):
                page.emulate_media(media="print")
                page.pdf(path=str(out / f"{path.stem}.pdf"), format="A4")
            context.close()


def shot(page, path):
    page.screenshot(path=str(path).replace(" ", "-"), full_page=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lctl", required=True)
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--page", type=pathlib.Path, action="append", default=[])
    parser.add_argument("--samples", type=int, default=10_000)
    args = parser.parse_args()
    out = args.out
    base = make_run(out / "base", "base-model", 0, args.samples)
    new = make_run(out / "new", "new-model-q4", 0.8, args.samples)
    run(args.lctl, "report", out / "base", "--html", out / "single.html", "--force", "--quiet")
    run(args.lctl, "gate", out / "base", out / "new", "--html", out / "diff.html", "--force", "--quiet", expect=(0, 3, 4))
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        look(browser, out / "single.html", out, problems, base)
        look(browser, out / "diff.html", out, problems, new, base)
        for path in args.page:
            look(browser, path, out, problems)
        browser.close()
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
