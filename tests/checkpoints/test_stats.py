"""Norm statistics from the files of three projects, and from checkpoints."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pizero.baseline.config import small_baseline
from pizero.checkpoints.facts import GivenFacts, make_pipeline, stats_of_file
from pizero.checkpoints.format import Facts
from pizero.checkpoints.load import save_model
from pizero.checkpoints.models import NetworkConfig
from pizero.checkpoints.native.checkpoint import save_checkpoint, write
from pizero.checkpoints.openpi import torch as openpi_torch
from pizero.checkpoints.openpi.folder import save_stats
from pizero.checkpoints.stats import read_norm_stats
from pizero.data.embodiments import Embodiment
from pizero.data.norm_stats import Mode, NormStats, compute_norm_stats
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.types import UserError

ARM = Embodiment("arm", {"base_0_rgb": "top"})
DELTA = replace(ARM, name="delta", relative_mask=(True, True, False))


def some_stats(mode: Mode = "zscore", seed: int = 0) -> NormStats:
    rng = np.random.default_rng(seed)
    return compute_norm_stats(rng.normal(size=(50, 4)), rng.normal(size=(50, 3)), mode)


def same(found: NormStats, expected: NormStats) -> bool:
    return (
        found.mode == expected.mode
        and found.state.to_json() == expected.state.to_json()
        and found.actions.to_json() == expected.actions.to_json()
    )


def without_extremes(stats: NormStats) -> NormStats:
    return replace(
        stats, state=replace(stats.state, min=None, max=None), actions=replace(stats.actions, min=None, max=None)
    )


def openpi_checkpoint(folder: Path, **robots: NormStats) -> Path:
    """A π0 with the statistics of these robots."""
    save_model(Pi0(small_config("nano")), folder, openpi_torch.NAME)
    for name, stats in robots.items():
        save_stats(stats, folder / "assets" / name / "norm_stats.json")
    return folder


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_a_file_of_ours_and_one_of_openpi(tmp_path: Path, mode: Mode) -> None:
    stats = some_stats(mode)
    stats.save(tmp_path / "ours.json")
    save_stats(stats, tmp_path / "assets" / "arm" / "norm_stats.json")
    for robot in (ARM, DELTA):
        assert same(read_norm_stats(tmp_path / "ours.json", mode, robot), stats)
        assert same(read_norm_stats(tmp_path / "assets" / "arm", mode, robot), without_extremes(stats))
    with pytest.raises(UserError, match=f"made for mode '{mode}'"):
        read_norm_stats(tmp_path / "ours.json", "zscore" if mode == "quantile" else "quantile", ARM)


def test_a_native_checkpoint(tmp_path: Path) -> None:
    stats = some_stats("quantile")
    write(tmp_path, Pi0(small_config("nano")), Facts(norm_stats=stats, embodiment=DELTA))
    assert same(read_norm_stats(tmp_path, "quantile", DELTA), stats)
    assert same(read_norm_stats(tmp_path, "zscore", DELTA), replace(stats, mode="zscore"))
    assert same(read_norm_stats(tmp_path, "quantile", replace(DELTA, relative_mask=(True, True))), stats)
    with pytest.raises(UserError, match="relative in other dimensions than those of the arm"):
        read_norm_stats(tmp_path, "quantile", ARM)


def test_an_openpi_checkpoint_of_one_robot_and_of_several(tmp_path: Path) -> None:
    one, two = some_stats(), some_stats(seed=1)
    folder = openpi_checkpoint(tmp_path / "c", trossen=one)
    assert same(read_norm_stats(folder, "zscore", DELTA), without_extremes(one))
    assert same(read_norm_stats(folder, "quantile", DELTA), without_extremes(replace(one, mode="quantile")))
    save_stats(two, folder / "assets" / "lab" / "droid" / "norm_stats.json")
    with pytest.raises(UserError, match=r"several robots \(lab/droid, trossen\); none is taken: choose a file among"):
        read_norm_stats(folder, "zscore", ARM)
    assert same(read_norm_stats(folder / "assets" / "lab" / "droid", "zscore", ARM), without_extremes(two))


def test_a_robot_of_a_checkpoint_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloaded with its checkpoint, so that no part of one stands in the cache in its place."""
    monkeypatch.setenv("PIZERO_CACHE", str(tmp_path / "cache"))
    folder, system = (
        openpi_checkpoint(tmp_path / "c", a=some_stats(), b=some_stats(seed=1)),
        fsspec.filesystem("memory"),
    )
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/stats-bucket/c/{path.relative_to(folder)}", path.read_bytes())
    found = read_norm_stats("memory://stats-bucket/c/assets/b", "zscore", ARM)
    assert same(found, without_extremes(some_stats(seed=1)))
    assert (tmp_path / "cache" / "memory" / "stats-bucket" / "c" / "model.safetensors").is_file()


def test_places_without_statistics_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: there is nothing at this path, neither"):
        read_norm_stats(tmp_path / "none", "zscore", ARM)
    with pytest.raises(UserError, match="nothing at this path"):
        read_norm_stats(tmp_path / "c" / "assets" / "arm", "zscore", ARM)
    save_checkpoint(tmp_path / "c", Pi0(small_config("nano")))
    with pytest.raises(UserError, match="has no norm statistics; leave them out"):
        read_norm_stats(tmp_path / "c", "zscore", ARM)
    with pytest.raises(UserError, match=r"a checkpoint lies in it; give the newest, .*/c"):
        read_norm_stats(tmp_path, "zscore", ARM)
    dataset = Path(__file__).parents[1] / "golden" / "lerobot" / "datasets" / "v30_png"
    with pytest.raises(UserError, match=r"is a dataset; give its meta/stats\.json"):
        read_norm_stats(dataset, "zscore", ARM)


