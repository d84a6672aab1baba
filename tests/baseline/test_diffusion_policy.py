"""The policy as a whole: protocol, switches, loss, draws, sampling, and that it learns."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from baseline_helpers import make_actions, make_model, make_observation, seeded
from torch import Tensor

from pizero.baseline.config import LADDER, ladder_config, small_baseline
from pizero.baseline.policy import DiffusionPolicy
from pizero.baseline.schedule import step_at_flow_time, step_from_drawn_time
from pizero.model.flow_matching import Solver, integrate, interpolate, velocity_target
from pizero.types import Observation

BOTH = pytest.mark.parametrize("objective", ["diffusion", "flow"])


def with_gradient(observation: Observation) -> Observation:
    """Leaves of which the gradient can be asked."""
    state = observation.state
    images = {name: image.requires_grad_() for name, image in observation.images.items()}
    return dataclasses.replace(observation, images=images, state=None if state is None else state.requires_grad_())


# -------------------------------------------------------------------- shapes and switches


@pytest.mark.parametrize("horizon", [8, 50])
@pytest.mark.parametrize("rung", range(len(LADDER)))
def test_every_rung(rung: int, horizon: int) -> None:
    config = dataclasses.replace(ladder_config(rung, small_baseline("nano")), action_horizon=horizon)
    model, observation = DiffusionPolicy(config), make_observation(config, batch=3)
    actions, _, _ = make_actions(config, batch=3)
    loss = model.loss(observation, actions, draws=2, generator=seeded(0))
    assert loss.shape == (3, horizon)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    sample = model.sample_actions(observation, num_steps=2, generator=seeded(0))
    assert sample.shape == (3, horizon, config.action_dim)
    assert sample.dtype == torch.float32
    assert not sample.requires_grad


@pytest.mark.parametrize("state_input", [False, True])
def test_the_state_is_read_if_it_is_an_input(state_input: bool) -> None:
    model = make_model(state_input=state_input)
    observation = with_gradient(make_observation(model.config))
    actions, noise, time = make_actions(model.config)
    model.loss(observation, actions, noise=noise, time=time).sum().backward()
    assert observation.state is not None
    gradient = observation.state.grad
    if state_input:
        assert gradient is not None
        assert (gradient.abs().sum(dim=-1) > 0).all()  # every frame of the history
    else:
        assert gradient is None
        model.loss(dataclasses.replace(observation, state=None), actions, noise=noise, time=time)


def test_cameras_are_stacked_or_apart() -> None:
    stacked, separate = make_model(), make_model(image_fusion="separate")
    assert list(stacked.image_encoders) == ["stacked"]
    assert stacked.get_parameter("image_encoders.stacked.stem.weight").shape[1] == 6
    assert tuple(separate.image_encoders) == separate.config.cameras
    assert separate.get_parameter("image_encoders.base_0_rgb.stem.weight").shape[1] == 3
    assert "image_encoders.left_wrist_0_rgb.stem.weight" in dict(separate.named_parameters())


def test_a_shared_encoder_sees_each_camera() -> None:
    """The same features as separate encoders of equal weights."""
    shared, separate = make_model(image_fusion="shared"), make_model(image_fusion="separate")
    assert list(shared.image_encoders) == ["shared"]
    for encoder in separate.image_encoders.values():
        encoder.load_state_dict(shared.image_encoders["shared"].state_dict())
    observation = make_observation(shared.config)
    assert torch.allclose(shared.encode(observation), separate.encode(observation), atol=1e-5)


@pytest.mark.parametrize("image_fusion", ["stacked", "separate", "shared"])
def test_every_image_of_the_history_is_read(image_fusion: str) -> None:
    model = make_model(image_fusion=image_fusion, num_history=3)
    observation = with_gradient(make_observation(model.config))
    model.encode(observation).sum().backward()
    for image in observation.images.values():
        assert image.grad is not None
        assert (image.grad.abs().sum(dim=(2, 3, 4)) > 0).all()


@pytest.mark.parametrize("image_fusion", ["stacked", "separate", "shared"])
def test_an_absent_camera_is_zeros(image_fusion: str) -> None:
    model = make_model(image_fusion=image_fusion)
    full = make_observation(model.config)
    wrist = "left_wrist_0_rgb"
    absent = {**full.image_masks, wrist: torch.tensor([True, False])}
    zeros = full.images[wrist] * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1, 1)
    expected = model.encode(dataclasses.replace(full, images={**full.images, wrist: zeros}))
    assert torch.equal(model.encode(dataclasses.replace(full, image_masks=absent)), expected)
    without = dataclasses.replace(
        full, images={"base_0_rgb": full.images["base_0_rgb"]},
        image_masks={**full.image_masks, wrist: torch.zeros(2, dtype=torch.bool)},
    )  # fmt: skip
    assert torch.allclose(model.encode(without)[1], expected[1], atol=1e-5)


@pytest.mark.parametrize("instruction", [False, True])
def test_the_instruction_is_read_if_it_is_an_input(instruction: bool) -> None:
    model = make_model(instruction=instruction)
    assert any("prompt" in name for name, _ in model.named_parameters()) == instruction
    observation = make_observation(model.config)
    base = model.encode(observation)
    other = model.encode(dataclasses.replace(observation, prompt_tokens=(observation.prompt_tokens + 1) % 32))
    assert torch.equal(base, other) != instruction
    hidden = torch.where(observation.prompt_mask, observation.prompt_tokens, 0)
    trimmed = dataclasses.replace(observation, prompt_tokens=hidden)
    assert torch.equal(base, model.encode(trimmed))


def test_a_history_of_one_has_no_axis_of_its_own() -> None:
    model = make_model(num_history=1, state_input=True)
    observation = make_observation(model.config)
    assert observation.state is not None
    flat = dataclasses.replace(
        observation, images={n: image[:, 0] for n, image in observation.images.items()}, state=observation.state[:, 0]
    )
    assert torch.equal(model.encode(flat), model.encode(observation))


# -------------------------------------------------------------------- loss


class Stub(torch.nn.Module):
    """In place of the UNet: says what it is told to, and keeps what it was asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, step: Tensor, observation: Tensor) -> Tensor:
        self.asked.append((x_t, step))
        return self.answer


