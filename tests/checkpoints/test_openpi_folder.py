"""What both of openpi's formats carry beside the weights: config.json and the norm stats of one robot."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pizero.checkpoints.format import Facts, Format
from pizero.checkpoints.openpi import jax as openpi_jax
from pizero.checkpoints.openpi import torch as openpi_torch
from pizero.checkpoints.openpi.folder import read_facts, writable_config, write_assets, write_config
from pizero.data.embodiments import Embodiment
from pizero.data.norm_stats import FieldStats, Mode, NormStats
from pizero.data.transforms import Normalize
from pizero.model.config import GEMMA_2B, GEMMA_300M, Pi0Config, small_config
from pizero.model.pi0 import Pi0
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "openpi"
STATS = GOLDEN / "pi0_d32" / "jax" / "assets" / "tiny" / "norm_stats.json"
PI0, PI05 = Pi0Config.pi0(), Pi0Config.pi05()
FORMATS: list[Format] = [openpi_jax, openpi_torch]


def stats_of(mode: Mode, epsilon: float = 1e-6) -> NormStats:
    def field(dim: int) -> FieldStats:
        values = np.random.default_rng(dim).normal(size=(6, dim))
        return FieldStats(values[0], abs(values[1]), values[2], values[2] + abs(values[3]), values[4], values[5])

    return NormStats(mode, field(4), field(3), epsilon)


def with_assets(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / "assets" / name).mkdir(parents=True)
        shutil.copy(STATS, folder / "assets" / name)
    return folder


# ---------------------------------------------------------------- norm stats


@pytest.mark.parametrize(("config", "mode"), [(PI0, "zscore"), (PI05, "quantile")])
@pytest.mark.parametrize("name", ["tiny", "physical-intelligence/libero"])
def test_the_mode_is_the_models(tmp_path: Path, config: Pi0Config, mode: Mode, name: str) -> None:
    """openpi's file does not record it; an id may be a path."""
    facts, notes = read_facts(with_assets(tmp_path, name), config)
    assert facts.norm_stats is not None
    assert (facts.norm_stats.mode, facts.norm_stats.epsilon, notes) == (mode, 1e-6, ())
    recorded = json.loads(STATS.read_text())["norm_stats"]
    assert facts.norm_stats.state.to_json() == recorded["state"]
    assert facts.norm_stats.actions.to_json() == recorded["actions"]
    assert (facts.embodiment, facts.tokenizer) == (None, None)


def test_of_several_robots_none_is_taken(tmp_path: Path) -> None:
    assert read_facts(tmp_path, PI0) == (Facts(), ())
    facts, notes = read_facts(with_assets(tmp_path, "ur5e", "lab/trossen"), PI0)
    assert facts == Facts()
    assert "several robots (lab/trossen, ur5e); none is taken" in notes[0]


def test_statistics_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """The weights are of use without them: π0.5 with files from before openpi had quantiles, and a broken file."""
    path = with_assets(tmp_path, "a") / "assets" / "a" / "norm_stats.json"
    values = json.loads(path.read_text())
    for field in values["norm_stats"].values():
        field.update(q01=None, q99=None)
    path.write_text(json.dumps(values))
    assert read_facts(tmp_path, PI0)[0].norm_stats is not None
    facts, notes = read_facts(tmp_path, PI05)
    assert facts == Facts()
    assert "needs q01 and q99" in notes[0]
    path.write_text("{")
    assert "cannot be read as JSON" in read_facts(tmp_path, PI0)[1][0]


@pytest.mark.parametrize(("config", "mode"), [(PI0, "zscore"), (PI05, "quantile")])
def test_written_statistics_normalise_as_before(tmp_path: Path, config: Pi0Config, mode: Mode) -> None:
    """Whatever the epsilon, and with openpi's four keys alone."""
    robot = Embodiment("arm", {"base_0_rgb": "top"})
    x = np.random.default_rng(0).normal(size=(5, 4))
    for epsilon in (1e-6, 1e-2):
        stats = stats_of(mode, epsilon)
        write_assets(tmp_path, config, Facts(norm_stats=stats, embodiment=robot))
        again = read_facts(tmp_path, config)[0].norm_stats
        assert again is not None
        assert again.epsilon == 1e-6
        expected = Normalize(stats.state, mode, epsilon)(x)
        assert np.allclose(Normalize(again.state, mode, 1e-6)(x), expected, rtol=1e-12, atol=1e-12)
        assert np.allclose(Normalize(again.state, mode, 1e-6).inverse(expected), x, rtol=1e-9, atol=1e-9)
    written = json.loads((tmp_path / "assets" / "arm" / "norm_stats.json").read_text())
    assert list(written) == ["norm_stats"]
    assert {key for field in written["norm_stats"].values() for key in field} == {"mean", "std", "q01", "q99"}


def test_a_mode_that_openpi_would_not_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="for mode 'quantile', but openpi would use 'zscore'"):
        write_assets(tmp_path, PI0, Facts(norm_stats=stats_of("quantile")))
    write_assets(tmp_path, PI0, Facts())
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- sizes and switches


@pytest.mark.parametrize("format", FORMATS)
def test_a_written_checkpoint_tells_its_sizes_and_switches(tmp_path: Path, format: Format) -> None:
    """Those that openpi's own files lack: no state in the prompt, horizon, cameras, patches."""
    config = small_config("tiny", pi05=True, state_input="none", action_horizon=7)
    format.write(tmp_path, Pi0(config), Facts(norm_stats=stats_of("quantile")))
    assert format.detect(tmp_path)
    source = format.read(tmp_path, None)
    assert (source.config, source.notes) == (config, ())
    assert source.facts.norm_stats is not None
    given = dataclasses.replace(config, action_horizon=9)
    assert format.read(tmp_path, given).config == given


def test_config_json_names_openpis_variants(tmp_path: Path) -> None:
    write_config(tmp_path, PI0, torch.bfloat16)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.pop("pizero") == PI0.to_json() | {"cameras": list(PI0.cameras)}
    assert values == {
        "action_dim": 32, "action_horizon": 50, "paligemma_variant": "gemma_2b", "action_expert_variant": "gemma_300m",
        "precision": "bfloat16",
    }  # fmt: skip
    assert (PI0.prefix, PI0.expert) == (GEMMA_2B, GEMMA_300M)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_config_json(tmp_path: Path, content: str) -> None:
    shutil.copy(GOLDEN / "pi0_d32" / "torch" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json .*; copy it again"):
        openpi_torch.read(tmp_path, None)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"action_attention": "causal"}, "no causal attention"),
        ({"state_input": "none"}, "state_input 'none' and time_conditioning 'concat_mlp'"),
        ({"time_conditioning": "adarms"}, "state_input 'token' and time_conditioning 'adarms'"),
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_what_openpi_lacks_is_refused(tmp_path: Path, changes: dict[str, str], text: str, format: Format) -> None:
    config = small_config("nano", **changes)
    with pytest.raises(UserError, match=text):
        format.write(tmp_path, Pi0(config), Facts())
    assert not list(tmp_path.iterdir())
    assert writable_config(Pi0(small_config("nano"))) == small_config("nano")
    writable_config(Pi0(small_config("nano", pi05=True, state_input="none")))
