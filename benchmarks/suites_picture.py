"""docs/results/benchmarks.png: success of the suites in docs/results/benchmarks.json, with intervals.

python benchmarks/suites_picture.py
"""

from __future__ import annotations

import json
from pathlib import Path

from pizero.evaluation.benchmark import wilson_interval
from pizero.report.pictures import success_picture

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def main() -> None:
    suites = json.loads((RESULTS / "benchmarks.json").read_text())
    rows = {
        name: {
            **counts,
            "success_rate": counts["successes"] / counts["episodes"],
            "interval": wilson_interval(counts["successes"], counts["episodes"]),
        }
        for name, counts in suites.items()
    }
    success_picture(rows, path=RESULTS / "benchmarks.png")


if __name__ == "__main__":
    main()