@BOTH
def test_a_perfect_prediction_has_no_loss(objective: str) -> None:
    model = make_model(objective=objective)
    actions, noise, time = make_actions(model.config)
    stub = Stub(noise if objective == "diffusion" else noise - actions)
    model.unet = stub  # pyright: ignore[reportAttributeAccessIssue]
    assert model.loss(make_observation(model.config), actions, noise=noise, time=time).abs().max() == 0
    (x_t, step), schedule = stub.asked[0], model.schedule
    if objective == "flow":
        assert schedule is None
        assert torch.equal(x_t, interpolate(actions, noise, time))
        assert torch.equal(step, step_at_flow_time(time, 100))
    else:
        assert schedule is not None
        assert torch.equal(step, step_from_drawn_time(time, 100))
        assert torch.equal(x_t, schedule.add_noise(actions, noise, step))


def test_the_flow_loss_is_the_squared_error_of_the_velocity() -> None:
    model = make_model(objective="flow")
    observation = make_observation(model.config)
    actions, noise, time = make_actions(model.config)
    predicted = model.unet(interpolate(actions, noise, time), 100 * time - 1, model.encode(observation))
    expected = (predicted - velocity_target(actions, noise)).square().mean(dim=-1)
    assert torch.allclose(model.loss(observation, actions, noise=noise, time=time), expected, atol=1e-6)


@BOTH
@pytest.mark.parametrize("draws", [1, 3])
def test_draws_are_separate_passes_averaged(objective: str, draws: int) -> None:
    """Value and gradients; the images are encoded once."""
    model = make_model(objective=objective, state_input=True, instruction=True, image_fusion="separate")
    observation = make_observation(model.config)
    actions, _, _ = make_actions(model.config)
    noise, time = torch.randn(draws, *actions.shape, generator=seeded(3)), torch.rand(draws, 2, generator=seeded(4))
    calls: list[int] = []
    encoder = model.image_encoders["base_0_rgb"]
    hook = encoder.register_forward_hook(lambda _, args, out: calls.append(len(out)))
    together = model.loss(observation, actions, noise=noise, time=time, draws=draws)
    hook.remove()
    assert calls == [2 * model.config.num_history]
    apart = [model.loss(observation, actions, noise=noise[i], time=time[i]) for i in range(draws)]
    average = torch.stack(apart).mean(dim=0)
    assert torch.allclose(together, average, rtol=1e-4, atol=1e-5)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(average.mean(), parameters)
    for gradient, other in zip(torch.autograd.grad(together.mean(), parameters), expected, strict=True):
        assert float((gradient - other).norm()) <= 1e-4 * float(other.norm()) + 1e-6


