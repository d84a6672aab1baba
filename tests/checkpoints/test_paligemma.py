"""PaliGemma as a start: its own recorded outputs, three styles of files, strictness."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pizero.checkpoints.models import empty_model
from pizero.checkpoints.openpi.jax import table
from pizero.checkpoints.openpi.torch import key_table
from pizero.checkpoints.transformers.paligemma import detect, key_names, start_from_paligemma
from pizero.model.config import GemmaConfig, Pi0Config, SiglipConfig, small_config
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.types import Observation, UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "transformers"
CAMERA = "base_0_rgb"
CONFIG = Pi0Config(
    vision=SiglipConfig(48, 2, 80, 4, 14), prefix=GemmaConfig(64, 3, 96, 4, 1, 16),
    expert=GemmaConfig(32, 3, 64, 4, 1, 16), vocab_size=320, cameras=(CAMERA,), image_size=28, prompt_length=7,
    state_dim=8, action_dim=8, action_horizon=6,
)  # fmt: skip


def fresh() -> Pi0:
    torch.manual_seed(3)
    return Pi0(CONFIG).eval()


@pytest.fixture(scope="module")
def started() -> Pi0:
    model = fresh()
    notes = start_from_paligemma(GOLDEN / "paligemma", model)
    assert any("64 rows more" in note for note in notes)
    assert any("action expert" in note and "fresh" in note for note in notes)
    return model


def test_the_prefix_computes_what_paligemma_does(started: Pi0) -> None:
    arrays = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "paligemma" / "golden.npz").items()}
    images = arrays["in.images"][:, 0].permute(0, 2, 3, 1).float() / 255 * 2 - 1
    mask = arrays["in.prompt_mask"].bool()
    observation = Observation(
        {CAMERA: images}, {CAMERA: torch.ones(2, dtype=torch.bool)}, torch.zeros(2, 8), arrays["in.prompt"], mask
    )
    with torch.no_grad():
        tokens, real = started.embed_prefix(observation)
        torch.testing.assert_close(tokens[:, :4], arrays["out.image_features"], atol=2e-5, rtol=0)
        hidden, _ = started.transformer.prefill(tokens, real)
    torch.testing.assert_close(hidden[real], arrays["out.hidden"][real], atol=2e-4, rtol=0)


def test_the_expert_stays_fresh(started: Pi0) -> None:
    before, after = fresh().state_dict(), started.state_dict()
    prefix = set(key_names(CONFIG).values())
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (name not in prefix), name


def other_names(folder: Path, style: str) -> Path:
    """The modules' names, or the released ones with the tied head; in one file."""
    shutil.copytree(GOLDEN / "paligemma", folder)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    if style == "modules":
        found = {name.replace("language_model.model.", "language_model."): v for name, v in tensors.items()}
    else:
        found = {name.removeprefix("model."): value for name, value in tensors.items()}
        found["language_model.lm_head.weight"] = found["language_model.model.embed_tokens.weight"].clone()
    save_file(found, folder / "model.safetensors")
    return folder


def as_npz(path: Path, model: Pi0, dtype: type | None = None) -> Path:
    """big_vision's file, written from a model of ours by the table of openpi's JAX checkpoints."""
    weights, prefix = model.state_dict(), set(key_names(CONFIG).values())
    arrays: dict[str, np.ndarray] = {}
    for row in table(CONFIG):
        if row.ours[0].format(0) in prefix:
            layers = [row.to_theirs([weights[name.format(i)] for name in row.ours]) for i in range(row.depth or 1)]
            stacked = torch.stack(layers) if row.depth else layers[0]
            values = stacked.numpy() if dtype is None else stacked.bfloat16().view(torch.int16).numpy().view("V2")
            arrays[row.theirs.replace("PaliGemma/", "params/", 1)] = values
    np.savez(path, **arrays)
    return path


