"""The bytes of a policy server's messages: msgpack with NumPy arrays, as openpi's client and server write them.

An array is the map {b"__ndarray__": True, b"data": bytes, b"dtype": text, b"shape": [..]}, a NumPy number the map
{b"__npgeneric__": True, b"data": number, b"dtype": text}. Facts: openpi packages/openpi-client, msgpack_numpy.py.
What comes from outside is measured before anything of it is built. Needs NumPy and msgpack alone, and Python 3.8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_LENGTHS = {  # first byte: (kind, bytes of the length that follows)
    0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4), 0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_NUMBERS = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2,
            0xD2: 4, 0xD3: 8}  # fmt: skip


class ProtocolError(ValueError):
    """A message that does not follow the protocol, in one line."""


@dataclass(frozen=True)
class Limits:
    """What one message may hold; far above any robot's.

    max_bytes: of the whole message. max_values: numbers, texts, lists, maps and arrays together. max_depth: of nesting.
    max_text: bytes of one text. max_side: of each dimension of an array of three or more, an image.
    """

    max_bytes: int = 64 << 20
    max_values: int = 20_000
    max_depth: int = 8
    max_text: int = 16_384
    max_arrays: int = 64
    max_dims: int = 6
    max_side: int = 4096


LIMITS = Limits()


def pack(value: Any) -> bytes:
    """Dictionaries, lists, texts, numbers and arrays as bytes. ProtocolError for an array of objects or texts."""
    try:
        return msgpack.packb(value, default=_encode)  # type: ignore[no-any-return]
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"this value cannot be sent: {str(error)[:200]}") from None


def unpack(data: bytes, limits: Limits = LIMITS) -> Any:
    """What `pack` packed; arrays are writable and in this machine's byte order.

    ProtocolError says what is wrong with bytes that are something else, or beyond the limits.
    """
    measure(data, limits)
    arrays = 0

    def build(value: Any) -> Any:
        nonlocal arrays
        if ARRAY in value:
            arrays += 1
            if arrays > limits.max_arrays:
                raise ProtocolError(f"more than {limits.max_arrays} arrays in one message")
            return array_of(value.get(b"data"), value.get(b"shape"), value.get(b"dtype"), limits)
        return _scalar(value) if SCALAR in value else value

    try:
        return msgpack.unpackb(data, object_hook=build, strict_map_key=True)
    except ProtocolError:
        raise
    except UnicodeDecodeError:
        raise ProtocolError("a text is not UTF-8") from None
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a message of msgpack: {_one_line(error)}") from None


def measure(data: bytes, limits: Limits = LIMITS) -> int:
    """Number of values in a message, found without building any. ProtocolError when it is cut off or beyond a limit."""
    end = len(data)
    if end > limits.max_bytes:
        raise ProtocolError(f"a message of {end} bytes; at most {limits.max_bytes} are taken")
    position, values = 0, 0
    open_values = [1]  # of each list or map that is being read: how many values are to come
    while open_values:
        if not open_values[-1]:
            open_values.pop()
            continue
        open_values[-1] -= 1
        values += 1
        if values > limits.max_values:
            raise ProtocolError(f"more than {limits.max_values} values in one message")
        kind, length, position = _head(data, position)
        if kind in ("array", "map"):
            if len(open_values) > limits.max_depth:
                raise ProtocolError(f"nested more than {limits.max_depth} deep")
            open_values.append(length if kind == "array" else 2 * length)
        else:
            if kind == "str" and length > limits.max_text:
                raise ProtocolError(f"a text of {length} bytes; at most {limits.max_text} are taken")
            position += length
        if position > end:
            raise ProtocolError("the message is cut off")
    if position != end:
        raise ProtocolError(f"{end - position} bytes follow the message")
    return values


def _head(data: bytes, position: int) -> tuple[str, int, int]:
    """(kind, length, where its content starts) of the value at `position`; a number's length is that of its bytes."""
    if position >= len(data):
        raise ProtocolError("the message is cut off")
    first = data[position]
    if first <= 0x7F or first >= 0xE0:
        return "number", 0, position + 1
    if first <= 0x8F:
        return "map", first & 0x0F, position + 1
    if first <= 0x9F:
        return "array", first & 0x0F, position + 1
    if first <= 0xBF:
        return "str", first & 0x1F, position + 1
    if first in _NUMBERS:
        return "number", _NUMBERS[first], position + 1
    if first in _LENGTHS:
        kind, size = _LENGTHS[first]
        start = position + 1 + size
        return kind, int.from_bytes(data[position + 1 : start], "big"), start
    raise ProtocolError("a value of a type that is not taken: only numbers, texts, bytes, lists, maps and arrays are")


def _encode(value: Any) -> Any:
    """An array or a NumPy number as its map, for msgpack."""
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"a {type(value).__name__} is neither text, number, list, map nor array")
    if isinstance(value, np.str_):
        return str(value)
    dtype = value.dtype.str
    if not _DTYPE.fullmatch(dtype):
        raise TypeError(f"an array of {value.dtype}")
    if isinstance(value, np.ndarray):
        flat = np.ascontiguousarray(value).reshape(-1)
        data = flat.data.cast("B") if flat.size else b""  # not copied before msgpack copies it
        return {ARRAY: True, b"data": data, b"dtype": dtype, b"shape": value.shape}
    return {SCALAR: True, b"data": value.item(), b"dtype": dtype}


def array_of(data: Any, shape: Any, type_text: Any, limits: Limits = LIMITS) -> np.ndarray[Any, Any]:
    """An array of its bytes, shape and type. ProtocolError where they do not fit or are beyond the limits."""
    dtype = _dtype(type_text)
    if dtype is None:
        raise ProtocolError(f"an array of type {_shown(type_text)}; only numbers and truth values are taken")
    if not isinstance(data, bytes):
        raise ProtocolError(f"an array's data is {type(data).__name__}, expected bytes")
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
        raise ProtocolError(f"an array's shape is {_shown(shape)}, expected a list of whole numbers")
    if len(shape) > limits.max_dims:
        raise ProtocolError(f"an array of {len(shape)} dimensions; at most {limits.max_dims} are taken")
    if len(shape) > 2 and max(shape) > limits.max_side:
        raise ProtocolError(f"an image of shape {_shown(shape)}; at most {limits.max_side} to a side are taken")
    count = 1
    for side in shape:
        count *= side
    if count * dtype.itemsize != len(data) or max(shape, default=0) > limits.max_bytes:
        raise ProtocolError(f"an array of shape {_shown(shape)} and type {dtype} cannot have {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))  # a copy, so writable


def _scalar(value: dict[Any, Any]) -> Any:
    data, text = value.get(b"data"), value.get(b"dtype")
    if isinstance(data, str) and isinstance(text, str) and re.fullmatch(r"[<>|=]?U\d{1,6}", text):
        return data
    dtype = _dtype(text)
    if dtype is None or not isinstance(data, (bool, int, float)):
        raise ProtocolError(f"a NumPy number of type {_shown(text)}")
    try:
        return dtype.newbyteorder("=").type(data)
    except (OverflowError, ValueError):
        raise ProtocolError(f"{_shown(data)} is no {dtype}") from None


def _dtype(text: Any) -> np.dtype[Any] | None:
    return np.dtype(text) if isinstance(text, str) and _DTYPE.fullmatch(text) else None


def _shown(value: Any) -> str:
    return ascii(value)[:80]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
