"""Diffusion policies of LeRobot: the same numbers as LeRobot's own (tests/golden/lerobot_diffusion)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from pizero.baseline.config import BaselineConfig
from pizero.baseline.lerobot_style import LerobotStyle
from pizero.baseline.policy import DiffusionPolicy
from pizero.checkpoints.convert import convert
from pizero.checkpoints.lerobot import diffusion as lerobot_diffusion
from pizero.checkpoints.lerobot.diffusion import key_table
from pizero.checkpoints.load import load_model, load_network, load_policy, read_checkpoint
from pizero.checkpoints.native.checkpoint import load_checkpoint, save_checkpoint
from pizero.data.transforms import Normalize
from pizero.types import Observation, UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*samples with")
GOLDEN = Path(__file__).parents[1] / "golden" / "lerobot_diffusion"
BOTH = pytest.mark.parametrize("name", ["group_norm", "batch_norm"])
TOLERANCE = 5e-5


def golden(name: str) -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN / name / "golden.npz") as file:
        return dict(file)


def policy_of(name: str) -> DiffusionPolicy:
    model = load_network(GOLDEN / name)
    assert isinstance(model, DiffusionPolicy)
    return model


def observation(arrays: dict[str, NDArray[Any]]) -> Observation:
    batch = len(arrays["in.state"])
    return Observation(
        images={name: torch.from_numpy(arrays[f"in.{name}"]).float() / 127.5 - 1 for name in ("top", "wrist")},
        image_masks={name: torch.ones(batch, dtype=torch.bool) for name in ("top", "wrist")},
        state=torch.from_numpy(arrays["out.state"]),
        prompt_tokens=torch.zeros(batch, 1, dtype=torch.long),
        prompt_mask=torch.ones(batch, 1, dtype=torch.bool),
    )


def close(ours: Tensor, theirs: NDArray[Any], tolerance: float = TOLERANCE) -> None:
    error = float((ours.detach() - torch.from_numpy(theirs)).abs().max())
    assert error < tolerance, error


def copy_of(name: str, folder: Path, change: Callable[[dict[str, Any]], object] = lambda config: None) -> Path:
    """A copy of a golden checkpoint whose config.json went through `change`."""
    shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ---------------------------------------------------------------- the same numbers


@BOTH
def test_the_network(name: str) -> None:
    """Image features, the UNet at a fixed step, the loss of fixed draws, and the sample from fixed noise."""
    model, arrays = policy_of(name), golden(name)
    noise = torch.from_numpy(arrays["in.noise"])
    encoded = model.encode(observation(arrays))
    close(encoded, arrays["out.encoded"])
    close(model.unet(noise, torch.from_numpy(arrays["in.step"]), encoded), arrays["out.unet"])
    close(model.sample_actions(observation(arrays), num_steps=10, noise=noise), arrays["out.sampled"])
    share = (torch.from_numpy(arrays["in.step"]) + 0.5) / model.config.diffusion_steps
    time = 0.001 + 0.999 * share ** (2 / 3)
    loss = model.loss(observation(arrays), torch.from_numpy(arrays["in.actions"]), noise=noise, time=time)
    close(loss.mean(), arrays["out.loss"])


@BOTH
def test_what_the_robot_plays(name: str) -> None:
    """From the folder alone: what LeRobot's `select_action` plays from the same noise, in robot units."""
    policy, arrays = load_policy(GOLDEN / name), golden(name)
    config = policy.model.config
    assert policy.num_steps == 10
    for row, expected in enumerate(arrays["out.played"]):
        robot = {
            "state": arrays["in.state"][row],
            "images": {camera: arrays[f"in.{camera}"][row] for camera in ("top", "wrist")},
            "prompt": "which is not read",
            "noise": arrays["in.noise"][row],
        }
        actions = policy.infer(robot)["actions"]
        assert actions.shape == (16 - (config.num_history - 1), 3)
        assert np.abs(actions[: len(expected)] - expected).max() < TOLERANCE
    images = {camera: arrays[f"in.{camera}"] for camera in ("top", "wrist")}
    normalised = policy.pipeline.model_inputs(images, arrays["in.state"], ["", ""])
    assert "state" in normalised
    assert np.abs(normalised["state"] - arrays["out.state"]).max() < 1e-6


