"""What `pizero bench` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_bench(result: Mapping[str, Any]) -> None:
    """Paths, stages beside their floor, and the ablation where there is one."""
    console, settings = Console(), result["settings"]
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
    if "ablation" in result:
        table = Table(title="Without one fact, in turns with all of them", title_justify="left")
        table.add_column("left out")
        table.add_column("time", justify="right")
        for fact, ratio in result["ablation"].items():
            table.add_row(fact, f"{ratio:.2f} x")
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


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def print_errors(result: Mapping[str, Any]) -> None:
    """Errors of int8: as a whole, without the worst layers, and of these alone."""
    console = Console()
    console.print(f"int8 against {result['dtype']}, {result['observations']} observations of {result['dataset']}")
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
    console = Console()
    console.print(f"{settings.model}, {settings.dtype}, fast path; everything else as in the first row")
    table = Table()
    for name in ("what", "value", "best", "of the first row"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows:
        table.add_row(
            row["what"], str(row["value"]), seconds(row["best_s"]), f"{row['best_s'] / rows[0]['best_s']:.2f} x"
        )
    console.print(table)
