"""Messages: what goes out comes back, and what is hostile is told in one line before anything is built of it."""

from __future__ import annotations

import ast
import struct
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pizero.serving import protocol
from pizero.serving.protocol import ARRAY, Limits, ProtocolError, measure, pack, unpack

SERVING = Path(protocol.__file__).parent


def array_map(**changes: Any) -> dict[bytes, Any]:
    values: dict[bytes, Any] = {ARRAY: True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    return {**values, **{name.encode(): value for name, value in changes.items()}}


@pytest.mark.parametrize("dtype", ["bool", "u1", "i2", ">i4", "u8", "f2", ">f4", "f8"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3, 4)])
def test_an_array_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    value = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    found = unpack(pack({"x": value}))["x"]
    assert found.shape == shape
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, value)
    found[...] = 0  # writable


def test_views_and_numbers_come_back() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    value = {"flipped": image[::-1, ::2], "number": np.float32(1.5), "word": np.str_("hi"), "deep": [{"a": [1, None]}]}
    found = unpack(pack(value))
    np.testing.assert_array_equal(found["flipped"], value["flipped"])
    assert type(found["number"]) is np.float32
    assert found["number"] == 1.5
    assert (found["word"], found["deep"]) == ("hi", [{"a": [1, None]}])


def test_the_bytes_are_those_of_openpi() -> None:
    """By hand, from the format that openpi's msgpack_numpy.py describes."""
    value = np.array([[1, 2]], np.uint8)
    expected = {b"__ndarray__": True, b"data": b"\x01\x02", b"dtype": "|u1", b"shape": [1, 2]}
    assert msgpack.unpackb(pack(value), strict_map_key=False) == expected
    scalar = {b"__npgeneric__": True, b"data": "pick", b"dtype": "<U4"}
    assert unpack(msgpack.packb({"prompt": scalar})) == {"prompt": "pick"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array([object()]), "an array of object"),
        (np.array(["text"]), "an array of <U4"),
        (np.zeros(2, complex), "an array of complex128"),
        (np.zeros(2, [("a", "f4")]), "an array of"),
        ({1, 2}, "a set"),
    ],
)
def test_what_cannot_be_sent(value: Any, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        pack({"x": value})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "cut off"),
        (b"\xc1", "a type that is not taken"),
        (b"\xc7\x01\x05x", "a type that is not taken"),  # an extension
        (b"\x81\xa1a", "cut off"),
        (b"\xc6\xff\xff\xff\xff", "cut off"),  # 4 GB of bytes, none of them there
        (b"\xdd\xff\xff\xff\xff", "cut off"),
        (b"\xdf\x7f\xff\xff\xff", "cut off"),
        (b"\x01\x02", "1 bytes follow"),
        (b"\x91" * 5_000 + b"\xc0", "nested more than 8 deep"),
        (b"\xdd" + struct.pack(">I", 100_000) + b"\x90" * 100_000, "more than 20000 values"),
        (b"\x81\xa1\xff\x01", "not UTF-8"),
        (b"\xda\xff\xff" + b"a" * 65_535, "a text of 65535 bytes"),
        (b"\x81\x01\x02", "not a message of msgpack"),  # a number as a key
        (msgpack.packb(array_map(dtype="O")), "an array of type 'O'"),
        (msgpack.packb(array_map(dtype="(1000000,)f4")), "only numbers"),
        (msgpack.packb(array_map(dtype=["<f4"])), "only numbers"),
        (msgpack.packb(array_map(data="text")), "data is str"),
        (msgpack.packb(array_map(shape=[3])), "cannot have 8 bytes"),
        (msgpack.packb(array_map(shape=[-1, -2])), "list of whole numbers"),
        (msgpack.packb(array_map(shape=[True, 2])), "list of whole numbers"),
        (msgpack.packb(array_map(shape=2)), "list of whole numbers"),
        (msgpack.packb(array_map(shape=[2**63, 2**63])), "cannot have"),
        (msgpack.packb(array_map(shape=[0, 2**62], data=b"")), "cannot have"),
        (msgpack.packb(array_map(shape=[1] * 7 + [2])), "of 8 dimensions"),
        (msgpack.packb(array_map(shape=[1, 5_000, 1], dtype="|u1", data=bytes(5_000))), "at most 4096 to a side"),
        (msgpack.packb([array_map()] * 65), "more than 64 arrays"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "300 is no uint8"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 3, b"dtype": "O"}), "a NumPy number of type 'O'"),
    ],
)
def test_hostile_bytes_are_told(data: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text) as caught:
        unpack(data)
    assert "\n" not in str(caught.value)


def test_a_message_beyond_the_size_is_not_read() -> None:
    with pytest.raises(ProtocolError, match="a message of 11 bytes; at most 10"):
        unpack(bytes(11), Limits(max_bytes=10))


def test_a_bomb_costs_neither_memory_nor_time() -> None:
    bomb = b"\xdd\x00\x20\x00\x00" + b"\x90" * 0x200000  # two million lists in two megabytes
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ProtocolError):
        unpack(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert time.process_time() - started < 1.0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=30,
)


@settings(max_examples=200)
@given(VALUES)
def test_what_msgpack_writes_is_measured_and_read(value: Any) -> None:
    data = msgpack.packb(value)
    limits = Limits(max_depth=100)
    assert measure(data, limits) >= 1
    assert unpack(data, limits) == value


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_one_line(data: bytes) -> None:
    try:
        unpack(data)
    except ProtocolError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_protocol_and_client_are_of_python_3_8_and_need_three_packages() -> None:
    allowed = {"numpy", "msgpack", "websockets", "pizero", "protocol", "__future__", *sys.stdlib_module_names}
    for name in ("protocol.py", "client.py"):
        tree = ast.parse((SERVING / name).read_text(), feature_version=(3, 8))
        for node in ast.walk(tree):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {module.split(".")[0] for module in modules} <= allowed, name
            assert not any(module.startswith("pizero.") and "protocol" not in module for module in modules)
