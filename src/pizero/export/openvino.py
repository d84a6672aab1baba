"""An ONNX graph as OpenVINO's own files."""

from __future__ import annotations

import shutil
from pathlib import Path

from pizero.exported.sessions import library
from pizero.types import UserError


def to_openvino(folder: Path, name: str) -> None:
    """NAME.onnx and its weights become NAME.xml and NAME.bin. A graph's weights are one file: OpenVINO has no parts.

    UserError where it cannot write them: a full disk is a RuntimeError of its own.
    """
    openvino = library("openvino")
    try:
        model = openvino.Core().read_model(folder / f"{name}.onnx")
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    except Exception as error:  # its errors have no common class
        reason, free = " ".join(str(error).split())[:300], shutil.disk_usage(folder).free
        raise UserError(
            f"OpenVINO could not write the graph {name} ({reason}); the disk has {free / 1e6:,.0f} MB free"
        ) from error
    del model
    for path in [folder / f"{name}.onnx", *folder.glob(f"{name}.[0-9]*.bin")]:
        path.unlink()
