"""Trees of arrays as Orbax stores them (Zarr in one OCDBT database), read and written with tensorstore alone.

An array is read and written in blocks of its first axis, because a stack of layers may be as large as 4.8 GB.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pizero.files import read_json, write_bytes
from pizero.types import UserError

METADATA = "_METADATA"
_ROOT, _LEAF = "params", "value"
_SMALL, _MOST_COMPRESSED = 64 << 20, 100
"""Arrays of up to so many bytes, or so many times their files, are believed: weights are hardly compressible."""
_COMMIT_BYTES = 1 << 28  # what is written before a commit is held in memory


def stored_names(folder: Path) -> dict[str, str]:
    """Names of arrays ("a/b") and the names that the database has for them ("params.a.b", maybe with ".value").

    By the folder's _METADATA; empty when there is none. UserError when it cannot be read.
    """
    if not (folder / METADATA).is_file():
        return {}
    paths = _key_paths(folder)
    names = {_name(keys): ".".join(keys) for keys in paths}
    if len(names) < len(paths):
        raise UserError(f"{folder / METADATA} has the same array twice; copy the checkpoint again")
    return names


class OrbaxArrays:
    """The arrays of a folder by name. UserError when one is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self._folder, ts = folder, _tensorstore()
        if not (folder / "manifest.ocdbt").is_file():
            raise UserError(
                f"{folder} has a {METADATA} but no manifest.ocdbt; copy the checkpoint again, all its files"
            )
        metadata = _metadata(folder)
        driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        # where zeros are stored too, an absent chunk is a damage and not zeros
        complete = {"fill_missing_data_reads": metadata.get("store_array_data_equal_to_fill_value") is not True}
        database = {"context": ts.Context(), "open": True, "read": True}
        waiting = {
            name: ts.open(_spec(folder, stored, driver) | complete, **database)
            for name, stored in stored_names(folder).items()
        }
        self._stores: dict[str, Any] = {}
        for name, store in waiting.items():
            try:
                self._stores[name] = store.result()
            except Exception as error:  # TensorStore has a Python type for each of its own kinds
                raise self._damaged(name, error) from error
        self._check_sizes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stores)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._stores[name].shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Entries of the first axis, or all; a new tensor with the dtype of the file."""
        store = self._stores[name]
        try:
            return _to_torch((store if stop is None else store[start:stop]).read().result())
        except Exception as error:
            raise self._damaged(name, error) from error

    def block(self, name: str) -> int:
        """Entries of the first axis that are stored, and best read, together."""
        return self._stores[name].chunk_layout.read_chunk.shape[0]

    def _check_sizes(self) -> None:
        """UserError before memory is taken for more numbers than the files can hold."""
        described = sum(
            max(math.prod(store.shape), math.prod(store.chunk_layout.read_chunk.shape))
            * store.dtype.numpy_dtype.itemsize
            for store in self._stores.values()
        )
        held = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        if described > _SMALL + _MOST_COMPRESSED * held:
            raise UserError(
                f"{self._folder} describes {described / 1e9:.1f} GB of arrays and its files hold {held / 1e9:.3f} GB; "
                "copy the checkpoint again, all its files"
            )

    def _damaged(self, name: str, error: Exception) -> UserError:
        reason = " ".join(str(error).split())
        return UserError(f"{self._folder}: the array {name} cannot be read; copy the checkpoint again ({reason[:200]})")


@dataclass(frozen=True)
class ArrayToWrite:
    """blocks: gives the whole array, or its entries along the first axis one after the other (without that axis)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterable[Tensor]]
    split: bool

    @property
    def chunk(self) -> tuple[int, ...]:
        return (1, *self.shape[1:]) if self.split else self.shape

    @property
    def keys(self) -> tuple[str, ...]:
        """A path as training runs write it, under "params" and with "value" at its end."""
        return (_ROOT, *self.name.split("/"), _LEAF)


def write_arrays(folder: Path, arrays: list[ArrayToWrite]) -> None:
    """A folder as Orbax writes one, in one process: database, tree, chunks. OSError when the disk is full."""
    folder.mkdir()
    try:
        _write_database(folder, arrays)
    except ValueError as error:  # TensorStore's word for what the system refuses
        raise OSError(str(error).rsplit(": ", 1)[-1]) from error
    for name, values in _descriptions(arrays).items():
        write_bytes(folder / name, json.dumps(values).encode())


