"""CVSS scores by the PyPI package `cvss`.

    python tests/scripts/cvss_goldens.py tests/golden/cvss

`vectors`: 1,000 random vectors per version, half of them with random optional metrics; each with the score of its
base metrics alone and, for v4.0, the score of all of its metrics. `all_base_sha256`: SHA-256 over the base scores of
all combinations of base metrics, one decimal and a line feed each, in the order of nested loops over the metrics as
the specification lists them (the last one fastest), values as `values` lists them.
"""

import hashlib
import itertools
import json
import random
import sys
from pathlib import Path

from cvss import CVSS3, CVSS4, constants3, constants4


def metrics(constants):
    """Returns the values per metric, base metrics apart from the optional ones."""
    values = {name: list(known) for name, known in constants.METRICS_VALUE_NAMES.items()}
    base = {name: values[name] for name in constants.METRICS_MANDATORY}
    return base, {name: known for name, known in values.items() if name not in base}


def base_score(version, vector):
    return CVSS4(vector).base_score if version == "4.0" else CVSS3(vector).base_score


def text_of(version, chosen):
    return "/".join([f"CVSS:{version}"] + [f"{name}:{value}" for name, value in chosen])


def random_vectors(version, base, optional):
    rng = random.Random(f"cvss {version}")
    for number in range(1000):
        chosen = [(name, rng.choice(values)) for name, values in base.items()]
        plain = text_of(version, chosen)
        if number % 2:
            chosen += [(name, rng.choice(values)) for name, values in optional.items() if rng.random() < 0.5]
        vector = text_of(version, chosen)
        row = [vector, float(base_score(version, plain))]
        if version == "4.0":
            row.append(float(CVSS4(vector).base_score))
        yield row


def all_base(version, base):
    digest = hashlib.sha256()
    count = 0
    for combination in itertools.product(*base.values()):
        score = base_score(version, text_of(version, zip(base, combination)))
        digest.update(f"{float(score):.1f}\n".encode())
        count += 1
    return count, digest.hexdigest()


def main():
    out = Path(sys.argv[1])
    for version, constants in [("3.0", constants3), ("3.1", constants3), ("4.0", constants4)]:
        base, optional = metrics(constants)
        count, digest = all_base(version, base)
        rows = ",\n".join(json.dumps(row) for row in random_vectors(version, base, optional))
        head = json.dumps({"version": version, "values": base, "n_base": count, "all_base_sha256": digest})
        (out / f"v{version}.json").write_text(head[:-1] + ', "vectors": [\n' + rows + "\n]}\n")


main()
