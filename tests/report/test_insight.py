"""What the insight page shows is what the model does."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from insight_helpers import CAMERAS, STEPS, diffusion_policy, fast_policy, pi0_policy, robot
from torch import Tensor

from pizero.model.config import Pi0Config
from pizero.model.flow_matching import integrate
from pizero.model.pi0 import Pi0
from pizero.policy.course import sample_course
from pizero.policy.policy import ModelPolicy
from pizero.policy.sampling import episode_noise
from pizero.report.insight.attention import ActionAttention, key_groups, watched_attention
from pizero.report.insight.flow import adaptive_gates, step_errors, straightness
from pizero.report.insight.measure import Insight, look_inside
from pizero.report.insight.occlusion import count, occlude
from pizero.report.insight.page import insight_page, page_data
from pizero.types import Observation, UserError


@pytest.fixture(scope="module")
def pi0() -> Insight:
    return look_inside(pi0_policy(), robot(), ("x", "y", "z", "yaw", "gripper"))


@pytest.fixture(scope="module")
def pi05() -> Insight:
    return look_inside(pi0_policy(pi05=True), robot())


def sampled(policy: ModelPolicy) -> tuple[Pi0, Observation, Tensor]:
    model = policy.model
    assert isinstance(model, Pi0)
    observation = policy.pipeline.observation(policy.pipeline.robot_inputs([robot()]), "cpu")
    return model, observation, torch.from_numpy(episode_noise(0, 0, policy.noise_shape))[None]


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("pi05", [False, True])
def test_attention_is_the_models_own(pi05: bool) -> None:
    model, observation, noise = sampled(pi0_policy(pi05))
    alone = model.sample_actions(observation, num_steps=STEPS, noise=noise)
    with watched_attention(model) as seen:
        watched = model.sample_actions(observation, num_steps=STEPS, noise=noise)
    assert torch.equal(alone, watched)
    weights, groups = seen.array(), key_groups(model, observation)
    assert weights.shape == (STEPS, 2, 4, len(groups.padding))
    assert seen.worst_sum < 1e-5
    assert seen.worst_output < 1e-5
    assert np.abs(weights.sum(axis=-1) - 1).max() < 1e-5
    assert (weights[..., groups.padding] == 0).all()
    assert groups.padding.any()
    assert [layer.attend.__name__ for layer in model.transformer.layers] == ["attend"] * 2  # as before


def test_other_weights_than_the_models_are_noticed() -> None:
    model, observation, noise = sampled(pi0_policy())
    layer = model.transformer.layers[1]
    own = layer.attend
    layer.attend = lambda query, key, value, mask=None: own(1.5 * query, key, value, mask)
    with watched_attention(model) as seen:
        model.sample_actions(observation, num_steps=1, noise=noise)
    assert seen.worst_output > 1e-3


def test_attention_on_the_page(pi0: Insight) -> None:
    """Bytes of square roots: what the script adds up is the weights again."""
    data = page_data(pi0)["attention"]
    levels = np.frombuffer(base64.b64decode(data["levels"]), np.uint8).reshape(data["shape"]).astype(float)
    shown = (levels / 255) ** 2 * np.reshape(data["largest"], data["shape"][:-1])[..., None]
    assert pi0.attention is not None
    assert pi0.groups is not None
    exact = pi0.attention.array()[..., ~pi0.groups.padding]
    assert np.abs(shown - exact).max() < 0.005 * exact.max()
    assert np.abs(shown.sum(axis=-1) - 1).max() < 0.01
    groups = page_data(pi0)["groups"]
    assert list(groups) == [*(f"camera {name}" for name in CAMERAS), "prompt", "state", "actions"]
    assert groups["prompt"][1] - groups["prompt"][0] == len(pi0.words)
    assert groups["actions"][1] == data["shape"][-1]
    assert "".join(pi0.words).strip() == "lift the <b>disc</b>"


# ---------------------------------------------------------------- occlusion


def observation_of(images: Tensor) -> Observation:
    return Observation({"a": images}, {"a": torch.ones(1, dtype=torch.bool)}, None, torch.zeros(1, 3).long(),
                       torch.tensor([[True, True, False]]))  # fmt: skip


def test_occlusion_finds_what_the_chunk_depends_on() -> None:
    """A policy that reads one quarter of the image and the second word."""

    def sample(observation: Observation) -> Tensor:
        quarter = observation.images["a"][:, :4, 4:].mean(dim=(1, 2, 3))
        return (quarter + 2 * observation.prompt_mask[:, 1])[:, None, None].expand(-1, 3, 2)

    image = torch.zeros(1, 8, 8, 3)
    image[:, :4, 4:] = 1.0
    found = occlude(sample, observation_of(image), {"a": (2, 2)}, dims=2)
    assert found.windows["a"].tolist() == [[0, 0.75], [0, 0]]  # 1 becomes the image's mean, 0.25
    assert found.cameras == {"a": 0.75}
    assert found.words.tolist() == [0, 2]
    assert count({"a": (2, 2)}, observation_of(image)) == 1 + 5 + 2


def test_occlusion_of_a_policy(pi0: Insight) -> None:
    policy = pi0_policy()
    model, observation, noise = sampled(policy)
    image = observation.images["base_0_rgb"].clone()
    image[:, 14:, :14] = image.mean(dim=(1, 2), keepdim=True)
    blank = replace(observation, images={**observation.images, "base_0_rgb": image})
    chunks = [model.sample_actions(seen, num_steps=STEPS, noise=noise) for seen in (observation, blank)]
    moved = float((chunks[0] - chunks[1]).square().mean().sqrt())
    assert pi0.occlusion.windows["base_0_rgb"].shape == (2, 2)
    assert pi0.occlusion.windows["base_0_rgb"][1, 0] == pytest.approx(moved, rel=1e-3)
    assert moved > 1e-4
    assert len(pi0.occlusion.words) == len(pi0.words)


# ---------------------------------------------------------------- flow


def test_a_straight_flow_needs_one_step() -> None:
    target = torch.linspace(-1, 1, 6).view(1, 3, 2)

    def course(noise: Tensor, steps: int) -> np.ndarray:
        points = [noise + (target - noise) * step / steps for step in range(steps + 1)]
        return torch.stack(points).numpy()

    noise = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    straight = straightness(course, noise, 20, dims=2)
    assert straight.length == pytest.approx(1, abs=1e-5)
    assert straight.deviation.max() < 1e-4
    assert straight.turn.max() < 0.1
    errors = step_errors(course, noise, [1, 2, 5], 20, dims=2)
    assert errors.needed == 1
    assert max(errors.errors.values()) < 1e-5


def test_errors_against_steps_of_a_curved_flow() -> None:
    """dx/dt = x from 1 to 0 ends at x / e; Euler's n steps at x (1 - 1 / n)^n."""

    def course(noise: Tensor, steps: int) -> np.ndarray:
        seen: list[Tensor] = []

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            seen.append(x)
            return x

        seen.append(integrate(velocity, noise, steps))
        return torch.stack(seen).numpy()

    noise = torch.randn(64, 2, 2, generator=torch.Generator().manual_seed(0))
    size = float(noise.square().mean().sqrt())
    errors = step_errors(course, noise, [1, 2, 4, 8, 16], 4000, dims=2)
    for steps, error in errors.errors.items():
        assert error == pytest.approx(size * ((1 / math.e) - (1 - 1 / steps) ** steps), rel=0.02)
    assert errors.needed == next(n for n in (1, 2, 4, 8, 16) if errors.errors[n] <= 0.02)
    straight = straightness(course, noise, 100, dims=2)
    assert straight.length == pytest.approx(1, abs=1e-5)  # towards the origin: the way is straight, the speed is not
    assert straight.deviation[0] == pytest.approx(1 / (1 - 1 / math.e) - 1, rel=0.03)