def _write_database(folder: Path, arrays: list[ArrayToWrite]) -> None:
    ts = _tensorstore()
    database = {"context": ts.Context()}  # one for all, or every array would commit files of its own
    created = ts.Transaction()
    for array in arrays:
        spec = _spec(folder, ".".join(array.keys), "zarr") | {
            "store_data_equal_to_fill_value": True,
            "metadata": {
                "shape": list(array.shape),
                "chunks": list(array.chunk),
                "dtype": _ZARR_DTYPES[array.dtype],
                "compressor": {"id": "zstd", "level": 1},
            },
        }
        ts.open(spec, create=True, transaction=created, **database).result()
    created.commit_sync()
    transaction, waiting = ts.Transaction(), 0
    for array in arrays:
        store = ts.open(_spec(folder, ".".join(array.keys), "zarr"), open=True, **database).result()
        for index, block in enumerate(array.blocks()):
            target = store.with_transaction(transaction)
            (target[index] if array.split else target).write(_to_numpy(block, store.dtype)).result()
            waiting += block.numel() * block.element_size()
            if waiting >= _COMMIT_BYTES:
                transaction.commit_sync()
                transaction, waiting = ts.Transaction(), 0
    transaction.commit_sync()


def _descriptions(arrays: list[ArrayToWrite]) -> dict[str, Any]:
    """The files beside the database, as Orbax 0.11 writes them."""
    tree = {
        str(array.keys): {
            "key_metadata": [{"key": key, "key_type": 2} for key in array.keys],
            "value_metadata": {
                "value_type": "jax.Array",
                "skip_deserialize": False,
                "write_shape": list(array.shape),
            },
        }
        for array in arrays
    }
    sharding = json.dumps({"sharding_type": "SingleDeviceSharding", "device_str": "TFRT_CPU_0"})
    chunks = [
        {
            "array_metadata": {
                "param_name": ".".join(array.keys),
                "write_shape": list(array.shape),
                "chunk_shape": list(array.chunk),
                "ext_metadata": None,
            }
        }
        for array in arrays
    ]
    return {
        METADATA: {
            "tree_metadata": tree,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        },
        "_sharding": {base64.b64encode(".".join(array.keys).encode()).decode(): sharding for array in arrays},
        "array_metadatas/process_0": {"array_metadatas": chunks},
    }


def _spec(folder: Path, stored: str, driver: str) -> dict[str, Any]:
    kvstore = {"driver": "ocdbt", "base": f"{folder.absolute().as_uri()}/", "path": f"{stored}/"}
    return {"driver": driver, "kvstore": kvstore}


def _metadata(folder: Path) -> Mapping[str, Any]:
    path = folder / METADATA
    values = read_json(path)
    if not isinstance(values.get("tree_metadata"), dict):
        raise UserError(f"{path} has no tree_metadata; it is not of a version of Orbax that is read here")
    return values


def _key_paths(folder: Path) -> list[tuple[str, ...]]:
    try:
        return [
            tuple(str(key["key"]) for key in entry["key_metadata"])
            for entry in _metadata(folder)["tree_metadata"].values()
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / METADATA} has a tree without names ({error!r}); copy the checkpoint again"
        ) from error


def _name(keys: tuple[str, ...]) -> str:
    keys = keys[1:] if keys[:1] == (_ROOT,) else keys
    return "/".join(keys[:-1] if keys[-1:] == (_LEAF,) else keys)


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ImportError:
        raise UserError("openpi's JAX checkpoints need tensorstore: pip install 'pizero[openpi]'") from None
    return tensorstore


def _to_torch(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype.name != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def _to_numpy(tensor: Tensor, dtype: Any) -> np.ndarray[Any, Any]:
    """dtype: tensorstore's, which knows a NumPy type for bfloat16."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    return tensor.view(torch.int16).numpy().view(dtype.numpy_dtype)


_ZARR_DTYPES = {torch.float32: "<f4", torch.float64: "<f8", torch.float16: "<f2", torch.bfloat16: "bfloat16"}
