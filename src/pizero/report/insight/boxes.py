"""The boxes of the page's figure: shapes, parameters and FLOPs of the architecture, milliseconds, and their code."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pizero
from pizero.baseline.encoder import ImageEncoder
from pizero.baseline.unet import UNet1d
from pizero.model import flow_matching
from pizero.model.gemma import GemmaBlock
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast
from pizero.model.siglip import VisionTower
from pizero.model.two_expert import TwoExpertLayer
from pizero.report.architecture import Row
from pizero.report.insight.measure import Insight

CODE: dict[str, Any] = {
    "VISION TOWER": VisionTower, "TOKEN TABLE": Pi0.embed_text, "PREFIX EXPERT": TwoExpertLayer,
    "SUFFIX EMBEDDING": Pi0.embed_suffix, "ACTION EXPERT": GemmaBlock, "VELOCITY": Pi0.decode,
    "FLOW MATCHING": flow_matching.integrate, "LANGUAGE MODEL": GemmaBlock, "WRITING": Pi0Fast.generate,
    "IMAGE ENCODER": ImageEncoder, "UNET": UNet1d,
}  # fmt: skip
"""What computes each box."""
PLACES: dict[str, str] = {
    "images": "in1", "prompt tokens": "in2", "state": "in3", "noisy actions": "in4", "VISION TOWER": "tower",
    "TOKEN TABLE": "table", "PREFIX EXPERT": "prefix", "SUFFIX EMBEDDING": "suffix", "ACTION EXPERT": "expert",
    "VELOCITY": "velocity", "FLOW MATCHING": "flow", "OUTPUT": "out",
}  # fmt: skip
"""Places in the figure of a π0; boxes of other models stand in a row."""


def figure_boxes(insight: Insight) -> list[dict[str, Any]]:
    """[{name, place, parts: [{part, input, output, parameters, flops, runs}], parameters, flops, ms, file, code}]."""
    if insight.architecture is None:
        names = [name for name in ("IMAGE ENCODER", "UNET", "OTHER") if name in insight.costs]
        return [_box(name, [], insight.costs.get(name)) for name in names]
    groups: dict[str, list[Row]] = {}
    for row in insight.architecture.rows:
        groups.setdefault(row.part if row.box == "INPUT" else row.box, []).append(row)
    return [_box(name, rows, insight.costs.get(name)) for name, rows in groups.items()]


def _box(name: str, rows: list[Row], milliseconds: float | None) -> dict[str, Any]:
    file, code = _source(CODE[name]) if name in CODE else ("", "")
    return {
        "name": name, "place": PLACES.get(name, ""), "ms": milliseconds, "file": file, "code": code,
        "parameters": sum(row.parameters for row in rows), "flops": sum(row.total_flops for row in rows),
        "parts": [
            {
                "part": row.part, "input": row.input, "output": row.output, "tensors": row.tensors,
                "parameters": row.parameters, "flops": row.total_flops, "runs": row.runs,
            }
            for row in rows
        ],
    }  # fmt: skip


def _source(thing: type | Callable[..., Any]) -> tuple[str, str]:
    """Its file within the package, with the line, and its text."""
    thing = inspect.unwrap(thing)  # what torch.no_grad decorates
    lines, first = inspect.getsourcelines(thing)
    file = Path(inspect.getsourcefile(thing) or "").resolve().relative_to(Path(pizero.__file__).resolve().parent)
    return f"src/pizero/{file.as_posix()}, line {first}", textwrap.dedent("".join(lines))
