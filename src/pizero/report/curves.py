"""Success rates along a number: demonstrations, inference steps, learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pizero.report.pictures import GROUP_COLOURS, MUTED, WIDTH, finish, new_figure, plain, set_title
from pizero.types import UserError

Point = tuple[float, float, float, float]
"""x, success rate, low and high end of its interval; rates in 0 to 1."""


def curves_picture(curves: Mapping[str, Sequence[Point]], title: str, x_label: str, path: Path | None = None) -> bytes:
    """One curve per name, with the 95 % interval of each point, over a logarithmic axis."""
    if not any(curves.values()):
        raise UserError("no points to draw")
    figure = new_figure(WIDTH, 3.6)
    axes = figure.add_axes((0.08, 0.15, 0.6, 0.63))
    colours = list(GROUP_COLOURS.values())
    for index, (name, points) in enumerate(curves.items()):
        x, rate, low, high = zip(*sorted(points), strict=True)
        colour = colours[index % len(colours)]
        below = [value - end for value, end in zip(rate, low, strict=True)]
        above = [end - value for value, end in zip(rate, high, strict=True)]
        shifted = [value * 1.02 ** (index - len(curves) / 2) for value in x]  # intervals beside each other
        axes.errorbar(
            shifted, [100 * v for v in rate], [[100 * v for v in below], [100 * v for v in above]],
            color=colour, marker="o", markersize=5, linewidth=2, elinewidth=1, label=name,
        )  # fmt: skip
    ticks = sorted({point[0] for points in curves.values() for point in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(-3, 103)
    plain(axes)
    axes.set_xlabel(x_label, fontsize=8, color=MUTED)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)
    set_title(figure, title, "Success in percent, with 95 % Wilson intervals")
    return finish(figure, path)
