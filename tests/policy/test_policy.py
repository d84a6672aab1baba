"""The policy: order of work, its noise, batches, and messages for bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pizero.baseline.config import small_baseline
from pizero.checkpoints.load import load_model, load_policy
from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.checkpoints.native.example import make_example
from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.engine.fast_sampler import FastSampler
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.policy.policy import ModelPolicy
from pizero.policy.real_time import RealTime
from pizero.policy.sampling import device_of
from pizero.types import Observation, Policy, RobotDict, UserError

CONFIG = small_config("nano", vocab_size=259, prompt_length=14, cameras=("base_0_rgb", "left_wrist_0_rgb"))
SHAPE = (CONFIG.action_horizon, CONFIG.action_dim)
STATE_MEAN, ACTION_MEAN, ACTION_STD = np.array([0.5, -1.0, 0.0]), np.array([10.0, -0.2]), np.array([4.0, 0.5])


def make_pipeline(relative: tuple[bool, ...] = (False, True)) -> Pipeline:
    return Pipeline(
        generic({"base_0_rgb": "top", "left_wrist_0_rgb": "hand"}, relative_mask=relative),
        NormStats("zscore", FieldStats(STATE_MEAN, np.ones(3)), FieldStats(ACTION_MEAN, ACTION_STD), epsilon=0.0),
        PaligemmaTokenizer.bytes(),
        cameras=CONFIG.cameras,
        prompt_format="pi0",
        prompt_length=CONFIG.prompt_length,
        image_size=(28, 28),
        state_dim=CONFIG.state_dim,
        action_dim=CONFIG.action_dim,
    )


def observation(seed: int = 0) -> RobotDict:
    rng = np.random.default_rng(seed)
    return {
        "state": rng.standard_normal(3).astype(np.float32),
        "images": {name: rng.integers(0, 256, (20, 28, 3), dtype=np.uint8) for name in ("top", "hand")},
        "prompt": f"pick {seed}",
    }


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32)


@pytest.fixture(scope="module")
def model() -> Pi0:
    torch.manual_seed(0)
    return Pi0(CONFIG).eval()


class EchoModel:
    """Gives the noise back as actions, and remembers its calls."""

    config = CONFIG

    def __init__(self) -> None:
        self.calls: list[tuple[Observation, int]] = []

    def loss(self, observation: Observation, actions: Tensor, **options: Any) -> Tensor:
        raise AssertionError("a policy does not train")

    def sample_actions(
        self, observation: Observation, *, num_steps: int = 10, noise: Tensor | None = None, generator: Any = None
    ) -> Tensor:
        assert noise is not None
        self.calls.append((observation, num_steps))
        return noise


def test_order_of_work_on_the_way_out() -> None:
    """Crop, unnormalise, then relative actions become absolute by the raw state."""
    raw = observation()
    actions = ModelPolicy(EchoModel(), make_pipeline()).infer({**raw, "noise": noise(1)})["actions"]
    expected = noise(1)[:, :2] * ACTION_STD + ACTION_MEAN
    expected[:, 1] += raw["state"][1]
    assert actions.dtype == np.float32
    assert actions.shape == (CONFIG.action_horizon, 2)
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)


def test_a_batch_is_one_model_call_and_the_state_is_normalised() -> None:
    model, raws = EchoModel(), [observation(seed) for seed in range(3)]
    ModelPolicy(model, make_pipeline(), num_steps=7).infer_batch(raws)
    ((seen, num_steps),) = model.calls
    assert num_steps == 7
    assert seen.images["base_0_rgb"].shape == (3, 28, 28, 3)
    assert seen.state is not None
    expected = np.stack([raw["state"] for raw in raws]) - STATE_MEAN
    np.testing.assert_allclose(seen.state[:, :3].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not seen.state[:, 3:].any()


def test_a_long_instruction_leaves_the_state_of_a_pi05_alone() -> None:
    """Two states, two chunks; the instruction is told to be cut, once."""
    config = small_config("nano", pi05=True, vocab_size=259, prompt_length=60, cameras=CONFIG.cameras)
    pipeline = dataclasses.replace(make_pipeline(), prompt_format="pi05", prompt_length=60)
    torch.manual_seed(0)
    policy = ModelPolicy(Pi0(config).eval(), pipeline, num_steps=2)
    long = {**observation(), "prompt": "pick up the red cup and put it onto the upper shelf", "noise": noise(0)}
    with pytest.warns(UserWarning, match="prompt 'pick up the red cup .* the instruction is cut after") as told:
        chunks = [policy.infer({**long, "state": np.full(3, value, np.float32)})["actions"] for value in (-0.3, 0.3)]
    assert len(told) == 1
    assert np.abs(chunks[0] - chunks[1]).max() > 1e-3
    with pytest.raises(UserError, match="the state's 3 dimensions take"):
        ModelPolicy(
            Pi0(dataclasses.replace(config, prompt_length=30)).eval(), dataclasses.replace(pipeline, prompt_length=30)
        ).infer(long)


class EchoHistory(EchoModel):
    config = small_baseline("nano", num_history=3, objective="flow")


def test_a_history_reaches_the_model_and_the_newest_state_counts() -> None:
    model, config = EchoHistory(), EchoHistory.config
    pipeline = dataclasses.replace(make_pipeline(), num_history=3, action_dim=config.action_dim)
    raws = [observation(seed) for seed in range(3)]
    joined = {
        "state": np.stack([raw["state"] for raw in raws]), "prompt": "pick",
        "images": {name: np.stack([raw["images"][name] for raw in raws]) for name in ("top", "hand")},
        "noise": np.zeros((config.action_horizon, config.action_dim), np.float32),
    }  # fmt: skip
    policy = ModelPolicy(model, pipeline)
    assert policy.num_history == 3
    actions = policy.infer(joined)["actions"]
    ((seen, num_steps),) = model.calls
    assert num_steps == 10
    assert seen.images["left_wrist_0_rgb"].shape == (1, 3, 28, 28, 3)
    assert seen.state is not None
    assert seen.state.shape == (1, 3, pipeline.state_dim)
    np.testing.assert_allclose(actions[:, 1], ACTION_MEAN[1] + raws[-1]["state"][1], rtol=1e-5)


def test_without_num_steps_the_model_says_how_many() -> None:
    model = EchoModel()
    assert ModelPolicy(model, make_pipeline()).num_steps == 10
    model.config = small_baseline("nano", num_history=1)  # type: ignore[assignment]
    assert ModelPolicy(model, dataclasses.replace(make_pipeline(), action_dim=3)).num_steps == 20


def test_a_batch_gives_what_single_calls_give(model: Pi0) -> None:
    raws = [observation(seed) for seed in range(3)]
    one = ModelPolicy(model, make_pipeline(), num_steps=3, seed=5)
    single = [one.infer(raw)["actions"] for raw in raws]
    batch = ModelPolicy(model, make_pipeline(), num_steps=3, seed=5).infer_batch(raws)
    for ours, theirs in zip(single, batch, strict=True):
        np.testing.assert_allclose(ours, theirs["actions"], rtol=1e-4, atol=1e-4)
    assert isinstance(one, Policy)
    assert one.infer_batch([]) == []


def test_noise_follows_from_the_seed_or_is_given(model: Pi0) -> None:
    def first_two(seed: int) -> list[np.ndarray]:
        policy = ModelPolicy(EchoModel(), make_pipeline(), seed=seed)
        return [policy.infer(observation())["actions"] for _ in range(2)]

    torch.manual_seed(1)
    before = first_two(0)
    torch.manual_seed(2)
    assert all(np.array_equal(a, b) for a, b in zip(before, first_two(0), strict=True))
    assert not np.array_equal(before[0], before[1])
    assert not np.array_equal(before[0], first_two(1)[0])
    # a given noise neither depends on the draws nor uses one up
    policy = ModelPolicy(EchoModel(), make_pipeline())
    given = [policy.infer({**observation(), "noise": noise(4)})["actions"] for _ in range(2)]
    assert np.array_equal(given[0], given[1])
    assert np.array_equal(policy.infer(observation())["actions"], before[0])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"state": np.zeros(4, np.float32)}, r"state: got shape \(4,\), expected \(3,\)"),
        ({"state": np.array([0, np.nan, 0], np.float32)}, r"state: dimensions \[1\] are NaN"),
        ({"prompt": 3}, "prompt: got int"),
        ({"images": {"top": observation()["images"]["top"]}}, "no camera 'hand'"),
        ({"images": {**observation()["images"], "hand": np.zeros((8, 8, 3))}}, "images/hand: got .*float64"),
        ({"images": {**observation()["images"], "hand": np.zeros((8, 3), np.uint8)}}, "images/hand: got shape"),
        ({"noise": np.zeros((2, 4), np.float32)}, r"noise: got shape \(2, 4\), expected \(6, 4\)"),
        ({"noise": np.full(SHAPE, np.inf, np.float32)}, r"within 1e\+06"),
    ],
)
def test_bad_input_is_named(change: RobotDict, text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        ModelPolicy(EchoModel(), make_pipeline()).infer({**observation(), **change})
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    raw = observation()
    del raw["prompt"]
    with pytest.raises(UserError, match="no 'prompt'"):
        ModelPolicy(EchoModel(), make_pipeline()).infer(raw)


def test_actions_that_are_not_finite_never_reach_a_robot() -> None:
    model = EchoModel()
    model.sample_actions = lambda observation, *, num_steps, noise: noise.index_fill(0, torch.tensor([1]), torch.nan)
    with pytest.raises(RuntimeError, match=r"NaN or Inf actions for observations \[1\] of a batch of 2"):
        ModelPolicy(model, make_pipeline()).infer_batch([observation(), observation()])


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="num_steps"):
        ModelPolicy(EchoModel(), make_pipeline(), num_steps=0)
    with pytest.raises(UserError, match="model has action_dim 4, its pipeline 9"):
        ModelPolicy(EchoModel(), dataclasses.replace(make_pipeline(), action_dim=9))
    with pytest.raises(UserError, match="model reads a history of 1 observations, its pipeline 3"):
        ModelPolicy(EchoModel(), dataclasses.replace(make_pipeline(), num_history=3))


def test_load_policy(model: Pi0, tmp_path: Path) -> None:
    pipeline = make_pipeline()
    save_checkpoint(tmp_path / "run", model, pipeline, make_example(model, pipeline, observation(), noise(0)))
    policy = load_policy(tmp_path / "run", num_steps=3, seed=2, verify=True)
    ours = policy.infer(observation(1))["actions"]
    theirs = ModelPolicy(model, pipeline, num_steps=3, seed=2).infer(observation(1))["actions"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)

    example = make_example(model, pipeline, observation(), noise(0))
    wrong = dataclasses.replace(example, actions=example.actions * 1.1)
    save_checkpoint(tmp_path / "run", model, pipeline, wrong)
    load_policy(tmp_path / "run")
    with pytest.raises(UserError, match="no longer reproduces"):
        load_policy(tmp_path / "run", verify=True)
    save_checkpoint(tmp_path / "run", model)
    with pytest.raises(UserError, match="does not record embodiment"):
        load_policy(tmp_path / "run")


@pytest.mark.parametrize(
    ("device", "text"),
    [("gpu", "unknown device 'gpu'; expected cpu, cuda"), ("cuda:63", "cannot be used here")],
)
def test_a_device_that_is_not_here_is_refused_before_weights_are_read(
    model: Pi0, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, text: str
) -> None:
    save_checkpoint(tmp_path / "run", model, make_pipeline())
    monkeypatch.setattr("pizero.checkpoints.format.fill", lambda *_: pytest.fail("weights were read"))
    for load in (load_policy, load_model):
        with pytest.raises(UserError, match=text) as error:
            load(tmp_path / "run", device=device)
        assert "\n" not in str(error.value)


def test_kernels_that_are_not_here_are_refused_before_weights_are_read(
    model: Pi0, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "run", model, make_pipeline())
    monkeypatch.setattr("pizero.checkpoints.format.fill", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("pizero.engine.products.has_onednn", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr("pizero.engine.products.largest_code", lambda: None)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    with pytest.raises(UserError, match="oneDNN's kernels have no bfloat16 on this processor"):
        load_policy(tmp_path / "run", dtype="bfloat16", kernels="onednn")
    with pytest.raises(UserError, match="int8 products of this torch are not exact on this processor"):
        load_policy(tmp_path / "run", kernels="int8")
    with pytest.raises(UserError, match="float8 kernels need an NVIDIA card"):
        load_policy(tmp_path / "run", kernels="float8")


def left_over(length: int, seed: int = 9) -> np.ndarray:
    """Robot actions that the pipeline's statistics take to about -1 to 1."""
    return (noise(seed)[:length, :2] * ACTION_STD + ACTION_MEAN).astype(np.float32)


