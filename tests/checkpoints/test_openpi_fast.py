"""openpi's JAX checkpoint of π0-FAST: names and shapes, both directions to the bit, and nothing misfitting is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pizero.checkpoints.convert import convert
from pizero.checkpoints.facts import GivenFacts
from pizero.checkpoints.files.orbax import ArrayToWrite, OrbaxArrays, write_arrays
from pizero.checkpoints.load import load_model, load_network, load_policy, read_checkpoint, save_model
from pizero.checkpoints.models import empty_model
from pizero.checkpoints.openpi.jax import fast_table
from pizero.data.embodiments import Embodiment
from pizero.data.fast.codec import FastCodec
from pizero.model.config import Pi0Config, small_config
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
SET = GOLDEN / "pi0_fast" / "pi0fast_d7h10"
ARCH = json.loads((SET / "tiny_config.json").read_text())


def test_full_size_names_and_shapes() -> None:
    """Those of the released π0's vision tower and first expert, and every tensor of ours once."""
    manifest = json.loads((GOLDEN / "openpi" / "manifests" / "pi0_jax_params.json").read_text())
    shared = {
        name: value["shape"]
        for name, value in manifest.items()
        if name.startswith("PaliGemma/") and not ("/llm/" in name and "_1/" in name)
    }
    rows = fast_table(Pi0FastConfig())
    assert {row.theirs: list(row.stored_shape) for row in rows} == shared
    ours = empty_model(Pi0FastConfig()).state_dict()
    found = [name.format(layer) for row in rows for layer in range(row.depth or 1) for name in row.ours]
    assert sorted(found) == sorted(ours)
    for row in rows:
        parts = row.to_ours(torch.empty(row.layer_shape, device="meta"))
        assert [part.shape for part in parts] == [ours[name.format(0)].shape for name in row.ours]


def test_a_recorded_checkpoint_and_a_round_trip(tmp_path: Path) -> None:
    """Theirs, ours, theirs: the same arrays; read again without arch."""
    model = load_network(SET / "jax", arch=ARCH)
    assert isinstance(model, Pi0Fast)
    with np.load(SET / "params.npz") as params:
        stored = {name.removesuffix("/value"): torch.from_numpy(params[name]) for name in params.files}
    assert torch.equal(model.token_embedding.weight, stored["PaliGemma/llm/embedder/input_embedding"])
    save_model(model, tmp_path / "out", "openpi-jax")
    again = OrbaxArrays(tmp_path / "out" / "params")
    assert set(again) == set(stored)
    assert all(torch.equal(again.read(name), array) for name, array in stored.items())
    back = load_network(tmp_path / "out")
    assert back.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True))
    assert read_checkpoint(SET / "jax", ARCH).facts.norm_stats is not None


def test_native_to_openpi_and_back_with_the_codec(tmp_path: Path) -> None:
    """Proved by logits on the way; what openpi's files have no place for is named."""
    model = load_network(SET / "jax", arch=ARCH)
    save_model(model, tmp_path / "native")
    codec = GOLDEN / "fast_codec" / "t10_d7_v256" / "tokenizer"
    done = convert(tmp_path / "native", tmp_path / "jax", "openpi-jax", given=GivenFacts(codec=codec))
    assert done.difference == 0.0
    assert done.unknown == ("embodiment", "norm_stats", "tokenizer")
    assert done.known == ("codec",)
    assert any("openpi takes the action codec of physical-intelligence/fast" in note for note in done.notes)
    back = convert(tmp_path / "jax", tmp_path / "back", "native")
    assert back.difference == 0.0
    again = load_network(tmp_path / "back")
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert FastCodec.load(tmp_path / "back" / "fast_codec").size == FastCodec.load(codec).size
    for target in ("openpi-torch", "transformers"):
        with pytest.raises(UserError, match=r"no π0-FAST|not a|has no|cannot|π0") as error:
            convert(tmp_path / "native", tmp_path / "no", target)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "no").exists()


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a Pi0Fast, not a π0; load_policy runs it"):
        load_model(SET / "jax", arch=ARCH)
    with pytest.raises(UserError, match="are of a π0-FAST, without an action expert, and the arch is of a π0"):
        load_network(SET / "jax", arch=Pi0Config())
    pi0 = small_config("nano")
    save_model(Pi0(pi0), tmp_path / "pi0", "openpi-jax")
    with pytest.raises(UserError, match="the arch given is of a π0-FAST, the weights are not"):
        load_network(tmp_path / "pi0", arch=Pi0FastConfig())
    save_model(load_network(SET / "jax", arch=ARCH), tmp_path / "fast")
    with pytest.raises(UserError, match=r"does not record embodiment nor norm_stats nor tokenizer nor codec.*--codec"):
        load_policy(tmp_path / "fast")
    with pytest.raises(UserError, match="int8 kernels are for π0 and π0"):
        load_policy(
            tmp_path / "fast", kernels="int8", codec=GOLDEN / "fast_codec" / "t10_d7_v256" / "tokenizer",
            norm_stats=SET / "jax" / "assets" / "tiny",
            embodiment=Embodiment("arm", {ARCH["cameras"][0]: "front"}),
            tokenizer=GOLDEN / "fast_prompts" / "loc256" / "tokenizer.model",
        )  # fmt: skip


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    arrays = OrbaxArrays(SET / "jax" / "params")
    kept = {name: arrays.read(name) for name in arrays}

    def written(folder: Path, values: dict[str, torch.Tensor]) -> Path:
        rows = [ArrayToWrite(n, tuple(a.shape), a.dtype, lambda a=a: [a], split=False) for n, a in values.items()]
        folder.mkdir()
        write_arrays(folder / "params", rows)
        return folder

    norm = "PaliGemma/llm/final_norm/scale"
    with pytest.raises(UserError, match=rf"1 missing \({norm}\)"):
        load_network(written(tmp_path / "less", {n: a for n, a in kept.items() if n != norm}), arch=ARCH)
    with pytest.raises(UserError, match=r"1 left over \(PaliGemma/llm/extra\)"):
        load_network(written(tmp_path / "more", {**kept, "PaliGemma/llm/extra": torch.zeros(2)}), arch=ARCH)
    with pytest.raises(UserError, match=r"has other sizes than .*; give them with arch"):
        load_network(SET / "jax")
    arch = dataclasses.replace(read_checkpoint(SET / "jax", ARCH).config, vocab_size=900)
    with pytest.raises(UserError, match="of another shape"):
        load_network(SET / "jax", arch=arch)
