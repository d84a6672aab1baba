"""Noise schedule and DDIM against their formulas, and what a time means."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from baseline_helpers import seeded
from torch import Tensor

from pizero.baseline.config import StepSpacing
from pizero.baseline.schedule import NoiseSchedule, step_at_flow_time, step_from_drawn_time
from pizero.model.flow_matching import sample_time
from pizero.types import UserError


def kept_variance(step: int, num_steps: int = 100) -> float:
    """The squared-cosine schedule, each step's variance capped at 0.999 (arXiv 2102.09672, equation 17)."""

    def cosine(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    product = 1.0
    for i in range(step + 1):
        product *= 1 - min(1 - cosine((i + 1) / num_steps) / cosine(i / num_steps), 0.999)
    return product


def test_added_noise_follows_the_squared_cosine() -> None:
    schedule = NoiseSchedule(100, 0.0, "leading")
    actions, noise = torch.randn(2, 3, 4, 5, generator=seeded(0)), torch.randn(2, 3, 4, 5, generator=seeded(1))
    step = torch.tensor([[0, 1, 30], [50, 98, 99]])
    noisy = schedule.add_noise(actions, noise, step)
    for i, j in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)):
        kept = kept_variance(int(step[i, j]))
        expected = math.sqrt(kept) * actions[i, j] + math.sqrt(1 - kept) * noise[i, j]
        assert torch.allclose(noisy[i, j], expected, atol=1e-5)
    assert torch.allclose(noisy[1, 2], noise[1, 2], atol=0.01)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("num_steps", [1, 5, 20, 100])
def test_ddim_of_a_constant_noise(spacing: StepSpacing, num_steps: int) -> None:
    """A model that always names the same noise e keeps (x - sqrt(1 - a) e) / sqrt(a) as it is from start to end."""
    noise, constant = torch.randn(2, 4, 3, generator=seeded(0)), torch.randn(2, 4, 3, generator=seeded(1))
    visited: list[int] = []

    def predict(x: Tensor, step: Tensor) -> Tensor:
        assert x.shape == noise.shape
        assert step.shape == (2,)
        visited.append(int(step[0]))
        return constant

    found = NoiseSchedule(100, 0.0, spacing).sample(predict, noise, num_steps)
    last = 0 if spacing == "leading" else 100 // num_steps - 1
    assert visited == list(range(last, 100, 100 // num_steps))[::-1]
    kept = kept_variance(visited[0])
    expected = (noise - math.sqrt(1 - kept) * constant) / math.sqrt(kept)
    assert torch.allclose(found, expected, rtol=1e-2 if visited[0] == 99 else 1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_finds_the_action_that_the_noise_tells(spacing: StepSpacing) -> None:
    """A model that knows the action names the noise that is left of it; the last step gives the action."""
    schedule, action = NoiseSchedule(100, 0.0, spacing), torch.randn(1, 4, 3, generator=seeded(0))

    def predict(x: Tensor, step: Tensor) -> Tensor:
        kept = kept_variance(int(step[0]))
        return (x - math.sqrt(kept) * action) / math.sqrt(1 - kept)

    found = schedule.sample(predict, torch.randn(1, 4, 3, generator=seeded(1)), 20)
    assert torch.allclose(found, action, atol=1e-3)


def test_the_predicted_action_is_clipped() -> None:
    noise = torch.full((1, 2, 2), 3.0)
    sample = NoiseSchedule(100, 1.0, "leading").sample(lambda x, step: torch.zeros_like(x), noise, 20)
    assert torch.allclose(sample, torch.ones(1, 2, 2))


@pytest.mark.parametrize("num_steps", [0, 3, 60, 101])
def test_steps_that_do_not_divide(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps: got {num_steps}, expected a divisor of the 100 training steps"):
        NoiseSchedule(100, 0.0, "leading").sample(lambda x, step: x, torch.zeros(1, 2, 2), num_steps)


def test_drawn_times_take_every_step_equally_often() -> None:
    steps = step_from_drawn_time(sample_time((200_000,), seeded(0)), 100)
    counts = torch.bincount(steps, minlength=100)
    assert len(counts) == 100
    assert (counts - 2_000).abs().max() < 5 * math.sqrt(2_000)


def test_ends_of_the_time() -> None:
    times = torch.tensor([0.0, 0.001, 1.0])
    assert step_from_drawn_time(times, 100).tolist() == [0, 0, 99]
    assert torch.allclose(step_at_flow_time(torch.tensor([0.01, 0.5, 1.0]), 100), torch.tensor([0.0, 49.0, 99.0]))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"diffusers is not installed; .* pip install 'pizero\[baseline\]'"):
        NoiseSchedule(100, 0.0, "leading")
