"""What `pizero bench` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pizero.report.pictures import GOOD, INK, MUTED, finish, new_figure, plain, set_title


def print_bench(result: Mapping[str, Any]) -> None:
    """Paths, stages beside their floor, and the ablation where there is one."""
    console, settings = Console(markup=False, emoji=False), result["settings"]
    console.print(
        f"{settings['model']}, {result['parameters'] / 1e6:,.1f} M parameters, {settings['dtype']} "
        f"({result['weights_bytes'] / 2**30:.2f} GiB), batch {settings['batch']}, {settings['cameras']} cameras, "
        f"{settings['prompt']} prompt tokens, {settings['num_steps']} steps, {settings['device']}, "
        f"{result['threads']} threads, torch {result['torch']}"
    )
    console.print(_paths(result))
    if result["apart"]:
        console.print("memory does not hold all weights at once: plain was timed before the others, not in turns")
    if "stages" in result:
        console.print(_stages(result["stages"], settings["num_steps"]))
    if result["kernels"]:
        console.print(_kernels(result["kernels"]))
    if "ablation" in result:
        table = Table(title="Without one optimization, in turns with all of them", title_justify="left")
        table.add_column("without")
        table.add_column("time", justify="right")
        for name, ratio in result["ablation"].items():
            table.add_row(name, f"{ratio:.2f} x")
        console.print(table)


def _paths(result: Mapping[str, Any]) -> Table:
    rows: Mapping[str, Mapping[str, float]] = result["paths"]
    table = Table(title="Whole call", title_justify="left")
    for name in ("path", "median", "best", "times as fast", "first call", "made in", "memory", "RMS from the first"):
        table.add_column(name, justify="left" if name == "path" else "right")
    slowest = next(iter(rows.values()))["median_s"]
    for name, row in rows.items():
        memory = row["working_memory_bytes"]
        table.add_row(
            name, seconds(row["median_s"]), seconds(row["best_s"]), f"{slowest / row['median_s']:.2f}",
            seconds(row["first_call_s"]), seconds(row["packing_s"]) if "packing_s" in row else "",
            "?" if memory < 0 else f"{memory / 2**20:,.0f} MiB", f"{row['rms_from_first_path']:.1e}",
        )  # fmt: skip
    return table


def _stages(stages: Mapping[str, float], num_steps: int) -> Table:
    table = Table(title="Stages of the fast path, beside their products alone", title_justify="left")
    for name in ("stage", "time", "products alone", "share"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    whole = stages["vision_s"] + stages["prefix_s"] + num_steps * stages["step_s"]
    pairs = {
        "vision": (stages["vision_s"], stages["vision_floor_s"]),
        "prefix": (stages["prefix_s"], stages["prefix_floor_s"]),
        "one step": (stages["step_s"], stages["step_floor_s"]),
        "whole call": (whole, stages["floor_s"]),
    }
    for name, (time, floor) in pairs.items():
        table.add_row(name, seconds(time), seconds(floor), f"{floor / time:.0%}" if time else "")
    return table


def _kernels(chosen: Mapping[str, Mapping[str, Any]]) -> Table:
    title = "Kernel of each product: torch's, unless another takes 5 % less time; kept in the cache folder"
    table = Table(title=title, title_justify="left")
    for name in ("tokens x in x out", "kernel", "median when it was chosen"):
        table.add_column(name)
    for name, choice in chosen.items():
        times = ", ".join(f"{way} {value:,.0f} us" for way, value in choice["median_us"].items())
        table.add_row(name, choice["way"], times)
    return table


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


WEIGHT_BITS = {
    8: "weights of 8 bits: this processor adds products of 8 bits without saturation",
    7: "weights of 7 bits: this processor adds products of 8 bits in 16 (no VNNI), where two of them saturate",
}


def print_errors(result: Mapping[str, Any]) -> None:
    """Errors of int8: as a whole, without the worst layers, and of these alone."""
    console = Console(markup=False, emoji=False)
    console.print(f"int8 against {result['dtype']}, {result['observations']} observations of {result['dataset']}")
    console.print(f"{WEIGHT_BITS[result['weight_bits']]}; activations of 8 bits")
    table = Table(title="RMS error over the RMS of what is right", title_justify="left")
    for name in ("in int8", "velocity", "actions"):
        table.add_column(name, justify="left" if name == "in int8" else "right")
    rows = {"everything": result["whole"], f"all but the {len(result['kept'])} worst": result["without_kept"]}
    worst = [name.removesuffix(".*") for name in result["kept"]]
    rows |= {f"{name} alone": result["layers"][name] for name in worst}
    for name, values in rows.items():
        table.add_row(name, f"{values['velocity']:.2%}", f"{values['actions']:.2%}")
    console.print(table)
    console.print(f"to keep the worst out of int8: --keep {' '.join(result['kept'])}")


def print_sweep(settings: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """The fast path's time as one thing changes at a time."""
    console = Console(markup=False, emoji=False)
    console.print(f"{settings.model}, {settings.dtype}, fast path; everything else as in the first row")
    table = Table()
    for name in ("what", "value", "best", "of the first row"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows:
        table.add_row(
            row["what"], str(row["value"]), seconds(row["best_s"]), f"{row['best_s'] / rows[0]['best_s']:.2f} x"
        )
    console.print(table)


def sweep_picture(settings: Any, rows: Sequence[Mapping[str, Any]], path: Path | None = None) -> bytes:
    """PNG: the fast path's time against each thing that changes, all on one scale; a dot is the first row."""
    names = list(dict.fromkeys(row["what"] for row in rows[1:]))
    figure = new_figure(8.0, 2.9)
    set_title(figure, "What a call costs", f"{settings.model}, {settings.dtype}; one thing changes at a time")
    unit, factor = ("s", 1.0) if rows[0]["best_s"] >= 1 else ("ms", 1000.0)
    top = 1.08 * factor * max(row["best_s"] for row in rows)
    for index, name in enumerate(names):
        axes = figure.add_axes((0.08 + index * 0.91 / len(names), 0.19, 0.72 / len(names), 0.55))
        first = (getattr(settings, name), rows[0]["best_s"])
        points = sorted([(row["value"], row["best_s"]) for row in rows[1:] if row["what"] == name] + [first])
        axes.plot(*zip(*((value, factor * time) for value, time in points), strict=True), color=GOOD, marker="o", ms=3)
        axes.plot(first[0], factor * first[1], color=INK, marker="o", ms=5)
        axes.set_ylim(0, top)
        axes.set_xlim(0, 1.1 * points[-1][0])
        axes.set_xticks([value for value, _ in points])
        axes.set_xlabel(name.replace("num_steps", "steps"), color=INK, fontsize=8)
        if index:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel(unit, color=MUTED, fontsize=8)
        plain(axes)
    return finish(figure, path)
