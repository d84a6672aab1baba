"""Will a checkpoint evaluate as it trained? One that does, and the same one broken in the ways that give 0 %."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pizero.cli.main import run
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.data.doctor.open_loop import Replay
from pizero.data.doctor.verdict import other_readings
from pizero.data.embodiments import Conversion, generic
from pizero.data.norm_stats import NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import Pi0Config, small_config
from pizero.policy.policy import ModelPolicy
from pizero.workflows import check
from pizero.workflows.norm_stats import dataset_norm_stats
from pizero.workflows.own_robot import own_robot
from pizero.workflows.verdict import chunk_answer

JOINTS = ["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"]
HORIZON, SIDE, REACH = 8, 32, 60.0


def lamp(image: Any, columns: slice, colour: int, degrees: float) -> None:
    image[int((degrees + REACH) / (2 * REACH + 1) * SIDE), columns, colour] = 255


def lit(images: np.ndarray[Any, Any], columns: slice, colour: int) -> np.ndarray[Any, Any]:
    """The inverse of `lamp`: images [B, h, w, 3] -> degrees [B]."""
    row = images[:, :, columns, colour].mean(axis=2).argmax(axis=1)
    return (row + 0.5) / SIDE * (2 * REACH + 1) - REACH


def advance(state: Any, goal: Any) -> Any:
    return state + np.clip(goal - state, -12, 12)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An arm that goes where a blue lamp in "front" and a red one in "wrist" are, and closes at green light."""
    root, rng = tmp_path_factory.mktemp("verdict") / "data", np.random.default_rng(0)
    with LeRobotWriter(
        root, fps=10, robot_type="arm", state_names=JOINTS, action_names=JOINTS,
        cameras=dict.fromkeys(("front", "wrist"), (SIDE, SIDE)), image_format="png",
    ) as writer:  # fmt: skip
        for number in range(12):
            goal, closed = rng.uniform(-REACH, REACH, size=2), number % 2
            start = np.clip(np.where(goal > 0, goal - 70, goal + 70), -REACH, REACH)
            state = np.array([*start, 100.0 - 100 * closed])
            for _ in range(14):
                images = {name: np.zeros((SIDE, SIDE, 3), np.uint8) for name in ("front", "wrist")}
                for at, (name, colour) in enumerate((("front", 2), ("wrist", 0))):
                    lamp(images[name], slice(0, 8), colour, goal[at])
                    lamp(images[name], slice(8, 16), colour, state[at])
                images["front"][:, 28:, 1] = 200 * closed
                action = np.array([*advance(state[:2], goal), 100.0 * closed])
                writer.add_frame(state, action, images)
                state = np.array([*action[:2], (state[2] + action[2]) / 2])
            writer.save_episode("go to the lamps")
    return root


class Learned:
    """A model that has learned the task with a pipeline: it sees lamps, and answers in that pipeline's numbers."""

    def __init__(self, config: Pi0Config, pipeline: Pipeline) -> None:
        self.config, self.pipeline = config, pipeline

    def sample_actions(self, observation: Any, **options: Any) -> torch.Tensor:
        front, wrist = (observation.images[name].numpy() for name in self.config.cameras)
        goal = np.stack([lit(front, slice(0, 8), 2), lit(wrist, slice(0, 8), 0)], axis=1)
        state = np.stack([lit(front, slice(8, 16), 2), lit(wrist, slice(8, 16), 0)], axis=1)
        closed = 100.0 * (front[:, :, 30, 1].mean(axis=1) > -0.9)
        chunk: list[Any] = []
        at: Any = state
        for _ in range(HORIZON):
            at = advance(at, goal)
            chunk.append(np.concatenate([at, closed[:, None]], axis=1))
        actions = np.stack(chunk, axis=1)
        if self._sees_state(observation) != (self.pipeline.prompt_format == "pi05"):
            actions = np.random.default_rng(0).permuted(actions, axis=0)  # a prompt that it does not know
        whole = np.concatenate([state, closed[:, None]], axis=1).astype(np.float32)
        return torch.from_numpy(self.pipeline.model_actions(actions.astype(np.float32), whole))

    def _sees_state(self, observation: Any) -> bool:
        if self.pipeline.prompt_format == "pi0":
            return False
        text = bytes(max(int(token) - 3, 0) for token in observation.prompt_tokens[0]).decode(errors="ignore")
        return "State" in text