@BOTH
def test_the_loss_follows_its_generator(objective: str) -> None:
    model = make_model(objective=objective)
    observation = make_observation(model.config)
    actions, _, _ = make_actions(model.config)
    first, again, other = (model.loss(observation, actions, draws=2, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# -------------------------------------------------------------------- sampling


@BOTH
def test_sampling_follows_its_generator(objective: str) -> None:
    model = make_model(objective=objective)
    observation = make_observation(model.config)
    first, again, other = (model.sample_actions(observation, num_steps=2, generator=seeded(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)
    noise = torch.randn(first.shape, generator=seeded(5))
    assert torch.equal(model.sample_actions(observation, num_steps=2, noise=noise), first)


@BOTH
def test_default_steps_and_one_encoding(objective: str) -> None:
    model = make_model(objective=objective)
    observation = make_observation(model.config)
    encoded, called = [], []
    model.image_encoders["stacked"].register_forward_hook(lambda *_: encoded.append(1))
    model.unet.register_forward_hook(lambda *_: called.append(1))
    model.sample_actions(observation, generator=seeded(0))
    assert (len(encoded), len(called)) == (1, 20 if objective == "diffusion" else 10)


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
@pytest.mark.parametrize("step_embedding", ["table", "sincos"])
def test_flow_sampling_integrates_the_velocity(solver: Solver, step_embedding: str) -> None:
    model = make_model(objective="flow", step_embedding=step_embedding)
    observation = make_observation(model.config)
    _, noise, _ = make_actions(model.config)
    with torch.no_grad():
        encoded = model.encode(observation)
        expected = integrate(lambda x, t: model.unet(x, 100 * t - 1, encoded), noise, 4, solver)
    found = model.sample_actions(observation, num_steps=4, noise=noise, solver=solver)
    assert torch.allclose(found, expected, atol=1e-5)


def test_euler_steps_read_the_table_at_their_own_entries() -> None:
    """With 10 Euler steps the flow times 1.0, 0.9, ... 0.1 are the steps 99, 89, ... 9."""
    model = make_model(objective="flow")
    steps: list[int] = []
    table = model.unet.step_encoder.table
    assert table is not None
    table.register_forward_pre_hook(lambda _, args: steps.append(int(args[0][0])))
    model.sample_actions(make_observation(model.config), generator=seeded(0))
    assert steps == list(range(9, 100, 10))[::-1]


def test_the_model_can_be_copied_made_without_memory_and_cast() -> None:
    model = make_model()
    observation, noise = make_observation(model.config), make_actions(model.config)[1]
    expected = model.sample_actions(observation, num_steps=5, noise=noise)
    assert torch.equal(copy.deepcopy(model).sample_actions(observation, num_steps=5, noise=noise), expected)
    with torch.device("meta"):
        empty = DiffusionPolicy(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.sample_actions(observation, num_steps=5, noise=noise), expected)
    half = empty.to(torch.bfloat16).sample_actions(observation, num_steps=5, noise=noise)
    assert half.dtype == torch.float32
    assert torch.allclose(half, expected, atol=0.3)


# -------------------------------------------------------------------- learning and mistakes


@BOTH
def test_one_batch_is_learnt(objective: str) -> None:
    """The loss at fixed noise and times falls five-fold in 100 steps."""
    model = make_model(objective=objective, state_input=True)
    observation = make_observation(model.config, batch=4)
    actions, noise, _ = make_actions(model.config, batch=4)
    time = torch.tensor([0.3, 0.5, 0.8, 1.0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[float] = []
    for _ in range(100):
        loss = model.loss(observation, actions, noise=noise, time=time).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < losses[0] / 5:
            break
    assert losses[-1] < losses[0] / 5, losses[-1] / losses[0]


def test_shapes_that_do_not_fit() -> None:
    model = make_model()
    observation = make_observation(model.config)
    actions, noise, time = make_actions(model.config)
    expected = r"expected \(2, 8, 3\) \(batch, horizon, action_dim\)"
    with pytest.raises(ValueError, match=rf"^actions: got shape \(2, 7, 3\), {expected}"):
        model.loss(observation, actions[:, :7])
    with pytest.raises(ValueError, match=rf"^noise: got shape \(2, 8, 2\), {expected}"):
        model.sample_actions(observation, noise=noise[..., :2])
    with pytest.raises(ValueError, match=r"^noise: got shape \(2, 8, 3\), expected \(3, 2, 8, 3\)"):
        model.loss(observation, actions, noise=noise, draws=3)
    with pytest.raises(ValueError, match=r"^time: got shape \(2, 3\), expected \(3, 2\)"):
        model.loss(observation, actions, time=time[:, None].expand(2, 3), draws=3)
    with pytest.raises(ValueError, match=r"^solver: got 'heun', but the diffusion objective is sampled by DDIM"):
        model.sample_actions(observation, noise=noise, solver="heun")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"images": {"top": torch.zeros(2, 2, 16, 16, 3)}}, "^images: unknown camera top; this model has base_0_rgb, left"),
    ({"images": {}}, r"^images\['base_0_rgb'\] is missing, but its mask"),
    ({"images": {"base_0_rgb": torch.zeros(2, 16, 16, 3)}},
     r"^images\['base_0_rgb'\]: got torch.float32 \(2, 16, 16, 3\), expected float \(2, 2, 16, 16, 3\)"),
    ({"images": {"base_0_rgb": torch.zeros(2, 2, 16, 16, 3, dtype=torch.uint8)}}, "got torch.uint8 .* expected float"),
    ({"image_masks": {}}, r"^image_masks\['base_0_rgb'\] is missing"),
    ({"image_masks": {"base_0_rgb": torch.ones(2, 2, dtype=torch.bool)}}, r"expected bool \(2,\)"),
    ({"state": None}, r"^state: got None, expected \(2, 2, 4\) \(batch, history, state_dim\)"),
    ({"state": torch.zeros(2, 4)}, r"^state: got \(2, 4\), expected \(2, 2, 4\)"),
    ({"prompt_mask": torch.ones(2, 5, dtype=torch.bool)}, r"^prompt_mask: got shape \(2, 5\), expected \(B, L\)"),
    ({"prompt_tokens": torch.zeros(2, 6)}, "^prompt: got tokens torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_observations_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    model = make_model(state_input=True, instruction=True)
    observation = make_observation(model.config, **changes)
    with pytest.raises(ValueError, match=message) as error:
        model.encode(observation)
    assert "\n" not in str(error.value)
