"""The token table and a head of its own beside the graphs: the runner reads them from the disk, in files below 2 GB."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pizero.export.graph import PART_BYTES, Dtype
from pizero.exported.manifest import Words
from pizero.model.pi0 import Pi0

_STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.bfloat16}


def write_words(folder: Path, model: Pi0, dtype: Dtype) -> Words:
    """An int8 export's rows are bfloat16: they are the prompt itself."""
    table = model.token_embedding.weight
    return _write_table(folder, "words", table, dtype, table.shape[1] ** 0.5)


def write_head(folder: Path, model: Pi0, dtype: Dtype) -> Words | None:
    """The same of a head that is not the token table."""
    return None if model.text_head is None else _write_table(folder, "head", model.head, dtype, 1.0)


def _write_table(folder: Path, name: str, weight: Tensor, dtype: Dtype, scale: float) -> Words:
    table, stored = weight.detach(), _STORED[dtype]
    rows, width = table.shape
    per_file = min(PART_BYTES // (width * stored.itemsize), rows)
    names: list[str] = []
    for start in range(0, rows, per_file):
        names.append(f"{name}.{len(names)}.bin")
        part = table[start : start + per_file].to(stored).contiguous().view(torch.uint8)
        (folder / names[-1]).write_bytes(part.numpy().data)
    kind = "bfloat16" if dtype == "int8" else dtype
    return Words(tuple(names), per_file, rows, width, kind, scale)
