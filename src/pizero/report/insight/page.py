"""The page of `pizero inspect` with an observation: one file that opens offline and answers to its reader."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pizero.report.architecture import LEGEND, table_text
from pizero.report.html import Live, Picture, Place, Section, Table, write_report
from pizero.report.insight.boxes import figure_boxes
from pizero.report.insight.charts import errors_picture, gates_picture, straightness_picture
from pizero.report.insight.flow import NEEDED
from pizero.report.insight.measure import GATE_TIMES, Insight
from pizero.report.mask import mask_picture

LARGEST_ATTENTION = 2_500_000
"""Weights on the page, one byte each; of more steps than fit, some are left out evenly."""


def insight_page(path: Path, insight: Insight, title: str) -> None:
    """Writes the page, at most a few MB."""
    text = f"Prompt: {insight.observation.get('prompt', '')!r}."
    if subtask := insight.observation.get("subtask"):
        text += f" The text that the actions are for: {subtask!r}."
    sections = [
        Section("The model", text + " Choose a box to see its code, its shapes and what it costs.", [Place("figure")]),
        _looks(insight), *_flow(insight), *_gates(insight), *_mask(insight), _milliseconds(insight), *_table(insight),
    ]  # fmt: skip
    page = files("pizero.report").joinpath("page")
    live = Live(
        page.joinpath("insight.js").read_text(encoding="utf-8"),
        page.joinpath("insight.css").read_text(encoding="utf-8"),
        json.dumps(page_data(insight), separators=(",", ":")),
    )
    write_report(path, title=title, facts=_facts(insight), sections=sections, live=live)


def page_data(insight: Insight) -> dict[str, Any]:
    """What the script draws."""
    groups, attention = _attention(insight)
    cameras = [
        {
            "name": name, "image": _png(image), "width": image.shape[1], "height": image.shape[0],
            "keys": groups.get(f"camera {name}"), "whole": insight.occlusion.cameras[name],
            "occlusion": np.round(insight.occlusion.windows[name], 5).tolist(),
        }
        for name, image in insight.images.items()
    ]  # fmt: skip
    return {
        "boxes": figure_boxes(insight), "steps": insight.num_steps, "total": insight.costs["TOTAL"],
        "cameras": cameras, "groups": groups, "attention": attention, "words": insight.words,
        "word_occlusion": np.round(insight.occlusion.words, 5).tolist(), "flow": _course(insight),
    }  # fmt: skip


def _attention(insight: Insight) -> tuple[dict[str, tuple[int, int]], dict[str, Any] | None]:
    """Ranges of keys without padding, and the weights: a byte each, 255 times the square root of its share
    in the largest weight of its map, so that small ones are not lost.
    """
    if insight.attention is None or insight.groups is None:
        return {}, None
    kept = ~insight.groups.padding
    before = np.concatenate([[0], np.cumsum(kept)])
    groups = {
        name: (int(before[start]), int(before[end])) for name, (start, end) in insight.groups.ranges.items()
    }  # fmt: skip
    weights = insight.attention.array()[..., kept]
    every = max(1, -(-weights.size // LARGEST_ATTENTION))
    weights = weights[::every]
    largest = weights.max(axis=-1)
    levels = (np.sqrt(weights / largest[..., None].clip(1e-12)) * 255).round().astype(np.uint8)
    return groups, {
        "shape": weights.shape, "every": every, "largest": [float(f"{value:.4g}") for value in largest.flatten()],
        "levels": base64.b64encode(levels.tobytes()).decode(),
    }  # fmt: skip


def _course(insight: Insight) -> dict[str, Any] | None:
    flow, scene = insight.flow, insight.scene
    if flow is None:
        return None
    path = None
    if scene is not None:
        points = [[scene.to_picture(*map(float, action[:2])) for action in chunk] for chunk in flow.actions]
        path = {"camera": insight.scene_camera, "points": np.round(points, 4).tolist()}
    actions = [[[float(f"{value:.4g}") for value in row] for row in chunk] for chunk in flow.actions]
    return {"actions": actions, "names": insight.action_labels, "path": path}


def _facts(insight: Insight) -> dict[str, str]:
    facts = {
        "model": insight.kind, "parameters": f"{insight.parameters:,}",
        "plain path": f"{insight.costs['TOTAL']:,.1f} ms",
    }  # fmt: skip
    if insight.fast_ms is not None:
        facts["fast path"] = f"{insight.fast_ms:,.1f} ms"
    if insight.flow is not None:
        needed, errors = insight.flow.errors.needed, insight.flow.errors
        facts["steps, needed"] = f"{insight.num_steps}, {needed or f'> {max(errors.errors)}'}"
        facts["path length"] = f"× {insight.flow.straight.length:.2f}"
    return facts


def _looks(insight: Insight) -> Section:
    text = (
        "Occlusion: a part of the input is blanked, and the chunk is made again from the same noise; the figure is how "
        "far it moves, root mean square in normalised units. "
    )
    if insight.attention is None:
        which = (
            "writes its actions as tokens of the prompt's own sequence" if insight.kind == "π0-FAST" else
            "has no attention"
        )  # fmt: skip
        text += f"A {insight.kind} {which}; so there is no attention from action tokens to show."
    else:
        text = (
            "Attention: the weights with which the action tokens read images and words, averaged over the actions of "
            "the chunk. It shows where the model looks, not what follows from it. " + text +
            f"Checked in this run: the rows of weights sum to 1, {_within(insight.attention.worst_sum)}; weights times "
            f"values give what the model's own layers gave, {_within(insight.attention.worst_output)}."
        )  # fmt: skip
    return Section("What it looks at, and what matters", text, [Place("looks")])


def _within(error: float) -> str:
    return f"within {error:.0e}" if error else "exactly"


def _flow(insight: Insight) -> Iterator[Section]:
    flow = insight.flow
    if flow is None:
        yield Section("From noise to a chunk", f"A {insight.kind} writes tokens; there is no flow to show.")
        return
    text = f"One noise, {insight.num_steps} steps; grey: earlier steps. In the robot's units."
    if insight.scene is None:
        text += " Actions are drawn into a picture for tabletop and PushT, where they are positions under a camera "
        text += "that looks straight down; this robot's are not."
    yield Section("From noise to a chunk", text, [Place("flow")])
    errors = flow.errors
    what = (
        f"{errors.needed} steps are enough" if errors.needed is not None else "none of these numbers of steps is enough"
    )
    table = Table(
        ["steps", "error"], [[str(steps), f"{error:.4f}"] for steps, error in errors.errors.items()], numbers=(0, 1)
    )
    yield Section(
        "How many steps this policy needs",
        f"For an error of {NEEDED:g} in normalised units {what}: measured for this observation with {flow.noises} "
        f"noises against {errors.reference} steps. It is the error of integration; how much of it a task forgives, an "
        "evaluation shows.",
        [
            Picture(errors_picture(errors), "Error of integration against the number of steps"),
            Picture(straightness_picture(flow.straight), "Distance from the straight velocity over flow time"), table,
        ],
    )  # fmt: skip


def _gates(insight: Insight) -> Iterator[Section]:
    if insight.gates is not None:
        text = "The flow time reaches every layer of the action expert through its norms; the gates say how much of a "
        text += "layer's output is added. They depend on the flow time alone."
        yield Section("Gates over flow time", text, [Picture(gates_picture(insight.gates, GATE_TIMES), "Gates")])
    elif insight.kind == "π0":
        yield Section("Gates over flow time", "A π0 has none: its flow time is joined with the actions.")


def _mask(insight: Insight) -> Iterator[Section]:
    if insight.architecture is not None:
        picture = Picture(mask_picture(insight.architecture.config), "The attention mask: who sees whom")
        yield Section("Who sees whom", "", [picture])


def _milliseconds(insight: Insight) -> Section:
    total = insight.costs["TOTAL"]
    rows = [
        [name, f"{value:,.2f}", f"{100 * value / total:.1f} %"]
        for name, value in sorted(insight.costs.items(), key=lambda item: -item[1])
        if name not in ("TOTAL", "OTHER")
    ]
    rows.append(["the rest", f"{insight.costs['OTHER']:,.2f}", f"{100 * insight.costs['OTHER'] / total:.1f} %"])
    text = "Medians of calls of the plain path on this machine, this process, all integration steps together."
    if insight.fast_ms is not None:
        text += f" The fast path, timed in turn with them: {insight.fast_ms:,.1f} ms."
    table = Table(["", "ms", "share"], rows, (1, 2), ["one call", f"{total:,.2f}", "100.0 %"])
    return Section("Where the milliseconds go", text, [table])


def _table(insight: Insight) -> Iterator[Section]:
    if insight.architecture is not None:
        header, rows, total = table_text(insight.architecture)
        yield Section("Every box", LEGEND, [Table(header, rows, (4, 5, 6, 7), total)])


def _png(image: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
