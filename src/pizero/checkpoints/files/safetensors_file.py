"""Safetensors read one tensor at a time, mapped into memory; sharded or not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pizero.files import read_json
from pizero.types import UserError

WEIGHTS = "model.safetensors"
_OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS and not the weights; run git lfs pull where it was cloned",
    b"<!doctype": "a web page and not the weights; download the file itself",
    b"<html": "a web page and not the weights; download the file itself",
    b"pk\x03\x04": "a pickle or another archive and no safetensors file; save it as safetensors where it was trained",
    b"\x80\x02": "a pickle and no safetensors file; save it as safetensors where it was trained",
    b"gguf": "a GGUF file and no safetensors file; take the original weights",
}
"""By the first bytes, in lower case."""
_WRAPPERS = ("module.", "base_model.model.")
"""Starts that DistributedDataParallel and PEFT give to every name; torch.compile puts _COMPILED anywhere."""
_COMPILED = "_orig_mod."
_PEFT = (".lora_A.", ".lora_B.", ".base_layer.", ".modules_to_save.")


class SafetensorsWeights(Mapping[str, Tensor]):
    """The tensors of one file, or of the shards that `<name>.index.json` lists. Reading a key gives a view of the file.

    What a wrapper around the module has put before every name is dropped, which `notes` says. UserError when a file
    is no safetensors file, is cut short, holds a name twice, a shard lies outside the folder, or adapters of PEFT are
    among the tensors.
    """

    def __init__(self, folder: Path, name: str = WEIGHTS) -> None:
        self._files: dict[str, tuple[Any, str]] = {}  # and the name in it
        for path in _paths(folder, name):
            file = _opened(path)
            for key in file.keys():  # noqa: SIM118
                if key in self._files:
                    raise UserError(f"{folder}: two shards hold the tensor {key}; copy the checkpoint again")
                self._files[key] = file, key
        if adapters := [key for key in self._files if any(mark in key for mark in _PEFT)]:
            raise UserError(
                f"{folder} holds LoRA adapters of PEFT beside the weights, or parts of them ({len(adapters)} tensors, "
                f"as {adapters[0]}); "
                "merge them (merge_and_unload) where it was trained, and save that"
            )
        self.notes = self._unwrap()

    def _unwrap(self) -> tuple[str, ...]:
        """Renames; a note for what was dropped."""
        found = [_COMPILED] if any(_COMPILED in key for key in self._files) else []
        names = {key: key.replace(_COMPILED, "") for key in self._files}
        while start := next((w for w in _WRAPPERS if names and all(n.startswith(w) for n in names.values())), None):
            found.append(start)
            names = {key: name.removeprefix(start) for key, name in names.items()}
        if not found or len(set(names.values())) < len(names):
            return ()
        self._files = {names[key]: file for key, file in self._files.items()}
        return (f"{' and '.join(map(repr, found))} in the tensors' names is dropped: a wrapper's, around the model",)

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._files[name]
        return file.get_tensor(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._files[name]
        return tuple(file.get_slice(stored).get_shape())


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


def _opened(path: Path) -> Any:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(256)
            length = int.from_bytes(start[:8], "little")
            for magic, what in _OTHERS.items():
                if start.lower().startswith(magic) and start[8:9] != b"{":
                    raise UserError(f"{path} is {what}")
            if size < 8 or length > size - 8:
                raise UserError(
                    f"{path} is no safetensors file, or was cut short: it has {size} bytes, and its first 8 announce a "
                    f"header of {length if size >= 8 else 'unknown length'}; copy the checkpoint again"
                )
            opened: Any = safe_open(path, "pt")
            file.seek(8)
            if twice := repeated_key(file.read(length)):
                raise UserError(f"{path} names the tensor {twice} twice; copy the checkpoint again")
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the weights in {path} cannot be read ({reason}); copy the checkpoint again") from error
    return opened


def repeated_key(text: bytes) -> str | None:
    """A key that some object of this JSON has twice, of which readers take one or the other."""
    found: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        found.extend(name for name, count in Counter(names).items() if count > 1)

    json.loads(text, object_pairs_hook=note)
    return found[0][:100] if found else None


def _check_name(name: str, said_by: Path) -> None:
    if Path(name).name != name or "\0" in name:
        raise UserError(f"{said_by} names {name!r}, which is not a file of this folder; it is not read")


def _paths(folder: Path, name: str) -> list[Path]:
    _check_name(name, folder)
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.is_file():
        raise UserError(f"{folder} has neither {name} nor {index.name}; copy the checkpoint again, all its files")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map, which names the shards; copy the checkpoint again")
    shards = sorted(set(map(str, cast("dict[str, object]", weight_map).values())))
    for shard in shards:
        _check_name(shard, index)
        if not (folder / shard).is_file():
            raise UserError(f"{folder} has no {shard!r}, which {index.name} names; copy the checkpoint again")
    return [folder / shard for shard in shards]


_DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
