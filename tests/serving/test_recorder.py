"""`--record`: the dataset holds what came and went, and `check` and `train` take it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from serving_helpers import observation

from pizero.configs.presets import get_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.serving.client import PolicyClient
from pizero.serving.running import Background
from pizero.types import UserError
from pizero.workflows.check import CheckConfig, check
from pizero.workflows.train import train_policy

Serve = Callable[..., Background]


def test_what_came_and_went_can_be_checked_and_trained_on(serve: Serve, tmp_path: Path) -> None:
    server = serve(record=tmp_path / "recorded", record_fps=5.0)
    asked = [
        [{**observation(10 * robot + step, 32), "prompt": f"lift {robot}"} for step in range(8)] for robot in (0, 1)
    ]
    clients = [PolicyClient(server.uri) for _ in asked]
    actions: list[list[np.ndarray]] = [[], []]
    for step in range(8):  # both at the same time
        for robot, client in enumerate(clients):
            actions[robot].append(client.infer(asked[robot][step])["actions"][0])
    clients[0].infer({**asked[0][0], "prompt": "another"})  # too short to keep
    for client in clients:
        client.close()
        time.sleep(0.1)
    assert not (tmp_path / "recorded" / "policy").exists()
    server.stop()
    dataset = LeRobotDataset(tmp_path / "recorded" / "policy")
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (2, 16, 5.0)
    assert sorted(dataset.tasks) == ["lift 0", "lift 1"]
    for robot in (0, 1):
        frames = np.arange(8) + 8 * robot
        prompt = dataset.prompts(frames[:1])[0]
        which = int(prompt[-1])
        states = np.stack([one["state"] for one in asked[which]])
        np.testing.assert_array_equal(dataset.column("observation.state")[frames], states)
        np.testing.assert_array_equal(dataset.column("action")[frames], np.stack(actions[which]))
    assert dataset.images("top", np.arange(2)).shape == (2, 32, 32, 3)
    report = check(tmp_path / "recorded" / "policy", CheckConfig(embodiment="tabletop", horizon=4))
    assert report["frames"] == 16
    preset = get_preset("tabletop")
    quick = dataclasses.replace(preset.train, steps=2, batch_size=2, validate_every=2, save_every=2, log_every=1)
    trained = train_policy(tmp_path / "recorded" / "policy", tmp_path / "run", dataclasses.replace(preset, train=quick))
    assert np.isfinite(trained.loss)


def test_nothing_asked_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    server = serve(record=tmp_path / "recorded")
    with PolicyClient(server.uri):
        pass
    server.stop()
    assert not (tmp_path / "recorded" / "policy").exists()


def test_a_recording_is_not_written_over(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "x").touch()
    with pytest.raises(UserError, match="will not be overwritten"):
        serve(record=tmp_path)
