"""Names of tensors in other formats, as tables that work in both directions; anything left over is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pizero.model.precision import float32_names
from pizero.types import UserError

_FLOATS = {torch.float32, torch.float64, torch.bfloat16, torch.float16}

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


def renamed(entries: Iterable[Entry], starts: Mapping[str, str]) -> list[Entry]:
    """The same rows for a format whose names begin otherwise: the first start that fits is replaced."""

    def rename(name: str) -> str:
        start = next((start for start in starts if name.startswith(start)), "")
        return starts.get(start, "") + name.removeprefix(start)

    return [replace(entry, theirs=rename(entry.theirs)) for entry in entries]


def matched(
    weights: Mapping[str, Tensor], entries: Iterable[Entry], ignored: Iterable[str] = ()
) -> Callable[[], Iterator[tuple[str, Tensor]]]:
    """Raises with the list when a name is missing or left over; else what reads, renames and converts one by one.

    `ignored` names may be there.
    """
    rows = list(entries)
    missing = sorted({row.theirs for row in rows} - set(weights))
    extra = sorted(set(weights) - {row.theirs for row in rows} - set(ignored))
    if missing or extra:
        raise UserError(f"weights do not fit: {listed('missing', missing)}; {listed('left over', extra)}")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for row in rows:
            tensor = weights[row.theirs]
            try:
                yield row.ours, row.to_ours(tensor) if row.to_ours else tensor
            except RuntimeError:  # another number of axes
                raise UserError(f"weights do not fit: {row.theirs} has the shape {tuple(tensor.shape)}") from None

    return tensors


def fill(
    model: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Gives a model on the meta device its weights, one by one; names and shapes must be exactly the model's.

    dtype: of the large matrices (`model.precision`); None keeps what is given. NaN and Inf raise.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    floating = {name: value.is_floating_point() for name, value in model.state_dict().items()}
    kept = float32_names(model) if dtype is not None else set[str]()
    found: dict[str, Tensor] = {}
    extra: list[str] = []
    kind: list[str] = []
    wrong: list[str] = []
    bad: list[str] = []
    for name, tensor in tensors:
        if name not in expected or name in found:
            extra.append(name)
            continue
        if (tensor.dtype in _FLOATS) != floating[name]:
            kind.append(f"{name}: {str(tensor.dtype).removeprefix('torch.')}")
            continue
        if tuple(tensor.shape) != expected[name]:
            wrong.append(f"{name}: {tuple(tensor.shape)} instead of {expected[name]}")
            continue
        if not is_finite(tensor):
            bad.append(name)
        found[name] = tensor.to(device, None if dtype is None else torch.float32 if name in kept else dtype)
    missing = sorted(set(expected) - set(found)) if not wrong and not kind else []
    for what, names in (
        ("missing", missing),
        ("left over", extra),
        ("of another type", kind),
        ("of another shape", wrong),
        ("with NaN or Inf", bad),
    ):
        if names:
            raise UserError(f"weights do not fit: {listed(what, names)}")
    model.load_state_dict(found, strict=True, assign=True)


def equal(a: Tensor, b: Tensor) -> bool:
    """`torch.equal`, which raises for two dtypes."""
    return a.dtype == b.dtype and torch.equal(a, b)


def is_finite(tensor: Tensor) -> bool:
    """Without a temporary of the tensor's size."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def listed(what: str, names: list[str], shown: int = 8) -> str:
    more = f", ... ({len(names) - shown} more)" if len(names) > shown else ""
    return f"{len(names)} {what}" + (f" ({', '.join(names[:shown])}{more})" if names else "")
