"""`--record`: the dataset holds what came and went, and `check` and `train` take it."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from serving_helpers import make_policy, observation

from pizero.configs.presets import get_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.data.robot_columns import robot_actions
from pizero.policy.policy import ModelPolicy
from pizero.serving import recorder
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


def test_what_a_robot_chooses_is_read_back_with_the_same_robot(serve: Serve, tmp_path: Path) -> None:
    policy = make_policy()
    robot = dataclasses.replace(policy.pipeline.embodiment, action_dims=(4, 3, "z", 0, 1))
    pipeline = dataclasses.replace(policy.pipeline, embodiment=robot)
    server = serve(ModelPolicy(policy.model, pipeline, num_steps=2), record=tmp_path / "recorded", record_fps=5.0)
    with PolicyClient(server.uri) as client:
        assert client.metadata["action_dims"] == [4, 3, "z", 0, 1]
        played = [client.infer({**observation(step), "prompt": "lift"})["actions"][0] for step in range(3)]
    server.stop()
    dataset = LeRobotDataset(tmp_path / "recorded" / "policy")
    np.testing.assert_array_equal(robot_actions(dataset, robot), np.stack(played))
    assert dataset.names("action") == ("4", "3", "z", "0", "1")


def test_nothing_asked_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    server = serve(record=tmp_path / "recorded")
    with PolicyClient(server.uri):
        pass
    server.stop()
    assert not (tmp_path / "recorded" / "policy").exists()


def test_a_full_disk_for_frames_that_wait_stops_no_robot(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No room for a frame in mid-episode, none for a new file; then there is room again."""

    def refuse(_: object) -> bytes:
        raise OSError(28, "No space left on device")

    server = serve(record=tmp_path / "recorded")
    with PolicyClient(server.uri) as client, PolicyClient(server.uri) as other:
        client.infer(observation())
        for owner, name, value in ((recorder, "pack", refuse), (tempfile, "tempdir", str(tmp_path / "none"))):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, value)
                assert client.infer(observation())["actions"].shape == (6, 5)
        for step in range(3):
            for robot, prompt in ((client, "lift"), (other, "push")):
                assert robot.infer({**observation(step), "prompt": prompt})["actions"].shape == (6, 5)
        assert client.connections == other.connections == 1
    server.stop()
    assert caplog.text.count("episode not recorded") == 2
    dataset = LeRobotDataset(tmp_path / "recorded" / "policy")
    assert dataset.episode_lengths.tolist() == [3, 3]
    assert sorted(dataset.tasks) == ["lift", "push"]


def record_three(server: Background) -> None:
    """Three robots, one after the other, of five requests each."""
    for robot in range(3):
        with PolicyClient(server.uri) as client:
            for step in range(5):
                client.infer({**observation(10 * robot + step, 32), "prompt": f"lift {robot}"})


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_an_episode_that_cannot_be_saved_is_lost_alone(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lost: int
) -> None:
    real, saves = LeRobotWriter.save_episode, itertools.count()

    def save(writer: LeRobotWriter, task: str) -> int:
        if next(saves) == lost:
            raise OSError(28, "No space left on device")
        return real(writer, task)

    monkeypatch.setattr(LeRobotWriter, "save_episode", save)
    server = serve(record=tmp_path / "recorded")
    record_three(server)
    server.stop()
    dataset = LeRobotDataset(tmp_path / "recorded" / "policy")
    kept = [robot for robot in range(3) if robot != lost]
    assert dataset.episode_lengths.tolist() == [5, 5]
    assert dataset.tasks == [f"lift {robot}" for robot in kept]
    states = [observation(10 * robot + step, 32)["state"] for robot in kept for step in range(5)]
    np.testing.assert_array_equal(dataset.column("observation.state"), states)
    assert caplog.text.count("episode not recorded") == 1


def test_a_recording_that_cannot_be_written_ends_the_server_with_one_line(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    server = serve(record=tmp_path / "recorded")
    with monkeypatch.context() as patch:
        patch.setattr(LeRobotWriter, "save_episode", refuse)
        record_three(server)  # no robot notices
        with pytest.raises(UserError, match=r"nothing was recorded in .*policy: none of 3 episodes could be written"):
            server.stop()
    assert list((tmp_path / "recorded").iterdir()) == []
    again = serve(record=tmp_path / "recorded")
    record_three(again)
    again.stop()
    assert LeRobotDataset(tmp_path / "recorded" / "policy").num_episodes == 3


def test_a_dataset_that_cannot_be_completed_ends_no_other(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ends = LeRobotWriter.finalize, itertools.count()

    def finalize(writer: LeRobotWriter) -> Path:
        if next(ends) == 0:
            raise OSError(5, "Input/output error")
        return real(writer)

    monkeypatch.setattr(LeRobotWriter, "finalize", finalize)
    server = serve({"red": make_policy(), "blue": make_policy()}, record=tmp_path)
    for name in ("red", "blue"):
        with PolicyClient(f"{server.uri}/{name}") as client:
            for step in range(2):
                client.infer({**observation(step, 32), "prompt": "lift"})
    with pytest.raises(UserError, match=r"red could not be completed .*Input/output error"):
        server.stop()
    assert LeRobotDataset(tmp_path / "blue").num_frames == 2


def test_a_place_that_is_taken_meanwhile_loses_no_recording(serve: Serve, tmp_path: Path) -> None:
    server = serve({"red": make_policy(), "blue": make_policy()}, record=tmp_path)
    for name in ("red", "blue"):
        with PolicyClient(f"{server.uri}/{name}") as client:
            for step in range(4):
                client.infer({**observation(step, 32), "prompt": "lift"})
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "mine").touch()
    with pytest.raises(UserError, match=r"red cannot be written .*the dataset is in .*red-"):
        server.stop()
    (aside,) = tmp_path.glob("red-*")
    for folder in (aside, tmp_path / "blue"):
        assert LeRobotDataset(folder).num_frames == 4


def test_a_recording_is_not_written_over(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "x").touch()
    with pytest.raises(UserError, match="will not be overwritten"):
        serve(record=tmp_path)
    assert [path.name for path in (tmp_path / "policy").iterdir()] == ["x"]
    server = serve(record=tmp_path / "another")
    with PolicyClient(server.uri) as client:
        for step in range(2):
            client.infer({**observation(step, 32), "prompt": "lift"})
    server.stop()
    assert LeRobotDataset(tmp_path / "another" / "policy").num_frames == 2
