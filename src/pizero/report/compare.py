"""The report of `pizero compare`: success, cost and latency of each rung."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pizero.report.html import Picture, Section, Table, write_report
from pizero.report.pictures import scatter_picture, success_picture


def compare_report(path: Path, results: Mapping[str, Any]) -> None:
    """Writes the HTML page for what compare.json holds."""
    rows: Sequence[Mapping[str, Any]] = results["rows"]
    settings = results["settings"]
    entries = {
        f"{row['rung']}  {_short(row['change'])}": {
            "success_rate": row["success"], "interval": row["interval"], "episodes": row["episodes"],
            "successes": round(row["success"] * row["episodes"]),
        }
        for row in rows
    }  # fmt: skip
    header = ("Rung", "Change", "Success", "95 % interval", "Parameters", "ms a call", "Training", "Memory")
    cells = [
        [
            str(row["rung"]), row["change"], f"{row['success']:.1%}",
            f"{row['interval'][0]:.0%} – {row['interval'][1]:.0%}",
            f"{row['parameters']:,}", f"{row['latency']:.0f}", f"{row['seconds']:.0f} s", f"{row['peak_mib']:.0f} MiB",
        ]
        for row in rows
    ]  # fmt: skip
    points = [(row["latency"], 100 * row["success"], str(row["rung"])) for row in rows]
    costs = [(row["seconds"], 100 * row["success"], str(row["rung"])) for row in rows]
    sections = [
        Section(
            "What each step is worth",
            "Each rung adds one change to the one above it; all learn from the same demonstrations and are evaluated "
            "on the same episodes.",
            [
                Picture(success_picture(entries), "Success rate of each rung with its 95 % interval"),
                Table(header, cells, numbers=(2, 3, 4, 5, 6, 7)),
            ],
        ),
        Section(
            "What it costs",
            "A call is one action chunk for one observation; it and the training ran on one core.",
            [
                Picture(scatter_picture(points, "Success and latency", "milliseconds a call"), "Success by latency"),
                Picture(scatter_picture(costs, "Success and training time", "seconds of training"), "Success by time"),
            ],
        ),
    ]
    facts = {
        "environment": settings["ladder"]["env"],
        "demonstrations": str(settings["demonstrations"]),
        "samples": f"{rows[0]['samples']:,}",
        "seeds": str(len(settings["seeds"])),
    }
    write_report(path, title="pizero: from the diffusion policy to π0", facts=facts, sections=sections)


def _short(change: str) -> str:
    return change.split(":")[0].split(",")[0]