def test_other_names_and_the_array_file_give_the_same(started: Pi0, tmp_path: Path) -> None:
    expected = started.state_dict()
    folders = [other_names(tmp_path / style, style) for style in ("modules", "released")]
    for path in (*folders, as_npz(tmp_path / "pt_224.npz", started)):
        assert detect(path)
        model = fresh()
        start_from_paligemma(path, model)
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items()), path


def test_bfloat16_arrays(started: Pi0, tmp_path: Path) -> None:
    model = fresh()
    start_from_paligemma(as_npz(tmp_path / "b.npz", started, dtype=torch.bfloat16), model)  # type: ignore[arg-type]
    name = "transformer.layers.1.prefix.query.weight"
    assert torch.equal(model.state_dict()[name], started.state_dict()[name].bfloat16().float())


def test_names_and_shapes_at_full_size() -> None:
    stored = json.loads((GOLDEN / "manifests.json").read_text())["paligemma"]
    config = Pi0Config.pi0()
    ours = {name: tuple(value.shape) for name, value in empty_model(config).state_dict().items()}
    names = key_names(config)
    assert set(names) == set(stored) - {"lm_head.weight"}
    different = {name for name, own in names.items() if tuple(stored[name]) != ours[own]}
    assert different == {
        "model.language_model.embed_tokens.weight",  # 64 rows more
        "model.vision_tower.vision_model.embeddings.patch_embedding.weight",  # a convolution's shape
    }


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    small = Pi0(Pi0Config(**(vars(CONFIG) | {"prefix": GemmaConfig(32, 3, 64, 4, 1, 16)})))
    with pytest.raises(UserError, match=r"token_embedding.weight: \(384, 64\) instead of \(320, 32\)"):
        start_from_paligemma(GOLDEN / "paligemma", small)
    folder = other_names(tmp_path / "x", "released")
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"transformer.prefix_norm.scale: NaN or Inf"):
        start_from_paligemma(folder, fresh())
    tensors["surplus.weight"] = torch.zeros(1)
    del tensors["multi_modal_projector.linear.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(multi_modal.*1 left over \(surplus"):
        start_from_paligemma(folder, fresh())
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match=r"bad.npz cannot be read"):
        start_from_paligemma(tmp_path / "bad.npz", fresh())


def test_a_pickled_array_is_not_opened(started: Pi0, tmp_path: Path) -> None:
    path = as_npz(tmp_path / "p.npz", started)
    arrays = dict(np.load(path))
    arrays["params/llm/final_norm/scale"] = np.array([{"a": 1}], dtype=object)
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="cannot be read"):
        start_from_paligemma(path, fresh())


def test_pi0_fast_is_a_paligemma_as_a_whole(tmp_path: Path) -> None:
    """Every weight comes from the folder; what is fresh before is not afterwards."""
    pi0 = small_config("nano")
    fast = Pi0Fast(
        Pi0FastConfig(
            vision=pi0.vision, prefix=pi0.prefix, vocab_size=pi0.vocab_size, cameras=pi0.cameras,
            image_size=pi0.image_size,
        )
    )  # fmt: skip
    source = Pi0(pi0).state_dict()
    rows = {row.ours: row for row in key_table(pi0, "table")}
    names = key_names(pi0)
    tensors = {theirs: source[ours] for theirs, ours in names.items()}
    for theirs, ours in names.items():
        convert = rows[ours].to_theirs
        tensors[theirs] = (convert(source[ours]) if convert else source[ours]).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "paligemma"}))
    notes = start_from_paligemma(tmp_path, fast)
    assert "does not know the action tokens yet" in notes[-1]
    for name, tensor in fast.state_dict().items():
        ours = name.replace("layers.", "transformer.layers.") if name.startswith("layers.") else name
        ours = ours.replace("norm.scale", "transformer.prefix_norm.scale") if name == "norm.scale" else ours
        ours = re.sub(r"(transformer\.layers\.\d+)\.", r"\1.prefix.", ours) if name.startswith("layers.") else ours
        assert torch.equal(tensor, source[ours]), name
