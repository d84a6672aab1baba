"""A one-step policy behind the server: its own number of steps, another one, a chunk that continues, an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving_helpers import make_policy, noise, observation

from pizero.checkpoints.load import load_model
from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.checkpoints.native.example import make_example
from pizero.model.pi0 import Pi0
from pizero.policy.policy import ModelPolicy
from pizero.serving.client import PolicyClient, ServerError
from pizero.workflows.serve import loaders

ASKED: dict[str, Any] = {**observation(), "noise": noise()}


def written(folder: Path, **changes: Any) -> Path:
    """A checkpoint of a one-step model whose further input changes what it does, with its stored example."""
    made = make_policy(one_step=True, **changes)
    assert isinstance(made.model, Pi0)
    torch.nn.init.normal_(made.model.get_parameter("target_time.mlp_out.weight"), std=0.5)
    example = make_example(made.model, made.pipeline, observation(), np.zeros(made.noise_shape, np.float32))
    save_checkpoint(folder, made.model, made.pipeline, example)
    return folder


def loaded(folder: Path, **options: Any) -> ModelPolicy:
    policy = loaders({"policy": str(folder)}, **options)["policy"]()
    assert isinstance(policy, ModelPolicy)
    return policy


def sampled(folder: Path, num_steps: int) -> np.ndarray:
    """The chunk for `ASKED` that the plain path of the model gives."""
    model, pipeline = load_model(folder), make_policy().pipeline
    assert isinstance(model, Pi0)
    inputs = pipeline.observation(pipeline.robot_inputs([observation()]), "cpu")
    actions = model.sample_actions(inputs, noise=torch.from_numpy(noise()[None]), num_steps=num_steps)
    return pipeline.robot_actions(actions.numpy(), observation()["state"][None])[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("one_step") / "checkpoint")


@pytest.mark.parametrize(("given", "steps"), [(None, 1), (4, 4)])
def test_it_is_served_with_one_step_unless_the_server_says_more(
    serve: Any, folder: Path, given: int | None, steps: int
) -> None:
    """A request cannot: the number is the server's."""
    with PolicyClient(serve(loaded(folder, num_steps=given)).uri) as client:
        assert client.metadata["num_steps"] == steps
        chunks = [client.infer({**ASKED, **more})["actions"] for more in ({}, {"num_steps": 7})]
    for chunk in chunks:
        np.testing.assert_allclose(chunk, sampled(folder, steps), rtol=1e-4, atol=1e-5)
    assert np.abs(sampled(folder, 1) - sampled(folder, 4)).max() > 1e-2


def test_a_chunk_continues_with_a_single_step(serve: Any, folder: Path) -> None:
    """Guided, by the robot's own memory of the old chunk or the connection's: it blends over from that chunk."""
    later = {**observation(1), "noise": noise(1), "inference_delay": 2}
    with PolicyClient(serve(loaded(folder)).uri) as client:
        fresh = client.infer(later)["actions"]
        old = client.infer(ASKED)["actions"]
        by_server = client.infer({**later, "played": 2})["actions"]
        by_robot = client.infer({**later, "previous_actions": old[2:]})["actions"]
    np.testing.assert_array_equal(by_server, by_robot)
    np.testing.assert_allclose(by_server[:2], old[2:4], atol=1e-5)
    np.testing.assert_allclose(by_server[4:], fresh[4:], atol=1e-5)
    assert np.abs(fresh[:2] - old[2:4]).max() > 1e-2


def test_a_model_of_delays_takes_the_old_actions_as_given(serve: Any, tmp_path: Path) -> None:
    policy = loaded(written(tmp_path / "checkpoint", max_delay=3))
    with PolicyClient(serve(policy).uri) as client:
        old = client.infer(ASKED)["actions"]
        later = {**observation(1), "noise": noise(1)}
        chunk = client.infer({**later, "played": 1, "inference_delay": 2})["actions"]
        fresh = client.infer(later)["actions"]
    np.testing.assert_allclose(chunk[:2], old[1:3], atol=1e-5)
    assert np.abs(chunk[2:] - fresh[2:]).max() > 1e-3


def test_its_export_is_served_as_it_is(serve: Any, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from pizero.export.export import export

    export(folder, tmp_path / "export", to="onnx", threads=1)
    served = loaders({"policy": str(tmp_path / "export")})["policy"]()
    with PolicyClient(serve(served).uri) as client:
        assert client.metadata["num_steps"] == 1
        chunk = client.infer(ASKED)["actions"]
        with pytest.raises(ServerError, match="cannot continue a chunk"):
            client.infer({**ASKED, "previous_actions": chunk[2:]})
    np.testing.assert_allclose(chunk, sampled(folder, 1), rtol=1e-4, atol=1e-4)
