"""The preset for any robot: sized by the dataset, from a recording to a policy without a robot file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pizero.checkpoints.load import load_policy
from pizero.cli.main import run
from pizero.configs.presets import ModelName, Preset, get_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.types import UserError
from pizero.workflows.replay import recorded_observation
from pizero.workflows.sizes import sized
from pizero.workflows.train import train_policy
from pizero.workflows.training_data import DataOptions, open_sources

CAMERAS = ("top", "wrist", "side", "back")
LONG = "take the third screw from the left box and put it beside the other two of its size, then close the lid"


def record(
    root: Path, cameras: tuple[str, ...] = ("front",), dims: int = 6, fps: float = 30,
    shape: tuple[int, int] = (48, 64), prompts: tuple[str, ...] = ("pick",), robot: str = "so101",
) -> Path:  # fmt: skip
    """An episode of 12 frames for each of the prompts."""
    rng = np.random.default_rng(0)
    names = [f"joint_{number}" for number in range(dims)]
    with LeRobotWriter(
        root, fps=fps, robot_type=robot, state_names=names, action_names=names[: max(dims - 1, 1)],
        cameras=dict.fromkeys(cameras, shape), image_format="png",
    ) as writer:  # fmt: skip
        for prompt in prompts:
            for _ in range(12):
                images = {name: rng.integers(0, 255, (*shape, 3), np.uint8) for name in cameras}
                writer.add_frame(rng.normal(size=dims), rng.normal(size=max(dims - 1, 1)), images)
            writer.save_episode(prompt)
    return root


def short(model: ModelName = "pi0", **changes: Any) -> Preset:
    preset = get_preset("small", model)
    train = dataclasses.replace(
        preset.train, **{"steps": 2, "batch_size": 4, "draws": 1, "save_every": 1, "log_every": 1, **changes}
    )
    return dataclasses.replace(preset, train=dataclasses.replace(train, threads=1, warmup_steps=1))


def sizes(root: Path, model: ModelName = "pi0", **options: Any) -> Any:
    return sized(short(model), open_sources(root, options.pop("embodiment", "own"), **options)).model


@pytest.mark.parametrize("model", ["pi0", "pi05", "diffusion"])
def test_from_a_recording_to_a_policy(
    tmp_path: Path, model: ModelName, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """Four cameras, 34 dimensions, long instructions."""
    root = record(tmp_path / "data", CAMERAS, dims=34, prompts=("", LONG))
    result = train_policy(root, tmp_path / "run", short(model))
    shown = " ".join(capsys.readouterr().err.split())
    assert "cameras " in shown
    assert "wrist as left_wrist_0_rgb" in shown
    assert "not used: " in shown  # of four cameras three have a place
    assert "state observation.state (34): joint_0, joint_1" in shown
    assert "actions action (33): joint_0" in shown
    assert "question 34 state dimensions, the released models have room for 32" in shown
    assert "34 state and 33 action dimensions, chunks of 30 actions (1 s), instructions of up to" in shown
    policy = load_policy(result.checkpoint, verify=True)
    assert (policy.pipeline.state_dim, policy.pipeline.action_dim) == (34, 33)
    observation = recorded_observation(LeRobotDataset(root), policy.pipeline, 13)
    assert policy.infer(observation)["actions"].shape == (30, 33)
    assert not [warning for warning in recwarn if "tokens" in str(warning.message)]


def test_sizes_follow_the_data(tmp_path: Path) -> None:
    slow = sizes(record(tmp_path / "slow", fps=5, shape=(20, 20), dims=1))
    assert (slow.action_horizon, slow.image_size, slow.vision.patch_size) == (10, 32, 8)
    assert (slow.cameras, slow.state_dim, slow.action_dim) == (("base_0_rgb",), 1, 1)
    fast = sizes(record(tmp_path / "fast", ("wrist",), fps=200, shape=(90, 120)))
    assert (fast.action_horizon, fast.image_size, fast.cameras) == (50, 96, ("left_wrist_0_rgb",))
    odd = record(tmp_path / "odd", fps=18.5, shape=(64, 64))
    assert (sizes(odd).action_horizon, sizes(odd).image_size) == (18, 64)
    diffusion = sizes(odd, "diffusion")
    assert (diffusion.stem_stride, diffusion.image_size, diffusion.action_dim) == (4, 64, 5)
    assert diffusion.down_dims == (32, 64, 128)
    many = sizes(record(tmp_path / "many", shape=(64, 64), dims=34), "diffusion")
    assert many.down_dims == (72, 144, 288)


def test_a_mixture_of_robots_that_nobody_described(tmp_path: Path) -> None:
    """The same robot twice shares its statistics; another with the same name gets its own."""
    record(tmp_path / "a", prompts=("pick",))
    record(tmp_path / "b", prompts=("place",))
    record(tmp_path / "c", ("front", "wrist"), dims=8, fps=50)
    (tmp_path / "mixture.toml").write_text("".join(f'[[datasets]]\npath = "{name}"\n' for name in "abc"))
    names = [source.embodiment.name for source in open_sources(tmp_path / "mixture.toml", "own")]
    assert names == ["so101", "so101", "so101_2"]
    model = sizes(tmp_path / "mixture.toml")
    assert (model.state_dim, model.action_dim, model.action_horizon) == (8, 7, 50)
    assert model.cameras == ("base_0_rgb", "left_wrist_0_rgb")


@pytest.mark.filterwarnings("ignore:prompt")
def test_a_resume_keeps_the_sizes_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that was started by another rule, with less room for instructions."""
    root = record(tmp_path / "data", prompts=("pick", LONG))
    with monkeypatch.context() as patch:
        patch.setattr("pizero.workflows.train.with_prompts", lambda preset, *_: preset)
        first = load_policy(train_policy(root, tmp_path / "run", short(steps=1)).checkpoint)
    second = load_policy(train_policy(root, tmp_path / "run", short(), resume=True).checkpoint)
    assert second.pipeline.prompt_length == first.pipeline.prompt_length == 16