def test_the_recorded_cases_differ_where_they_should() -> None:
    """The golden checkpoints cover each switch, and clipping takes part."""
    group, batch = policy_of("group_norm").config, policy_of("batch_norm").config
    assert group.lerobot is not None
    assert batch.lerobot is not None
    assert (group.image_fusion, batch.image_fusion) == ("separate", "shared")
    assert (group.lerobot.batch_norm, batch.lerobot.batch_norm) == (False, True)
    assert (group.lerobot.predicts_actions, batch.lerobot.predicts_actions) == (False, True)
    assert (group.lerobot.resize, batch.lerobot.resize) == (None, (68, 80))
    assert (group.lerobot.crop, batch.lerobot.crop) == ((70, 97), (57, 68))
    assert (group.clip_range, batch.clip_range) == (0.7, 0.0)
    assert (group.past_actions, batch.past_actions) == (1, 2)
    assert group.image_shape == (76, 100)
    assert (group.lerobot.num_steps, batch.lerobot.num_steps) == (10, None)
    model, arrays = policy_of("group_norm"), golden("group_norm")
    assert model.schedule is not None
    model.schedule.clip_range = 0.0
    sampled = model.sample_actions(observation(arrays), num_steps=10, noise=torch.from_numpy(arrays["in.noise"]))
    assert float((sampled - torch.from_numpy(arrays["out.sampled"])).abs().max()) > 0.05


@BOTH
def test_saved_as_native(name: str, tmp_path: Path) -> None:
    model, arrays = policy_of(name), golden(name)
    save_checkpoint(tmp_path / "native", model)
    again = load_checkpoint(tmp_path / "native").model
    assert again.config == model.config
    sampled = again.sample_actions(observation(arrays), num_steps=10, noise=torch.from_numpy(arrays["in.noise"]))
    close(sampled, arrays["out.sampled"])


def test_converted_to_native(tmp_path: Path) -> None:
    """The robot comes along: the same weights and statistics, and the new folder plays the same actions."""
    convert(GOLDEN / "group_norm", tmp_path / "native", "native")
    before, after = (load_policy(folder) for folder in (GOLDEN / "group_norm", tmp_path / "native"))
    assert before.model.config == after.model.config
    assert before.pipeline.to_json() == after.pipeline.to_json()
    for field in ("mean", "std", "q01", "q99"):
        for part in ("state", "actions"):
            stats = (getattr(getattr(policy.pipeline.norm_stats, part), field) for policy in (before, after))
            assert np.array_equal(*stats)
    assert isinstance(before.model, DiffusionPolicy)
    assert isinstance(after.model, DiffusionPolicy)
    again = after.model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in before.model.state_dict().items())
    arrays = golden("group_norm")
    robot = {
        "state": arrays["in.state"][0],
        "images": {camera: arrays[f"in.{camera}"][0] for camera in ("top", "wrist")},
        "prompt": "",
        "noise": arrays["in.noise"][0],
    }
    assert np.abs(after.infer(robot)["actions"][:8] - arrays["out.played"][0]).max() < TOLERANCE


# ---------------------------------------------------------------- names


def test_key_table_of_the_full_sizes() -> None:
    """All names and shapes of LeRobot's policy with its defaults, but constants and counters; ours all used once."""
    manifest = json.loads((GOLDEN / "default_state_dict.json").read_text())
    style = LerobotStyle((96, 96), ((0.0, 0.0, 0.0),) * 2, ((1.0, 1.0, 1.0),) * 2, batch_norm=True)
    config = BaselineConfig(
        action_dim=3, state_dim=4, num_history=2, cameras=("top", "wrist"), state_input=True, image_fusion="separate",
        step_embedding="sincos", lerobot=style,
    )  # fmt: skip
    table = key_table(config)
    with torch.device("meta"):
        ours = DiffusionPolicy(config).state_dict()
    assert [entry.ours for entry in table] == list(ours)
    left = {name for name in manifest if not name.endswith((".pos_grid", ".num_batches_tracked"))}
    assert {entry.theirs for entry in table} == left
    assert len(left) == len(table)
    for entry in table:
        assert list(ours[entry.ours].shape) == manifest[entry.theirs], entry


