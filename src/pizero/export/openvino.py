"""An ONNX graph as OpenVINO's own files."""

from __future__ import annotations

from pathlib import Path

from pizero.exported.sessions import library


def to_openvino(folder: Path, name: str) -> None:
    """NAME.onnx and its weights become NAME.xml and NAME.bin. A graph's weights are one file: OpenVINO has no parts."""
    openvino = library("openvino")
    model = openvino.Core().read_model(folder / f"{name}.onnx")
    openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    del model
    for path in [folder / f"{name}.onnx", *folder.glob(f"{name}.[0-9]*.bin")]:
        path.unlink()
