"""The pictures of the insight page that do not move: how straight the flow is, its error against steps, the gates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pizero.report.insight.flow import NEEDED, StepErrors, Straightness
from pizero.report.pictures import GOOD, GROUP_COLOURS, INK, MUTED, WIDTH, finish, new_figure, plain, set_title

RED = GROUP_COLOURS["actions"]


def straightness_picture(straight: Straightness) -> bytes:
    """Distance from the straight velocity, and the turn from step to step, over flow time."""
    figure = new_figure(WIDTH, 2.9)
    panels = (
        ("distance from the straight velocity", straight.times, straight.deviation, GOOD, ""),
        ("turn from one velocity to the next", straight.times[1:], straight.turn, RED, "°"),
    )
    for place, (title, times, values, colour, unit) in zip((0.075, 0.565), panels, strict=True):
        axes = figure.add_axes((place, 0.17, 0.415, 0.5))
        axes.plot(times, values, color=colour, linewidth=2)
        axes.set_xlim(1, 0)
        axes.set_ylim(0, max(float(values.max()) * 1.08, 1e-6))
        plain(axes)
        axes.set_title(title, fontsize=9.5, color=INK, loc="left", pad=4)
        axes.set_xlabel("flow time: 1 noise, 0 actions", fontsize=8, color=MUTED)
        axes.yaxis.set_major_formatter(lambda value, _, unit=unit: f"{value:g}{unit}")
    set_title(figure, "How straight the flow is", f"Path: {straight.length:.2f} times the straight distance")
    return finish(figure, None)


def errors_picture(errors: StepErrors) -> bytes:
    """Error against steps, both on logarithmic scales, beside what another noise changes."""
    figure = new_figure(WIDTH, 3.1)
    axes = figure.add_axes((0.085, 0.15, 0.89, 0.6))
    steps, values = list(errors.errors), [max(value, 1e-7) for value in errors.errors.values()]
    axes.plot(steps, values, color=GOOD, linewidth=2, marker="o", markersize=5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain(axes)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for value, name in ((NEEDED, f"{NEEDED:g}: counts as none"), (errors.spread, "another noise")):
        axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.text(0.995, value * 1.06, name, transform=axes.get_yaxis_transform(), fontsize=8, color=MUTED, ha="right")
    axes.set_xlabel("integration steps", fontsize=9, color=MUTED)
    what = f"Root mean square distance from {errors.reference} steps, normalised units"
    set_title(figure, "Error of integration", what)
    return finish(figure, None)


def gates_picture(gates: dict[str, NDArray[np.float32]], times: NDArray[np.float32]) -> bytes:
    """Layers by flow time: the mean absolute gate of the attention's and the MLP's residual."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    layers = len(next(iter(gates.values())))
    height = 1.75 + 0.16 * layers
    figure = new_figure(WIDTH, height)
    largest = max(float(values.max()) for values in gates.values())
    for place, (name, values) in zip((0.075, 0.535), gates.items(), strict=True):
        axes = figure.add_axes((place, 0.5 / height, 0.385, (height - 1.4) / height))
        axes.imshow(
            values, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=largest,
            extent=(float(times[0]), float(times[-1]), layers - 0.5, -0.5),
        )  # fmt: skip
        axes.set_title(name, fontsize=9.5, color=INK, loc="left", pad=4)
        axes.set_xlabel("flow time: 1 noise, 0 actions", fontsize=8, color=MUTED)
        axes.set_yticks(range(0, layers, max(1, layers // 6)))
        axes.tick_params(labelsize=8, labelcolor=MUTED, length=0)
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, largest), "viridis"),
        cax=figure.add_axes((0.935, 0.5 / height, 0.012, (height - 1.4) / height)),
    )
    bar.ax.tick_params(labelsize=8, labelcolor=MUTED, length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]
    set_title(figure, "Gates of the adaptive norms", "Mean absolute gate by layer (rows). 0: the layer adds nothing")
    return finish(figure, None)