def test_the_course_ends_at_the_policys_chunk(pi0: Insight) -> None:
    policy = pi0_policy()
    noise = episode_noise(0, 0, policy.noise_shape)
    answer = policy.infer({**robot(), "noise": noise})["actions"]
    assert pi0.flow is not None
    assert pi0.flow.x.shape == (STEPS + 1, 6, 5)
    assert np.array_equal(pi0.flow.x[0], noise)
    assert np.abs(pi0.flow.actions[-1] - answer).max() < 1e-5
    shown = page_data(pi0)["flow"]
    assert np.allclose(shown["actions"][-1], answer, rtol=1e-3, atol=1e-5)
    assert shown["names"][3] == "yaw (half turns)"
    path = shown["path"]
    assert path["camera"] == "base_0_rgb"
    assert path["points"][-1][0] == pytest.approx([(answer[0, 0] + 1.1) / 2.2, (1.1 - answer[0, 1]) / 2.2], abs=1e-3)


def test_gates_are_those_of_the_layers() -> None:
    model, observation, noise = sampled(pi0_policy(pi05=True))
    seen: list[Tensor] = []
    norm = model.transformer.layers[1].expert.mlp_norm
    handle = norm.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    model.sample_actions(observation, num_steps=4, noise=noise)
    handle.remove()
    gates = adaptive_gates(model, np.array([1.0, 0.75, 0.5, 0.25], np.float32))
    assert gates["mlp"].shape == (2, 4)
    assert gates["mlp"][1] == pytest.approx([float(gate.abs().mean()) for gate in seen], rel=1e-5)
    assert np.ptp(gates["mlp"][1]) > 0
    with pytest.raises(UserError, match="no adaptive norms"):
        adaptive_gates(sampled(pi0_policy())[0], np.ones(1, np.float32))