def test_what_is_left_of_a_chunk_is_continued(model: Pi0) -> None:
    """In robot units, relative to the present state; beside an observation that starts afresh."""
    raws = [{**observation(0), "noise": noise(1)}, {**observation(1), "noise": noise(2)}]
    old = np.add(left_over(4), [0, raws[0]["state"][1]])
    asking = [{**raws[0], "previous_actions": old, "inference_delay": 2}, raws[1]]
    trained = Pi0(dataclasses.replace(CONFIG, max_delay=3)).eval()
    trained.load_state_dict(model.state_dict())
    plain = ModelPolicy(model, make_pipeline()).infer_batch(raws)
    for policy in (
        ModelPolicy(model, make_pipeline()),
        ModelPolicy(model, make_pipeline(), real_time=RealTime(jacobian="identity")),
        ModelPolicy(trained, make_pipeline()),
    ):
        chunks = [reply["actions"] for reply in policy.infer_batch(asking)]
        np.testing.assert_allclose(chunks[1], plain[1]["actions"], rtol=1e-4, atol=1e-4)
        before, after = (np.abs(chunk[:2] - old[:2]).mean() for chunk in (plain[0]["actions"], chunks[0]))
        assert after < 0.7 * before
    np.testing.assert_allclose(chunks[0][:2], old[:2], rtol=1e-5, atol=1e-5)  # a trained model takes them as given
    asking[0]["inference_delay"] = 4  # settles what it was trained to
    chunk = policy.infer(asking[0])["actions"]
    np.testing.assert_allclose(chunk[:3], old[:3], rtol=1e-5, atol=1e-5)
    assert np.abs(chunk[3] - old[3]).max() > 1e-3


