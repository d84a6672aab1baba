"""A checkpoint and what was trained from it as adapters, by their names on one server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from serving_helpers import make_policy, noise, observation

from pizero.checkpoints.load import load_model
from pizero.checkpoints.native.adapters import PlainState, save_adapters
from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.checkpoints.native.example import make_example
from pizero.model.pi0 import Pi0
from pizero.policy.policy import ModelPolicy
from pizero.serving.client import PolicyClient
from pizero.serving.config import ServeConfig
from pizero.serving.running import background
from pizero.serving.server import PolicyServer
from pizero.train.config import LoraConfig, PartsConfig
from pizero.train.lora import is_adapter
from pizero.train.parts import choose_parts
from pizero.types import UserError
from pizero.workflows.serve import loaders, named


@pytest.fixture
def trained(checkpoint: Path, policy: ModelPolicy, tmp_path: Path) -> ModelPolicy:
    """The policy after a training of adapters, which are at tmp_path / "run" / "adapters"."""
    model = load_model(checkpoint)
    assert isinstance(model, Pi0)
    choose_parts(model, PartsConfig(freeze=("vision", "heads"), lora=LoraConfig(prefix_rank=4, expert_rank=4)))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    (tmp_path / "run").mkdir()
    save_adapters(tmp_path / "run" / "adapters", model, policy.pipeline)
    merged = Pi0(model.config)
    merged.load_state_dict(dict(PlainState(model)))
    return ModelPolicy(merged.eval(), policy.pipeline, num_steps=policy.num_steps)


def test_a_base_and_its_adapters_by_name(
    checkpoint: Path, policy: ModelPolicy, trained: ModelPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = named([f"base={checkpoint}", f"lift={checkpoint}+run"])
    monkeypatch.chdir("/")
    asked = {**observation(), "noise": noise()}
    with background(lambda: PolicyServer(loaders(paths, num_steps=policy.num_steps), ServeConfig(port=0))) as server:
        for name, expected in (("base", policy), ("lift", trained)):
            with PolicyClient(f"{server.uri}/{name}") as client:
                np.testing.assert_allclose(client.infer(asked)["actions"], expected.infer(asked)["actions"], atol=1e-5)
    assert np.abs(policy.infer(asked)["actions"] - trained.infer(asked)["actions"]).max() > 0.05


def test_adapters_of_another_checkpoint_are_refused(trained: ModelPolicy, tmp_path: Path) -> None:
    other = make_policy(3)
    example = make_example(other.model, other.pipeline, observation(), noise())
    save_checkpoint(tmp_path / "other", other.model, other.pipeline, example)  # type: ignore[arg-type]
    for adapters, message in (("run", "trained from another checkpoint"), ("other", "holds no adapters.json")):
        load = loaders(named([f"{tmp_path}/other+{tmp_path}/{adapters}"]))["policy"]
        with pytest.raises(UserError, match=message):
            load()
