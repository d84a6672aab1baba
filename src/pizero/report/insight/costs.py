"""Where the milliseconds of a call go: each box of the architecture timed as the model runs, plain path."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from pizero.baseline.policy import DiffusionPolicy
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast

ROUNDS = 5
BOXES = {
    "vision_tower": "VISION TOWER", "token_embedding": "TOKEN TABLE", "state_proj": "SUFFIX EMBEDDING",
    "action_in_proj": "SUFFIX EMBEDDING", "time_mlp_in": "SUFFIX EMBEDDING", "time_mlp_out": "SUFFIX EMBEDDING",
    "action_out_proj": "VELOCITY", "image_encoders": "IMAGE ENCODER", "unet": "UNET",
}  # fmt: skip
"""Modules of the model, by the box of `pizero inspect` that they are."""


def box_costs(
    model: Pi0 | Pi0Fast | DiffusionPolicy, call: Callable[[], Any], rounds: int = ROUNDS
) -> dict[str, float]:
    """Milliseconds of each box in one `call`, and "TOTAL": the medians of `rounds` calls, after one to warm up.

    What no module claims is the experts' of a π0, whose layers run as "PREFIX EXPERT" or "ACTION EXPERT", else "OTHER".
    """
    call()
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        spent = _timed(model, call)
        rest = spent["TOTAL"] - sum(value for name, value in spent.items() if name != "TOTAL")
        spent["OTHER"] = max(rest, 0.0)
        for name, value in spent.items():
            found[name].append(1000 * value)
    return {name: statistics.median(values) for name, values in found.items()}


def _timed(model: nn.Module, call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one call."""
    spent: dict[str, float] = defaultdict(float)
    started: dict[int, float] = {}

    def before(module: nn.Module, _: Any) -> None:
        started[id(module)] = _now(module)

    def after(name: str, module: nn.Module, inputs: Any, _: Any) -> None:
        if name == "layer":  # of both experts: the prefix alone, or the suffix alone
            name = "PREFIX EXPERT" if inputs[0] is not None else "ACTION EXPERT"
        spent[name] += _now(module) - started[id(module)]

    handles: list[Any] = []
    for module, name in _boxes(model):
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(partial(after, name))]
    try:
        start = _now(model)
        call()
        spent["TOTAL"] = _now(model) - start
    finally:
        for handle in handles:
            handle.remove()
    return spent


def _boxes(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules to time, none within another."""
    found: list[tuple[nn.Module, str]] = []
    for name, module in model.named_children():
        if name in BOXES:
            several = list(module.children()) if isinstance(module, nn.ModuleDict) else [module]
            found += [(one, BOXES[name]) for one in several]
        elif name == "layers":
            found += [(layer, "LANGUAGE MODEL") for layer in module.children()]
        elif name == "transformer":
            found += [(layer, "layer") for layer in module.get_submodule("layers").children()]
    return found


def _now(module: nn.Module) -> float:
    """Seconds; on a GPU when what was asked for is done."""
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.device.type == "cuda":
        torch.cuda.synchronize(parameter.device)
    return time.perf_counter()