@pytest.mark.parametrize("one_step", [False, True])
def test_a_single_step_blends_over_from_the_old_chunk(model: Pi0, one_step: bool) -> None:
    """Of guided chunking: what will surely be played is the old chunk's, what comes after its end the policy's own."""
    policy_model = Pi0(dataclasses.replace(CONFIG, one_step=one_step)).eval()
    policy_model.load_state_dict(model.state_dict(), strict=False)
    policy = ModelPolicy(policy_model, make_pipeline(), num_steps=1)
    raw = {**observation(0), "noise": noise(1)}
    old = np.add(left_over(4), [0, raw["state"][1]])
    fresh = policy.infer(raw)["actions"]
    chunk = policy.infer({**raw, "previous_actions": old, "inference_delay": 2})["actions"]
    np.testing.assert_allclose(chunk[:2], old[:2], atol=1e-4)
    np.testing.assert_allclose(chunk[4:], fresh[4:], atol=1e-4)
    low, high = np.minimum(old, fresh[:4]), np.maximum(old, fresh[:4])
    assert ((chunk[2:4] > low[2:]) & (chunk[2:4] < high[2:])).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"previous_actions": np.zeros((7, 2))}, r"previous_actions: got shape \(7, 2\), expected \(1 to 6, 2\)"),
        ({"previous_actions": np.zeros((0, 2))}, "previous_actions: got shape"),
        ({"previous_actions": np.zeros((3, 4))}, "previous_actions: got shape"),
        ({"previous_actions": np.full((3, 2), np.nan)}, "previous_actions: NaN"),
        ({"previous_actions": np.zeros((3, 2)), "inference_delay": -1}, "inference_delay: got -1"),
        ({"previous_actions": np.zeros((3, 2)), "inference_delay": 1.5}, "inference_delay: got 1.5"),
        ({"previous_actions": np.zeros((3, 2)), "state": np.zeros(4)}, r"state: got shape"),
    ],
)
def test_bad_real_time_input_is_named(model: Pi0, change: RobotDict, text: str) -> None:
    with pytest.raises(UserError, match=text):
        ModelPolicy(model, make_pipeline()).infer({**observation(), **change})


