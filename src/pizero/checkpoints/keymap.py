"""Names of tensors in other formats, as tables that work in both directions; anything left over is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pizero.types import UserError

Convert = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """One row: our name and theirs, with {} for a layer number; conversions where the layouts differ."""

    ours: str
    theirs: str
    to_ours: Convert | None = None
    to_theirs: Convert | None = None

    def layer(self, number: int) -> Entry:
        return Entry(self.ours.format(number), self.theirs.format(number), self.to_ours, self.to_theirs)


def expand(entries: Iterable[Entry], depth: int) -> list[Entry]:
    """Rows with {} become one row per layer."""
    return [row for entry in entries for row in (map(entry.layer, range(depth)) if "{}" in entry.ours else [entry])]


def to_ours(tensors: Mapping[str, Tensor], entries: Iterable[Entry], ignored: Iterable[str] = ()) -> dict[str, Tensor]:
    """Renames and converts; raises with the list when one is missing or left over. `ignored` names may be there."""
    left = dict(tensors)
    result: dict[str, Tensor] = {}
    missing: list[str] = []
    for entry in entries:
        tensor = left.pop(entry.theirs, None)
        if tensor is None:
            missing.append(entry.theirs)
        else:
            try:
                result[entry.ours] = entry.to_ours(tensor) if entry.to_ours else tensor
            except RuntimeError:  # another number of axes
                raise UserError(f"weights do not fit: {entry.theirs} has the shape {tuple(tensor.shape)}") from None
    extra = sorted(set(left) - set(ignored))
    if missing or extra:
        raise UserError(f"weights do not fit: {_listed('missing', missing)}; {_listed('left over', extra)}")
    return result


def load_strictly(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Assigns every tensor of a model built on the meta device; names and shapes must be exactly the model's."""
    expected = model.state_dict()
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or extra:
        raise UserError(f"weights do not fit: {_listed('missing', missing)}; {_listed('left over', extra)}")
    wrong = [
        f"{name}: {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if tensors[name].shape != value.shape
    ]
    if wrong:
        raise UserError(f"weights do not fit: {_listed('of another shape', wrong)}")
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise UserError(f"weights do not fit: {_listed('with NaN or Inf', bad)}")
    model.load_state_dict(dict(tensors), strict=True, assign=True)


def _listed(what: str, names: list[str], shown: int = 8) -> str:
    more = f", ... ({len(names) - shown} more)" if len(names) > shown else ""
    return f"{len(names)} {what}" + (f" ({', '.join(names[:shown])}{more})" if names else "")
