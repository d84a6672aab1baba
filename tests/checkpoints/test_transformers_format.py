"""Transformers' PI0ForConditionalGeneration: its own recorded outputs, its names at full size, both directions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pizero.checkpoints.convert import convert
from pizero.checkpoints.format import Facts
from pizero.checkpoints.load import load_model, read_checkpoint
from pizero.checkpoints.models import empty_model
from pizero.checkpoints.transformers import pi0 as transformers_pi0
from pizero.model.config import Pi0Config, small_config
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import Observation, UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "transformers"


def golden() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "pi0" / "golden.npz").items()}


def observation(arrays: dict[str, torch.Tensor], cameras: tuple[str, ...]) -> Observation:
    images = arrays["in.images"].permute(0, 1, 3, 4, 2).float() / 255 * 2 - 1
    there = cameras[: images.shape[1]]
    return Observation(
        images={name: images[:, index] for index, name in enumerate(there)},
        image_masks={name: torch.full((len(images),), name in there) for name in cameras},
        state=arrays["in.state"], prompt_tokens=arrays["in.prompt"], prompt_mask=arrays["in.prompt_mask"].bool(),
    )  # fmt: skip


def test_actions_are_those_of_transformers() -> None:
    """float32; most of the difference is the flow-time embedding, float32 there and float64 here."""
    source = read_checkpoint(GOLDEN / "pi0")
    assert source.format == "transformers"
    model, arrays = source.build(), golden()
    sampled = model.sample_actions(observation(arrays, model.config.cameras), num_steps=10, noise=arrays["in.noise"])
    torch.testing.assert_close(sampled, arrays["out.sampled"], atol=2e-4, rtol=0)


def edit_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


def restyled(folder: Path, style: str) -> Path:
    """The same weights under the released files' names, or the modules'."""
    shutil.copytree(GOLDEN / "pi0", folder)
    tensors = load_file(folder / "model.safetensors")
    vlm, expert, language = "paligemma_with_expert.paligemma.", "paligemma_with_expert.gemma_expert.", "language_model."
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if style == "released":
            name = name.replace(language + "model.", language)
            if name == vlm + "model.language_model.embed_tokens.weight":
                name = vlm + "lm_head.weight"
            name = name.replace(expert + "model.embed_tokens.", expert + "lm_head.")
        elif name.startswith("paligemma"):
            name = name.replace(language + "model.", language).replace(vlm + "model.", "model.vlm.")
            name = name.replace(expert + "model.", "model.dit.")
        elif not name.startswith("action_out"):
            name = "embed_action_time." + name
        found[name] = tensor
    save_file(found, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("style", ["released", "modules"])
def test_other_names_for_the_same_weights(style: str, tmp_path: Path) -> None:
    expected = load_model(GOLDEN / "pi0").state_dict()
    found = load_model(restyled(tmp_path / "x", style)).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_names_and_shapes_at_full_size() -> None:
    stored = json.loads((GOLDEN / "manifests.json").read_text())["pi0"]
    config = Pi0Config.pi0()
    ours = {name: tuple(value.shape) for name, value in empty_model(config).state_dict().items()}
    rows = transformers_pi0.renamed(
        transformers_pi0.key_table(config, transformers_pi0._EMBEDDED), transformers_pi0._STYLES["modules"]
    )
    assert {row.theirs for row in rows} == set(stored) - {"model.dit.embed_tokens.weight"}
    for row in rows:
        if row.to_ours is None:
            assert tuple(stored[row.theirs]) == ours[row.ours], row.theirs


def test_what_is_written_is_read_again_and_has_their_names(tmp_path: Path) -> None:
    """Transformers itself opens it: `make test-transformers-peer`."""
    model = read_checkpoint(GOLDEN / "pi0").build()
    transformers_pi0.write(tmp_path, model, Facts())
    theirs, ours = load_file(GOLDEN / "pi0" / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    unused = "paligemma_with_expert.gemma_expert.model.embed_tokens.weight"
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items() if name != unused)
    assert read_checkpoint(tmp_path).config == model.config


def test_converted_there_and_back(tmp_path: Path) -> None:
    assert convert(GOLDEN / "pi0", tmp_path / "native", "native").unknown == ("embodiment", "norm_stats", "tokenizer")
    assert convert(tmp_path / "native", tmp_path / "back", "transformers").difference < 1e-5
    first, second = load_model(GOLDEN / "pi0").state_dict(), load_model(tmp_path / "back").state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_refusals(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match="holds a π0 with state token"):
        transformers_pi0.write(tmp_path, Pi0(small_config("nano", pi05=True)), Facts())
    assert not list(tmp_path.iterdir())
    folder = tmp_path / "x"
    shutil.copytree(GOLDEN / "pi0", folder)
    edit_config(folder, max_period=5.0)
    with pytest.raises(UserError, match=r"max_period is 5\.0; only 4\.0"):
        read_checkpoint(folder)
    edit_config(folder, max_period=4.0, max_action_dim=9)
    with pytest.raises(UserError, match="of another shape"):
        load_model(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["state_proj.bias"]
    save_file(tensors, folder / "model.safetensors")
    edit_config(folder, max_action_dim=8)
    with pytest.raises(UserError, match=r"1 missing \(state_proj.bias\)"):
        load_model(folder)
    with pytest.raises(UserError, match="differ from arch"):
        read_checkpoint(GOLDEN / "pi0", Pi0Config.pi0())
    with pytest.raises(UserError, match="the arch given is of a π0-FAST"):
        read_checkpoint(GOLDEN / "pi0", Pi0FastConfig())
