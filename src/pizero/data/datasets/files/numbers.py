"""Numeric columns of parquet files, row by row, whatever the lengths of the rows. pyarrow has no type stubs."""

# pyright: reportMissingTypeStubs=false, reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from pizero.data.datasets.files.parquet import open_parquet, read_table
from pizero.types import UserError

_pa: Any = pyarrow


@dataclass(frozen=True)
class Numbers:
    """A numeric column of one file; row i holds `flat[starts[i] : starts[i] + widths[i]]`, nested lists flattened.

    flat [m]; starts, widths, nulls [n]. nulls: rows that are null or hold a null. scalar: rows are no lists.
    """

    flat: NDArray[Any]
    starts: NDArray[np.int64]
    widths: NDArray[np.int64]
    nulls: NDArray[np.bool_]
    scalar: bool

    def take(self, rows: NDArray[np.int64], width: int) -> NDArray[Any]:
        """[len(rows), width]; every one of the rows must be that wide."""
        count = len(self.starts)
        if len(self.flat) == count * width and np.array_equal(self.starts, np.arange(count) * width):
            return self.flat.reshape(count, width)[rows]  # without an index as large as the numbers
        return self.flat[self.starts[rows, None] + np.arange(width)]

    def scalars(self) -> NDArray[Any]:
        """[n]: the first number of each row; float64 with NaN where there is none or a null."""
        if not self.nulls.any() and (self.widths == 1).all():
            return self.flat[self.starts]
        values = np.full(len(self.starts), np.nan)
        there = (self.widths > 0) & ~self.nulls
        values[there] = self.flat[self.starts[there]]
        return values


def read_columns(path: Path, columns: Iterable[str]) -> dict[str, Numbers]:
    """Numeric columns row by row, whatever the rows' lengths. UserError where one holds no numbers."""
    table = read_table(path, columns)
    return {name: _numbers(path, name, table[name]) for name in table.column_names}


def read_known(path: Path, columns: Iterable[str]) -> tuple[int, dict[str, Numbers]]:
    """(rows of the file, those of the columns that are there and hold numbers). UserError where the file is damaged."""
    file = open_parquet(path)
    table = read_table(path, [name for name in columns if name in set(file.schema_arrow.names)], file)
    found: dict[str, Numbers] = {}
    for name in table.column_names:
        try:
            found[name] = _numbers(path, name, table[name])
        except UserError:
            continue
    return int(file.metadata.num_rows), found


def value_ranges(path: Path, column: str) -> list[tuple[int, int]] | None:
    """(least, greatest) of a column of whole numbers in each row group, by the file's footer where it has them.

    None where the file cannot be read or has no such column.
    """
    try:
        file = open_parquet(path)
        names: list[str] = list(file.schema_arrow.names)
        if column not in names:
            return None
        place = [file.schema.column(number).path for number in range(len(file.schema))].index(column)
        groups = [file.metadata.row_group(group).column(place) for group in range(file.metadata.num_row_groups)]
        if all(group.statistics is not None and group.statistics.has_min_max for group in groups):
            return [(int(group.statistics.min), int(group.statistics.max)) for group in groups]
        values = read_columns(path, [column])[column].scalars()
    except (UserError, ValueError):
        return None
    return [(int(value), int(value)) for value in np.unique(values[np.isfinite(values)])]


def _numbers(path: Path, name: str, column: Any) -> Numbers:
    parts = [_chunk_numbers(path, name, chunk) for chunk in column.chunks] or [
        _chunk_numbers(path, name, _pa.array([], column.type))
    ]
    if len(parts) == 1:
        return parts[0]
    shifts = np.cumsum([0, *(len(part.flat) for part in parts[:-1])])
    return Numbers(
        np.concatenate([part.flat for part in parts]),
        np.concatenate([part.starts + shift for part, shift in zip(parts, shifts, strict=True)]),
        np.concatenate([part.widths for part in parts]),
        np.concatenate([part.nulls for part in parts]),
        parts[0].scalar,
    )


def _chunk_numbers(path: Path, name: str, chunk: Any) -> Numbers:
    """Follows lists of lists down to their numbers: row i is `level[low[i] : high[i]]` at each level."""
    level = chunk
    low = np.arange(len(chunk), dtype=np.int64)
    high = low + 1
    nulls = np.zeros(len(chunk), np.bool_)
    while True:
        if _pa.types.is_dictionary(level.type):
            level = level.dictionary_decode()
        if level.null_count:
            before = np.concatenate([[0], np.cumsum(~level.is_valid().to_numpy(zero_copy_only=False))])
            nulls |= before[high] > before[low]
        if not _is_list(level.type):
            break
        if _pa.types.is_fixed_size_list(level.type):  # its values are those of the whole, also where it is a slice
            offsets = (level.offset + np.arange(len(level) + 1, dtype=np.int64)) * level.type.list_size
        else:
            offsets = level.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        low, high = offsets[low], offsets[high]
        level = level.values
    if level.null_count or _pa.types.is_decimal(level.type):
        try:
            level = level.cast(_pa.float64())
        except _pa.ArrowException:
            raise UserError(f"{path}: column {name!r} holds no numbers but {chunk.type}") from None
    flat: NDArray[Any] = level.to_numpy(zero_copy_only=False)
    if flat.dtype.kind not in "biuf":
        raise UserError(f"{path}: column {name!r} holds no numbers but {chunk.type}")
    return Numbers(flat, low, high - low, nulls, not _is_list(chunk.type))


def _is_list(kind: Any) -> bool:
    return any(is_kind(kind) for is_kind in (_pa.types.is_list, _pa.types.is_large_list, _pa.types.is_fixed_size_list))
