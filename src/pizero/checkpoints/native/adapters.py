"""LoRA adapters alone, in a folder: `adapters.safetensors` with all that was trained, `adapters.json`, the pipeline.

Names are those of the model, with `lora_a` and `lora_b` beside the adapted `weight`; what was trained as a whole (the
vision tower, the heads) is there as a whole. Together with the checkpoint that the training started from, they give the
trained one; of what was frozen nothing is stored. Shapes of the factors: train/lora.py.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pizero.checkpoints.facts import pipeline_facts
from pizero.checkpoints.files.keymap import listed
from pizero.checkpoints.files.safetensors_file import SafetensorsWeights, write_safetensors
from pizero.checkpoints.format import StoredCheckpoint
from pizero.checkpoints.models import MODELS, Network, model_name
from pizero.data.pipeline import Pipeline
from pizero.files import read_json, values_of
from pizero.model.precision import matrix_dtypes
from pizero.types import UserError

WEIGHTS, CONFIG = "adapters.safetensors", "adapters.json"
FOLDER = "adapters"
"""In a checkpoint's folder."""
FORMAT, VERSION = "pizero-adapters", 1
_FACTORS = (".lora_a", ".lora_b")


class PlainState(Mapping[str, Tensor]):
    """A model's state without adapters: what a checkpoint holds, made when it is asked for.

    Adapted weights are merged in float32. widen: beside float32 matrices bfloat16 ones, which a training keeps of what
    it freezes, become float32.
    """

    def __init__(self, model: nn.Module, widen: bool = False) -> None:
        self._model, self._state = model, model.state_dict()
        self._names = [name for name in self._state if not name.endswith(_FACTORS)]
        self._widen = widen and len(matrix_dtypes(model)) > 1

    def __getitem__(self, name: str) -> Tensor:
        tensor, layer = self._state[name], name.removesuffix(".weight")
        if f"{layer}.lora_a" in self._state:
            a, b = (self._state[layer + factor] for factor in _FACTORS)
            return merged_weight(tensor, a, b, layer_scale(self._model, layer))
        return tensor.float() if self._widen and tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """weight [out, in] plus what the factors add, in float32."""
    b = b.float().sum(0, keepdim=True) if len(a) == 1 else b.float()
    return weight.float() + scale * torch.matmul(b, a.float()).flatten(0, 1)


def layer_scale(model: nn.Module, layer: str) -> float:
    """The `scale` of an adapted layer."""
    return float(vars(model.get_submodule(layer))["scale"])


def save_adapters(folder: Path, model: Network, pipeline: Pipeline) -> None:
    """What of the model is trained, into a new folder."""
    folder.mkdir()
    pipeline.save(folder)
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    scales = {name.removesuffix(".lora_a"): 0.0 for name in trained if name.endswith(".lora_a")}
    scales = {layer: layer_scale(model, layer) for layer in scales}
    write_safetensors(folder / WEIGHTS, trained)
    values = {
        "format": FORMAT, "version": VERSION, "model": model_name(model.config), "config": model.config.to_json(),
        "scales": scales,
        "base": {f"{layer}.weight": _mark(model.get_parameter(f"{layer}.weight")) for layer in _marked(scales)},
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(values, indent=1) + "\n")


def merge_adapters(base: StoredCheckpoint, folder: Path) -> StoredCheckpoint:
    """The checkpoint `base` with the adapters in `folder`, whose robot it knows then; in float32.

    folder: of adapters, or of a checkpoint that was saved with them. UserError when they are of another model, or of
    another checkpoint than they were trained from.
    """
    folder = folder if (folder / CONFIG).is_file() else folder / FOLDER
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder.parent} holds no {CONFIG}, so no adapters")
    values = read_json(folder / CONFIG)
    if values.get("format") != FORMAT or values.get("version") != VERSION:
        raise UserError(f"{folder / CONFIG} is not of a format that this release reads; update pizero")
    with values_of(folder / CONFIG):
        scales = {str(layer): float(scale) for layer, scale in values["scales"].items()}
        marks = {str(name): int(mark) for name, mark in values["base"].items()}
        kind = str(values.get("model", "pi0"))  # older folders are of a π0 or π0.5
    if kind != model_name(base.config):
        raise UserError(
            f"the adapters in {folder} are of a model {kind!r}, the checkpoint is {model_name(base.config)!r}"
        )
    with values_of(folder / CONFIG):
        config = MODELS[kind][0].from_json(values["config"])
    trained = SafetensorsWeights(folder, WEIGHTS)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        left = set(trained)
        for name, tensor in base.tensors():
            if name in marks and _mark(tensor) != marks[name]:
                raise UserError(
                    f"the adapters in {folder} were trained from another checkpoint: its {name} differs; give that one"
                )
            tensor = _applied(name, tensor, trained, scales, left)
            yield name, tensor.float() if tensor.is_floating_point() else tensor
        if left:
            raise UserError(f"the adapters in {folder} do not fit: {listed('left over', sorted(left))}")

    note = f"the adapters in {folder} were merged in float32"
    facts = pipeline_facts(Pipeline.load(folder))
    return replace(base, config=config, tensors=tensors, facts=facts, notes=(*base.notes, note))


def _applied(
    name: str, tensor: Tensor, trained: Mapping[str, Tensor], scales: Mapping[str, float], left: set[str]
) -> Tensor:
    """A tensor of the base after the training; takes what it needs off `left`."""
    layer = name.removesuffix(".weight")
    if layer in scales:
        names = [layer + factor for factor in _FACTORS]
        left.difference_update(names)
        try:
            a, b = (trained[factor] for factor in names)
            merged = merged_weight(tensor, a, b, scales[layer])
        except (KeyError, RuntimeError, TypeError) as error:
            raise UserError(f"the adapters of {layer} do not fit its weight {tuple(tensor.shape)}") from error
        if merged.shape != tensor.shape:
            raise UserError(f"the adapters of {layer} do not fit its weight {tuple(tensor.shape)}")
        return merged
    if name in trained:
        left.discard(name)
        return trained[name]
    return tensor


def _marked(layers: Mapping[str, Any]) -> list[str]:
    """A few adapted layers, by which a checkpoint is distinguished from others: the queries, else the first ones."""
    return [layer for layer in layers if layer.endswith(".query")] or list(layers)[:4]


def _mark(weight: Tensor) -> int:
    """Distinguishes a weight from another one, and is the same in float32 and rounded to bfloat16."""
    return zlib.crc32(weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
