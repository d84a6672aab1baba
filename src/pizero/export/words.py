"""The token table beside the graphs: rows that the runner reads from the disk, in files below 2 GB."""

from __future__ import annotations

from pathlib import Path

import torch

from pizero.export.graph import PART_BYTES, Dtype
from pizero.exported.manifest import Words
from pizero.model.pi0 import Pi0

_STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.bfloat16}


def write_words(folder: Path, model: Pi0, dtype: Dtype) -> Words:
    """An int8 export's rows are bfloat16: they are the prompt itself."""
    table, stored = model.token_embedding.weight.detach(), _STORED[dtype]
    rows, width = table.shape
    per_file = min(PART_BYTES // (width * stored.itemsize), rows)
    names: list[str] = []
    for start in range(0, rows, per_file):
        names.append(f"words.{len(names)}.bin")
        part = table[start : start + per_file].to(stored).contiguous().view(torch.uint8)
        (folder / names[-1]).write_bytes(part.numpy().data)
    kind = "bfloat16" if dtype == "int8" else dtype
    return Words(tuple(names), per_file, rows, width, kind, width**0.5)
