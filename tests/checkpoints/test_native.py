"""Native checkpoints: the round trip, what a crash leaves behind, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pizero.baseline.config import small_baseline
from pizero.baseline.policy import DiffusionPolicy
from pizero.checkpoints.native.checkpoint import (
    detect,
    load_checkpoint,
    save_checkpoint,
    verify_example,
)
from pizero.checkpoints.native.example import Example, make_example
from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.types import UserError

CONFIG = small_config("nano", vocab_size=259, prompt_length=14, cameras=("base_0_rgb", "left_wrist_0_rgb"))


def make_model(seed: int = 0) -> Pi0:
    torch.manual_seed(seed)
    return Pi0(CONFIG).eval()


def make_pipeline() -> Pipeline:
    state = FieldStats(mean=np.array([0.5, -1.0, 0.0]), std=np.array([1.0, 2.0, 0.1]))
    actions = FieldStats(mean=np.array([0.3, -0.2]), std=np.array([1.0, 0.01]))
    return Pipeline(
        generic({"base_0_rgb": "top", "left_wrist_0_rgb": "hand"}),
        NormStats("zscore", state, actions),
        PaligemmaTokenizer.bytes(),
        cameras=CONFIG.cameras,
        prompt_format="pi0",
        prompt_length=CONFIG.prompt_length,
        image_size=(28, 28),
        state_dim=CONFIG.state_dim,
        action_dim=CONFIG.action_dim,
    )


def example_of(model: Pi0, pipeline: Pipeline) -> Example:
    rng = np.random.default_rng(3)
    observation = {
        "state": rng.standard_normal(3).astype(np.float32),
        "images": {name: rng.integers(0, 256, (28, 28, 3), dtype=np.uint8) for name in ("top", "hand")},
        "prompt": "schieb grün",
    }
    noise = rng.standard_normal((CONFIG.action_horizon, CONFIG.action_dim), dtype=np.float32)
    return make_example(model, pipeline, observation, noise, num_steps=4)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, pipeline = make_model(), make_pipeline()
    save_checkpoint(tmp_path / "run", model, pipeline, example_of(model, pipeline))
    return tmp_path / "run"


def edit_weights(folder: Path, name: str, add: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] + add
    save_file({key: value.clone() for key, value in tensors.items()}, folder / "model.safetensors")


def test_round_trip(saved: Path) -> None:
    loaded = load_checkpoint(saved)
    for (name, ours), theirs in zip(make_model().state_dict().items(), loaded.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert loaded.model.config == CONFIG
    assert loaded.pipeline is not None
    assert loaded.pipeline.to_json() == make_pipeline().to_json()
    assert loaded.example is not None
    assert loaded.example.observation["prompt"] == "schieb grün"
    assert loaded.example.num_steps == 4
    assert set(loaded.example.observation["images"]) == {"top", "hand"}
    assert verify_example(loaded) == 0.0
    assert [path.name for path in saved.parent.iterdir()] == ["run"]


def test_the_model_alone(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run", make_model())
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.pipeline is None
    assert loaded.example is None
    with pytest.raises(UserError, match="no example to verify"):
        verify_example(loaded)


def test_low_precision_reproduces_within_its_tolerance(saved: Path) -> None:
    loaded = load_checkpoint(saved, dtype="bfloat16")
    assert loaded.model.transformer.dtype == torch.bfloat16
    assert 0 < verify_example(loaded) < 0.1


def test_a_stored_dtype_is_kept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", make_model())
    save_checkpoint(tmp_path / "b", load_checkpoint(tmp_path / "a", dtype="bfloat16").model)
    model = load_checkpoint(tmp_path / "b").model
    assert model.token_embedding.weight.dtype == torch.bfloat16
    assert model.action_out_proj.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["action_out_proj.bias", "token_embedding.weight", "vision_tower.projection.bias"])
def test_verify_notices_a_changed_weight(saved: Path, name: str) -> None:
    edit_weights(saved, name, 0.3)
    with pytest.raises(UserError, match="no longer reproduces"):
        verify_example(load_checkpoint(saved))


def test_verify_notices_changed_statistics_of_a_dimension_with_small_units(saved: Path) -> None:
    stats = json.loads((saved / "norm_stats.json").read_text())
    stats["norm_stats"]["actions"]["std"][1] *= 2
    (saved / "norm_stats.json").write_text(json.dumps(stats))
    with pytest.raises(UserError, match="no longer reproduces"):
        verify_example(load_checkpoint(saved))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_save_changes_nothing(saved: Path, error: type[BaseException]) -> None:
    def interrupt(folder: Path) -> None:
        assert (folder / "model.safetensors").is_file()
        raise error

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(error):
        save_checkpoint(saved, make_model(1), make_pipeline(), extra=interrupt)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    with pytest.raises(error):
        save_checkpoint(saved.with_name("other"), make_model(1), extra=interrupt)
    assert [path.name for path in saved.parent.iterdir()] == ["run"]


def test_a_failing_rename_puts_the_old_checkpoint_back(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError("disk went away")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OSError, match="went away"):
        save_checkpoint(saved, make_model(1))
    assert verify_example(load_checkpoint(saved)) == 0.0
    assert [path.name for path in saved.parent.iterdir()] == ["run"]


def test_after_a_kill_between_the_renames_the_old_one_is_named_and_put_back(saved: Path) -> None:
    saved.rename(saved.with_name(".run.old"))
    saved.with_name(".run.new").mkdir()
    with pytest.raises(UserError, match=r"interrupted save left its checkpoint in .*\.run\.old"):
        load_checkpoint(saved)

    def interrupt(_: Path) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        save_checkpoint(saved, make_model(1), extra=interrupt)
    assert verify_example(load_checkpoint(saved)) == 0.0


def test_replaces_a_checkpoint_as_a_whole(saved: Path) -> None:
    (saved / "training_state").mkdir()
    save_checkpoint(saved, make_model(1), extra=lambda folder: (folder / "note").write_text("x") and None)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors", "note"]
    assert torch.equal(load_checkpoint(saved).model.action_in_proj.weight, make_model(1).action_in_proj.weight)
    assert [path.name for path in saved.parent.iterdir()] == ["run"]


def test_never_replaces_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("thesis", "file"):
        with pytest.raises(UserError, match="will not be overwritten"):
            save_checkpoint(tmp_path / name, make_model())
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    save_checkpoint(tmp_path / "empty", make_model())
    assert detect(tmp_path / "empty")


def test_loading_is_strict(saved: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(saved / "model.safetensors").items()}
    missing = {name: tensor for name, tensor in tensors.items() if name != "action_in_proj.bias"}
    for changed, text in (
        (missing, r"1 missing \(action_in_proj.bias\)"),
        ({**tensors, "surplus": torch.zeros(1)}, r"1 left over \(surplus\)"),
        ({**tensors, "action_in_proj.bias": torch.zeros(3)}, "of another shape"),
        ({**tensors, "action_in_proj.bias": tensors["action_in_proj.bias"] + float("nan")}, "NaN"),
    ):
        save_file(changed, saved / "model.safetensors")
        with pytest.raises(UserError, match=text):
            load_checkpoint(saved)


def test_clear_errors(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())

    def expect(text: str, folder: Path = saved) -> None:
        with pytest.raises(UserError, match=text):
            load_checkpoint(folder)

    expect("no checkpoint folder at", tmp_path / "nothing")
    expect("has no config.json", tmp_path)
    for changed, text in (
        ({**config, "version": 2}, "has version 2, this release reads 1"),
        ({**config, "model": "other"}, "holds a model 'other', expected one of pi0, pi0-fast, diffusion"),
        ({**config, "model": ["pi0"]}, "expected one of pi0, pi0-fast, diffusion"),
        ({**config, "model": "diffusion"}, "unknown keys in config"),
        ({"type": "pi0"}, "does not say that its format"),
        ({**config, "config": {**config["config"], "colour": 1}}, "unknown keys in config: colour"),
        ({name: config[name] for name in ("format", "version", "model")}, "has no 'config'"),
    ):
        (saved / "config.json").write_text(json.dumps(changed))
        expect(text)
    (saved / "config.json").write_text("{")
    expect("cannot be read as JSON")
    (saved / "config.json").write_text(json.dumps(config))
    stored = (saved / "example.npz").read_bytes()
    for broken in (b"", b"PK", stored[: len(stored) // 2]):
        (saved / "example.npz").write_bytes(broken)
        expect("cannot be read as an example")
    (saved / "model.safetensors").write_bytes(b"short")
    expect("copy the checkpoint again")
    (saved / "model.safetensors").unlink()
    expect("has no model.safetensors")
    with pytest.raises(UserError, match="unknown dtype 'half'"):
        load_checkpoint(saved, dtype="half")


# -------------------------------------------------------------------- the diffusion policy

DIFFUSION = small_baseline("nano", state_input=True, vocab_size=259, prompt_length=14)


@pytest.fixture
def saved_diffusion(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model, rng = DiffusionPolicy(DIFFUSION).eval(), np.random.default_rng(3)
    pipeline = dataclasses.replace(
        make_pipeline(), num_history=2, image_size=(16, 16), state_dim=DIFFUSION.state_dim,
        action_dim=DIFFUSION.action_dim,
    )  # fmt: skip
    observation = {
        "state": rng.standard_normal((2, 3)).astype(np.float32),
        "images": {name: rng.integers(0, 256, (2, 28, 28, 3), dtype=np.uint8) for name in ("top", "hand")},
        "prompt": "push",
    }
    noise = rng.standard_normal((DIFFUSION.action_horizon, DIFFUSION.action_dim), dtype=np.float32)
    save_checkpoint(tmp_path / "run", model, pipeline, make_example(model, pipeline, observation, noise))
    return tmp_path / "run"


def test_round_trip_of_the_diffusion_policy(saved_diffusion: Path) -> None:
    assert json.loads((saved_diffusion / "config.json").read_text())["model"] == "diffusion"
    loaded = load_checkpoint(saved_diffusion)
    assert isinstance(loaded.model, DiffusionPolicy)
    assert loaded.model.config == DIFFUSION
    torch.manual_seed(0)
    for (name, ours), theirs in zip(
        DiffusionPolicy(DIFFUSION).state_dict().items(), loaded.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert loaded.pipeline is not None
    assert loaded.pipeline.num_history == 2
    assert loaded.example is not None
    assert loaded.example.num_steps == 20
    assert loaded.example.observation["state"].shape == (2, 3)
    assert loaded.example.observation["images"]["hand"].shape == (2, 28, 28, 3)
    assert verify_example(loaded) < 1e-5


def test_the_example_of_a_history_knows_its_order(saved_diffusion: Path) -> None:
    loaded = load_checkpoint(saved_diffusion)
    assert loaded.example is not None
    seen = loaded.example.observation
    turned = {**seen, "images": {name: image[::-1] for name, image in seen["images"].items()}}
    with pytest.raises(UserError, match="no longer reproduces"):
        verify_example(dataclasses.replace(loaded, example=dataclasses.replace(loaded.example, observation=turned)))
    edit_weights(saved_diffusion, "unet.output.bias", 0.3)
    with pytest.raises(UserError, match="no longer reproduces"):
        verify_example(load_checkpoint(saved_diffusion))


def test_the_diffusion_policy_is_cast_as_a_whole(saved_diffusion: Path) -> None:
    model = load_checkpoint(saved_diffusion, dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
