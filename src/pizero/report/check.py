"""The report of `pizero check`: findings, what the cameras see, recorded and predicted chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pizero.data.doctor.examine import Examination
from pizero.data.doctor.names import short
from pizero.data.doctor.open_loop import Replay
from pizero.report.html import Picture, Section, Table, write_report
from pizero.report.pictures import GROUP_COLOURS, MUTED, WIDTH, film_strip, finish, new_figure, plain, set_title

SHOWN_DIMS, SHOWN_CHUNKS, SHOWN_EPISODES, SHOWN_FAULTS = 16, 12, 8, 100


def check_report(path: Path, results: Mapping[str, Any], examination: Examination, played: Replay | None) -> None:
    """Writes the HTML page for what check.json holds."""
    findings = results["findings"]
    counts = {kind: sum(finding["severity"] == kind for finding in findings) for kind in ("error", "warning", "note")}
    facts = {
        "errors": str(counts["error"]), "warnings": str(counts["warning"]),
        "episodes": f"{results['episodes']:,}", "frames": f"{results['frames']:,}",
    }  # fmt: skip
    sections = [_findings(findings), *_faults(results["faults"]), *_cameras(examination), _numbers(examination)]
    if results["verdict"] is not None:
        sections.insert(0, _verdict(results["verdict"]))
    if played is not None:
        sections.append(_replay(results["replay"], played, examination.subject.action_names))
    write_report(path, title=f"pizero check: {Path(results['dataset']).name}", facts=facts, sections=sections)


def _verdict(verdict: Mapping[str, Any]) -> Section:
    rows = [[aspect["aspect"], aspect["state"], aspect["text"]] for aspect in verdict["aspects"]]
    return Section("Will it evaluate as it trained?", verdict["text"] + ".", [Table(("", "", "why"), rows)])


def _findings(findings: list[dict[str, str]]) -> Section:
    if not findings:
        return Section("Findings", "None: nothing that is looked for was found.")
    header = ("", "where", "what is seen", "what to do")
    rows = [[f["severity"], f"{f['check']}: {f['where']}", f["evidence"], f["advice"]] for f in findings]
    return Section("Findings", "", [Table(header, rows)])


def _faults(faults: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    if not faults:
        return
    more = f" The first {SHOWN_FAULTS} of {len(faults)}; check.json has all." if len(faults) > SHOWN_FAULTS else ""
    rows = [[str(f["episode"]), f["file"], f["text"]] for f in faults[:SHOWN_FAULTS]]
    table = Table(("episode", "file", "what is seen"), rows, numbers=(0,))
    yield Section("Episodes that training refuses", f"File by file.{more}", [table])


def _cameras(examination: Examination) -> Iterator[Section]:
    names = [f"episode {episode}" for episode in examination.episodes]
    pictures = [
        Picture(film_strip(np.stack(list(seen.pictures)), count=SHOWN_EPISODES, names=names), f"Camera {name}", True)
        for name, seen in examination.looks.items()
    ]
    if pictures:
        yield Section("What the cameras see", "The middle of some episodes, each column one of them.", pictures)


def _numbers(examination: Examination) -> Section:
    rows: list[list[str]] = []
    for name, values in examination.subject.columns.items():
        names = examination.subject.names(name)
        usable = values[np.isfinite(values).all(axis=1)].astype(np.float64)
        if not len(usable):
            continue
        q01, q99 = np.quantile(usable, (0.01, 0.99), axis=0)
        columns = (usable.min(axis=0), q01, usable.mean(axis=0), q99, usable.max(axis=0), usable.std(axis=0))
        for dim in range(usable.shape[1]):
            of_dim = ["" if names is None else short(names[dim]), *(f"{column[dim]:.4g}" for column in columns)]
            rows.append([name if dim == 0 else "", str(dim), *of_dim])
    header = ("", "dim", "name", "least", "1 %", "mean", "99 %", "greatest", "deviation")
    return Section("Numbers", "As recorded, over all frames.", [Table(header, rows, numbers=(1, *range(3, 9)))])


def _replay(summary: Mapping[str, Any], played: Replay, names: Sequence[str] | None) -> Section:
    rows = [
        [str(dim), "" if names is None else short(names[dim]), f"{error:.4g}", _text(relative), _text(constant)]
        for dim, (error, relative, constant) in enumerate(
            zip(summary["error"], summary["relative_error"], summary["constant_error"], strict=True)
        )
    ]
    header = ("dim", "name", "mean absolute error", "in standard deviations", "of a constant action")
    blocks: list[Picture | Table] = [
        Picture(_chunks_picture(played, names), "Recorded and predicted chunks"),
        Table(header, rows, numbers=(0, *range(2, 5))),
    ]
    if summary["grippers"]:
        grippers = [
            [
                dim if names is None else short(names[int(dim)]),
                f"{100 * g['same_side']:.0f} %",
                f"{g['found']} of {g['events']}",
                str(g["extra"]),
            ]
            for dim, g in summary["grippers"].items()
        ]
        blocks.append(Table(("gripper", "on the right side", "events found", "extra"), grippers, numbers=range(4)))
    text = f"{summary['chunks']} chunks of {summary['episodes']}. Errors in the robot's units."
    return Section("Replay", text, blocks)


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _chunks_picture(played: Replay, names: Sequence[str] | None) -> bytes:
    """One small plot per action dimension: chunks one after the other, recorded and predicted."""
    dims = min(played.recorded.shape[2], SHOWN_DIMS)
    chunks = np.linspace(0, len(played.frames) - 1, min(SHOWN_CHUNKS, len(played.frames))).round().astype(int)
    height = 0.9 * dims + 0.9
    figure = new_figure(WIDTH, height)
    colours = list(GROUP_COLOURS.values())
    for dim in range(dims):
        axes = figure.add_axes((0.07, 1 - (0.75 + 0.9 * (dim + 1)) / height + 0.02, 0.91, 0.66 / height))
        at = 0
        for chunk in chunks:
            inside = ~played.padded[chunk]
            steps = at + np.arange(int(inside.sum()))
            first = chunk == chunks[0]
            axes.plot(
                steps, played.recorded[chunk, inside, dim], color=MUTED, linewidth=2.5, alpha=0.5,
                label="recorded" if first else None,
            )  # fmt: skip
            axes.plot(
                steps, played.predicted[chunk, inside, dim], color=colours[0], linewidth=1,
                label="predicted" if first else None,
            )  # fmt: skip
            at += len(steps) + 3
        plain(axes)
        axes.set_xticks([])
        axes.tick_params(labelsize=6)
        axes.set_ylabel(str(dim), fontsize=8, color=MUTED, rotation=0, labelpad=8)
        if dim == 0:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=8)
    set_title(figure, "Recorded and predicted action chunks", "One row per action dimension, robot units")
    return finish(figure, None)
