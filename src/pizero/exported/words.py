"""The token table on the disk: a prompt has a few dozen of its 257,000 rows, so nobody needs it in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.exported.manifest import Words
from pizero.types import UserError

_STORED: dict[str, Any] = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}


_ROWS = 256
"""Of the table widened at once, where all of it is read: 2 MB at full size, which stays in the cache."""


class WordTable:
    """UserError for files of another size than the manifest's words."""

    def __init__(self, folder: Path, words: Words) -> None:
        self._words, self._parts = words, list[NDArray[Any]]()
        for index, name in enumerate(words.files):
            rows = min(words.rows_per_file, words.rows - index * words.rows_per_file)
            shape, kind = (rows, words.width), np.dtype(_STORED[words.dtype])
            if rows < 1 or (folder / name).stat().st_size != rows * words.width * kind.itemsize:
                raise UserError(f"{folder / name} is no part of a token table {shape}; copy the export again")
            self._parts.append(np.memmap(folder / name, kind, "r", shape=shape))
        if len(self._parts) * words.rows_per_file < words.rows:
            raise UserError(f"{folder}: the token table lacks rows; copy the export again")

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """[L] -> [L, W]."""
        words = self._words
        if len(ids) and not (ids.min() >= 0 and ids.max() < words.rows):
            raise UserError(f"prompt: a token beyond the model's {words.rows}; is the tokenizer the model's?")
        rows = np.empty((len(ids), words.width), np.float32)
        for row, token in enumerate(ids.tolist()):
            part, place = divmod(token, words.rows_per_file)
            rows[row] = self._widened(self._parts[part][place])
        return rows * np.float32(words.scale)

    def likeliest(self, last: NDArray[np.float32]) -> int:
        """The token whose row has the largest product with last [W]."""
        pieces = [part[start : start + _ROWS] for part in self._parts for start in range(0, len(part), _ROWS)]
        return int(np.concatenate([self._widened(piece) @ last for piece in pieces]).argmax())

    def _widened(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        if self._words.dtype == "bfloat16":
            wide = stored.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        return stored.astype(np.float32, copy=False)
