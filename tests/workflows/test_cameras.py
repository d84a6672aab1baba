"""The cameras of a robot file, more or fewer than the model's: no weight depends on their number."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pizero.checkpoints.load import load_policy
from pizero.cli.main import run
from pizero.configs.presets import Preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.model.config import CAMERAS, small_config
from pizero.train.config import TrainConfig
from pizero.train.trainer import Trainer
from pizero.types import UserError
from pizero.workflows.plan import Resources, plan_training
from pizero.workflows.replay import recorded_observation, replay
from pizero.workflows.start import Initialization
from pizero.workflows.train import train_policy

FOUR = {"base_0_rgb": "top", "left_wrist_0_rgb": "left", "right_wrist_0_rgb": "right", "side_0_rgb": "side"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of a robot with four cameras, and its robot files with the first two, three and four of them."""
    folder, rng = tmp_path_factory.mktemp("cameras"), np.random.default_rng(0)
    with LeRobotWriter(
        folder / "data", fps=10, robot_type="arm", state_names=["pan", "lift"], action_names=["pan", "lift"],
        cameras=dict.fromkeys(FOUR.values(), (32, 32)), image_format="png",
    ) as writer:  # fmt: skip
        for _ in range(2):
            for _ in range(8):
                images = {name: rng.integers(0, 255, (32, 32, 3), np.uint8) for name in FOUR.values()}
                writer.add_frame(rng.normal(size=2), rng.normal(size=2), images)
            writer.save_episode("pick")
    for count in (2, 3, 4):
        lines = [f'{model} = "{own}"' for model, own in list(FOUR.items())[:count]]
        (folder / f"{count}.toml").write_text("\n".join(["[cameras]", *lines]))
    return folder


def preset(data: Path, cameras: int, steps: int = 2) -> Preset:
    model = small_config("nano", cameras=CAMERAS, state_dim=2, action_dim=2, prompt_length=8, vocab_size=384)
    train = TrainConfig(
        steps=steps, batch_size=4, draws=1, warmup_steps=1, log_every=1, save_every=1, validation_fraction=0.5,
        validate_every=2, seed=1, threads=1, learning_rate=1e-2, ema_decay=0.0,
    )  # fmt: skip
    return Preset(str(data / f"{cameras}.toml"), model, train, "zscore", 384, execution_horizon=4)


@pytest.fixture(scope="module")
def three(data: Path) -> Path:
    return train_policy(data / "data", data / "three", preset(data, 3, steps=1)).checkpoint


@pytest.mark.parametrize(("count", "model"), [(4, tuple(FOUR)), (2, CAMERAS)])
def test_a_checkpoint_of_three_cameras_is_trained_with_others(
    count: int, model: tuple[str, ...], data: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loads, is replayed, answers a request, and its training is resumed bit for bit."""
    initial, config = Initialization(three), preset(data, count)
    result = train_policy(data / "data", tmp_path / "whole", config, initial=initial)
    policy, dataset = load_policy(result.checkpoint, verify=True), LeRobotDataset(data / "data")
    assert policy.pipeline.cameras == model
    assert load_file(result.checkpoint / "model.safetensors").keys() == load_file(three / "model.safetensors").keys()

    observation = recorded_observation(dataset, policy.pipeline, 3)
    assert list(observation["images"]) == list(FOUR.values())[:count]
    noise = np.random.default_rng(0).standard_normal(policy.noise_shape).astype(np.float32)
    observation |= {"noise": noise}
    actions = policy.infer(observation)["actions"]
    for camera, image in observation["images"].items():
        changed = {**observation, "images": {**observation["images"], camera: 255 - image}}
        assert not np.array_equal(policy.infer(changed)["actions"], actions), camera
    assert replay(dataset, policy, np.array([1, 9])).predicted.shape[0] == 2

    parted, step = tmp_path / "parted", Trainer.train_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda self, batch: _stop() if self.step else step(self, batch))
        with pytest.raises(KeyboardInterrupt):
            train_policy(data / "data", parted, config, initial=initial)
    again = train_policy(data / "data", parted, config, initial=initial, resume=True)
    for name, tensor in load_file(result.checkpoint / "model.safetensors").items():
        assert torch.equal(load_file(again.checkpoint / "model.safetensors")[name], tensor), name


def _stop() -> torch.Tensor:
    raise KeyboardInterrupt


def test_a_fourth_camera_from_scratch_and_after_the_fact(data: Path, tmp_path: Path) -> None:
    result = train_policy(data / "data", tmp_path / "run", preset(data, 4, steps=1))
    assert load_policy(result.checkpoint).pipeline.cameras == tuple(FOUR)
    train_policy(data / "data", tmp_path / "fewer", preset(data, 3, steps=1))
    with pytest.raises(UserError, match=r"other settings: model.cameras was .*right_wrist_0_rgb'\], now .*side_0_rgb"):
        train_policy(data / "data", tmp_path / "fewer", preset(data, 4), resume=True)
    fewer = train_policy(data / "data", tmp_path / "fewer", preset(data, 3), resume=True)
    assert fewer.checkpoint.name == "0000002"


def test_a_resume_with_other_cameras_of_the_same_robot_is_refused(data: Path, tmp_path: Path) -> None:
    """Each would be trained on by the model as it is; the run's own description continues it."""
    arm, first = tmp_path / "arm.toml", (data / "3.toml").read_text()
    described = dataclasses.replace(preset(data, 3, steps=1), embodiment=str(arm))
    arm.write_text(first)
    train_policy(data / "data", tmp_path / "run", described)
    longer = dataclasses.replace(preset(data, 3), embodiment=str(arm))
    for other in (
        (data / "2.toml").read_text(), first.replace('"top"', '"side"'),
        '[robot]\nrelative_mask = [true]\n' + first,
    ):  # fmt: skip
        arm.write_text(other)
        with pytest.raises(
            UserError, match=r"another description of the robot 'arm': (cameras|relative_mask) was .*now"
        ):
            train_policy(data / "data", tmp_path / "run", longer, resume=True)
    arm.write_text(first)
    assert train_policy(data / "data", tmp_path / "run", longer, resume=True).checkpoint.name == "0000002"


def test_the_command(data: Path, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        str(data / "data"), "--preset", "small", "--embodiment", str(data / "4.toml"), "--checkpoint", str(three),
        "--output", str(tmp_path / "run"), "--steps", "1", "--batch-size", "4", "--warmup-steps", "0",
    ]  # fmt: skip
    assert run("train", arguments) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "cameras: side_0_rgb beside the checkpoint's base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb" in shown
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]["cameras"] == list(FOUR)


def test_a_plan_counts_the_cameras_of_the_robot(data: Path, three: Path) -> None:
    two, four = (plan_training(preset(data, count), Resources(), str(three)).step.activations for count in (2, 4))
    assert four > 1.5 * two


def test_the_baseline_whose_weights_depend_on_cameras_says_so(data: Path, tmp_path: Path) -> None:
    from pizero.baseline.config import small_baseline

    model = small_baseline("nano", cameras=CAMERAS, state_dim=2, action_dim=2, prompt_length=8, vocab_size=384)
    baseline = dataclasses.replace(preset(data, 3, steps=1), model=model)
    first = train_policy(data / "data", tmp_path / "three", baseline).checkpoint
    with pytest.raises(UserError, match="names the camera side_0_rgb, the model has"):
        train_policy(
            data / "data", tmp_path / "four", dataclasses.replace(baseline, embodiment=str(data / "4.toml")),
            initial=Initialization(first),
        )  # fmt: skip
