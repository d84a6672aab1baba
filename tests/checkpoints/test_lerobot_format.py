"""LeRobot's checkpoints: every name and dtype of the full size, both directions, and what cannot be told is said."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pizero.checkpoints.files.keymap import fill
from pizero.checkpoints.format import Facts, StoredCheckpoint
from pizero.checkpoints.lerobot import policy as lerobot
from pizero.checkpoints.lerobot.policy import WrittenTensors
from pizero.checkpoints.load import load_model, load_policy, read_checkpoint
from pizero.checkpoints.native.checkpoint import load_checkpoint, save_checkpoint
from pizero.data.embodiments import Conversion, Embodiment
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.tokenizer import PaligemmaTokenizer, train_tokenizer
from pizero.data.transforms import Normalize
from pizero.model.config import CAMERAS, Pi0Config
from pizero.model.pi0 import Pi0
from pizero.model.precision import cast_weights
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "lerobot"
NAMES = ["pi0", "pi05"]
HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
EXPERT_HEAD = "model.paligemma_with_expert.gemma_expert.lm_head.weight"
TABLE = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lm_head.weight differs:UserWarning"),
    pytest.mark.filterwarnings("ignore:LeRobot has no name for this model's sizes:UserWarning"),
]


def arch_of(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "checkpoints" / f"{name}_tiny" / "tiny_arch.json").read_text())


def source_of(name: str) -> StoredCheckpoint:
    return lerobot.read(GOLDEN / "checkpoints" / f"{name}_tiny", arch_of(name))


def model_of(source: StoredCheckpoint) -> Pi0:
    with torch.device("meta"):
        model = Pi0(source.config)
    fill(model, source.tensors())
    return model.eval()


def copy_of(name: str, folder: Path) -> Path:
    shutil.copytree(GOLDEN / "checkpoints" / f"{name}_tiny", folder, ignore=lambda _, names: {"golden.npz"} & {*names})
    return folder


def edit(path: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def written(folder: Path, model: Pi0, facts: Facts) -> Path:
    folder.mkdir()
    lerobot.write(folder, model, facts)
    return folder


def step_of(processor: Any, name: str) -> Any:
    return next(step for step in processor["steps"] if step["registry_name"] == name)


def same_stats(a: NormStats, b: NormStats) -> bool:
    return (a.mode, a.epsilon, a.convention, a.state.to_json(), a.actions.to_json()) == (
        b.mode, b.epsilon, b.convention, b.state.to_json(), b.actions.to_json(),
    )  # fmt: skip


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "config"), [("pi0", Pi0Config.pi0()), ("pi05", Pi0Config.pi05())])
def test_manifest_of_the_full_size(name: str, config: Pi0Config, dtype: str) -> None:
    """All names, shapes and dtypes of LeRobot's state dict, and no others."""
    rows = json.loads((GOLDEN / "manifests.json").read_text())[f"{name}_{dtype}"]
    expected = {
        (key.format(layer) if "{}" in key else key): (kind, tuple(shape))
        for key, (kind, shape, layers) in rows.items()
        for layer in range(layers)
    }
    assert len(expected) > 700
    with torch.device("meta"):
        model = Pi0(config)
    if dtype == "bfloat16":
        cast_weights(model, torch.bfloat16)
    tensors = WrittenTensors(model)
    found = {key: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for key, tensor in tensors.items()}
    assert found == expected
    assert len(tensors) == len(expected)
    assert tensors.dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_lerobot_to_native_to_lerobot(name: str, dtype: str, tmp_path: Path) -> None:
    """Equal to the bit for every tensor that the forward pass reads; the heads are copies or zeros."""
    first = copy_of(name, tmp_path / "first")
    theirs = load_file(first / "model.safetensors")
    if dtype == "bfloat16":
        kinds = json.loads((first / "bf16_mode_dtypes.json").read_text())
        theirs = {key: t.bfloat16() if kinds[key] == "torch.bfloat16" else t for key, t in theirs.items()}
        save_file(theirs, first / "model.safetensors")
    source = lerobot.read(first, arch_of(name))
    save_checkpoint(tmp_path / "native", model_of(source))
    model = load_checkpoint(tmp_path / "native").model
    assert isinstance(model, Pi0)
    folder = written(tmp_path / "lerobot", model, source.facts)
    ours = load_file(folder / "model.safetensors")
    assert {key: tensor.dtype for key, tensor in ours.items()} == {key: t.dtype for key, t in theirs.items()}
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    assert {key for key in theirs if not torch.equal(ours[key], theirs[key])} == {HEAD, EXPERT_HEAD}
    assert torch.equal(ours[HEAD], theirs[TABLE])
    assert not ours[EXPERT_HEAD].any()
    assert ours[EXPERT_HEAD].shape == theirs[EXPERT_HEAD].shape


