"""Checks the queries of datasets/query-translate.jsonl with pySigma.

    python tests/scripts/check_queries.py datasets/query-translate.jsonl

Every Sigma rule must parse, and its parts must be those that the row gives. The rule of each cluster, converted to SPL and KQL by
pySigma's backends, is printed beside our queries of that cluster, to be read. Last run with pysigma 1.5.1,
pysigma-backend-splunk 2.1.0 and pysigma-backend-kusto 1.0.1.
"""

import json
import sys

from sigma.backends.kusto import KustoBackend
from sigma.backends.splunk import SplunkBackend
from sigma.collection import SigmaCollection
from sigma.rule import SigmaRule

OPERATORS = {
    "SigmaContainsModifier": "contains",
    "SigmaStartswithModifier": "startswith",
    "SigmaEndswithModifier": "endswith",
}


def parts(rule):
    for name, detection in rule.detection.detections.items():
        for item in detection.detection_items:
            operator = OPERATORS[item.modifiers[0].__name__] if item.modifiers else "equals"
            value = item.original_value
            value = value[0] if isinstance(value, list) else value
            yield {
                "field": item.field,
                "operator": "not_equals" if name == "filter" else operator,
                "value": str(value).replace("\\\\", "\\"),
            }


def main(path):
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    shown = set()
    n = 0
    for row in rows:
        if row["language"] != "Sigma":
            continue
        rule = SigmaRule.from_yaml(row["query"])
        assert not rule.errors, (row["id"], rule.errors)
        for condition in rule.detection.parsed_condition:
            assert condition.parsed, row["id"]
        assert list(parts(rule)) == row["selects"]["conditions"], (row["id"], list(parts(rule)))
        assert (rule.logsource.category or rule.logsource.service) == row["selects"]["source"], row["id"]
        n += 1
        if row["cluster"] not in shown:
            shown.add(row["cluster"])
            for backend, language in [(SplunkBackend(), "SPL"), (KustoBackend(), "KQL")]:
                ours = [r["query"] for r in rows if r["cluster"] == row["cluster"] and r["language"] == language]
                print(backend.convert(SigmaCollection.from_yaml(row["query"]))[0])
                print("   ", "\n    ".join(query.replace("\n", " ") for query in ours))
    print(f"{n} Sigma rules parse and have the parts that the rows give")


main(sys.argv[1])