def test_a_model_that_cannot_continue_a_chunk_says_so(model: Pi0) -> None:
    asking = {**observation(), "previous_actions": np.zeros((3, 2))}
    with pytest.raises(UserError, match="not trained with delays"):
        ModelPolicy(model, make_pipeline(), real_time=RealTime("trained")).infer(asking)
    baseline = EchoModel()
    baseline.config = small_baseline("nano", num_history=1)  # type: ignore[assignment]
    pipeline = dataclasses.replace(make_pipeline(), action_dim=baseline.config.action_dim)
    with pytest.raises(UserError, match=r"only π0 and π0\.5 can continue a chunk"):
        ModelPolicy(baseline, pipeline).infer(asking)


def test_the_device_is_the_models_own() -> None:
    """A host copy of a model that is trained elsewhere, or one on another device than the usual: nobody has to tell."""
    pipeline = make_pipeline()
    seen: list[tuple[str, str]] = []

    class Watched(EchoModel):
        device = torch.device("meta")

        def sample_actions(self, observation: Observation, **options: Any) -> Tensor:
            seen.append((observation.prompt_tokens.device.type, options["noise"].device.type))
            return torch.zeros(options["noise"].shape)

    ModelPolicy(Watched(), pipeline).infer(observation())
    ModelPolicy(Watched(), pipeline, device="cpu").infer(observation())
    assert seen == [("meta", "meta")] * 2
    assert device_of(EchoModel()) == torch.device("cpu")
    assert device_of(EchoModel(), "meta") == torch.device("meta")
    on_meta = Pi0(CONFIG).to("meta")
    assert device_of(on_meta) == device_of(FastSampler(on_meta, kernels="torch", graphs=False)) == torch.device("meta")