Break = Callable[[Pipeline], Pipeline]


def pipeline_of(data: Path, **changes: Any) -> Pipeline:
    dataset = LeRobotDataset(data)
    robot = replace(own_robot(dataset), **changes)
    stats = dataset_norm_stats(dataset, robot, "zscore", HORIZON)
    return Pipeline(
        robot, stats, PaligemmaTokenizer.bytes(), cameras=("base_0_rgb", "left_wrist_0_rgb"), prompt_format="pi0",
        prompt_length=80, image_size=(SIDE, SIDE), state_dim=3, action_dim=3,
    )  # fmt: skip


def verdict(data: Path, monkeypatch: pytest.MonkeyPatch, learned: Pipeline, given: Pipeline) -> dict[str, Any]:
    """Of a model that was trained with one pipeline and comes with another."""
    config = small_config(
        "nano", cameras=learned.cameras, image_size=SIDE, state_dim=3, action_dim=3, action_horizon=HORIZON,
        prompt_length=80, vocab_size=384, vision=replace(small_config("nano").vision, patch_size=8),
    )  # fmt: skip
    policy = ModelPolicy(Learned(config, learned), given)  # type: ignore[arg-type]
    monkeypatch.setattr(check, "load_policy", lambda *_, **__: policy)
    return check.check(data, check.CheckConfig(checkpoint=data.parent))["verdict"]


def states(found: dict[str, Any]) -> dict[str, str]:
    return {aspect["aspect"]: aspect["state"] for aspect in found["aspects"]}


