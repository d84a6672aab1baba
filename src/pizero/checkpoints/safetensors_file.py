"""Safetensors read one tensor at a time, mapped into memory; sharded or not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pizero.types import UserError

WEIGHTS = "model.safetensors"


class SafetensorsWeights(Mapping[str, Tensor]):
    """The tensors of one file, or of the shards that `<name>.index.json` lists. Reading a key gives a view of the file.

    UserError when a file is no safetensors file, is cut short, holds a name twice, or a shard lies outside the folder.
    """

    def __init__(self, folder: Path, name: str = WEIGHTS) -> None:
        self._files: dict[str, Any] = {}
        for path in _paths(folder, name):
            try:
                file = safe_open(path, "pt")  # pyright: ignore[reportUnknownVariableType]
                keys: list[str] = list(file.keys())
            except (SafetensorError, OSError) as error:
                raise UserError(f"the weights in {path} cannot be read ({error}); copy the checkpoint again") from error
            for key in keys:
                if key in self._files:
                    raise UserError(f"{folder}: two shards hold the tensor {key}; copy the checkpoint again")
                self._files[key] = file

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())


def weight_names(folder: Path, name: str = WEIGHTS) -> set[str]:
    """For detection: none when the folder has no such weights; UserError when they cannot be read."""
    if not (folder / name).is_file() and not (folder / f"{name}.index.json").is_file():
        return set()
    return set(SafetensorsWeights(folder, name))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Streams the tensors into a file, one at a time, so that no copy of them all is made."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + size]
        }  # fmt: skip
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            flat.numpy().tofile(file)


def _paths(folder: Path, name: str) -> list[Path]:
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} has neither {name} nor a readable {index.name} ({error})") from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(f"{index} names the shard {shard!r}, which is not a file of this folder; it is not read")
        if not (folder / shard).is_file():
            raise UserError(f"{folder} has no {shard}, which {index.name} names; copy the checkpoint again")
    return [folder / shard for shard in shards]


_DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
