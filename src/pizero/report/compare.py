"""The report of `pizero compare`: success, cost and latency of each rung, and the studies beside the ladder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pizero.report.curves import Point, curves_picture
from pizero.report.html import Picture, Section, Table, write_report
from pizero.report.pictures import error_picture, scatter_picture, success_picture

Rows = Sequence[Mapping[str, Any]]


def compare_report(path: Path, results: Mapping[str, Any]) -> None:
    """Writes the HTML page for what compare.json holds."""
    settings, rows = results["settings"], results["rows"]
    sections: list[Section] = []
    if "trivial" in results:
        sections += _recorded(results)
    elif rows:
        sections += [_ladder(rows), _costs(rows)]
    if results["single"] and "trivial" not in results:
        text = "A rung as it is, and with one change at a time."
        changed = {row["rung"] for row in results["single"]}
        entries = [row for row in rows if row["rung"] in changed] + list(results["single"])
        sections.append(Section("One change at a time", text, [_success(entries, numbered=False), _table(entries)]))
    for key, x, title, label in (
        ("demonstrations", "demonstrations", "Demonstrations", "demonstrations, all tasks together"),
        ("steps", "num_steps", "Inference steps", "calls of the network per chunk"),
        ("rates", "learning_rate", "Learning rates", "learning rate"),
    ):
        if results[key] and "trivial" not in results:
            picture = curves_picture(_curves(results[key], x), f"Success by {title.lower()}", label)
            sections.append(Section(title, _TEXTS[key], [Picture(picture, title), _table(results[key], (x, title))]))
    if "trivial" in results:
        source = {"recording": settings["dataset"]}
    else:
        source = {
            "environment": settings["ladder"]["env"],
            "demonstrations of each task": str(settings["demonstrations"]),
        }
    facts = source | {
        "budget of a run": _budget(settings["ladder"]),
        "seeds": str(max((len(row["seeds"]) for row in rows), default=1)),
    }
    write_report(path, title="pizero: from the diffusion policy to π0", facts=facts, sections=sections)


def _recorded(results: Mapping[str, Any]) -> list[Section]:
    """One section per study: errors by rung, and by dimension in the robot's units."""
    sections: list[Section] = []
    for key, title in (("rows", "What each step is worth"), ("single", "One change"), ("rates", "Learning rates")):
        if results[key]:
            rows = [*results["trivial"], *results[key]]
            header = ["Dimension", *(_named(row) for row in rows)]
            cells = [
                [name, *(f"{row['open_loop_error'][dim]:.4g}" for row in rows)]
                for dim, name in enumerate(results["actions"])
            ]
            text = (
                "Mean absolute error of the actions that would be played, on held-out episodes, in standard deviations "
                "of the recorded actions; below, by dimension in the robot's own units. A policy must be better than a "
                "constant action (the median) and than the action before, held."
            )
            table = Table(header, cells, numbers=tuple(range(1, len(header))))
            sections.append(Section(title, text, [_errors(rows), _table(results[key]), table]))
    return sections


def _named(row: Mapping[str, Any]) -> str:
    if "rung" not in row:
        return row["change"]
    rate = f", rate {row['learning_rate']:g}" if row["variant"].count("_rate") else ""
    return f"{row['rung']}  {short_change(row['change'])}{rate}"


def _errors(rows: Rows) -> Picture:
    bars = [(_named(row), row["relative_error"], "rung" not in row) for row in rows]
    return Picture(error_picture(bars), "Error of each network beside guesses that need none")


_TEXTS = {
    "demonstrations": "The same training budget with fewer and more demonstrations.",
    "steps": "Trained rungs with other numbers of inference steps. Rungs 3 and 4 are the same network, once trained by "
    "diffusion, once by flow matching.",
    "rates": "Short trainings with each rung's learning rate times 0.4, 1 and 2.5. Chosen by the error on held-out "
    "episodes, since short trainings hardly succeed.",
}


def _ladder(rows: Rows) -> Section:
    return Section(
        "What each step is worth",
        "Each rung adds one change to the one above it; all learn from the same demonstrations and are evaluated on "
        "the same episodes.",
        [_success(rows, numbered=True), _table(rows)],
    )


def _costs(rows: Rows) -> Section:
    points = [(row["latency"], 100 * row["success"], str(row["rung"])) for row in rows]
    times = [(row["seconds"], 100 * row["success"], str(row["rung"])) for row in rows]
    return Section(
        "What it costs",
        "A call is one action chunk for one observation; it and the training ran on one core.",
        [
            Picture(scatter_picture(points, "Success and latency", "milliseconds a call"), "Success by latency"),
            Picture(scatter_picture(times, "Success and training time", "seconds of training"), "Success by time"),
        ],
    )


def _success(rows: Rows, numbered: bool) -> Picture:
    entries = {
        (f"{row['rung']}  " if numbered else "") + short_change(row["change"]): {
            "success_rate": row["success"], "interval": row["interval"], "episodes": row["episodes"],
            "successes": round(row["success"] * row["episodes"]),
        }
        for row in rows
    }  # fmt: skip
    return Picture(success_picture(entries), "Success rate of each network with its 95 % interval")


def _table(rows: Rows, extra: tuple[str, str] | None = None) -> Table:
    """extra: a key of the rows and its heading."""
    played = ("Success", "95 % interval") if "success" in rows[0] else ()
    header = ["Rung", "Change", *([extra[1]] if extra else []), *played, "Open-loop error", "ms a call"]
    if "parameters" in rows[0]:
        header += ["Parameters", "Training", "Memory"]
    cells: list[list[str]] = []
    for row in rows:
        line = [str(row["rung"]), row["change"], *([f"{row[extra[0]]:g}"] if extra else [])]
        if played:
            line += [f"{row['success']:.1%}", f"{row['interval'][0]:.0%} – {row['interval'][1]:.0%}"]
        line += [f"{row['relative_error']:.3f}" if "relative_error" in row else "", f"{row['latency']:.0f}"]
        if "parameters" in row:
            line += [f"{row['parameters']:,}", f"{row['seconds']:.0f} s", f"{row['peak_mib']:.0f} MiB"]
        cells.append(line)
    return Table(header, cells, numbers=tuple(range(2, len(header))))


def _curves(rows: Rows, key: str) -> dict[str, list[Point]]:
    curves: dict[str, list[Point]] = {}
    for row in rows:
        name = f"{row['rung']}  {short_change(row['change'])}"
        curves.setdefault(name, []).append((float(row[key]), row["success"], *row["interval"]))
    return curves


def _budget(ladder: Mapping[str, Any]) -> str:
    if ladder["seconds"]:
        return f"{ladder['seconds']:g} CPU seconds of one core"
    return f"{ladder['steps'] * ladder['batch_size']:,} samples"


def short_change(change: str) -> str:
    """As pictures name it; no two variants of a study alike."""
    return change.split(":")[0].split(",")[0]
