"""A graph that a runtime has opened: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pizero.types import UserError

Array: TypeAlias = NDArray[Any]


class Session(Protocol):
    """inputs, outputs: the names that the graph has. What comes out of one session may go into another as it is."""

    @property
    def inputs(self) -> list[str]: ...
    @property
    def outputs(self) -> list[str]: ...
    def __call__(self, given: Mapping[str, Any]) -> dict[str, Any]: ...


class OnnxSession:
    """ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, dtype: str, threads: int | None) -> None:
        runtime = library("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        # without VNNI the fast kernel for 8-bit codes adds pairs in 16 bits, and saturates
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise not_opened(path, "ONNX Runtime", error) from error
        self._value = runtime.OrtValue
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, given: Mapping[str, Any]) -> dict[str, Any]:
        make = self._value.ortvalue_from_numpy
        values = {
            name: make(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
            for name, value in given.items()
        }
        found = self._session.run_with_ort_values(self.outputs, values)
        return dict(zip(self.outputs, found, strict=True))


class OpenvinoSession:
    """OpenVINO, on the CPU."""

    def __init__(self, path: Path, dtype: str, threads: int | None) -> None:
        openvino = library("openvino")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = openvino.Core().compile_model(path, "CPU", settings)
        except Exception as error:
            raise not_opened(path, "OpenVINO", error) from error
        self._request = self._model.create_infer_request()
        self.inputs = [port.get_any_name() for port in self._model.inputs]
        self.outputs = [port.get_any_name() for port in self._model.outputs]

    def __call__(self, given: Mapping[str, Any]) -> dict[str, Any]:
        found = self._request.infer(dict(given), share_inputs=True, share_outputs=False)
        return {port.get_any_name(): value for port, value in found.items()}


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
