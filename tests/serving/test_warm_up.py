"""Where shapes are compiled and captured, none is left for when robots ask. A GPU's captures are noted, not made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from serving_helpers import make_policy, noise, observation
from torch import Tensor
from torch.utils import _pytree

from pizero.engine.fast_sampler import FastSampler
from pizero.engine.packed import expert_layer, prefix_layer, vision_layer
from pizero.policy.policy import ModelPolicy
from pizero.policy.real_time import RealTime
from pizero.serving.hosted import make_ready


def shape_of(value: object) -> object:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value) if callable(value) else value


class Noted:
    """Calls through, and keeps the shapes that a capture or a compilation would be made for."""

    def __init__(self) -> None:
        self.shapes: set[Any] = set()

    def __call__(self, function: Callable[..., Tensor], what: object, *inputs: Any) -> Tensor:
        leaves, structure = _pytree.tree_flatten(inputs)
        self.shapes.add((what, str(structure), tuple(shape_of(leaf) for leaf in leaves)))
        return function(*inputs)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(block: Any, attention: Any, *inputs: Any) -> Any:
            leaves, structure = _pytree.tree_flatten(inputs)
            self.shapes.add((function.__name__, str(structure), tuple(shape_of(leaf) for leaf in leaves)))
            return function(block, attention, *inputs)

        return call


def as_on_a_gpu(policy: ModelPolicy) -> tuple[ModelPolicy, Noted]:
    sampler, noted = FastSampler(policy.model, kernels="torch"), Noted()  # type: ignore[arg-type]
    sampler.static, sampler._graphs = True, noted  # type: ignore[assignment]
    sampler._see, sampler._prefix, sampler._expert = map(noted.compiled, (vision_layer, prefix_layer, expert_layer))
    return ModelPolicy(sampler, policy.pipeline, num_steps=2), noted


def asked(prompt: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {**observation(seed), "prompt": prompt, "noise": noise(seed), **more}


@pytest.mark.parametrize("trained", [0, 2], ids=["guided", "trained"])
@pytest.mark.parametrize("max_batch", [1, 6])
def test_nothing_is_captured_while_robots_wait(max_batch: int, trained: int) -> None:
    policy, noted = as_on_a_gpu(make_policy(max_delay=trained))
    make_ready(lambda: policy, max_batch)
    before = set(noted.shapes)
    assert before
    prompts = [
        "go",
        "put it down!!",
        "p" * 14,
        "p" * 15,
        "p" * 16,
        "p" * 39,
        "put the red block into the box",
        "p" * 80,
    ]
    for size in range(1, max_batch + 1):
        for prompt in prompts:
            policy.infer_batch([asked(prompt)] * size)
        policy.infer_batch([asked(prompts[row % len(prompts)]) for row in range(size)])
        lost = asked("go")
        lost["images"] = {**lost["images"], "ego": None}
        policy.infer_batch([lost] * size)
        old = np.zeros((4, 5), np.float32)
        policy.infer_batch([asked("go", previous_actions=old, inference_delay=1)] * size)
    assert noted.shapes == before


def test_the_numbers_stay() -> None:
    """Filled-up batches and masked cameras: those of one observation after the other, without either."""
    plain = make_policy()
    policy, _ = as_on_a_gpu(plain)
    policy.real_time = plain.real_time = RealTime(jacobian="identity")
    make_ready(lambda: policy, 4)
    raws = [asked("go", 1), asked("put the red block into the box", 2), asked("left", 3)]
    raws[1]["images"] = {**raws[1]["images"], "ego": None}
    raws[2] |= {"previous_actions": np.ones((3, 5), np.float32), "inference_delay": 1}
    for some in (raws, raws[1:2], raws[:2], raws[2:]):
        found = policy.infer_batch(some)
        assert len(found) == len(some)
        for reply, raw in zip(found, some, strict=True):
            np.testing.assert_allclose(reply["actions"], plain.infer(raw)["actions"], atol=2e-5)


def test_batches_are_not_filled_up_where_shapes_cost_nothing() -> None:
    policy, seen = make_policy(), list[int]()
    original = policy._sampler.sample_actions

    def noted(observation: Any, **options: Any) -> Tensor:
        seen.append(observation.batch_size)
        return original(observation, **options)

    policy._sampler.sample_actions = noted  # type: ignore[method-assign]
    make_ready(lambda: policy, 3)
    policy.infer_batch([asked("go")] * 3)
    assert seen == [1, 3, 3]
