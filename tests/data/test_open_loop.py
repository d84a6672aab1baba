"""Errors of replayed chunks, by hand."""

from __future__ import annotations

import numpy as np

from pizero.data.doctor.open_loop import Replay, summarize


def test_errors_in_robot_units_without_the_padding() -> None:
    recorded = np.zeros((2, 4, 2), np.float32)
    recorded[0, :, 0] = (0, 2, 4, 6)
    recorded[1, :, 0] = (8, 10, 10, 10)
    predicted = recorded + np.array([0.5, 0.0], np.float32)
    predicted[1, 2:] = 1e6  # past the end
    padded = np.zeros((2, 4), bool)
    padded[1, 2:] = True
    found = summarize(Replay(np.array([3, 9]), recorded, predicted, padded))
    assert found["chunks"] == 2
    assert found["error"] == [0.5, 0.0]
    spread = float(np.std([0, 2, 4, 6, 8, 10]))
    np.testing.assert_allclose(found["relative_error"][0], 0.5 / spread, atol=1e-4)
    np.testing.assert_allclose(found["constant_error"][0], 3.0 / spread, atol=1e-4)  # the median is 5
    assert found["relative_error"][1] is None  # does not move
    np.testing.assert_allclose(found["by_step"], [0.5 / spread] * 4, atol=1e-4)
    assert found["grippers"] == {}


def test_gripper_events() -> None:
    """Three real events: found two frames late, missed, found; and one that nobody made."""
    low, high = -1.0, 1.0
    recorded = np.full((4, 20, 1), low, np.float32)
    recorded[0, 10:] = high
    recorded[1, 5:] = high
    recorded[2, :8] = high
    predicted = recorded.copy()
    predicted[0, 10:12] = low
    predicted[1] = low
    predicted[3, 15:] = high
    found = summarize(Replay(np.arange(4), recorded, predicted, np.zeros((4, 20), bool)))["grippers"]["0"]
    assert (found["events"], found["found"], found["extra"]) == (3, 2, 1)
    assert found["same_side"] == 1 - (2 + 15 + 5) / 80
