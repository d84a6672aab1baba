"""The few things we do with parquet files. pyarrow has no type stubs: its untyped values stay in this module."""

# pyright: reportMissingTypeStubs=false, reportMissingImports=false
from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from pizero.data.datasets.files.json_files import POINTER_ADVICE, is_pointer
from pizero.data.datasets.files.open_files import OpenFiles
from pizero.types import UserError

_pa: Any = pyarrow
_pq: Any = pyarrow.parquet

ColumnType: TypeAlias = str | int
"""int64, float32, string, strings (a list), int64s, float64s, float64s3 (three times nested), image, language (a
list of LeRobot's texts, each with the time from which it holds), or n: n floats.
"""

Columns: TypeAlias = Mapping[str, "NDArray[Any] | Sequence[Any]"]


def open_parquet(path: Path) -> Any:
    """An open file; UserError when it is missing, is no parquet file, or a Git LFS pointer."""
    try:
        if is_pointer(path):
            raise UserError(f"{path} {POINTER_ADVICE}")
        return _pq.ParquetFile(os.path.abspath(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy or download the dataset again") from None
    except (_pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a parquet file ({_one_line(error)})") from None


def read_table(path: Path, columns: Iterable[str], file: Any = None) -> Any:
    """Columns of a file, which may be open already; UserError where one is not there or cannot be read."""
    file = file or open_parquet(path)
    names: set[str] = set(file.schema_arrow.names)
    wanted = list(columns)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}; it has {', '.join(sorted(names))}")
    try:
        return file.read(columns=wanted, use_threads=False)
    except (_pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged: columns {', '.join(wanted)} cannot be read ({_one_line(error)})") from None


def column_names(path: Path) -> list[str]:
    return list(open_parquet(path).schema_arrow.names)


def count_rows(path: Path) -> int:
    return int(open_parquet(path).metadata.num_rows)


def read_values(path: Path, columns: Iterable[str]) -> dict[str, list[Any]]:
    """Columns as lists of Python values."""
    table = read_table(path, columns)
    return {name: table[name].to_pylist() for name in table.column_names}


def read_cells(path: Path, column: str, rows: NDArray[np.int64]) -> list[Any]:
    """Of a column, these rows [n] as Python values."""
    values: list[Any] = read_table(path, [column])[column].take(_pa.array(rows)).to_pylist()
    return values


def merge(
    sources: Sequence[tuple[Path, NDArray[np.int64]]],
    target: Path,
    row_group: int,
    columns: Mapping[str, NDArray[Any] | Sequence[Any]],
    kept: Collection[str],
) -> None:
    """Rows of several files in one, with the first one's schema; UserError where another's differs.

    columns: values of all rows, in the place of those in the files, or new ones; numbers also in the place of lists of
    one. kept: columns of the files.
    """
    tables = [_rows_of(path, rows, kept) for path, rows in sources]
    for (path, _), table in zip(sources, tables, strict=True):
        if table.schema.names != tables[0].schema.names or table.schema.types != tables[0].schema.types:
            raise UserError(f"{path} has other columns than {sources[0][0]}; they cannot be one dataset")
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = tables[0].schema.metadata
    whole = _pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    for name, values in columns.items():
        array, position = _pa.array(values), whole.schema.get_field_index(name)
        kind = array.type if position < 0 else whole.schema.field(position).type
        if position < 0:
            whole = whole.append_column(name, array)
        else:
            images = _pa.types.is_struct(array.type) and not _pa.types.is_struct(kind)
            if _pa.types.is_list(kind) or _pa.types.is_fixed_size_list(kind):  # of one number each
                kind = kind.value_type
            whole = whole.set_column(position, name, array if images else array.cast(kind))
    _pq.write_table(whole.replace_schema_metadata(metadata), str(target), row_group_size=row_group)


def keep_row_groups(path: Path, count: int) -> None:
    """Removes what follows the first `count` row groups of a file. UserError when it cannot be read."""
    file = open_parquet(path)
    if file.metadata.num_row_groups < count:
        raise UserError(f"{path} is not whole")
    new = path.with_name(f".{path.name}.new")
    with _writer(new, file.schema_arrow) as target:
        for group in range(count):
            target.write_table(file.read_row_group(group, use_threads=False))
    os.replace(new, path)


def _rows_of(path: Path, rows: NDArray[np.int64], kept: Collection[str]) -> Any:
    file = open_parquet(path)
    table = file.read(columns=[name for name in file.schema_arrow.names if name in kept], use_threads=False)
    count: int = table.num_rows
    return table if np.array_equal(rows, np.arange(count)) else table.take(rows)


def image_paths(path: Path, column: str) -> Sequence[str | None] | None:
    """What the rows of a file say of images that lie beside it, [n]; None where it holds the images itself.

    None for each row where it has no such column at all.
    """
    file = open_parquet(path)
    count: int = file.metadata.num_rows
    if column not in file.schema_arrow.names:
        return [None] * count
    values: list[Any]
    kind = file.schema_arrow.field(column).type
    if _pa.types.is_binary(kind) or _pa.types.is_large_binary(kind):
        return None
    if _is_text(kind):
        values = file.read(columns=[column], use_threads=False)[column].to_pylist()
        return values
    if not _pa.types.is_struct(kind) or not {"bytes", "path"} & {field.name for field in kind}:
        if _pa.types.is_null(kind):
            return [None] * count
        raise UserError(f"{path}: column {column!r} holds no images but {kind}")
    if not _all_null(file, f"{column}.bytes"):
        return None
    values = file.read(columns=[column], use_threads=False)[column].to_pylist()
    return [_image_or_path(value) for value in values]


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if _pa.types.is_dictionary(kind) else kind
    return _pa.types.is_string(kind) or _pa.types.is_large_string(kind)


def _image_or_path(value: Any) -> Any:
    """Of a cell that has both, or is one of them."""
    cell = cast("dict[str, Any]", value)
    return cell.get("bytes") or cell.get("path") if isinstance(value, dict) else value


def rows_without_image(path: Path, column: str) -> list[int]:
    """Rows of a column of images in which there is none, or a path alone.

    Row groups are read only where their statistics say that there are some.
    """
    file = open_parquet(path)
    found: list[int] = []
    start = 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        chunks = [group.column(index) for index in range(group.num_columns)]
        leaves = [chunk for chunk in chunks if chunk.path_in_schema in (column, f"{column}.bytes")]
        if any(leaf.is_stats_set and leaf.statistics.has_null_count and leaf.statistics.null_count for leaf in leaves):
            values = file.read_row_group(number, columns=[leaves[0].path_in_schema], use_threads=False)[column]
            images = values.combine_chunks()
            images = images.field("bytes") if _pa.types.is_struct(images.type) else images
            found += [start + int(row) for row in np.flatnonzero(images.is_null().to_numpy(zero_copy_only=False))]
        start += int(group.num_rows)
    return found


def _all_null(file: Any, leaf: str) -> bool:
    """Whether a column has no value in any row group, by their statistics; they are read where these are missing."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        chunks = [group.column(index) for index in range(group.num_columns)]
        for chunk in (chunk for chunk in chunks if chunk.path_in_schema == leaf):
            if chunk.is_stats_set and chunk.statistics.has_null_count:
                nulls = chunk.statistics.null_count
            else:
                column, _, name = leaf.rpartition(".")
                table = file.read_row_group(number, columns=[leaf], use_threads=False)
                nulls = table[column].combine_chunks().field(name).null_count
            if nulls < group.num_rows:
                return False
    return True


class EncodedImages:
    """Image files kept as bytes in parquet columns, read by row; recently read row groups stay in memory."""

    BUDGET = 256 * 2**20  # bytes

    def __init__(self) -> None:
        self._files = OpenFiles(open_parquet, limit=16)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[Path, str, int], Any] = OrderedDict()
        self._starts: dict[Path, NDArray[np.int64]] = {}
        self._size = 0

    def read(self, path: Path, column: str, row: int) -> bytes | str | None:
        """The encoded image in `row` of `path`, or its own path where that holds no bytes, or None."""
        starts = self._starts.get(path)
        if starts is None:
            meta = self._files.get(path).metadata
            sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
            starts = self._starts[path] = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        group = int(np.searchsorted(starts, row, side="right")) - 1
        value: Any = self._group(path, column, group)[row - int(starts[group])].as_py()
        return _image_or_path(value)

    def _group(self, path: Path, column: str, group: int) -> Any:
        key = (path, column, group)
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        try:
            table = self._files.get(path).read_row_group(group, columns=[column], use_threads=False)
            values = table[column].combine_chunks() if column in table.column_names else _pa.nulls(table.num_rows)
        except (_pa.ArrowException, OSError, KeyError) as error:
            raise UserError(f"{path} is damaged: no images in column {column!r} ({_one_line(error)})") from None
        with self._lock:
            if key not in self._groups:
                self._groups[key] = values
                self._size += values.nbytes
            while self._size > self.BUDGET and len(self._groups) > 1:
                self._size -= self._groups.popitem(last=False)[1].nbytes
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


class TableWriter:
    """Writes one parquet file, a row group per call of `write`; memory does not grow with the file."""

    def __init__(
        self, path: Path, columns: Mapping[str, ColumnType], metadata: Mapping[str, str] | None = None
    ) -> None:
        self._types = {name: _arrow_type(kind) for name, kind in columns.items()}
        schema = _pa.schema(list(self._types.items()), metadata=dict(metadata or {}) or None)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: Any = _writer(path, schema)
        self._schema = schema
        self.path = path

    def write(self, columns: Columns) -> None:
        """Appends one row group."""
        arrays = [_to_arrow(columns[name], kind) for name, kind in self._types.items()]
        self._file.write_table(_pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _writer(path: Path, schema: Any) -> Any:
    """Encoded images neither compress further nor repeat: dictionaries and compression would only cost time."""
    compression = {f"{name}.{leaf}": "NONE" for name in schema.names for leaf in ("bytes", "path")}
    compression |= {field.name: "SNAPPY" for field in schema if not _pa.types.is_struct(field.type)}
    texts = [f"{field.name}.list.element.{part.name}" for field in schema for part in _parts_of_list(field.type)]
    compression |= dict.fromkeys(texts, "SNAPPY")
    return _pq.ParquetWriter(str(path), schema, use_dictionary=texts or False, compression=compression)


def _parts_of_list(kind: Any) -> list[Any]:
    """The fields of a list's structs; none of another column."""
    return list(kind.value_type) if _pa.types.is_list(kind) and _pa.types.is_struct(kind.value_type) else []


_LANGUAGE = [
    ("role", _pa.string()), ("content", _pa.string()), ("style", _pa.string()), ("timestamp", _pa.float32()),
    ("camera", _pa.string()), ("tool_calls", _pa.list_(_pa.string())),
]  # fmt: skip


def _arrow_type(kind: ColumnType) -> Any:
    if isinstance(kind, int):
        return _pa.list_(_pa.float32(), kind)
    numbers = _pa.list_(_pa.float64())
    return {
        "int64": _pa.int64(),
        "float32": _pa.float32(),
        "float64": _pa.float64(),
        "string": _pa.string(),
        "strings": _pa.list_(_pa.string()),
        "int64s": _pa.list_(_pa.int64()),
        "float64s": numbers,
        "float64s3": _pa.list_(_pa.list_(numbers)),
        "image": _pa.struct([("bytes", _pa.binary()), ("path", _pa.string())]),
        "language": _pa.list_(_pa.struct(_LANGUAGE)),
    }[kind]


def _to_arrow(values: Any, kind: Any) -> Any:
    if _pa.types.is_fixed_size_list(kind):
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        return _pa.FixedSizeListArray.from_arrays(_pa.array(flat), type=kind)
    if isinstance(values, np.ndarray):
        return _pa.array(np.ascontiguousarray(values), kind)  # pyright: ignore[reportUnknownArgumentType]
    return _pa.array(values, kind)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