def test_untied_heads_are_told(tmp_path: Path) -> None:
    assert f"{HEAD} differs from {TABLE}" in " ".join(source_of("pi0").notes)
    folder = written(tmp_path / "tied", model_of(source_of("pi0")), source_of("pi0").facts)
    assert lerobot.read(folder, arch_of("pi0")).notes == ()


def test_float16_is_written_as_float32() -> None:
    model = cast_weights(model_of(source_of("pi0")), torch.float16)
    tensors = WrittenTensors(model)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert tensors.dtype == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_missing_and_left_over_names_are_listed(name: str, tmp_path: Path) -> None:
    folder = copy_of(name, tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.other"] = tensors.pop("model.action_out_proj.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(model.action_out_proj.bias\); 1 left over \(model.other\)"):
        load_model(folder, arch=arch_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_mixture_of_key_styles_is_refused(name: str, tmp_path: Path) -> None:
    folder = copy_of(name, tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    tensors["action_out_proj.bias"] = tensors.pop("model.action_out_proj.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing .* 1 left over \(action_out_proj.bias\)"):
        load_model(folder, arch=arch_of(name))


def test_sizes_must_be_told() -> None:
    with pytest.raises(UserError, match="names gemma_2b, of width 2048, but the weights have 64; give the sizes"):
        load_model(GOLDEN / "checkpoints" / "pi0_tiny")
    arch = arch_of("pi0")
    del arch["vision"]
    with pytest.raises(UserError, match="arch has no 'vision'"):
        load_model(GOLDEN / "checkpoints" / "pi0_tiny", arch=arch)
    with pytest.raises(UserError, match=r"arch contradicts config\.json: action_horizon 11 instead of 10"):
        load_model(GOLDEN / "checkpoints" / "pi0_tiny", arch={**arch_of("pi0"), "chunk_size": 11})


def test_recognised_before_openpi() -> None:
    """Its bare key style has the names of openpi's port; config.json tells them apart."""
    assert read_checkpoint(GOLDEN / "checkpoints" / "pi0_tiny", arch_of("pi0")).format == "lerobot"
    assert not lerobot.detect(GOLDEN.parent / "openpi" / "pi0_d32" / "torch")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paligemma_variant": "gemma_7b"}, "variant 'gemma_7b', whose sizes are not known"),
        ({"image_resolution": [56, 70]}, "only square images"),
        ({"min_period": 1.0}, "min_period is 1.0"),
        ({"chunk_size": "ten"}, "chunk_size is not what LeRobot writes there"),
        ({"input_features": {"observation.state": 4}}, "input_features is not what LeRobot writes there"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = copy_of("pi0", tmp_path / "x")
    edit(folder / "config.json", lambda values: values.update(change))
    with pytest.raises(UserError, match=message):
        load_model(folder)


@pytest.mark.parametrize("change", [{"action_attention": "causal"}, {"state_input": "none"}])
def test_switches_that_lerobot_lacks_are_not_written(change: dict[str, Any], tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Pi0(dataclasses.replace(source_of("pi05").config, **change))
    with pytest.raises(UserError, match="LeRobot has no policy with"):
        written(tmp_path / "x", model, Facts())


# ---------------------------------------------------------------- facts


@pytest.mark.parametrize("name", NAMES)
def test_facts(name: str) -> None:
    facts = source_of(name).facts
    stats = load_file(next((GOLDEN / "checkpoints" / f"{name}_tiny").glob("*_normalizer_processor.safetensors")))
    assert facts.norm_stats is not None
    assert facts.embodiment is not None
    assert facts.norm_stats.mode == {"pi0": "zscore", "pi05": "quantile"}[name]
    assert (facts.norm_stats.epsilon, facts.norm_stats.convention, facts.convention) == (1e-8, "lerobot", "lerobot")
    for key, field in (("observation.state", facts.norm_stats.state), ("action", facts.norm_stats.actions)):
        for what in ("mean", "std", "q01", "q99", "min", "max"):
            np.testing.assert_array_equal(np.asarray(field.to_json()[what]), stats[f"{key}.{what}"].double().numpy())
    assert facts.embodiment.cameras == {"base_0_rgb": "top", "left_wrist_0_rgb": "wrist"}
    assert (facts.embodiment.state_dim, facts.embodiment.action_dim, facts.embodiment.relative_mask) == (4, 3, ())
    assert facts.tokenizer is None
    assert source_of(name).config.cameras == CAMERAS  # the third is the always empty one


@pytest.mark.parametrize("name", NAMES)
def test_processors_in_both_directions(name: str, tmp_path: Path) -> None:
    """LeRobot's own files say the same as what we write: steps in their order, their settings, the statistics."""
    golden, source = GOLDEN / "checkpoints" / f"{name}_tiny", source_of(name)
    folder = written(tmp_path / "x", model_of(source), source.facts)
    for file in ("policy_preprocessor.json", "policy_postprocessor.json"):
        ours, theirs = (json.loads((place / file).read_text()) for place in (folder, golden))
        for step in (*ours["steps"], *theirs["steps"]):
            step["config"].get("features", {}).clear()  # image sizes, which nothing reads
            step["config"].pop("exclude_joints", None)  # of actions that are not relative
        assert ours == theirs
    for path in golden.glob("policy_*.safetensors"):
        ours, theirs = load_file(folder / path.name), load_file(path)
        assert set(ours) <= set(theirs)
        assert len(ours) == 12
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    ours, theirs = (json.loads((place / "config.json").read_text()) for place in (folder, golden))
    unlike = {key for key in ours if ours[key] != theirs[key]}
    assert unlike == {"input_features", "relative_exclude_joints", "device"}
    assert list(ours["input_features"]) == list(theirs["input_features"])
    again = lerobot.read(folder, arch_of(name))
    assert again.config == source.config
    assert again.facts.embodiment == source.facts.embodiment
    assert again.facts.norm_stats is not None
    assert source.facts.norm_stats is not None
    assert same_stats(again.facts.norm_stats, source.facts.norm_stats)


@pytest.mark.parametrize("name", NAMES)
def test_openpi_statistics_normalise_the_same_way(name: str, tmp_path: Path) -> None:
    """openpi's epsilon goes into the numbers that LeRobot gets."""
    rng = np.random.default_rng(0)
    values = [np.abs(rng.normal(size=4)) + 0.1 for _ in range(4)]
    field = FieldStats(values[0], values[1], values[2], values[2] + values[3])
    stats = NormStats({"pi0": "zscore", "pi05": "quantile"}[name], field, field, epsilon=1e-2)  # pyright: ignore
    source = source_of(name)
    embodiment = Embodiment("x", {"base_0_rgb": "cam"}, 4, 4)
    with pytest.warns(UserWarning, match="without a low-pass filter"):
        folder = written(tmp_path / "x", model_of(source), Facts(embodiment, stats))
    again = lerobot.read(folder, arch_of(name)).facts.norm_stats
    assert again is not None
    x = rng.normal(size=(5, 4))
    expected = Normalize(field, stats.mode, 1e-2)(x)
    actual = Normalize(again.state, again.mode, again.epsilon, again.convention)(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        Normalize(again.actions, again.mode, again.epsilon, again.convention).inverse(actual), x, atol=1e-5
    )


def test_another_epsilon_is_carried(tmp_path: Path) -> None:
    folder = copy_of("pi0", tmp_path / "x")
    for file, step in (
        ("policy_preprocessor.json", "normalizer_processor"),
        ("policy_postprocessor.json", "unnormalizer_processor"),
    ):
        edit(folder / file, lambda values, step=step: step_of(values, step)["config"].update(eps=1e-5))
    source = lerobot.read(folder, arch_of("pi0"))
    assert source.facts.norm_stats is not None
    assert source.facts.norm_stats.epsilon == 1e-5
    again = lerobot.read(written(tmp_path / "y", model_of(source), source.facts), arch_of("pi0"))
    assert again.facts.norm_stats is not None
    assert again.facts.norm_stats.epsilon == 1e-5


@pytest.mark.parametrize(
    ("excluded", "names", "mask"),
    [
        (["gripper"], ["shoulder.pos", "Gripper.pos", "wrist"], (True, False, True)),
        ([], ["shoulder", "gripper", "wrist"], (True, True, True)),
        (["gripper"], None, (True, True, True)),
        (["gripper"], ["gripper"], (False, True, True)),
    ],
)
def test_relative_actions(excluded: list[str], names: list[str] | None, mask: tuple[bool, ...], tmp_path: Path) -> None:
    """LeRobot's rule by names, carried in both directions."""
    folder = copy_of("pi05", tmp_path / "x")
    told = {"enabled": True, "exclude_joints": excluded, "action_names": names}
    relative = "relative_actions_processor"
    edit(folder / "policy_preprocessor.json", lambda values: step_of(values, relative)["config"].update(told))
    with_one = lerobot.read(folder, arch_of("pi05"))
    assert with_one.facts.embodiment is None
    assert "one of its two processors makes actions relative, the other does not" in " ".join(with_one.notes)
    edit(
        folder / "policy_postprocessor.json",
        lambda values: step_of(values, "absolute_actions_processor")["config"].update(enabled=True),
    )
    source = lerobot.read(folder, arch_of("pi05"))
    assert source.facts.embodiment is not None
    assert source.facts.embodiment.relative_mask == mask
    assert ("no action names" in " ".join(source.notes)) == (names is None)
    again = lerobot.read(written(tmp_path / "y", model_of(source), source.facts), arch_of("pi05"))
    assert again.facts.embodiment is not None
    assert again.facts.embodiment.relative_mask == mask


def test_relative_to_other_dimensions_is_not_written(tmp_path: Path) -> None:
    source = source_of("pi0")
    assert source.facts.embodiment is not None
    embodiment = dataclasses.replace(source.facts.embodiment, relative_mask=(True, True), state_indices=(1, 0))
    with pytest.raises(UserError, match="relative actions from other state dimensions than their own"):
        written(tmp_path / "x", model_of(source), dataclasses.replace(source.facts, embodiment=embodiment))


VISUAL = {"type": "VISUAL", "shape": [3, 56, 56]}


@pytest.mark.parametrize(
    ("keys", "empty", "renamed", "cameras", "robot"),
    [
        (["front"], 0, {}, ("base_0_rgb",), {"base_0_rgb": "front"}),
        (["front"], 2, {}, CAMERAS, {"base_0_rgb": "front"}),
        (
            ["left_wrist_0_rgb", "base_0_rgb"], 0, {}, ("left_wrist_0_rgb", "base_0_rgb"),
            {"left_wrist_0_rgb": "left_wrist_0_rgb", "base_0_rgb": "base_0_rgb"},
        ),
        (["base_0_rgb"], 0, {"base_0_rgb": "front"}, ("base_0_rgb",), {"base_0_rgb": "front"}),
        (
            ["a", "b", "c", "d"], 0, {}, (*CAMERAS, "camera_3_rgb"),
            dict(zip((*CAMERAS, "camera_3_rgb"), "abcd", strict=True)),
        ),
    ],
)  # fmt: skip
def test_cameras(
    keys: list[str], empty: int, renamed: dict[str, str], cameras: tuple[str, ...], robot: dict[str, str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Robot cameras in LeRobot's order, the empty ones behind them; the same after a round trip."""
    folder, full = copy_of("pi0", tmp_path / "x"), "observation.images."
    features = {full + key: VISUAL for key in keys} | {full + f"empty_camera_{n}": VISUAL for n in range(empty)}
    state = {"observation.state": {"type": "STATE", "shape": [4]}}
    edit(folder / "config.json", lambda v: v.update(empty_cameras=empty, input_features=features | state))
    rename = {full + old: full + new for new, old in renamed.items()}
    step = "rename_observations_processor"
    edit(folder / "policy_preprocessor.json", lambda v: step_of(v, step)["config"].update(rename_map=rename))
    source = lerobot.read(folder, arch_of("pi0"))
    assert source.config.cameras == cameras
    assert source.facts.embodiment is not None
    assert source.facts.embodiment.cameras == robot
    again = lerobot.read(written(tmp_path / "y", model_of(source), source.facts), arch_of("pi0"))
    assert again.facts.embodiment is not None
    assert again.facts.embodiment.cameras == robot
    assert again.config.cameras == cameras
    values = json.loads((tmp_path / "y" / "config.json").read_text())
    assert values["empty_cameras"] == empty


def test_a_renamed_state_is_carried(tmp_path: Path) -> None:
    source = source_of("pi0")
    assert source.facts.embodiment is not None
    embodiment = dataclasses.replace(source.facts.embodiment, state_key="observation.qpos")
    folder = written(tmp_path / "x", model_of(source), dataclasses.replace(source.facts, embodiment=embodiment))
    again = lerobot.read(folder, arch_of("pi0")).facts.embodiment
    assert again is not None
    assert again.state_key == "observation.qpos"


def test_joined_columns_become_lerobots_state(tmp_path: Path) -> None:
    source = source_of("pi0")
    assert source.facts.embodiment is not None
    embodiment = dataclasses.replace(source.facts.embodiment, state_key=("joints", "gripper"))
    folder = written(tmp_path / "x", model_of(source), dataclasses.replace(source.facts, embodiment=embodiment))
    again = lerobot.read(folder, arch_of("pi0")).facts.embodiment
    assert again is not None
    assert again.state_key == "observation.state"


def test_conversions_cannot_be_written(tmp_path: Path) -> None:
    source = source_of("pi0")
    assert source.facts.embodiment is not None
    embodiment = dataclasses.replace(source.facts.embodiment, conversions=(Conversion((0,), model=(0, -1)),))
    with pytest.raises(UserError, match="converts the robot's numbers, which LeRobot cannot; write another format"):
        written(tmp_path / "x", model_of(source), dataclasses.replace(source.facts, embodiment=embodiment))


def test_a_choice_of_dimensions_cannot_be_written(tmp_path: Path) -> None:
    source = source_of("pi0")
    robot = source.facts.embodiment
    assert robot is not None
    assert robot.action_dim is not None
    chosen = dataclasses.replace(robot, action_dims=tuple(reversed(range(robot.action_dim))))
    with pytest.raises(UserError, match="chooses dimensions of the robot's columns, which LeRobot cannot"):
        written(tmp_path / "x", model_of(source), dataclasses.replace(source.facts, embodiment=chosen))


# ---------------------------------------------------------------- what is not told


def drop(folder: Path, name: str) -> None:
    for path in folder.glob(name):
        path.unlink()


def set_step(file: str, step: str, **config: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / file, lambda values: step_of(values, step)["config"].update(config))


def set_stats(folder: Path, mode: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the statistics beside both processors, which normalise by `mode` then."""
    norm_map = {"STATE": "QUANTILES", "ACTION": "QUANTILES"} if mode == "quantiles" else {}
    for file, step in (("policy_preprocessor", "normalizer"), ("policy_postprocessor", "unnormalizer")):
        if norm_map:
            set_step(f"{file}.json", f"{step}_processor", norm_map=norm_map)(folder)
        for path in folder.glob(f"{file}_step_*.safetensors"):
            tensors = load_file(path)
            change(tensors)
            save_file(tensors, path)


def drop_cameras(values: Any) -> None:
    for name in ("top", "wrist"):
        del values["input_features"][f"observation.images.{name}"]


UNKNOWN: list[tuple[Callable[[Path], None], str]] = [
    (lambda folder: drop(folder, "policy_*"), "no processors"),
    (
        set_step("policy_preprocessor.json", "normalizer_processor", norm_map={"ACTION": "MIN_MAX"}),
        "the two processors normalise the actions in different modes",
    ),
    (
        set_step("policy_preprocessor.json", "normalizer_processor", norm_map={"ACTION": "MEAN_STD", "STATE": "LOG"}),
        "the mode LOG is not known",
    ),
    (set_step("policy_preprocessor.json", "normalizer_processor", eps=1e-3), "different statistics of the actions or"),
    (
        set_step("policy_preprocessor.json", "normalizer_processor", normalize_observation_keys=["observation.other"]),
        "the state is not normalised",
    ),
    (
        set_step(
            "policy_preprocessor.json", "normalizer_processor",
            norm_map={"STATE": "MEAN_STD", "ACTION": "MEAN_STD", "VISUAL": "MEAN_STD"},
        ),
        "images are normalised by statistics",
    ),
    (
        lambda folder: edit(folder / "policy_preprocessor.json", lambda v: v["steps"][-1].pop("state_file")),
        "hold no mean and std",
    ),
    (
        lambda folder: set_stats(folder, "quantiles", lambda tensors: tensors.pop("action.q01")),
        "the processors hold no q01 and q99 of action",
    ),
    (
        lambda folder: set_stats(folder, "quantiles", lambda tensors: tensors["action.q99"].fill_(-1e6)),
        "cannot be used (norm stats: actions has a negative spread",
    ),
    (
        lambda folder: set_stats(folder, "zscore", lambda tensors: tensors["action.std"].fill_(float("nan"))),
        "cannot be used (norm stats: std holds NaN",
    ),
    (
        lambda folder: set_stats(folder, "zscore", lambda tensors: tensors.update({"action.std": torch.ones(7)})),
        "cannot be used (norm stats: std has shape (7,)",
    ),
    (
        lambda folder: edit(folder / "config.json", lambda v: v["output_features"]["action"].update(shape=[2])),
        "3 action dimensions, config.json 2",
    ),
    (
        lambda folder: edit(folder / "config.json", drop_cameras),
        "config.json names no camera",
    ),
    (
        set_step("policy_preprocessor.json", "rename_observations_processor", rename_map={"a": "x", "b": "x"}),
        "renames two columns to one",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), UNKNOWN, ids=[reason for _, reason in UNKNOWN])
def test_load_policy_names_what_is_unknown(change: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    folder = copy_of("pi0", tmp_path / "x")
    change(folder)
    what = "embodiment" if "camera" in reason or "columns" in reason else "norm_stats"
    with (
        warnings.catch_warnings(record=True) as told,
        pytest.raises(UserError, match=f"does not record {what}, and it"),
    ):
        load_policy(folder, arch=arch_of("pi0"), tokenizer=PaligemmaTokenizer.bytes())
    assert any(reason in str(warning.message) for warning in told) == (reason != "no processors")
    with warnings.catch_warnings(record=True):
        load_model(folder, arch=arch_of("pi0"))  # the weights can be had


def test_load_policy_asks_for_the_vocabulary() -> None:
    with pytest.raises(UserError, match="does not record tokenizer, and"):
        load_policy(GOLDEN / "checkpoints" / "pi0_tiny", arch=arch_of("pi0"))


def test_a_written_vocabulary_is_read_again(tmp_path: Path) -> None:
    """What we write of a whole policy loads from its path, and acts as the first."""
    source = source_of("pi05")
    tokenizer = train_tokenizer(["put the cube on the plate"], tmp_path / "t.model")
    folder = written(tmp_path / "x", model_of(source), dataclasses.replace(source.facts, tokenizer=tokenizer))
    first = load_policy(
        GOLDEN / "checkpoints" / "pi05_tiny", arch=arch_of("pi05"), tokenizer=tmp_path / "t.model", num_steps=2
    )
    second = load_policy(folder, arch=arch_of("pi05"), num_steps=2)
    image = np.full((20, 30, 3), 90, np.uint8)
    robot = {"state": np.ones(4, np.float32), "images": {"top": image, "wrist": image}, "prompt": "put the cube"}
    np.testing.assert_array_equal(first.infer(robot)["actions"], second.infer(robot)["actions"])


MODES = ("MEAN_STD", "QUANTILES", "MIN_MAX", "IDENTITY")


@pytest.mark.parametrize(("state_mode", "action_mode"), [(a, b) for a in MODES for b in MODES])
def test_every_pair_of_modes_gives_lerobots_numbers(state_mode: str, action_mode: str, tmp_path: Path) -> None:
    """Two modes are carried as ranges, in both directions, also by what is written again."""
    folder = copy_of("pi05", tmp_path / "x")
    modes = {"VISUAL": "IDENTITY", "STATE": state_mode, "ACTION": action_mode}
    for file, step in (
        ("policy_preprocessor", "normalizer_processor"),
        ("policy_postprocessor", "unnormalizer_processor"),
    ):
        set_step(f"{file}.json", step, norm_map=modes)(folder)
    source = lerobot.read(folder, arch_of("pi05"))
    if state_mode == action_mode == "IDENTITY":
        assert source.facts.norm_stats is None
        return
    again = lerobot.read(written(tmp_path / "y", model_of(source), source.facts), arch_of("pi05"))
    stored = load_file(next(folder.glob("policy_preprocessor_*.safetensors")))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for stats in (source.facts.norm_stats, again.facts.norm_stats):
        assert stats is not None
        for key, mode, field, dim in (
            ("observation.state", state_mode, stats.state, 4), ("action", action_mode, stats.actions, 3),
        ):  # fmt: skip
            mean, std, q01, q99, low, high = (stored[f"{key}.{n}"] for n in ("mean", "std", "q01", "q99", "min", "max"))
            offset, scale = {
                "MEAN_STD": (mean, std), "QUANTILES": ((q01 + q99) / 2, (q99 - q01) / 2),
                "MIN_MAX": ((low + high) / 2, (high - low) / 2), "IDENTITY": (0 * mean, 0 * mean + 1),
            }[mode]  # fmt: skip
            normalise = Normalize(field, stats.mode, stats.epsilon, stats.convention)
            moves, own = (scale > 0).numpy(), x[:, :dim].numpy()  # one dimension's quantiles are equal
            expected = ((own - offset.numpy()) / np.where(moves, scale.numpy(), 1)).astype(np.float32)
            np.testing.assert_allclose(normalise(own)[:, moves], expected[:, moves], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(normalise.inverse(expected)[:, moves], own[:, moves], rtol=1e-4, atol=1e-4)
    told = any("kept as ranges" in note for note in source.notes)
    assert told == (state_mode != action_mode or state_mode == "MIN_MAX")


def add_step(file: str, name: str, position: int = -1, **config: Any) -> Callable[[Path], None]:
    step = {"registry_name": name, "config": config}
    return lambda folder: edit(folder / file, lambda values: values["steps"].insert(position, step))


def set_config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda config: config.update(values))


BEFORE, RELATIVE = "policy_preprocessor.json", "relative_actions_processor"
CHANGING: list[tuple[Callable[[Path], None], str]] = [
    (add_step(BEFORE, "my_step"), "policy_preprocessor.json has the step 'my_step', which is not known"),
    (add_step(BEFORE, "my_step", enabled=True), "has the step 'my_step', which is not known"),
    (add_step(BEFORE, "rename_observations_processor"), "has the step rename_observations_processor twice"),
    (set_step(BEFORE, RELATIVE, enabled=True, pose_representation="se3"), f"{RELATIVE} of .*pose_representation 'se3'"),
    (set_step(BEFORE, RELATIVE, enabled=True, frame="tool"), f"{RELATIVE} of .* has 'frame', which is not known"),
    (set_step(BEFORE, "normalizer_processor", clip=True), "normalizer_processor of .* has 'clip', which is not known"),
    (set_config(adapt_to_pi_aloha=True), "config.json has adapt_to_pi_aloha True"),
    (set_config(use_delta_joint_actions_aloha=True), "config.json has use_delta_joint_actions_aloha True"),
    (set_config(n_obs_steps=2), "config.json has n_obs_steps 2"),
    (
        set_config(use_relative_actions=True, relative_pose_representation="se3_6d"),
        "config.json has relative_pose_representation 'se3_6d'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), CHANGING, ids=[reason for _, reason in CHANGING])
def test_what_changes_actions_makes_the_robot_unknown(
    change: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    folder = copy_of("pi0", tmp_path / "x")
    change(folder)
    source = lerobot.read(folder, arch_of("pi0"))
    assert source.facts.embodiment is None
    assert len([note for note in source.notes if re.search(f"the embodiment is unknown: .*{reason}", note)]) == 1
    with pytest.raises(UserError, match="does not record embodiment"), warnings.catch_warnings(record=True):
        load_policy(folder, arch=arch_of("pi0"), tokenizer=PaligemmaTokenizer.bytes())


HARMLESS: list[tuple[Callable[[Path], None], str]] = [
    (set_config(num_inference_steps=5), "give num_steps=5"),
    (lambda folder: edit(folder / "config.json", lambda v: v.update(num_steps=v.pop("num_inference_steps") - 5)), "=5"),
    (set_config(act_steps=9, n_action_steps=5), r"not used: n_action_steps 5 \(here: execution_horizon\), act_steps 9"),
    (set_config(rtc_config={"enabled": True, "mode": "trained"}), "not used: rtc_config .here: RealTime"),
    (set_step(BEFORE, "tokenizer_processor", tokenizer_name="/my/words"), "not used: tokenizer_name '/my/words'"),
    (set_step(BEFORE, "tokenizer_processor", max_length=17), "tokenizer_max_length 16 .the processor's 17 counts"),
    (set_config(clip_state=False, ramp=0), "not used: clip_state False, ramp 0"),
    (set_step(BEFORE, "normalizer_processor", clip=False), "not used: clip False"),
    (set_config(use_peft=True), "use_peft, and there are no adapters"),
    (set_config(pi_zero=None, relative_pose_representation="se3", rtc_config={"enabled": False}, device="mps"), ""),
    (add_step(BEFORE, "my_step", enabled=False), ""),
    (set_step(BEFORE, RELATIVE, enabled=False, pose_representation="se3"), ""),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), HARMLESS, ids=[f"{i} {text}" for i, (_, text) in enumerate(HARMLESS)])
def test_what_is_not_used_is_told_and_the_robot_stays_known(
    change: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    folder = copy_of("pi0", tmp_path / "x")
    change(folder)
    source, plain = lerobot.read(folder, arch_of("pi0")), source_of("pi0")
    assert source.facts.embodiment == plain.facts.embodiment
    assert len(source.notes) == len(plain.notes) + bool(reason)
    assert re.search(reason, " ".join(source.notes))


def test_every_key_of_lerobots_own_files_is_known() -> None:
    for name in NAMES:
        assert [note for note in source_of(name).notes if "lm_head" not in note] == []


@pytest.mark.parametrize("name", NAMES)
def test_trained_delays_are_carried(name: str, tmp_path: Path) -> None:
    folder = copy_of(name, tmp_path / "x")
    set_config(rtc_training_max_delay=5)(folder)
    source = lerobot.read(folder, arch_of(name))
    assert source.config.max_delay == 5
    assert lerobot.read(folder, dataclasses.replace(source.config, max_delay=0)).config.max_delay == 5
    folder = written(tmp_path / "y", model_of(source), source.facts)
    assert json.loads((folder / "config.json").read_text())["rtc_training_max_delay"] == 5
    assert lerobot.read(folder, arch_of(name)).config == source.config
    set_config(rtc_training_max_delay=-1)(folder)
    with pytest.raises(UserError, match="rtc_training_max_delay is not what LeRobot writes there"):
        lerobot.read(folder, arch_of(name))
    set_config(rtc_training_max_delay=source.config.action_horizon)(folder)
    with pytest.raises(UserError, match=r"rtc_training_max_delay is \d+, which leaves nothing of a chunk of"):
        lerobot.read(folder, arch_of(name))


def test_the_processors_prompt_length_counts(tmp_path: Path) -> None:
    folder = copy_of("pi05", tmp_path / "x")
    set_step(BEFORE, "tokenizer_processor", max_length=90)(folder)
    assert lerobot.read(folder, arch_of("pi05")).config.prompt_length == 90


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: name.replace("paligemma.model.language_model", "paligemma.language_model.model"), "other names"),
        (lambda name: "normalize_inputs.buffer_state.mean" if "state_proj.bias" in name else name, "migrate"),
    ],
)  # fmt: skip
def test_an_older_pi0_is_one_sentence(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    folder = copy_of("pi0", tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    save_file({change(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"is π0 of an older LeRobot \(before 0.4\).*{message}"):
        load_model(folder, arch=arch_of("pi0"))


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_config_without_a_type_is_one_sentence(prefix: str, tmp_path: Path) -> None:
    folder = copy_of("pi0", tmp_path / "x")
    edit(folder / "config.json", lambda values: values.pop("type"))
    tensors = load_file(folder / "model.safetensors")
    save_file({prefix + name.removeprefix("model."): t for name, t in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r'has a config.json of LeRobot without "type".*add "type": "pi0" or "pi05"'):
        load_model(folder, arch=arch_of("pi0"))


def test_a_state_file_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = copy_of("pi0", tmp_path / "x")
    edit(folder / "policy_preprocessor.json", lambda v: v["steps"][-1].update(state_file="../other.safetensors"))
    with pytest.raises(UserError, match="not a file of this folder"):
        lerobot.read(folder, arch_of("pi0"))


def test_writing_without_facts_warns_and_reads_as_unknown(tmp_path: Path) -> None:
    source = source_of("pi0")
    with pytest.warns(UserWarning, match="the norm stats are unknown"):
        folder = written(tmp_path / "x", model_of(source), Facts())
    again = lerobot.read(folder, arch_of("pi0"))
    assert again.facts.norm_stats is None
    assert again.config == source.config


def test_standard_sizes_are_written_without_a_warning(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Pi0(Pi0Config.pi0())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = lerobot.written_config(model, Facts())
    assert (values["paligemma_variant"], values["action_expert_variant"]) == ("gemma_2b", "gemma_300m")
    tensors: dict[str, Tensor] = dict(WrittenTensors(model))
    assert tensors[HEAD].shape == (257_152, 2048)
