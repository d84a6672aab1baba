"""The same as the page for Rerun's viewer: images, attention and occlusion maps, and the chunk along the flow."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pizero.files import partial_path
from pizero.report.insight.measure import Insight
from pizero.types import UserError


def check_rerun() -> None:
    """UserError where the extra is missing."""
    if find_spec("rerun") is None:
        raise UserError("a recording for Rerun needs the extra rerun: pip install 'pizero[rerun]'")


def write_recording(path: Path, insight: Insight) -> None:
    """An .rrd file. Timelines: flow_step for what changes along the flow; everything else is static.

    Entities: camera/NAME/image, camera/NAME/attention/layer_L (mean over heads, rows x columns of patches),
    camera/NAME/occlusion, chunk/DIMENSION (robot units, by action), flow/deviation, cost/BOX in ms, prompt.
    """
    check_rerun()
    import rerun as rr  # pyright: ignore[reportMissingImports]

    recording = rr.RecordingStream("pizero_inspect")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        recording.save(str(partial))
        recording.log("prompt", rr.TextDocument(_text(insight)), static=True)
        for name, image in insight.images.items():
            recording.log(f"camera/{name}/image", rr.Image(image), static=True)
            recording.log(f"camera/{name}/occlusion", rr.Tensor(insight.occlusion.windows[name]), static=True)
        for box, milliseconds in insight.costs.items():
            recording.log(f"cost/{box}", rr.Scalars(milliseconds), static=True)
        for step in range(insight.num_steps + 1):
            recording.set_time("flow_step", sequence=step)
            for entity, values in _at_step(insight, step).items():
                recording.log(entity, rr.Tensor(values))
        recording.flush()
        recording.disconnect()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _text(insight: Insight) -> str:
    return f"{insight.kind}: {insight.observation.get('prompt', '')}"


def _at_step(insight: Insight, step: int) -> dict[str, NDArray[np.float32]]:
    """By entity, what there is at a step of the flow."""
    found: dict[str, NDArray[np.float32]] = {}
    if insight.flow is not None and step < len(insight.flow.actions):
        found |= {f"chunk/{name}": insight.flow.actions[step, :, dim] for dim, name in enumerate(insight.action_names)}
    if insight.attention is not None and insight.groups is not None and step < len(insight.attention.weights):
        for name, image in insight.images.items():
            start, end = insight.groups.ranges[f"camera {name}"]
            columns = round(((end - start) * image.shape[1] / image.shape[0]) ** 0.5)
            for layer, weights in enumerate(insight.attention.weights[step]):
                map = weights[:, start:end].mean(axis=0).reshape(-1, columns)
                found[f"camera/{name}/attention/layer_{layer}"] = map
    return found
