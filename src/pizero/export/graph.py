"""One ONNX graph in the making: nodes, inputs, outputs, and weights that are written when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pizero.engine.int8 import EIGHT_BITS, int8_codes
from pizero.exported.sessions import library

if TYPE_CHECKING:
    from onnx import GraphProto, TensorProto

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16", "int8"]
Runtime: TypeAlias = Literal["onnx", "openvino"]
Value: TypeAlias = str
"""Name of a value in the graph."""
Weight: TypeAlias = Tensor | Callable[[], Tensor]
"""A tensor, or what computes it: a graph of 10 GB is never whole in memory."""

OPSET, IR_VERSION = 20, 10
PART_BYTES = 1_900_000_000
"""Most of one file of weights: protocol buffers, and some file systems, end at 2 GB."""
_TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class _Stored:
    name: str
    value: Weight
    dtype: torch.dtype


class Graph:
    """dtype: of the matrices in the file; every graph computes in float32, int8 products apart. runtime: which one the
    graph is for; int8 differs.
    """

    def __init__(self, name: str, dtype: Dtype = "float32", runtime: Runtime = "onnx") -> None:
        self._onnx = library("onnx")
        self.name, self.dtype, self.runtime = name, dtype, runtime
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._stored: list[_Stored] = []
        self._names = 0
        self._codes: dict[Value, tuple[Value, Value]] = {}

    # ---------------------------------------------------------------- nodes

    def input(self, name: str, shape: Sequence[int | str], kind: str = "FLOAT") -> Value:
        """A text in the shape is a length that changes from call to call. kind: as ONNX's TensorProto names it."""
        self._inputs.append(self._info(name, kind, shape))
        return name

    def output(self, value: Value, name: str, shape: Sequence[int | str]) -> None:
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))
        self._outputs.append(self._info(name, "FLOAT", shape))

    def op(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
        """A node with one result."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, results: int, *inputs: Value, **attributes: Any) -> list[Value]:
        names = [self._new(kind.lower()) for _ in range(results)]
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def constant(self, value: NDArray[Any] | Sequence[float] | float) -> Value:
        """A small one, in the graph's own file. Numbers without a dtype become float32."""
        array = value if isinstance(value, np.ndarray) else np.asarray(value, np.float32)
        self._constants.append(self._onnx.numpy_helper.from_array(array.copy(order="C"), self._new("constant")))
        return self._constants[-1].name

    def integers(self, *values: int) -> Value:
        return self.constant(np.array(values, np.int64))

    # ---------------------------------------------------------------- weights

    def vector(self, name: str, value: Weight) -> Value:
        """A weight that stays float32: biases, norms, tables."""
        return self._store(name, value, torch.float32)

    def kernel(self, name: str, value: Weight) -> Value:
        """A matrix or a convolution's kernel in the graph's dtype, widened where it is read."""
        dtype = torch.float32 if self.dtype == "int8" else _TORCH[self.dtype]
        stored = self._store(name, value, dtype)
        if dtype == torch.float32:
            return stored
        return self.op("Cast", stored, to=self._onnx.TensorProto.FLOAT)

    def product(self, x: Value, name: str, weight: Callable[[], Tensor], bias: Weight | None = None) -> Value:
        """x [..., in] times a layer's weight [out, in], plus bias [out]: one of the large products."""
        if self.dtype == "int8":
            y = self._int8_product(x, name, weight)
        else:
            y = self.op("MatMul", x, self.kernel(name, lambda: weight().t()))
        return y if bias is None else self.op("Add", y, self.vector(f"{name}.bias", bias))

    def _int8_product(self, x: Value, name: str, weight: Callable[[], Tensor]) -> Value:
        """Weights of 8 bits with a scale per output. ONNX Runtime multiplies codes, of tokens with a scale each, as
        `engine/int8.py` does; OpenVINO finds its own way for weights that are widened.
        """
        scales: list[Tensor] = []

        def coded() -> Tensor:
            codes, scale = int8_codes(weight().contiguous(), EIGHT_BITS)
            scales.append(scale)
            return codes.t()

        codes = self._store(name, coded, torch.int8)
        scale = self.vector(f"{name}.scale", scales.pop)  # written after its codes
        if self.runtime == "openvino":
            return self.op("MatMul", x, self.op("DequantizeLinear", codes, scale, axis=1))
        if x not in self._codes:
            self._codes[x] = self._coded(x)
        tokens, size = self._codes[x]
        # with both zero points: where the last is missing, ONNX Runtime 1.23 ends the process on x86
        middles = self.constant(np.array(128, np.uint8)), self.constant(np.array(0, np.int8))
        y = self.op("MatMulInteger", tokens, codes, *middles)
        y = self.op("Cast", y, to=self._onnx.TensorProto.FLOAT)
        return self.op("Mul", self.op("Mul", y, size), scale)

    def _coded(self, x: Value) -> tuple[Value, Value]:
        """Tokens [..., in] as codes around 128, and the size [..., 1] of one."""
        largest = self.op("ReduceMax", self.op("Abs", x), self.integers(-1), keepdims=1)
        size = self.op("Div", self.op("Max", largest, self.constant(1e-12)), self.constant(127.0))
        codes = self.op("Add", self.op("Round", self.op("Div", x, size)), self.constant(128.0))
        return self.op("Cast", codes, to=self._onnx.TensorProto.UINT8), size

    def _store(self, name: str, value: Weight, dtype: torch.dtype) -> Value:
        self._stored.append(_Stored(name, value, dtype))
        return name

    # ---------------------------------------------------------------- file

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Writes NAME.onnx, and NAME.0.bin and on with the weights."""
        onnx = self._onnx
        graph: GraphProto = onnx.helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, initializer=self._constants
        )
        with _Parts(folder, self.name) as parts:
            for stored in self._stored:
                value = stored.value if isinstance(stored.value, Tensor) else stored.value()
                graph.initializer.append(self._external(stored, value.detach().to(stored.dtype).contiguous(), parts))
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pizero")
        (folder / f"{self.name}.onnx").write_bytes(model.SerializeToString())

    def _external(self, stored: _Stored, value: Tensor, parts: _Parts) -> TensorProto:
        location, offset, length = parts.write(value)
        kinds = self._onnx.TensorProto
        kind = {
            torch.float32: kinds.FLOAT, torch.bfloat16: kinds.BFLOAT16, torch.float16: kinds.FLOAT16,
            torch.int8: kinds.INT8,
        }[stored.dtype]  # fmt: skip
        tensor = kinds(name=stored.name, data_type=kind, dims=list(value.shape), data_location=kinds.EXTERNAL)
        for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=text)
        return tensor

    def _info(self, name: str, kind: str, shape: Sequence[int | str]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, getattr(self._onnx.TensorProto, kind), list(shape))

    def _new(self, what: str) -> str:
        self._names += 1
        return f"{what}_{self._names}"


class _Parts:
    """Files of weights one after the other, none of them above `PART_BYTES`, each tensor whole in one of them."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name, self._number = folder, name, -1
        self._file: Any = None

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, value: Tensor) -> tuple[str, int, int]:
        """(file's name, offset, length) of the tensor's bytes; a large one begins where a memory map can."""
        content = value.reshape(-1).view(torch.uint8).numpy()
        if self._file is None or self._file.tell() + len(content) + 4096 > PART_BYTES:
            self.__exit__()
            self._number += 1
            self._file = (self._folder / f"{self._name}.{self._number}.bin").open("xb")
        self._file.write(bytes(-self._file.tell() % (4096 if len(content) > 1 << 16 else 64)))
        offset = self._file.tell()
        self._file.write(content.data)
        return f"{self._name}.{self._number}.bin", offset, len(content)
