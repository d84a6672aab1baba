"""After each kind of error of the fast path the next call gives the same numbers as before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_helpers import make_actions, make_observation, random_model
from torch import Tensor, nn

from pizero.engine import products, tuning
from pizero.engine.ablation import Ablated
from pizero.engine.capture import CudaGraphs
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.quantize import sensitivity
from pizero.engine.warm_up import warm_up
from pizero.model.flow_matching import ActionPrefix, Velocity
from pizero.model.pi0 import Pi0
from pizero.types import Observation, UserError


def noise_for(model: Pi0, batch: int = 2) -> Tensor:
    shape = (batch, model.config.action_horizon, model.config.action_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def raising(*_: object, **__: object) -> Any:
    raise RuntimeError("odd")


def failing_guide(velocity: Velocity) -> Velocity:
    """Fails in the second step, under autograd."""
    calls = iter(range(2))

    def guided(x_t: Tensor, time: Tensor) -> Tensor:
        with torch.enable_grad():
            v_t = velocity(x_t.requires_grad_(), time)
            if next(calls):
                raise RuntimeError("odd")
            return v_t.detach()

    return guided


def wrong_image(observation: Observation) -> Observation:
    name, image = next(iter(observation.images.items()))
    return dataclasses.replace(observation, images={**observation.images, name: image[:, 1:]})


def settled(model: Pi0, batch: int = 2, horizon: int | None = None, lengths: int = 2) -> ActionPrefix:
    horizon = model.config.action_horizon if horizon is None else horizon
    return ActionPrefix(torch.zeros(batch, horizon, model.config.action_dim), torch.ones(lengths, dtype=torch.long))


WRONG: dict[str, tuple[Callable[[Pi0, Observation], tuple[Observation, dict[str, Any]]], str]] = {
    "batch of the noise": (lambda m, o: (o, {"noise": noise_for(m, 3)}), "noise: got shape"),
    "width of the noise": (lambda m, o: (o, {"noise": noise_for(m)[..., :-1]}), "noise: got shape"),
    "steps": (lambda m, o: (o, {"num_steps": 0}), "num_steps must be at least 1"),
    "solver": (lambda m, o: (o, {"solver": "exact"}), "unknown solver 'exact'"),
    "state": (lambda m, o: (dataclasses.replace(o, state=None), {}), "state: got None"),
    "batch of the state": (lambda m, o: (dataclasses.replace(o, state=torch.zeros(1, 2)), {}), "state: got"),
    "image": (lambda m, o: (wrong_image(o), {}), "not divisible by the patch size"),
    "settled too long": (lambda m, o: (o, {"settled": settled(m, horizon=40)}), "settled: got shape"),
    "settled too short": (lambda m, o: (o, {"settled": settled(m, horizon=1)}), "settled: got shape"),
    "settled in another batch": (lambda m, o: (o, {"settled": settled(m, batch=1)}), "settled: got shape"),
    "lengths of another batch": (lambda m, o: (o, {"settled": settled(m, lengths=3)}), "settled: got lengths of shape"),
    "guide": (lambda m, o: (o, {"guide": raising}), "odd"),
    "guide at work": (lambda m, o: (o, {"guide": failing_guide}), "odd"),
}


@pytest.fixture(scope="module", params=["concat_mlp", "adarms"])
def samplers(request: pytest.FixtureRequest) -> list[Pi0 | FastSampler]:
    """The plain path, the fast one, that of few shapes, and one without optimizations; of the same model."""
    model = random_model(time_conditioning=request.param)
    static = FastSampler(model)
    static.static = True
    return [model, FastSampler(model), static, Ablated(model, ["time_tables", "cached_state"])]


@pytest.mark.parametrize("name", WRONG)
def test_a_call_that_fails_then_the_right_one(samplers: list[Pi0 | FastSampler], name: str) -> None:
    model = samplers[0]
    assert isinstance(model, Pi0)
    observation, noise = make_observation(model.config), noise_for(model)
    make, text = WRONG[name]
    for sampler in samplers:
        expected = sampler.sample_actions(observation, noise=noise, num_steps=2)
        bad, options = make(model, observation)
        for _ in range(2):
            with pytest.raises((ValueError, RuntimeError), match=text):
                sampler.sample_actions(bad, **{"noise": noise, "num_steps": 2, **options})
            found = sampler.sample_actions(observation, noise=noise, num_steps=2)
            assert torch.equal(found, expected)
            assert not found.requires_grad
        sampler.sample_actions(observation, noise=noise, num_steps=2, settled=settled(model))
        assert torch.is_grad_enabled()


def test_memory_that_ends_within_a_call_or_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    sampler, observation, noise = FastSampler(model), make_observation(model.config, batch=1), noise_for(model, 1)
    expected = sampler.sample_actions(observation, noise=noise, num_steps=2)
    for what in ("_expert", "_prefix", "_see", "_in"):
        with monkeypatch.context() as patch:
            patch.setattr(sampler, what, raising)
            with pytest.raises(RuntimeError, match="odd"):
                sampler.sample_actions(observation, noise=noise, num_steps=2)
            with pytest.raises(RuntimeError, match="odd"):
                warm_up(sampler, observation, 3, 1)
        assert torch.equal(sampler.sample_actions(observation, noise=noise, num_steps=2), expected)
    warm_up(sampler, observation, 2, 1)


def test_a_model_that_gave_up_its_weights() -> None:
    """It can no longer be trained or packed; what was packed answers as before, and so does a model that is whole."""
    model = random_model()
    observation, noise = make_observation(model.config), noise_for(model)
    actions, _, time = make_actions(model.config)
    sampler = FastSampler(model, consume=True)
    expected = sampler.sample_actions(observation, noise=noise, num_steps=2)
    for _ in range(2):
        with pytest.raises((RuntimeError, NotImplementedError)):
            model.loss(observation, actions, noise=noise, time=time)
        with pytest.raises(ValueError, match=r"is on meta and the model on cpu; .*load it again"):
            FastSampler(model)
        with pytest.raises(UserError, match="cannot be packed again"):
            sampler.repack("prefix.0", "torch")
        assert torch.equal(sampler.sample_actions(observation, noise=noise, num_steps=2), expected)
    whole = random_model()
    torch.testing.assert_close(
        FastSampler(whole).sample_actions(observation, noise=noise, num_steps=2), expected, atol=5e-6, rtol=0
    )
    assert whole.loss(observation, actions, noise=noise, time=time).isfinite().all()


@pytest.mark.parametrize("reason", ["adapters", "kernels"])
def test_a_model_that_cannot_be_packed_keeps_its_weights(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    observation, noise = make_observation(model.config), noise_for(model)
    expected = model.sample_actions(observation, noise=noise, num_steps=2)
    last = model.get_submodule(f"transformer.layers.{model.config.expert.depth - 1}.expert.query")
    if reason == "adapters":
        last.register_parameter("lora_a", nn.Parameter(torch.zeros(1)))
        with pytest.raises(ValueError, match="merge the LoRA adapters first"):
            FastSampler(model, consume=True)
        del last._parameters["lora_a"]
    else:
        with monkeypatch.context() as patch:
            patch.setattr(products, "largest_code", lambda: None)
            patch.setattr(products, "has_onednn", lambda dtype: False)
            for kernels in ("int8", "float8", "onednn"):
                with pytest.raises(UserError, match=r"choose auto|NVIDIA card"):
                    FastSampler(model, kernels=kernels, consume=True)
    assert torch.equal(model.sample_actions(observation, noise=noise, num_steps=2), expected)
    found = FastSampler(model, consume=True).sample_actions(observation, noise=noise, num_steps=2)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


def test_an_unknown_optimization_then_a_known_one() -> None:
    model = random_model()
    with pytest.raises(UserError, match="unknown optimization"):
        Ablated(model, ["speed"])  # type: ignore[list-item]
    Ablated(model, ["folded_heads"]).sample_actions(make_observation(model.config), noise=noise_for(model), num_steps=1)


@pytest.mark.int8
def test_a_measurement_of_layers_that_is_interrupted() -> None:
    model = random_model()
    observation, noise = make_observation(model.config), noise_for(model)
    expected = model.sample_actions(observation, noise=noise, num_steps=2)
    with pytest.raises(RuntimeError, match="odd"):
        sensitivity(model, observation, noise, 2, on_layer=raising)
    assert torch.equal(model.sample_actions(observation, noise=noise, num_steps=2), expected)
    assert sensitivity(model, observation, noise, 2).whole.actions < 0.05


def test_kernels_of_a_layer_that_are_not_here_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    observation, noise = make_observation(model.config), noise_for(model)
    sampler = FastSampler(model)
    expected = sampler.sample_actions(observation, noise=noise, num_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("pizero.engine.int8.largest_code", lambda: None)
        with pytest.raises(RuntimeError, match="no exact int8 product"):
            sampler.repack("expert.0", "int8")
    with pytest.raises(KeyError):
        sampler.repack("wheels.0", "torch")
    assert torch.equal(sampler.sample_actions(observation, noise=noise, num_steps=2), expected)
    undo = sampler.repack("expert.0", "torch")
    undo()
    assert torch.equal(sampler.sample_actions(observation, noise=noise, num_steps=2), expected)


def test_a_measurement_of_kernels_that_fails_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIZERO_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_known", None)
    monkeypatch.setattr(tuning, "used", {})
    x = torch.zeros(1, 1, 1)
    ways: list[dict[str, Callable[[], Callable[[Tensor], Tensor]]]] = [
        {"torch": lambda: torch.clone, "onednn": raising}, {"torch": lambda: raising}
    ]  # fmt: skip
    for broken in ways:
        with pytest.raises(RuntimeError, match="odd"):
            tuning.fastest("p", broken, x)
        assert not tuning.used
        assert not (tmp_path / "kernels.json").exists()
    assert tuning.fastest("p", {"torch": lambda: torch.clone}, x) == "torch"
    assert (tmp_path / "kernels.json").exists()


# ---------------------------------------------------------------- capture, with a stand-in for a GPU


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch.cuda is within: devices, streams and captures."""
    within: list[str] = []

    def entering(what: str) -> Callable[..., Any]:
        @contextmanager
        def enter(*_: object, **__: object) -> Iterator[None]:
            within.append(what)
            try:
                yield
            finally:
                within.pop()

        return enter

    stream = SimpleNamespace(wait_stream=lambda other: None)
    graph = SimpleNamespace(replay=lambda: None, pool=lambda: "pool")
    for name, value in {
        "device": entering("device"), "stream": entering("stream"), "graph": entering("graph"),
        "Stream": lambda: stream, "current_stream": lambda: stream, "CUDAGraph": lambda: graph,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return within


@pytest.mark.parametrize("where", ["stream", "graph"])
def test_a_capture_that_fails_is_made_again(current: list[str], where: str) -> None:
    """In a warm-up call, or in the captured one."""
    graphs, fails, calls = CudaGraphs(torch.device("cpu")), [True], list[str]()

    def call(x: Tensor) -> Tensor:
        calls.append(current[-1])
        if fails[0] and current[-1] == where:
            raise torch.OutOfMemoryError("full")
        return x + 1

    x = torch.ones(2)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError, match="full"):
            graphs(call, "what", x)
        assert not current
    fails[0] = False
    for _ in range(2):
        assert torch.equal(graphs(call, "what", x), x + 1)
    assert calls.count("graph") == (3 if where == "graph" else 1)
    assert not current
