"""Pictures as PNG. Every function returns the bytes, and writes them to `path` when one is given.

Figures are made without pyplot, so nothing global is touched and any thread may draw.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pizero.files import write_bytes
from pizero.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, PALE = "#1f2933", "#66727f", "#d9dee3", "#f3f5f7"
GROUP_COLOURS = {
    "images": "#3b6fb6", "prompt": "#2a9d8f", "state": "#e0982f", "actions": "#c8475b", "text": "#7a5ea8",
    "FAST": "#8a6f4d",
}  # fmt: skip
GOOD, REFERENCE = GROUP_COLOURS["images"], "#9aa5b1"
DPI = 180
WIDTH = 8.0  # inches; all pictures but the square mask


# -------------------------------------------------------------------------------------------------- noise to actions


def flow_picture(
    trajectory: NDArray[np.floating[Any]], labels: Sequence[str] | None = None, path: Path | None = None
) -> bytes:
    """Noise becoming an action chunk: x_t [n + 1, H, D] from t = 1 (noise) to t = 0 (actions), in robot units.

    One panel per dimension.

    labels: names of the first dimensions; only these are drawn (None: the first eight).
    """
    if trajectory.ndim != 3 or len(trajectory) < 2:
        raise UserError(f"trajectory: got shape {trajectory.shape}, expected [num_steps + 1, horizon, action_dim]")
    names = list(labels) if labels else [f"dimension {i}" for i in range(min(8, trajectory.shape[2]))]
    steps, columns = len(trajectory) - 1, len(names) if len(names) < 6 else min(5, -(-len(names) // 2))
    rows = -(-len(names) // columns)
    height = 1.2 + 1.75 * rows
    figure = new_figure(WIDTH, height)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    figure.subplots_adjust(left=0.065, right=0.98, top=1 - 0.98 / height, bottom=0.5 / height, wspace=0.1, hspace=0.34)
    colours = _noise_to_action(steps + 1)
    limit = 1.05 * max(1.0, float(np.abs(trajectory[..., : len(names)]).max()))
    for axes, i in zip(grid.flat, range(rows * columns), strict=True):
        if i >= len(names):
            axes.set_visible(False)
            continue
        for k in range(steps + 1):
            width, alpha = (2.2, 1.0) if k == steps else (0.9, 0.75)
            axes.plot(trajectory[k, :, i], color=colours[k], linewidth=width, alpha=alpha)
        plain(axes)
        axes.set_ylim(-limit, limit)
        axes.set_title(names[i], fontsize=9.5, color=INK, loc="left", pad=4)
        if i + columns >= len(names):
            axes.set_xlabel("control step", fontsize=8, color=MUTED)
            axes.tick_params(labelbottom=True)
    set_title(figure, "Noise becomes an action chunk", f"{steps} integration steps; robot units")
    _time_key(figure, colours, height)
    return finish(figure, path)


def _noise_to_action(count: int) -> NDArray[np.floating[Any]]:
    """Colours [count, 3] from the grey of noise to the colour of actions."""
    start, end = np.array(rgb("#c3ccd6")), np.array(rgb(GROUP_COLOURS["actions"]))
    return start + np.linspace(0, 1, count)[:, None] * (end - start)


def _time_key(figure: Figure, colours: NDArray[np.floating[Any]], height: float) -> None:
    """A small colour bar in the upper right corner: flow time 1 to 0."""
    axes = figure.add_axes((0.8, 1 - 0.42 / height, 0.18, 0.13 / height))
    axes.imshow(colours[None], aspect="auto", interpolation="nearest")
    axes.set_axis_off()
    for x, text, side in ((0.0, "t = 1, noise", "left"), (1.0, "t = 0, action", "right")):
        axes.text(x, -0.5, text, transform=axes.transAxes, fontsize=8, color=MUTED, ha=side, va="top")


# -------------------------------------------------------------------------------------------------- training


def loss_picture(metrics: Sequence[Mapping[str, Any]], path: Path | None = None) -> bytes:
    """Loss over training steps from the lines of `metrics.jsonl`: "loss", and "validation_loss" where a line has it."""
    train = np.array([(line["step"], line["loss"]) for line in metrics if "loss" in line], dtype=float).reshape(-1, 2)
    held_out = [(line["step"], line["validation_loss"]) for line in metrics if "validation_loss" in line]
    if not len(train):
        raise UserError("metrics hold no training loss: expected lines with the keys step and loss")
    figure = new_figure(WIDTH, 3.6)
    axes = figure.add_axes((0.075, 0.145, 0.775, 0.65))
    half = len(train) // 60
    smooth = _running_mean(train[:, 1], half)
    axes.plot(train[:, 0], train[:, 1], color=GOOD, alpha=0.25, linewidth=1)
    axes.plot(train[:, 0], smooth, color=GOOD, linewidth=2)
    ends = [(float(train[-1, 0]), float(smooth[-1]), "training", GOOD)]
    if held_out:
        points = np.array(held_out, dtype=float)
        colour = GROUP_COLOURS["actions"]
        axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=2, marker="o", markersize=4, clip_on=False)
        ends.append((float(points[-1, 0]), float(points[-1, 1]), "held out", colour))
    axes.set_yscale("log")
    axes.set_xlim(0, max(end[0] for end in ends))
    plain(axes)
    _label_ends(axes, ends)
    axes.set_xlabel("training step", fontsize=9, color=MUTED)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    axes.tick_params(which="minor", labelsize=8, labelcolor=MUTED, length=0)
    bold = "; bold: running mean" if half else ""
    set_title(figure, "Loss", f"Squared error of the velocity, logarithmic scale{bold}")
    return finish(figure, path)


def _running_mean(values: NDArray[np.floating[Any]], half: int) -> NDArray[np.floating[Any]]:
    """Mean over up to `half` neighbours on either side."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Name and last value at the right end of each curve, moved apart where they would touch."""
    axes.figure.canvas.draw()  # type: ignore[union-attr]
    placed: list[float] = []
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        pixel = float(axes.transData.transform((x, y))[1])
        pixel = max([pixel, *(other + 0.21 * axes.figure.dpi for other in placed)])
        placed.append(pixel)
        height = float(axes.transAxes.inverted().transform((0.0, pixel))[1])
        axes.text(1.012, height, f"{name} {y:.3g}", transform=axes.transAxes, fontsize=9, color=colour, va="center")