# ---------------------------------------------------------------- LeRobot's stats.json


def test_the_statistics_of_a_lerobot_dataset(tmp_path: Path) -> None:
    file = Path(__file__).parents[1] / "golden" / "lerobot" / "datasets" / "v30_png" / "meta" / "stats.json"
    stored = json.loads(file.read_text())
    for mode in ("zscore", "quantile"):
        stats = read_norm_stats(file, mode, ARM)
        assert stats.mode == mode
        for field, key in ((stats.state, "observation.state"), (stats.actions, "action")):
            assert field.to_json() == {name: stored[key][name] for name in field.to_json()}
            assert len(field.to_json()) == 6
    with pytest.raises(UserError, match="does not record that its actions are relative"):
        read_norm_stats(file, "zscore", DELTA)
    (tmp_path / "s.json").write_text(json.dumps({"state": stored["action"], "actions": stored["action"]}))
    with pytest.raises(UserError, match=r"nor LeRobot's observation.state and action"):
        read_norm_stats(tmp_path / "s.json", "zscore", ARM)
    other = replace(ARM, state_key="state", action_key="actions")
    assert read_norm_stats(tmp_path / "s.json", "zscore", other).state.to_json() == stats.actions.to_json()


def test_an_older_lerobot_file_has_no_quantiles(tmp_path: Path) -> None:
    field = {"mean": [0.0], "std": [1.0], "min": [-1.0], "max": [1.0]}
    (tmp_path / "stats.json").write_text(json.dumps({"observation.state": field, "action": field}))
    assert read_norm_stats(tmp_path / "stats.json", "zscore", ARM).actions.to_json() == field
    with pytest.raises(UserError, match="needs q01 and q99"):
        read_norm_stats(tmp_path / "stats.json", "quantile", ARM)


# ---------------------------------------------------------------- the robot's dimensions


def test_statistics_are_cut_to_the_robot_where_the_rest_is_padding() -> None:
    values = np.random.default_rng(0).normal(size=(30, 8))
    values[:, 5:] = 0
    stats = compute_norm_stats(values, values[:, :7], "quantile")
    fitted = stats.fitted(5, 5)
    assert (fitted.state.dim, fitted.actions.dim, fitted.mode) == (5, 5, "quantile")
    assert fitted.state.to_json() == compute_norm_stats(values[:, :5], values, "quantile").state.to_json()
    for dims, text in (
        ((9, 7), "have 8 state dimensions, the robot 9"),
        ((8, 4), "have 7 action dimensions, the robot 4"),
    ):
        with pytest.raises(UserError, match=text):
            stats.fitted(*dims)
    assert same(some_stats().fitted(4, 3), some_stats())


def test_a_policy_with_the_statistics_of_a_robot_with_more_dimensions() -> None:
    """Whose first ones are not this robot's."""
    config = small_config("nano", vocab_size=259)
    values = np.random.default_rng(0).normal(size=(30, 5))
    robot = Embodiment("arm", {"base_0_rgb": "top"}, state_dim=3, action_dim=3)
    stats = compute_norm_stats(values, values[:, :4], "zscore")
    facts = Facts(robot, stats, PaligemmaTokenizer.bytes())
    with pytest.warns(UserWarning, match="have 5 state dimensions, the robot 3: they are another robot's") as told:
        make_pipeline(config, facts)
    assert len(told) == 1
    values[:, 3:] = 0
    padded = compute_norm_stats(values, values[:, :4], "zscore")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_pipeline(config, replace(facts, norm_stats=padded))


def test_nothing_at_a_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stats.json: there is nothing at this path; give the file norm_stats.json"):
        stats_of_file(tmp_path / "stats.json", "zscore", ARM)


# ---------------------------------------------------------------- a file that does not say its mode


def mode_given(where: Path, config: NetworkConfig, facts: Facts | None = None) -> Mode:
    """Of statistics that a user gives for a checkpoint."""
    found = GivenFacts(norm_stats=where).over(facts or Facts(), config).norm_stats
    assert found is not None
    return found.mode


@pytest.mark.parametrize("stored", ["zscore", "quantile"])
def test_openpi_s_file_is_used_as_the_checkpoint_s_own_statistics_are(stored: Mode, tmp_path: Path) -> None:
    """By the name of the mode and not by the kind of model: a π0 may be trained with quantiles, and so the baseline."""
    save_stats(some_stats(seed=1), tmp_path / "norm_stats.json")
    own = replace(some_stats(), mode=stored)
    for config in (small_config("nano"), small_baseline("nano")):
        assert mode_given(tmp_path, config, Facts(norm_stats=own)) == stored
    assert mode_given(tmp_path, small_config("nano")) == "zscore"


def test_a_mode_that_nothing_tells_can_be_written_into_the_file(tmp_path: Path) -> None:
    file = tmp_path / "norm_stats.json"
    save_stats(some_stats(), file)
    with pytest.raises(UserError, match='does not say its mode; add "mode": "zscore" or "mode": "quantile" to it'):
        mode_given(file, small_baseline("nano"))
    file.write_text(json.dumps({"mode": "quantile", **json.loads(file.read_text())}))
    assert mode_given(file, small_baseline("nano")) == "quantile"
