"""Every error of loading leaves a process in which the same checkpoint loads as if nothing had been."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pizero import UserError, load_policy
from pizero.checkpoints.native.checkpoint import load_example, save_checkpoint
from pizero.checkpoints.native.example import make_example
from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0

CONFIG = small_config("nano", vocab_size=259, prompt_length=14)
OBSERVATION = {
    "state": np.zeros(2, np.float32), "images": {"top": np.zeros((28, 28, 3), np.uint8)}, "prompt": "go",
    "noise": np.ones((CONFIG.action_horizon, CONFIG.action_dim), np.float32),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model, stats = Pi0(CONFIG).eval(), FieldStats(np.zeros(2), np.ones(2))
    pipeline = Pipeline(
        generic({"base_0_rgb": "top"}), NormStats("zscore", stats, stats), PaligemmaTokenizer.bytes(),
        cameras=CONFIG.cameras, prompt_format="pi0", prompt_length=CONFIG.prompt_length,
        image_size=CONFIG.image_shape, state_dim=CONFIG.state_dim, action_dim=CONFIG.action_dim,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("good") / "c"
    save_checkpoint(folder, model, pipeline, make_example(model, pipeline, OBSERVATION, OBSERVATION["noise"]))
    return folder


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def another_shape(folder: Path) -> None:
    """The last tensor that is read: the others are in the model by then."""
    tensors = load_file(folder / "model.safetensors")
    last = list(tensors)[-1]
    save_file(tensors | {last: torch.zeros(3, 3)}, folder / "model.safetensors")


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.popitem()
    save_file(tensors, folder / "model.safetensors")


def other_actions(folder: Path) -> None:
    example = load_example(folder)
    assert example is not None
    dataclasses.replace(example, actions=example.actions + 1).save(folder / "example.npz")


def without_its_robot(folder: Path) -> None:
    (folder / "pipeline.json").unlink()


def another_config(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["config"]["expert"]["depth"] += 1
    (folder / "config.json").write_text(json.dumps(values))


def nothing(folder: Path) -> None:
    pass


ERRORS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "no folder": (shutil.rmtree, {}, "there is nothing at this path"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), {}, "has no model.safetensors"),
    "cut weights": (cut, {}, "cannot be read"),
    "another shape": (another_shape, {}, "weights do not fit"),
    "a tensor less": (without_a_tensor, {}, "weights do not fit"),
    "another config": (another_config, {}, "depth"),
    "no robot": (without_its_robot, {}, "does not record embodiment"),
    "dtype": (nothing, {"dtype": "float31"}, "unknown dtype 'float31'"),
    "device": (nothing, {"device": "gpu"}, "unknown device 'gpu'"),
    "kernels": (nothing, {"kernels": "float8"}, "float8"),
    "steps": (nothing, {"num_steps": 0}, "num_steps must be at least 1"),
    "sizes": (nothing, {"arch": Path("absent.json")}, "absent.json cannot be read"),
    "another arch": (nothing, {"arch": small_config("nano")}, "they differ from arch"),
    "statistics": (nothing, {"norm_stats": "absent.json"}, "nothing at this path"),
    "robot": (nothing, {"embodiment": "nobody"}, "nobody"),
    "adapters": (nothing, {"adapters": "/"}, "holds no adapters.json"),
    "example": (other_actions, {"verify": True}, "no longer reproduces"),
    "no example": (lambda folder: (folder / "example.npz").unlink(), {"verify": True}, "no example to verify"),
}


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def test_the_same_checkpoint_loads_after_every_error(good: Path, tmp_path: Path) -> None:
    expected = load_policy(good, verify=True).infer(OBSERVATION)["actions"]
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), open_files())
    for name, (change, options, text) in ERRORS.items():
        bad = tmp_path / name.replace(" ", "_")
        shutil.copytree(good, bad)
        change(bad)
        with pytest.raises(UserError, match=text):
            load_policy(bad, **options)
        np.testing.assert_array_equal(load_policy(good, verify=True).infer(OBSERVATION)["actions"], expected)
        after = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), open_files())
        assert after == before, name
