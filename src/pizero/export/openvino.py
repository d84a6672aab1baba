"""An ONNX graph as OpenVINO's own files."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

from pizero.exported.sessions import library
from pizero.types import UserError

_NARROW = {"BF16", "FP16"}


def to_openvino(folder: Path, name: str) -> None:
    """NAME.onnx and its weights become NAME.xml and NAME.bin. A graph's weights are one file: OpenVINO has no parts.

    UserError where it cannot write them: a full disk is a RuntimeError of its own.
    """
    openvino = library("openvino")
    try:
        model = openvino.Core().read_model(folder / f"{name}.onnx")
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
        _keep_narrow(folder / f"{name}.xml")
    except Exception as error:  # its errors have no common class
        reason, free = " ".join(str(error).split())[:300], shutil.disk_usage(folder).free
        raise UserError(
            f"OpenVINO could not write the graph {name} ({reason}); the disk has {free / 1e6:,.0f} MB free"
        ) from error
    del model
    for path in [folder / f"{name}.onnx", *folder.glob(f"{name}.[0-9]*.bin")]:
        path.unlink()


def _keep_narrow(path: Path) -> None:
    """Marks that weights of 16 bits are widened where they are read, as OpenVINO marks those that it has made narrow
    itself: else it widens all of them when it opens the file, and keeps both, 19 GB for a π0 of 6.
    """
    tree = ElementTree.parse(path)
    for layer in tree.iter("layer"):
        if (
            layer.get("type") == "Convert"
            and {port.get("precision") for port in layer.iterfind("input/port")} <= _NARROW
        ):
            marks = layer.find("rt_info")
            if marks is None:
                marks = ElementTree.Element("rt_info")
                layer.insert(1, marks)  # after <data>
            ElementTree.SubElement(marks, "attribute", name="decompression", version="0")
    tree.write(path, encoding="utf-8", xml_declaration=True)
