"""`load_model` and `save_model`: formats are told by content, everything else is one clear line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pizero.baseline.config import small_baseline
from pizero.baseline.policy import DiffusionPolicy
from pizero.checkpoints.convert import convert
from pizero.checkpoints.facts import GivenFacts
from pizero.checkpoints.load import load_model, load_network, load_policy, read_checkpoint, save_model
from pizero.checkpoints.openpi.torch import config_from_arch
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "openpi" / "pi0_d32"


def test_native(tmp_path: Path) -> None:
    model = Pi0(small_config("nano"))
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m", dtype="bfloat16")
    assert torch.equal(loaded.token_embedding.weight, model.token_embedding.weight.bfloat16())
    assert torch.equal(loaded.action_in_proj.weight, model.action_in_proj.weight)
    assert torch.equal(load_model(str(tmp_path / "m")).token_embedding.weight, model.token_embedding.weight)
    with pytest.raises(UserError, match="differ from arch"):
        load_model(tmp_path / "m", arch=dataclasses.replace(model.config, action_horizon=3))


def test_the_diffusion_policy_is_a_network_and_no_pi0(tmp_path: Path) -> None:
    model = DiffusionPolicy(small_baseline("nano"))
    save_model(model, tmp_path / "m")
    loaded = load_network(tmp_path / "m")
    assert isinstance(loaded, DiffusionPolicy)
    assert torch.equal(loaded.unet.output.weight, model.unet.output.weight)
    with pytest.raises(UserError, match="holds a DiffusionPolicy, not a π0; load_policy runs it"):
        load_model(tmp_path / "m")


def test_openpi_torch_with_arch_in_three_ways_and_back_as_native(tmp_path: Path) -> None:
    path = GOLDEN / "tiny_config.json"
    values = json.loads(path.read_text())
    models = [load_model(GOLDEN / "torch", arch=arch) for arch in (path, values, config_from_arch(values))]
    save_model(models[0], tmp_path / "native")
    models.append(load_model(tmp_path / "native"))
    for model in models[1:]:
        assert model.config == models[0].config
        for ours, theirs in zip(models[0].state_dict().values(), model.state_dict().values(), strict=True):
            assert np.array_equal(ours.numpy(), theirs.numpy())


def test_one_line_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights.txt").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"short")
    for name, text in (
        ("none", "nothing at this path"),
        ("empty", "folder is empty"),
        ("file", "it is a file; give the folder"),
        ("other", "found weights.txt"),
        ("broken", "copy the checkpoint again"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            load_model(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_what_is_not_supported_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown checkpoint format 'onnx'"):
        save_model(Pi0(small_config("nano")), tmp_path / "m", format="onnx")
    with pytest.raises(UserError, match="unknown dtype"):
        load_model(tmp_path, dtype="int3")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_model(GOLDEN / "torch", arch=tmp_path / "missing.json")


OPENPI = GOLDEN.parent
FIELD = {"mean": [0.0] * 8, "std": [1.0] * 8, "q01": [-1.0] * 8, "q99": [2.0] * 8}


@pytest.mark.parametrize("name", ["pi0_d32", "pi05_d32"])
@pytest.mark.parametrize("where", ["norm_stats.json", ""])
def test_openpis_norm_stats_by_path(name: str, where: str, tmp_path: Path) -> None:
    """The file or its folder; the model tells the mode, unless the file does."""
    stats = {"norm_stats": {"state": FIELD, "actions": {key: values[:7] for key, values in FIELD.items()}}}
    (tmp_path / "norm_stats.json").write_text(json.dumps(stats))
    arch, expected = OPENPI / name / "tiny_config.json", "zscore" if name == "pi0_d32" else "quantile"
    options: dict[str, Any] = {"arch": arch, "embodiment": "libero", "tokenizer": PaligemmaTokenizer.bytes()}
    policy = load_policy(OPENPI / name / "torch", norm_stats=tmp_path / where, **options)
    assert (policy.pipeline.norm_stats.mode, policy.pipeline.norm_stats.convention) == (expected, "openpi")
    given = GivenFacts("libero", str(tmp_path / where))
    result = convert(OPENPI / name / "torch", tmp_path / "native", "native", arch=arch, given=given)
    assert result.unknown == ("tokenizer",)
    facts = read_checkpoint(tmp_path / "native").facts
    assert facts.norm_stats is not None
    assert facts.norm_stats.mode == expected
    (tmp_path / "norm_stats.json").write_text(json.dumps({**stats, "mode": "quantile"}))
    policy = load_policy(OPENPI / name / "torch", norm_stats=tmp_path / where, **options)
    assert policy.pipeline.norm_stats.mode == "quantile"


def test_norm_stats_that_are_not_there_or_of_other_columns(tmp_path: Path) -> None:
    options: dict[str, Any] = {"arch": OPENPI / "pi0_d32" / "tiny_config.json", "tokenizer": PaligemmaTokenizer.bytes()}
    stats = tmp_path / "assets" / "a" / "b"
    stats.mkdir(parents=True)
    (stats / "norm_stats.json").write_text("{}")
    (tmp_path / "stats.json").write_text(json.dumps({"observation.state": FIELD, "action": FIELD}))
    for where, embodiment, message in (
        (tmp_path, "libero", f"no norm statistics here; norm_stats.json lies in {stats}"),
        (tmp_path / "none", "libero", "there is nothing at this path; give the file norm_stats.json, or the folder"),
        (tmp_path / "stats.json", None, "the robot that has them is not known; name it too"),
        (tmp_path / "stats.json", "droid", "the droid embodiment joins them, converts them or"),
        (stats, "libero", "neither norm_stats/state"),
    ):
        with pytest.raises(UserError, match=message):
            load_policy(OPENPI / "pi0_d32" / "torch", norm_stats=where, embodiment=embodiment, **options)