# ---------------------------------------------------------------- page


def check_page(path: Path, most: float = 3e6) -> str:
    text = path.read_text(encoding="utf-8")
    assert len(text) < most
    assert not re.search(r"https?://|url\(|@import|<link|<iframe", text)
    assert "default-src 'none'; script-src 'unsafe-inline'" in text
    assert "<b>disc" not in text  # a prompt is no markup
    return text


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page(pi0: Insight, pi05: Insight, tmp_path: Path) -> None:
    insight_page(tmp_path / "a.html", pi0, "pizero inspect: a")
    text = check_page(tmp_path / "a.html")
    boxes = {box["name"]: box for box in data_of(text)["boxes"]}
    assert list(boxes) == [
        "images", "prompt tokens", "state", "noisy actions", "VISION TOWER", "TOKEN TABLE", "PREFIX EXPERT",
        "SUFFIX EMBEDDING", "ACTION EXPERT", "VELOCITY", "FLOW MATCHING", "OUTPUT",
    ]  # fmt: skip
    assert boxes["VISION TOWER"]["parts"][0]["input"] == [2, 28, 28, 3]
    assert boxes["VISION TOWER"]["file"].startswith("src/pizero/model/siglip.py, line ")
    assert "class VisionTower" in boxes["VISION TOWER"]["code"]
    assert "A π0 has none" in text
    timed = [box["ms"] for box in boxes.values() if box["ms"] is not None]
    assert len(timed) == 6
    assert sum(timed) <= data_of(text)["total"] * 1.5  # medians of each, not of one call
    insight_page(tmp_path / "b.html", pi05, "pizero inspect: b")
    text = check_page(tmp_path / "b.html")
    assert "the gates say how much" in text
    assert "state" not in data_of(text)["groups"]


def test_costs_are_those_of_one_call(pi0: Insight) -> None:
    boxes = {"VISION TOWER", "TOKEN TABLE", "PREFIX EXPERT", "SUFFIX EMBEDDING", "ACTION EXPERT", "VELOCITY"}
    assert set(pi0.costs) == {*boxes, "TOTAL", "OTHER"}
    assert min(pi0.costs.values()) >= 0
    assert all(pi0.costs[name] < pi0.costs["TOTAL"] for name in boxes)
    assert pi0.fast_ms is not None