def test_a_compiled_network(tmp_path: Path) -> None:
    folder = copy_of("group_norm", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("diffusion.unet.", "diffusion.unet._orig_mod."): value for name, value in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    model, plain = load_network(folder), policy_of("group_norm")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


# ---------------------------------------------------------------- what is refused


def feature(kind: str, *shape: int) -> dict[str, Any]:
    return {"type": kind, "shape": list(shape)}


REFUSED: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c.update(vision_backbone="resnet34"), "vision_backbone is 'resnet34'; only 'resnet18' is supported"),
    (lambda c: c.update(n_groups=4), "n_groups is 4; only 8 is supported"),
    (lambda c: c.update(beta_schedule="linear"), "beta_schedule is 'linear'; only 'squaredcos_cap_v2' is supported"),
    (lambda c: c.update(use_peft=True), "use_peft is True; only False is supported"),
    (lambda c: c.update(prediction_type="v"), "prediction_type is 'v', expected 'epsilon' or 'sample'"),
    (lambda c: c.update(novelty=1), "novelty is no setting of LeRobot 0.6.1"),
    (lambda c: c.update(noise_scheduler_type="EDM"), "noise_scheduler_type is 'EDM', expected 'DDPM' or 'DDIM'"),
    (lambda c: c.update(num_train_timesteps=2**31 - 1), "num_train_timesteps is 2147483647, expected at most 10000"),
    (lambda c: c.update(num_inference_steps=0), "num_inference_steps is 0, expected a whole number"),
    (lambda c: c.update(clip_sample_range=0.0), "clip_sample_range is 0.0, expected a number above 0"),
    (lambda c: c.update(clip_sample=1), "clip_sample is 1, expected true or false"),
    (lambda c: c.update(n_obs_steps=17), "n_obs_steps is 17, expected at most the horizon"),
    (lambda c: c.update(use_group_norm=False), "weights do not fit: "),
    (lambda c: c.update(use_film_scale_modulation=False), "of another shape"),
    (lambda c: c.update(use_separate_rgb_encoder_per_camera=False), "config.json describes another policy"),
    (lambda c: c.update(horizon="16"), "horizon is '16', expected a whole number"),
    (lambda c: c.update(horizon=10**400), "horizon is a number beyond all measure, expected a whole number"),
    (lambda c: c.update(horizon=20_000), "horizon is 20000, expected at most 10000"),
    (lambda c: c.pop("horizon"), "has no 'horizon'"),
    (lambda c: c.update(kernel_size=5), "of another shape"),
    (lambda c: c.update(crop_shape=[41, 101]), "lerobot.crop (41, 101) is larger than the images, (76, 100)"),
    (lambda c: c.update(crop_shape=[41]), "crop_shape is list, expected a height and a width"),
    (lambda c: c.update(crop_shape=[41, 33]), "pos_grid is not the grid of 2 x 2 positions"),
    (lambda c: c.update(down_dims=[16, 32, 64]), "weights do not fit: "),
    (
        lambda c: c["input_features"].update({"observation.environment_state": feature("ENV", 3)}),
        "the input observation.environment_state (ENV) is neither an image nor observation.state",
    ),
    (
        lambda c: c["input_features"].update({"observation.images.top": feature("VISUAL", 3, 76, 96)}),
        "expected images of three colours and one size, got [(3, 76, 96), (3, 76, 100)]",
    ),
    (lambda c: c["input_features"].pop("observation.state"), "expected the input observation.state"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_settings_that_are_refused(tmp_path: Path, change: Callable[..., object], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_network(copy_of("group_norm", tmp_path, change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_statistics_among_the_weights(tmp_path: Path) -> None:
    folder = copy_of("group_norm", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"normalize_inputs.buffer_action.min": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="was saved by an older LeRobot, with statistics among the weights"):
        load_network(folder)


def test_it_is_no_pi0_and_takes_no_sizes() -> None:
    with pytest.raises(UserError, match="holds a DiffusionPolicy, not a π0"):
        load_model(GOLDEN / "group_norm")
    with pytest.raises(UserError, match="knows its own sizes; leave arch out"):
        load_network(GOLDEN / "group_norm", arch={"action_dim": 3})
    with pytest.raises(UserError, match="are read only"):
        lerobot_diffusion.write(Path(), policy_of("group_norm"), read_checkpoint(GOLDEN / "group_norm").facts)


# ---------------------------------------------------------------- processors


def change_processor(folder: Path, name: str, change: Callable[[list[Any]], object]) -> None:
    path = folder / f"policy_{name}.json"
    values = json.loads(path.read_text())
    change(values["steps"])
    path.write_text(json.dumps(values))


def modes(**changes: str) -> Callable[[list[Any]], object]:
    def change(steps: list[Any]) -> None:
        for step in steps:
            if "norm_map" in step["config"]:
                step["config"]["norm_map"].update(changes)

    return change


def test_without_processors(tmp_path: Path) -> None:
    """A network without its image statistics would give other numbers."""
    folder = copy_of("group_norm", tmp_path)
    (folder / "policy_preprocessor.json").unlink()
    with pytest.raises(UserError, match=r"policy_preprocessor.json cannot be read"):
        load_network(folder)


def test_other_normalisations(tmp_path: Path) -> None:
    folder = copy_of("group_norm", tmp_path)
    for name in ("preprocessor", "postprocessor"):
        change_processor(folder, name, modes(STATE="MEAN_STD", ACTION="MEAN_STD", VISUAL="IDENTITY"))
    source = read_checkpoint(folder)
    stats, config = source.facts.norm_stats, source.config
    stored = load_file(folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors")
    assert stats is not None
    assert (stats.mode, stats.epsilon) == ("zscore", 1e-8)
    assert np.array_equal(stats.actions.std, stored["action.std"].double().numpy())
    assert isinstance(config, BaselineConfig)
    assert config.lerobot is not None
    assert config.lerobot.image_mean == ((0.0, 0.0, 0.0),) * 2
    assert config.lerobot.image_std == ((1.0, 1.0, 1.0),) * 2
    change_processor(folder, "preprocessor", modes(VISUAL="MIN_MAX"))
    config = read_checkpoint(folder).config
    assert isinstance(config, BaselineConfig)
    assert config.lerobot is not None
    low, high = (stored[f"observation.images.wrist.{name}"].double().flatten() for name in ("min", "max"))
    assert config.lerobot.image_mean[1] == pytest.approx(((low + high) / 2).tolist())
    assert config.lerobot.image_std[1] == pytest.approx(((high - low) / 2).tolist())


MODES = ("MEAN_STD", "MIN_MAX", "IDENTITY")


@pytest.mark.parametrize("modes_of_both", [(a, b) for a in MODES for b in MODES if (a, b) != ("IDENTITY", "IDENTITY")])
def test_every_pair_of_modes_gives_lerobots_numbers(modes_of_both: tuple[str, str], tmp_path: Path) -> None:
    """The modes of state and action, read by the reader that π0's processors have; one dimension is constant."""
    folder = copy_of("group_norm", tmp_path)
    for name in ("preprocessor", "postprocessor"):
        change_processor(folder, name, modes(STATE=modes_of_both[0], ACTION=modes_of_both[1]))
    stats = read_checkpoint(folder).facts.norm_stats
    assert stats is not None
    stored = load_file(folder / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    for key, mode, field in zip(
        ("observation.state", "action"), modes_of_both, (stats.state, stats.actions), strict=True
    ):
        mean, std, low, high = (stored[f"{key}.{name}"].double().numpy() for name in ("mean", "std", "min", "max"))
        spread = np.where(high == low, 1e-8, high - low)
        expected = {
            "MEAN_STD": (x[:, : field.dim] - mean) / (std + 1e-8),
            "MIN_MAX": 2 * (x[:, : field.dim] - low) / spread - 1,
            "IDENTITY": x[:, : field.dim].astype(np.float64),
        }[mode]
        normalise = Normalize(field, stats.mode, stats.epsilon, stats.convention)
        moves = high > low
        np.testing.assert_allclose(normalise(x[:, : field.dim])[:, moves], expected[:, moves], rtol=1e-4, atol=1e-5)
        back = normalise.inverse(expected)
        np.testing.assert_allclose(back[:, moves], x[:, : field.dim][:, moves], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("LOG", "the mode LOG is not known"), ("IDENTITY", "nothing is normalised"), ("QUANTILES", "hold no q01 and q99")],
)
def test_statistics_that_stay_unknown(tmp_path: Path, mode: str, reason: str) -> None:
    """No mode, an unknown one, and quantiles that the file does not have: a note instead of a guess."""
    folder = copy_of("group_norm", tmp_path)
    for name in ("preprocessor", "postprocessor"):
        change_processor(folder, name, modes(STATE=mode, ACTION=mode))
    source = read_checkpoint(folder)
    assert source.facts.norm_stats is None
    assert any(f"statistics of state ({mode}) and action ({mode}) are unknown" in note for note in source.notes)
    assert any(reason in note for note in source.notes)


def test_renamed_observations(tmp_path: Path) -> None:
    folder = copy_of("group_norm", tmp_path)
    change_processor(folder, "preprocessor", lambda steps: steps[0]["config"].update(rename_map={"a": "b"}))
    source = read_checkpoint(folder)
    assert source.facts.embodiment is None
    assert any("renames observations" in note for note in source.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: steps.append({"registry_name": "my_step"}), "step 4 is 'my_step', which LeRobot 0.6.1 does not"),
        (lambda steps: steps.pop(), "has no normaliser"),
        (lambda steps: steps[3].update(state_file="../x.safetensors"), "which is not a file of this folder"),
        (lambda steps: steps[3]["config"]["norm_map"].update(VISUAL="QUANTILES"), "'QUANTILES' of observation.images"),
        (lambda steps: steps.append(steps[3]), "step 4 is 'normalizer_processor', which LeRobot 0.6.1 does not"),
        (lambda steps: steps[3].update(registry_name="unnormalizer_processor"), "step 3 is 'unnormalizer_processor'"),
        (lambda steps: steps.insert(0, 3), "step 0 is no object"),
        (
            lambda steps: steps[3]["config"].update(eps=1e-6),
            "step 3: config: expected features, norm_map",
        ),
        (lambda steps: steps[3]["config"].update(normalize_observation_keys=["a"]), "expected features, norm_map and"),
    ],
)
def test_processors_that_are_refused(tmp_path: Path, change: Callable[..., object], message: str) -> None:
    folder = copy_of("group_norm", tmp_path)
    change_processor(folder, "preprocessor", change)
    with pytest.raises(UserError) as error:
        load_network(folder)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("observation.state.max", torch.zeros(0), "the statistics of observation.state are not 4 numbers: max"),
        ("observation.images.top.std", torch.ones(4, 1, 1), "of observation.images.top are not 3 numbers: std"),
        ("observation.images.top.std", torch.tensor([1, 0.5, -1]), "lerobot.image_std must be positive"),
        ("observation.state.std", torch.full((4,), torch.nan), "NaN"),
    ],
)
def test_statistics_that_are_refused(tmp_path: Path, name: str, value: Tensor, message: str) -> None:
    path = copy_of("group_norm", tmp_path) / "policy_preprocessor_step_3_normalizer_processor.safetensors"
    save_file(load_file(path) | {name: value}, path)
    with pytest.raises(UserError) as error:
        load_policy(tmp_path)
    assert message in str(error.value)


def test_weights_that_are_refused(tmp_path: Path) -> None:
    path = copy_of("group_norm", tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model.safetensors cannot be read .* copy the checkpoint again"):
        load_policy(tmp_path)
    path.write_bytes(whole)
    tensors = load_file(path)
    save_file(tensors | {"diffusion.unet.extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"0 missing; 1 left over \(diffusion.unet.extra\)"):
        load_policy(tmp_path)
    save_file(tensors | {"diffusion.unet.final_conv.1.bias": torch.full((3,), torch.inf)}, path)
    with pytest.raises(UserError, match=r"1 with NaN or Inf \(unet.output.bias\)"):
        load_policy(tmp_path)


def test_cameras_without_the_usual_prefix(tmp_path: Path) -> None:
    """As in policies whose cameras are `observation.image` and the like."""
    copy_of("group_norm", tmp_path)
    for path in tmp_path.glob("*.json"):
        path.write_text(path.read_text().replace("observation.images.", "observation."))
    for path in tmp_path.glob("policy_*.safetensors"):
        save_file({n.replace("observation.images.", "observation."): v for n, v in load_file(path).items()}, path)
    source, usual = read_checkpoint(tmp_path), read_checkpoint(GOLDEN / "group_norm")
    assert source.config == usual.config
    assert source.facts.embodiment is not None
    assert source.facts.embodiment.image_prefix == "observation."
    assert source.facts.embodiment.cameras == {"top": "top", "wrist": "wrist"}


def test_notes(tmp_path: Path) -> None:
    assert read_checkpoint(GOLDEN / "group_norm").notes == ()
    folder = copy_of("group_norm", tmp_path, lambda c: c.update(num_inference_steps=15))
    assert read_checkpoint(folder).notes == (
        f"{folder / 'config.json'} samples with DDIM in 15 steps; here it is DDIM, in 20 steps unless num_steps says "
        "otherwise",
    )
    with pytest.warns(UserWarning, match="samples with DDPM in 50 steps; here it is DDIM, in 10 steps"):
        load_network(GOLDEN / "batch_norm")
