"""The recording for Rerun, read back with Rerun's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from insight_helpers import STEPS, pi0_policy, robot

from pizero.report.insight import recording as module
from pizero.report.insight.measure import look_inside
from pizero.report.insight.recording import write_recording
from pizero.types import UserError


def tensors(path: Path, entity: str) -> list[np.ndarray]:
    """What was logged there, in order."""
    from rerun.chunk import RrdReader

    found: list[np.ndarray] = []
    for chunk in RrdReader(path).stream():
        if chunk.entity_path != f"/{entity}":
            continue
        batch = chunk.to_record_batch()
        column = next(name for name in batch.schema.names if name.startswith("Tensor:data"))
        for row in batch.column(column).to_pylist():
            value = row[0]
            found.append(np.array(value["buffer"], np.float32).reshape(value["shape"]))
    return found


def test_the_recording_holds_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="the extra rerun is not installed (pip install 'pizero[rerun]')")
    insight = look_inside(pi0_policy(), robot(), ("x", "y", "z", "yaw", "gripper"))
    write_recording(tmp_path / "a.rrd", insight)
    assert [path.name for path in tmp_path.iterdir()] == ["a.rrd"]
    assert insight.flow is not None
    assert insight.attention is not None
    assert np.allclose(np.stack(tensors(tmp_path / "a.rrd", "chunk/yaw")), insight.flow.actions[:, :, 3])
    maps = tensors(tmp_path / "a.rrd", "camera/base_0_rgb/attention/layer_1")
    assert len(maps) == STEPS
    assert np.allclose(maps[2].flatten(), insight.attention.weights[2][1][:, :4].mean(axis=0))
    occlusion = tensors(tmp_path / "a.rrd", "camera/left_wrist_0_rgb/occlusion")
    assert np.allclose(occlusion[0], insight.occlusion.windows["left_wrist_0_rgb"])


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="extra rerun"):
        module.check_rerun()