@pytest.mark.parametrize("objective", ["diffusion", "flow"])
def test_a_diffusion_policy_gets_what_applies(objective: str, tmp_path: Path) -> None:
    insight = look_inside(diffusion_policy(objective=objective, diffusion_steps=20), robot())
    assert insight.kind == ("diffusion policy" if objective == "diffusion" else "UNet with flow matching")
    assert insight.flow is not None
    assert insight.flow.x.shape[0] == insight.num_steps + 1
    assert insight.flow.errors.reference == (20 if objective == "diffusion" else 100)
    assert insight.costs["UNET"] > 0
    insight_page(tmp_path / "a.html", insight, "pizero inspect: a")
    assert "has no attention" in check_page(tmp_path / "a.html")


def test_a_pi0_fast_gets_what_applies(tmp_path: Path) -> None:
    insight = look_inside(fast_policy(), robot())
    assert insight.flow is None
    assert insight.attention is None
    assert insight.occlusion.windows["base_0_rgb"].shape == (2, 2)
    insight_page(tmp_path / "a.html", insight, "pizero inspect: a")
    text = check_page(tmp_path / "a.html")
    assert "A π0-FAST writes tokens; there is no flow to show" in text
    assert "LANGUAGE MODEL" in {box["name"] for box in data_of(text)["boxes"]}


def test_a_packed_policy_is_refused() -> None:
    packed = pi0_policy()
    packed.model = object()  # type: ignore[assignment]
    with pytest.raises(UserError, match="load_plain_policy"):
        look_inside(packed, robot())


@pytest.mark.parametrize("make", [pi0_policy, diffusion_policy, fast_policy])
def test_the_playgrounds_course_ends_at_the_policys_chunk(make: Callable[[], ModelPolicy]) -> None:
    """Of every kind of model: the same chunk as `infer`, with every step where there are steps."""
    policy = make()
    noise = episode_noise(0, 0, policy.noise_shape)
    course = sample_course(policy, robot(), noise)
    assert np.abs(course.chunk - policy.infer({**robot(), "noise": noise})["actions"]).max() < 1e-5
    assert len(course.actions) == (1 if make is fast_policy else policy.num_steps + 1)


def test_the_page_of_a_full_size_model_stays_small(pi0: Insight) -> None:
    """18 layers, 8 heads, 10 steps, 3 cameras of 256 patches, 200 prompt tokens, 50 actions: all weights, in 2 MB."""
    config, rng = Pi0Config.pi05(), np.random.default_rng(0)
    image = torch.zeros(1, 224, 224, 3)
    observation = Observation(
        dict.fromkeys(config.cameras, image), {name: torch.ones(1, dtype=torch.bool) for name in config.cameras},
        torch.zeros(1, config.state_dim), torch.zeros(1, config.prompt_length, dtype=torch.long),
        torch.ones(1, config.prompt_length, dtype=torch.bool),
    )  # fmt: skip
    groups = key_groups(type("Model", (), {"config": config}), observation)  # type: ignore[arg-type]
    assert groups.ranges["actions"] == (968, 1018)
    weights = [[rng.random((8, 1018), np.float32) for _ in range(18)] for _ in range(10)]
    data = page_data(replace(pi0, attention=ActionAttention(weights), groups=groups, num_steps=10))["attention"]
    assert data["shape"] == (10, 18, 8, 1018)
    assert data["every"] == 1
    assert len(json.dumps(data)) < 2.1e6
    weights += weights
    assert page_data(replace(pi0, attention=ActionAttention(weights), groups=groups))["attention"]["every"] == 2


def test_a_robot_without_a_picture_of_its_actions(pi0: Insight, tmp_path: Path) -> None:
    """The page says why there is none."""
    assert pi0.scene is not None
    for insight, expected in ((pi0, False), (replace(pi0, scene=None), True)):
        insight_page(tmp_path / "page.html", insight, "title")
        assert ("this robot&#x27;s are not" in (tmp_path / "page.html").read_text(encoding="utf-8")) == expected
