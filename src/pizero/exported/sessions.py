"""A graph that a runtime has opened: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pizero.types import UserError

Array: TypeAlias = NDArray[Any]


class Session(Protocol):
    """A graph that reads and gives what is asked of it. What comes out of one session may go into another as it is."""

    def __call__(self, given: Mapping[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Ports:
    """What a graph must read and give."""

    inputs: list[str]
    outputs: list[str]

    def check(self, path: Path, *found: list[set[str]]) -> list[list[str]]:
        """The names of inputs and outputs in the graph's order; each may have several. UserError for others."""
        sides: list[list[str]] = []
        for wanted, ports in zip((self.inputs, self.outputs), found, strict=True):
            sides.append([next((name for name in wanted if name in names), "") for names in ports])
            if sorted(sides[-1]) != sorted(wanted):
                raise UserError(f"{path} is not the graph that its manifest describes; copy the export again")
        return sides


class OnnxSession:
    """ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, ports: Ports, dtype: str, threads: int | None) -> None:
        runtime = library("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        if not _adds_in_32_bits():
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise not_opened(path, "ONNX Runtime", error) from error
        self._value = runtime.OrtValue
        found = ([{value.name} for value in side] for side in (self._session.get_inputs(), self._session.get_outputs()))
        _, self._outputs = ports.check(path, *found)

    def __call__(self, given: Mapping[str, Any]) -> dict[str, Any]:
        make = self._value.ortvalue_from_numpy
        values = {
            name: make(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
            for name, value in given.items()
        }
        found = self._session.run_with_ort_values(self._outputs, values)
        return dict(zip(self._outputs, found, strict=True))


@cache
def _adds_in_32_bits() -> bool:
    """Whether the processor has VNNI. Where it has not, or does not say, ONNX Runtime's fast kernel for 8-bit codes may
    add pairs in 16 bits, and saturate; the exact one takes up to ten times as long where there is VNNI.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


class OpenvinoSession:
    """OpenVINO, on the CPU."""

    def __init__(self, path: Path, ports: Ports, dtype: str, threads: int | None) -> None:
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
            "SNIPPETS_MODE": "DISABLE",  # 2026.4 crashes the process on the MLP of an adaptive expert otherwise
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = _openvino_core().compile_model(path, "CPU", settings)
        except Exception as error:
            raise not_opened(path, "OpenVINO", error) from error
        self._request = self._model.create_infer_request()
        found = ([port.get_names() for port in side] for side in (self._model.inputs, self._model.outputs))
        self._inputs, self._outputs = ports.check(path, *found)
        self._tensor, self._set = library("openvino").Tensor, [np.empty(0)] * len(self._inputs)

    def __call__(self, given: Mapping[str, Any]) -> dict[str, Any]:
        for index, name in enumerate(self._inputs):
            value = np.require(given[name], requirements=["C", "W"])
            if value is not self._set[index]:  # most inputs of a step are those of the one before
                self._request.set_input_tensor(index, self._tensor(value, shared_memory=True))
                self._set[index] = value
        self._request.infer()
        outputs = enumerate(self._outputs)
        return {name: self._request.get_output_tensor(index).data.copy() for index, name in outputs}


@cache
def _openvino_core() -> Any:
    """One for all graphs, which share its threads."""
    return library("openvino").Core()


SESSIONS = {"onnx": OnnxSession, "openvino": OpenvinoSession}


def as_array(value: Any) -> Array:
    return value if isinstance(value, np.ndarray) else value.numpy()


def library(name: str) -> Any:
    """A module that not everybody installs."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed; pip install {name}, or 'pizero[export]' for all of it") from error


def not_opened(path: Path, runtime: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(f"{path} cannot be opened by {runtime} ({reason}); copy the export again")