def test_a_full_model_takes_the_cameras_that_it_has_a_place_for(tmp_path: Path) -> None:
    root = record(tmp_path / "data", CAMERAS)
    preset = get_preset("full")
    source = open_sources(root, preset.embodiment, cameras=preset.model.cameras)[0]
    assert len(source.embodiment.cameras) == 3
    assert "wrist" in source.embodiment.cameras.values()
    assert sized(preset, [source]) == preset


def test_a_plan_for_a_robot_that_nobody_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = record(tmp_path / "data", CAMERAS, dims=34)
    arguments = [str(root), "--preset", "small", "--output", str(tmp_path / "run"), "--plan", "--plan-memory", "8"]
    assert run("train", arguments) == 0
    assert "fits into the 8.0 GiB" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_preset_from_scratch_has_room_for_every_instruction(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    root = record(tmp_path / "data", ("top", "ego"), dims=6, prompts=("pick", LONG))
    preset = get_preset("tabletop")
    train = dataclasses.replace(preset.train, steps=1, batch_size=4, draws=1, threads=1)
    result = train_policy(root, tmp_path / "run", dataclasses.replace(preset, train=train, embodiment="own"))
    assert load_policy(result.checkpoint).pipeline.prompt_length > preset.model.prompt_length
    assert not [warning for warning in recwarn if "tokens" in str(warning.message)]


def test_a_resume_on_other_data_changes_nothing(tmp_path: Path) -> None:
    """Whatever the data is refused for, the run's own settings stay."""
    folder, first = tmp_path / "run", record(tmp_path / "data", prompts=("pick", "place"))
    train_policy(first, folder, short(steps=1), data=DataOptions(frames="memory"))
    before = (folder / "run.json").read_bytes()
    for name, options, message in (
        ("wider", {"dims": 7}, r"is of 6 state and 5 action dimensions, .*wider has 7 and 6; give the datasets that"),
        ("shorter", {}, "was trained on other data"),
    ):
        other = record(tmp_path / name, **options)
        with pytest.raises(UserError, match=message):
            train_policy(other, folder, short(steps=2), resume=True, data=DataOptions(frames="memory"))
        assert (folder / "run.json").read_bytes() == before
    train_policy(first, folder, short(steps=2), resume=True, data=DataOptions(frames="memory"))
    assert json.loads((folder / "run.json").read_text())["train"]["steps"] == 2