def test_a_policy_that_fits(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pipeline = pipeline_of(data)
    found = verdict(data, monkeypatch, pipeline, pipeline)
    assert found["answer"] == "yes", found
    assert set(states(found).values()) == {"yes", "open"}
    shown = capsys.readouterr().err.splitlines()
    assert "verdict it will evaluate as it trained, as far as recorded episodes show" in shown
    assert run("check", [str(data), "--checkpoint", str(data.parent), "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "check.json").read_text())["verdict"] == found
    assert "Will it evaluate as it trained?" in (tmp_path / "check.html").read_text()


def exchanged(pipeline: Pipeline) -> Pipeline:
    cameras = dict(zip(pipeline.cameras, reversed(list(pipeline.embodiment.cameras.values())), strict=True))
    return replace(pipeline, embodiment=replace(pipeline.embodiment, cameras=cameras))


def of_others(stats: NormStats) -> NormStats:
    """As those of a dataset with other goals, within what would be noticed by the numbers alone."""
    actions = stats.actions
    return replace(stats, actions=replace(actions, mean=actions.mean + 2 * actions.std, std=actions.std * 0.5))


def converted(pipeline: Pipeline, dims: tuple[int, ...], robot: float, model: float) -> Pipeline:
    """A robot whose actions are converted on the way out, and that is recorded without."""
    own = Conversion(dims, of="action", robot=(0.0, robot), model=(0.0, model))
    return replace(pipeline, embodiment=replace(pipeline.embodiment, conversions=(own,)))


@pytest.mark.parametrize(
    ("aspect", "broken", "text"),
    [
        ("cameras", exchanged, "exchanged: the error falls"),
        ("statistics", lambda p: replace(p, norm_stats=of_others(p.norm_stats)), "statistics of this data"),
        ("statistics", lambda p: replace(p, norm_stats=replace(p.norm_stats, mode="quantile")), "in the mode zscore"),
        ("units", lambda p: converted(p, (0, 1), 180.0, np.pi), "it gives degrees"),
        ("units", lambda p: converted(p, (2,), 1.0, 100.0), "its gripper goes from 0 to 1"),
        ("gripper", lambda p: replace(p, embodiment=replace(p.embodiment, conversions=(
            Conversion((2,), of="action", robot=(0.0, 100.0), model=(100.0, 0.0)),))), "opens where it should close"),
    ],
)  # fmt: skip
def test_what_gives_zero_percent_is_found(
    aspect: str, broken: Break, text: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of(data)
    found = verdict(data, monkeypatch, pipeline, broken(pipeline))
    assert found["answer"] == "no"
    assert states(found)[aspect] == "no", found
    assert any(text in part["text"] for part in found["aspects"]), found
    assert aspect in found["text"]


@pytest.mark.parametrize(
    ("learned", "given", "text"),
    [
        ({}, {"relative_mask": ()}, "its actions are relative, and nothing adds the state"),
        ({"relative_mask": ()}, {}, "its actions are absolute, and the state is added all the same"),
    ],
)
def test_relative_actions_whose_step_is_missing(
    learned: dict[str, Any], given: dict[str, Any], text: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a processor is not found: the statistics are those of the training."""
    trained, other = pipeline_of(data, **learned), pipeline_of(data, **given)
    found = verdict(data, monkeypatch, trained, replace(other, norm_stats=trained.norm_stats))
    assert states(found)["relative"] == "no", found
    assert "relative" in found["text"]


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        (lambda image: image[..., ::-1, ::-1, :], "turned by 180 degrees"),
        (lambda image: image[..., ::-1, :], "mirrored"),
        (lambda image: image[..., ::-1], "red and blue exchanged"),
    ],
)
def test_images_that_the_training_saw_otherwise(
    turn: Callable[[Any], Any], text: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of(data)
    sample = Learned.sample_actions

    def turned(self: Learned, observation: Any, **options: Any) -> torch.Tensor:
        images = {name: torch.from_numpy(turn(image.numpy()).copy()) for name, image in observation.images.items()}
        return sample(self, SimpleNamespace(images=images, prompt_tokens=observation.prompt_tokens), **options)

    monkeypatch.setattr(Learned, "sample_actions", turned)
    found = verdict(data, monkeypatch, pipeline, pipeline)
    assert states(found)["images"] == "no", found
    assert any(text in part["text"] for part in found["aspects"])


@pytest.mark.parametrize(("learned", "given"), [("none", "pi05"), ("pi05", "none")])
def test_a_prompt_with_and_without_the_state(
    learned: Any, given: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of(data)
    found = verdict(
        data, monkeypatch, replace(pipeline, prompt_format=learned), replace(pipeline, prompt_format=given)
    )  # fmt: skip
    assert states(found)["prompt"] == "no", found


@pytest.mark.parametrize(("speed", "text"), [(2.0, "twice as fast"), (0.5, "half as fast"), (1.0, "")])
def test_chunks_of_another_frame_rate(speed: float, text: str) -> None:
    rng = np.random.default_rng(0)
    start, slope = rng.normal(size=(20, 1, 3)), rng.normal(size=(20, 1, 3))
    steps = np.arange(HORIZON)[None, :, None]
    recorded, predicted = ((start + rate * slope * steps).astype(np.float32) for rate in (1.0, speed))
    played = Replay(np.arange(20), recorded, predicted, np.zeros((20, HORIZON), bool))
    found = list(other_readings(played, recorded[:, 0], generic({}), ()))
    assert [explanation.aspect for explanation in found] == (["chunk"] if text else [])
    assert all(text in explanation.text for explanation in found)


def test_the_time_of_a_chunk() -> None:
    assert [chunk_answer(fps, 50).state for fps in (50, 10, 500)] == ["yes", "doubt", "doubt"]


def test_weights_without_their_adapters(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model answers: no other reading fits, and the actions are no better than a constant one."""
    pipeline = pipeline_of(data)
    base = lambda self, observation, **_: torch.randn(len(observation.prompt_tokens), HORIZON, 3)  # noqa: E731
    monkeypatch.setattr(Learned, "sample_actions", base)
    found = verdict(data, monkeypatch, pipeline, pipeline)
    assert {aspect for aspect, state in states(found).items() if state == "no"} == {"actions"}
    assert found["text"] == "it will not evaluate as it trained: actions"


@pytest.mark.filterwarnings("ignore:prompt")
def test_an_image_of_another_ratio_and_a_prompt_that_is_cut(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = replace(pipeline_of(data), prompt_length=8)
    example = SimpleNamespace(observation={"images": {"front": np.zeros((24, 32, 3)), "wrist": np.zeros((32, 32, 3))}})
    monkeypatch.setattr("pizero.workflows.verdict.load_example", lambda _: example)
    monkeypatch.setattr("pizero.workflows.verdict.verify_example", lambda _: 0.0)
    found = verdict(data, monkeypatch, pipeline, pipeline)
    assert found["answer"] == "doubt"
    assert (states(found)["images"], states(found)["prompt"]) == ("doubt", "doubt")
