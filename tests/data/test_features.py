"""Names of dimensions, in the forms in which info.json has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.features import dimension_names

PNG = Path(__file__).parents[1] / "golden/lerobot/datasets/v30_png"


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (["x", "y", "z"], ("x", "y", "z")),
        ([["x", "y", "z"]], ("x", "y", "z")),
        ([["x"], ["y", "z"]], ("x", "y", "z")),
        ({"motors": ["x", "y", "z"]}, ("x", "y", "z")),
        ({"axes": ["x", "y", "z"]}, ("x", "y", "z")),
        ({"motors": [["x", "y", "z"]]}, ("x", "y", "z")),
        ({"left": ["x", "y"], "right": ["z"]}, ("x", "y", "z")),
        ({"left": ["x", "y"], "right": ["x"]}, ("left.x", "left.y", "right.x")),
        ({"z": 2, "x": 0, "y": 1}, ("x", "y", "z")),
        ("state", ("state",)),
        (None, ()),
        (3, ()),
        ([], ()),
        ({}, ()),
        ([0, 1, 2], ()),
        (["x", None, "z"], ()),
        ({"motors": None}, ()),
        ({"motors": 3, "axes": ["x"]}, ()),
    ],
)
def test_names_are_flat(written: Any, names: tuple[str, ...]) -> None:
    assert dimension_names(written) == names


def test_names_of_a_dataset(tmp_path: Path) -> None:
    root = shutil.copytree(PNG, tmp_path / "d")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["names"] = {"motors": ["x", "y", "gripper"]}
    info["features"]["observation.state"] |= {"names": ["x", "y"], "shape": [2]}  # the data has more
    (root / "meta/info.json").write_text(json.dumps(info))
    dataset = LeRobotDataset(root)
    assert dataset.names("action") == ("x", "y", "gripper")
    assert dataset.names(("action", "action")) == ("x", "y", "gripper") * 2
    assert dataset.column("observation.state").shape[1] > 2
    assert dataset.names("observation.state") is None
    assert dataset.names(("action", "observation.state")) is None
    assert dataset.names("timestamp") is None