# -------------------------------------------------------------------------------------------------- success rates


def success_picture(
    per_task: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Mapping[str, Any]] | None = None,
    overall: Mapping[str, Any] | None = None, path: Path | None = None,
) -> bytes:  # fmt: skip
    """Success rates with 95 % intervals: tasks, all tasks together, then the baselines.

    Each entry holds "success_rate", "interval" [low, high] in 0 to 1, and maybe "successes" and "episodes". The
    baselines "demonstrator" and "random" are drawn as reference lines too.
    """
    groups = [
        [
            (name, entry, GOOD, False)
            for name, entry in zip(short_names(list(per_task)), per_task.values(), strict=True)
        ],
        [("all tasks", overall, GOOD, True)] if overall else [],
        [(name, entry, REFERENCE, False) for name, entry in (baselines or {}).items()],
    ]
    rows = sum(map(len, groups))
    if not rows:
        raise UserError("no success rates to draw: per_task is empty")
    height = 1.25 + (0.36 if rows < 20 else 0.25) * (rows + 0.6 * sum(map(bool, groups)))
    figure = new_figure(WIDTH, height)
    axes = figure.add_axes((0.29, 0.42 / height, 0.47, 1 - 1.28 / height))
    y = 0.0
    for group in groups:
        for name, entry, colour, strong in group:
            _interval(axes, y, name, entry, colour, strong)
            y += 1
        y += 0.6 if group else 0
    axes.set_ylim(y - 0.9, -0.7)
    axes.set_xlim(-0.02, 1.02)
    for name in ("demonstrator", "random"):
        if baselines and name in baselines and baselines[name]["success_rate"] is not None:
            axes.axvline(baselines[name]["success_rate"], color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
            axes.text(baselines[name]["success_rate"], 1.01, name, transform=axes.get_xaxis_transform(), fontsize=8,
                      color=MUTED, ha="center", va="bottom")  # fmt: skip
    plain(axes, grid="x")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    set_title(figure, "Success rate", "Point: measured. Bar: 95 % Wilson interval.")
    return finish(figure, path)


def short_names(names: Sequence[str], longest: int = 28) -> list[str]:
    """Names of tasks, of at most `longest` characters: where one is longer, without the words that all of them begin
    and end with, and then without its middle.
    """
    if max(map(len, names), default=0) <= longest:
        return list(names)
    parts = [re.split(r"(?<=[_ ])", name) for name in names]
    most = min(map(len, parts)) - 1 if len(parts) > 1 else 0
    start = next((place for place in range(most) if len({part[place] for part in parts}) > 1), most)
    most -= start
    end = next((place for place in range(most) if len({part[-1 - place] for part in parts}) > 1), most)
    bare = ["".join(part[start : len(part) - end]).rstrip("_ ") for part in parts]
    shown = [f"{'…' if start else ''}{name}{'…' if end else ''}" for name in bare]
    return [name if len(name) <= longest else f"{name[: longest // 2 - 1]}…{name[-longest // 2 :]}" for name in shown]


def _interval(axes: Axes, y: float, name: str, entry: Mapping[str, Any], colour: str, strong: bool) -> None:
    rate, (low, high) = entry["success_rate"], entry["interval"]
    if rate is not None:
        axes.plot([low, high], [y, y], color=colour, linewidth=7 if strong else 5, alpha=0.3, solid_capstyle="round")
        axes.plot([rate], [y], "o", color=colour, markersize=9 if strong else 7, clip_on=False)
    weight = "bold" if strong else "normal"
    texts = [(-0.02, name), (1.16, "–" if rate is None else f"{100 * rate:.0f} %")]
    if "successes" in entry and "episodes" in entry:
        texts.append((1.4, f"{entry['successes']} of {entry['episodes']}"))
    for x, text in texts:
        axes.text(x, y, text, transform=axes.get_yaxis_transform(), fontsize=9.5, color=INK, ha="right", va="center",
                  fontweight=weight)  # fmt: skip


# -------------------------------------------------------------------------------------------------- scatter


def scatter_picture(
    points: Sequence[tuple[float, float, str]], title: str, x_label: str, path: Path | None = None
) -> bytes:
    """Labelled points (x, success in percent, label)."""
    if not points:
        raise UserError("no points to draw")
    figure = new_figure(WIDTH, 3.4)
    axes = figure.add_axes((0.08, 0.15, 0.88, 0.63))
    for x, y, label in points:
        axes.plot([x], [y], "o", color=GOOD, markersize=7, clip_on=False)
        axes.annotate(label, (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9, color=INK)
    axes.set_xlim(0, 1.08 * max(x for x, _, _ in points))
    axes.set_ylim(-3, 103)
    plain(axes)
    axes.set_xlabel(x_label, fontsize=8, color=MUTED)
    set_title(figure, title, "Success in percent. The number is the rung.")
    return finish(figure, path)


# -------------------------------------------------------------------------------------------------- errors


def error_picture(bars: Sequence[tuple[str, float, bool]], path: Path | None = None) -> bytes:
    """Bars (name, error in standard deviations, whether it is a guess for reference)."""
    height = 1.1 + 0.3 * len(bars)
    figure = new_figure(WIDTH, height)
    axes = figure.add_axes((0.33, 0.36 / height, 0.58, 1 - 1.05 / height))
    for y, (name, error, reference) in enumerate(bars):
        axes.barh(y, error, height=0.62, color=REFERENCE if reference else GOOD)
        axes.text(error, y, f" {error:.2f}", fontsize=9, color=INK, va="center")
        axes.text(-0.02, y, name if len(name) <= 38 else name[:37] + "…", transform=axes.get_yaxis_transform(),
                  fontsize=9, color=INK, ha="right", va="center")  # fmt: skip
    axes.set_ylim(len(bars) - 0.4, -0.6)
    plain(axes, grid="x")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    set_title(figure, "Error on held-out episodes", "Standard deviations of the recorded actions. Grey: no network.")
    return finish(figure, path)


# -------------------------------------------------------------------------------------------------- film strip


def film_strip(
    frames: NDArray[np.uint8], path: Path | None = None, *, count: int = 8, fps: float | None = None,
    names: Sequence[str] | None = None,
) -> bytes:  # fmt: skip
    """`count` frames of [n, h, w, 3], evenly spaced from first to last, side by side.

    Below them their `names`, or with `fps` their times, or their numbers.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise UserError(f"frames: got shape {frames.shape}, expected [n, h, w, 3]")
    count = min(count, len(frames))
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    side = WIDTH / count * 0.96
    height = side * frames.shape[1] / frames.shape[2] + 0.28
    figure = new_figure(WIDTH, height)
    for i, index in enumerate(chosen):
        axes = figure.add_axes((i / count + 0.02 / count, 0.26 / height, 0.96 / count, 1 - 0.28 / height))
        axes.imshow(frames[index], interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        text = str(names[index]) if names else f"{index / fps:.1f} s" if fps else f"frame {index}"
        axes.text(0.5, -0.04, text, transform=axes.transAxes, fontsize=8, color=MUTED, ha="center", va="top")
    return finish(figure, path)


# -------------------------------------------------------------------------------------------------- common


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


def set_title(figure: Figure, title: str, subtitle: str) -> None:
    """Title and subtitle at the upper left corner, at the same distance from the edge in every picture."""
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.12 / height, title, fontsize=13, fontweight="bold", color=INK, va="top")
    figure.text(0.02, 1 - 0.4 / height, subtitle, fontsize=9, color=MUTED, va="top")


def plain(axes: Axes, grid: str = "y") -> None:
    """Only what is read: a light grid, no frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.grid(axis=grid, color=RULE, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, labelcolor=MUTED, color=RULE, length=0)


def finish(figure: Figure, path: Path | None) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    data = buffer.getvalue()
    if path is not None:
        write_bytes(path, data)
    return data
