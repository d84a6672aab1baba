"""The report of an evaluation: success per task and tier with intervals, who else was measured, films."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pizero.report.html import Block, Code, Films, Picture, Section, Table, Video, write_report
from pizero.report.pictures import short_names, success_picture
from pizero.types import UserError

MAX_VIDEO_BYTES = 8_000_000
"""A longer video stays outside the page, which would be slow to open; so do films after this many bytes."""

BASELINES = {
    "demonstrator": "the scripted demonstrator, which reads the true state",
    "random": "random actions",
    "swapped instructions": "the policy with the instruction of another task, judged by the original task",
    "blank images": "the policy without sight",
}


def evaluation_report(path: Path, results: Mapping[str, Any], films: Sequence[Path]) -> None:
    """Writes the HTML report of an evaluation.

    results: "success_rate", "interval", "episodes", and where known "successes", "seconds", "command", "settings"
    {name: value}, "mean_of_tiers", "score", and "per_task", "per_tier" and "baselines" {name: {"success_rate",
    "interval", "successes", "episodes"}}. films: MP4s of episodes. UserError where no episode was completed.
    """
    check_completed({"the evaluation": results})
    sections = [
        outcome(results),
        *subtask_table(results),
        *film_grid(films, subtasks="subtasks" in results),
        *repeat(results),
    ]
    write_report(path, title="pizero: an evaluation", facts=result_facts(results), sections=sections)


def check_completed(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """UserError where one of these has no success rate, with the errors that ended its episodes."""
    for name, entry in rows.items():
        if entry["success_rate"] is None:
            raise UserError(f"no episode of {name.strip()} was completed: {'; '.join(entry['error_texts'])}")


def result_facts(results: Mapping[str, Any]) -> dict[str, str]:
    """The figures at the top of a report."""
    low, high = results["interval"]
    facts = {
        "success rate": _percent(results["success_rate"]),
        "95 % interval": f"{100 * low:.0f}–{100 * high:.0f}\u00a0%",  # on one line
        "episodes": f"{results['episodes']:,}",
    }
    if results.get("mean_of_tiers") is not None:
        facts["mean of the tiers"] = _percent(results["mean_of_tiers"])
    if "score" in results:
        facts["score"] = f"{results['score']:.2f}"
    if "seconds" in results:
        facts["time"] = _duration(results["seconds"])
    return facts


def outcome(results: Mapping[str, Any]) -> Section:
    """Success per task as a picture, and as a table where names are too long for it; per tier, and beside the
    baselines, as tables.
    """
    per_task, baselines = results.get("per_task", {}), results.get("baselines", {})
    picture = success_picture(per_task, baselines, results)
    blocks: list[Block] = [Picture(picture, "Success rate per task with intervals, beside the baselines")]
    if short_names(list(per_task)) != list(per_task):
        full = [_rate_row(name, entry) for name, entry in per_task.items()]
        blocks.append(Table(("Task", "Success", "95 % interval", "Episodes"), full, numbers=(1, 2, 3)))
    tiers = [_rate_row(name, entry) for name, entry in results.get("per_tier", {}).items()]
    if tiers:
        blocks.append(Table(("Tier", "Success", "95 % interval", "Episodes"), tiers, numbers=(1, 2, 3)))
    rows = [[*_rate_row("this policy", results), "trained here"]]
    rows += [[*_rate_row(name, entry), BASELINES.get(name, "")] for name, entry in baselines.items()]
    table = Table(("Who acts", "Success", "95 % interval", "Episodes", "What it is"), rows, numbers=(1, 2, 3))
    text = "Episodes in the simulator in which the prompt was done, without any help."
    return Section("Does it work?", text, [*blocks, table] if baselines else blocks)


def subtask_table(results: Mapping[str, Any]) -> Iterator[Section]:
    """How far episodes of several subtasks came, in all and per task."""
    if "subtasks" not in results:
        return
    named = {"all tasks": results, **results.get("per_task", {})}
    longest = len(results["subtasks"]["per_subtask"])
    head = ("Task", "Subtasks done", "95 % interval", "Of", *(f"No. {number}" for number in range(1, longest + 1)))
    rows: list[list[str]] = []
    for name, entry in named.items():
        found = entry["subtasks"]
        low, high = found["interval"]
        each = [f"{done} of {count}" for done, count in found["per_subtask"]]
        rate = [name, _percent(found["rate"]), f"{100 * low:.0f} – {_percent(high)}", f"{found['all']:,}"]
        rows.append([*rate, *each, *[""] * (longest - len(each))])
    agreed = results.get("subtask_agreement")
    wrote = "" if agreed is None else f" The policy wrote what was due in {_percent(agreed)} of its chunks."
    text = (
        "No. 1, 2, ...: in how many episodes that many subtasks were done, of those that have as many. Subtasks of an "
        f"episode depend on each other, so the interval is too narrow.{wrote}"
    )
    yield Section("How far did it come?", text, [Table(head, rows, numbers=tuple(range(1, len(head))))])


def film_grid(films: Sequence[Path], *, subtasks: bool = False) -> Iterator[Section]:
    """Small films side by side, named by their files; those that do not fit are only named. subtasks: they have a line
    under the picture.
    """
    shown: list[Video] = []
    room = MAX_VIDEO_BYTES
    for film in films:
        room -= film.stat().st_size
        if room >= 0:
            shown.append(Video(film.read_bytes(), film.stem))
    if films:
        more = f" {len(films) - len(shown)} more lie in {films[0].parent.name}/." if len(shown) < len(films) else ""
        text = f"Recorded episodes, named by task and seed.{more}"
        if subtasks:
            text += (
                " Under the picture: subtasks done, and the one that is due; below, what the policy acts on instead."
            )
        yield Section("Films", text, [Films(shown, wide=subtasks)])


def repeat(results: Mapping[str, Any]) -> Iterator[Section]:
    """Settings and command."""
    blocks: dict[str, Block] = {}
    rows = [(str(name), str(value)) for name, value in results.get("settings", {}).items() if value not in (None, ())]
    if rows:
        blocks["settings"] = Table(("Setting", "Value"), rows)
    if results.get("command"):
        blocks["command"] = Code(results["command"])
    if blocks:
        yield Section(" and ".join(blocks).capitalize(), "", list(blocks.values()))


def _rate_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    low, high = entry["interval"]
    rate = _percent(entry["success_rate"])
    return [name, rate, f"{100 * low:.0f} – {_percent(high)}", f"{entry['episodes']:,}"]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
