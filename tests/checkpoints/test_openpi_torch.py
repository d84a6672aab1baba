"""Checkpoints of openpi's PyTorch port: the key table is complete, and nothing that does not fit is loaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pizero.checkpoints.files.keymap import Entry, expand, fill
from pizero.checkpoints.load import load_model
from pizero.checkpoints.openpi import torch as openpi_torch
from pizero.checkpoints.openpi.torch import config_from_arch, config_of_shapes, key_table
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.report.architecture import describe
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "openpi"
SETS = ["pi0_d32", "pi05_d32"]
TABLE = "paligemma_with_expert.paligemma.lm_head.weight"
EMBED = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
UNUSED = "paligemma_with_expert.gemma_expert.lm_head.weight"
PATCH = "paligemma_with_expert.paligemma.model.vision_tower.vision_model.embeddings.patch_embedding.weight"
QUERY = "paligemma_with_expert.gemma_expert.model.layers.3.self_attn.q_proj.weight"


def arch_of(name: str) -> Pi0Config:
    return config_from_arch(json.loads((GOLDEN / name / "tiny_config.json").read_text()))


def tensors_of(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name / "torch" / "model.safetensors")


def changed(folder: Path, change: Callable[[dict[str, Tensor]], object], name: str = "pi0_d32") -> Path:
    """A copy of a golden checkpoint whose tensors went through `change`."""
    tensors = tensors_of(name)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


# ---------------------------------------------------------------- the key table


@pytest.mark.parametrize(("preset", "config"), [("pi0", Pi0Config.pi0()), ("pi05", Pi0Config.pi05())])
def test_key_table_of_the_full_sizes(preset: str, config: Pi0Config) -> None:
    """All names and shapes of the released size but the two names of tied or unused heads; ours all used once."""
    manifest = json.loads((GOLDEN / "manifests" / f"{preset}_torch_state_dict.json").read_text())
    table = key_table(config)
    theirs = [entry.theirs for entry in table]
    assert len(set(theirs)) == len(theirs)
    assert set(manifest) - set(theirs) == {EMBED, UNUSED}
    assert set(theirs) <= set(manifest)
    with torch.device("meta"):
        ours = Pi0(config).state_dict()
    assert sorted(entry.ours for entry in table) == sorted(ours)
    for entry in table:
        tensor = ours[entry.ours]
        shape = tuple((entry.to_theirs(tensor) if entry.to_theirs else tensor).shape)
        assert shape == tuple(manifest[entry.theirs]["shape"]), entry
        if entry.to_ours:
            assert entry.to_ours(torch.empty(shape, device="meta")).shape == tensor.shape
    assert manifest[EMBED]["shape"] == manifest[TABLE]["shape"]


@pytest.mark.parametrize("name", SETS)
def test_key_table_in_both_directions(name: str) -> None:
    tensors = tensors_of(name)
    for entry in key_table(arch_of(name)):
        theirs = tensors[entry.theirs]
        ours = entry.to_ours(theirs) if entry.to_ours else theirs
        assert torch.equal(entry.to_theirs(ours) if entry.to_theirs else ours, theirs)


def test_rows_for_layers() -> None:
    rows = expand([Entry("a", "b"), Entry("x.{}.y", "z{}")], 2)
    assert [(row.ours, row.theirs) for row in rows] == [("a", "b"), ("x.0.y", "z0"), ("x.1.y", "z1")]


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("name", SETS)
def test_a_golden_checkpoint_loads(name: str) -> None:
    """With either form of arch, on no meta device any more, ready to train."""
    assert openpi_torch.detect(GOLDEN / name / "torch")
    values = json.loads((GOLDEN / name / "tiny_config.json").read_text())
    model = load_model(GOLDEN / name / "torch", arch=values)
    assert model.config == arch_of(name)
    assert model.config.adaptive == (name == "pi05_d32") != model.config.has_state_token
    assert all(p.device.type == "cpu" and p.requires_grad for p in model.parameters())
    tensors = tensors_of(name)
    assert torch.equal(model.token_embedding.weight, tensors[TABLE])
    assert torch.equal(model.action_out_proj.bias, tensors["action_out_proj.bias"])
    again = load_model(GOLDEN / name / "torch", arch=model.config.to_json())
    assert again.config == model.config


def test_the_folders_name_says_nothing(tmp_path: Path) -> None:
    """π0.5's weights in a folder that is called pi0."""
    folder = tmp_path / "pi0"
    folder.mkdir()
    changed(folder, lambda tensors: None, "pi05_d32")
    assert load_model(folder, arch=arch_of("pi05_d32")).config.adaptive


def test_the_unused_head_may_be_absent(tmp_path: Path) -> None:
    load_model(changed(tmp_path, lambda t: t.pop(UNUSED)), arch=arch_of("pi0_d32"))


def test_the_token_table_under_its_other_name(tmp_path: Path) -> None:
    """Where both are given, the one that the forward pass reads counts."""

    def rename(tensors: dict[str, Tensor]) -> None:
        tensors[EMBED] = tensors.pop(TABLE) + 1

    def both(tensors: dict[str, Tensor]) -> None:
        tensors[EMBED] = tensors[TABLE] + 1

    for change, told in ((rename, False), (both, True)):
        source = openpi_torch.read(changed(tmp_path, change), arch_of("pi0_d32"))
        assert torch.equal(dict(source.tensors())["token_embedding.weight"], tensors_of("pi0_d32")[TABLE] + 1)
        note = f"two different token tables: {EMBED}, which the forward pass reads, is taken and {TABLE} is not"
        assert [note in text for text in source.notes] == [True] * told
    equal = changed(tmp_path, lambda t: t.update({EMBED: t[TABLE].clone()}))
    assert openpi_torch.read(equal, arch_of("pi0_d32")).notes == ()


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """Theirs, ours, theirs: the same bits under the same names; the head that nothing reads is there, and zero."""
    folder = changed(tmp_path, lambda t: t.update({key: value.to(dtype) for key, value in t.items()}), name)
    source = openpi_torch.read(folder, arch_of(name))
    with torch.device("meta"):
        model = Pi0(source.config)
    fill(model, source.tensors())
    (tmp_path / "out").mkdir()
    openpi_torch.write(tmp_path / "out", model, source.facts)
    again, expected = load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert not again[UNUSED].any()
    expected[UNUSED].zero_()
    assert again.keys() == expected.keys()
    for key, tensor in expected.items():
        assert again[key].dtype == dtype
        assert torch.equal(again[key], tensor), key
    assert load_model(tmp_path / "out").config == arch_of(name)


def spoil(name: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[3] = value

    return change


def several(tensors: dict[str, Tensor]) -> None:
    del tensors["state_proj.bias"], tensors[QUERY]
    tensors["surprise"] = torch.zeros(1)


MISFITS: list[tuple[Callable[[dict[str, Tensor]], object], list[str]]] = [
    (lambda t: t.pop(QUERY), ["1 missing", QUERY, "0 left over"]),
    (lambda t: t.pop(TABLE), ["1 missing", TABLE]),
    (lambda t: t.update(surprise=torch.zeros(1)), ["0 missing", "1 left over", "surprise"]),
    (several, ["2 missing", "state_proj.bias", QUERY, "1 left over", "surprise"]),
    (
        lambda t: t.update({QUERY: t[QUERY][:, :-1].contiguous()}),
        ["1 of another shape", "transformer.layers.3.expert.query.weight: (128, 63) instead of (128, 64)"],
    ),
    (
        lambda t: t.update({"action_in_proj.weight": t["action_in_proj.weight"].T.contiguous()}),
        ["1 of another shape", "action_in_proj.weight: (32, 64) instead of (64, 32)"],
    ),
    (lambda t: t.update({PATCH: t[PATCH].flatten(1)}), [PATCH, "(32, 588)"]),
    (
        lambda t: t.update({PATCH: t[PATCH][..., :7, :7].contiguous()}),
        ["vision_tower.patch_embedding.weight: (32, 147)"],
    ),
    (spoil(QUERY, torch.nan), ["1 with NaN or Inf", "transformer.layers.3.expert.query.weight"]),
    (spoil(TABLE, torch.inf), ["1 with NaN or Inf", "token_embedding.weight"]),
]


@pytest.mark.parametrize(("change", "parts"), MISFITS)
def test_weights_that_do_not_fit(tmp_path: Path, change: Callable[..., object], parts: list[str]) -> None:
    with pytest.raises(UserError, match="weights do not fit") as error:
        load_model(changed(tmp_path, change), arch=arch_of("pi0_d32"))
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.update({f"surprise{i:02}": torch.zeros(1) for i in range(20)})

    with pytest.raises(UserError, match=r"20 left over \(surprise00, .*surprise07, \.\.\. \(12 more\)\)"):
        load_model(changed(tmp_path, change), arch=arch_of("pi0_d32"))


# ---------------------------------------------------------------- sizes that disagree


@pytest.mark.parametrize(("weights", "arch"), [("pi0_d32", "pi05_d32"), ("pi05_d32", "pi0_d32")])
def test_the_flag_for_pi05_disagrees(weights: str, arch: str) -> None:
    with pytest.raises(UserError, match="adaptive-norm kind, the arch says otherwise"):
        load_model(GOLDEN / weights / "torch", arch=arch_of(arch))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"state_input": "none"}, "2 left over (state_proj.bias, state_proj.weight)"),
        ({"action_dim": 31}, "action_in_proj.weight: (64, 32) instead of (64, 31)"),
        ({"vocab_size": 513}, "token_embedding.weight: (512, 64) instead of (513, 64)"),
        ({"image_size": 238}, "vision_tower.position_embedding: (256, 32) instead of (289, 32)"),
    ],
)
def test_arch_disagrees_with_the_shapes(changes: dict[str, object], text: str) -> None:
    with pytest.raises(UserError) as error:
        load_model(GOLDEN / "pi0_d32" / "torch", arch=dataclasses.replace(arch_of("pi0_d32"), **changes))
    assert text in str(error.value)


def test_arch_with_another_depth() -> None:
    arch = arch_of("pi0_d32")
    for depth, text in ((3, "0 missing; 18 left over"), (5, "18 missing")):
        parts = {name: dataclasses.replace(getattr(arch, name), depth=depth) for name in ("prefix", "expert")}
        with pytest.raises(UserError, match=text):
            load_model(GOLDEN / "pi0_d32" / "torch", arch=dataclasses.replace(arch, **parts))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (None, "no config.json and another vision tower than So400m, whose heads no shape shows; give the sizes"),
        ({"paligemma_variant": "gemma_9b", "action_expert_variant": "gemma_300m"}, "names the variant 'gemma_9b'"),
        ({"paligemma_variant": "gemma_2b"}, "names the variant 'None'"),
        ({"paligemma_variant": "gemma_2b_lora"}, "'gemma_2b_lora', but openpi's converter leaves LoRA adapters out"),
        (
            {"paligemma_variant": "dummy", "action_expert_variant": "dummy", "action_dim": 32},
            "does not record action_dim and action_horizon",
        ),
        (
            {"paligemma_variant": "gemma_2b", "action_expert_variant": "gemma_300m", "action_dim": 32,
             "action_horizon": 50},
            "weights do not fit: .* missing",
        ),
    ],
)  # fmt: skip
def test_without_arch(tmp_path: Path, config: dict[str, object] | None, text: str) -> None:
    """The sizes of the released variants are known by name; tiny weights do not fit them."""
    changed(tmp_path, lambda tensors: None)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=text):
        load_model(tmp_path)


@pytest.mark.parametrize(("preset", "config"), [("pi0", Pi0Config.pi0()), ("pi05", Pi0Config.pi05())])
def test_sizes_by_the_shapes(preset: str, config: Pi0Config) -> None:
    """As openpi's trainer saves, without config.json: the released sizes, other dims, and Gemma of any size."""
    manifest = json.loads((GOLDEN / "manifests" / f"{preset}_torch_state_dict.json").read_text())
    shapes = {name: tuple(row["shape"]) for name, row in manifest.items()}
    assert config_of_shapes(shapes, config.adaptive, Path("x")) == config
    shapes["action_in_proj.weight"] = (1024, 14)
    if not config.adaptive:
        shapes["state_proj.weight"] = (1024, 15)
    found = config_of_shapes(shapes, config.adaptive, Path("x"))
    assert (found.action_dim, found.state_dim) == (14, 14 if config.adaptive else 15)
    for name, sizes in (("vlm", "prefix"), ("action_expert", "expert")):
        tiny = {key: tuple(tensor.shape) for key, tensor in tensors_of(f"{preset}_d32").items()}
        large = {key: shape for key, shape in shapes.items() if ".vision_tower." in key}
        found = config_of_shapes({**tiny, **large}, config.adaptive, Path("x"))
        values = json.loads((GOLDEN / f"{preset}_d32" / "tiny_config.json").read_text())
        assert dataclasses.asdict(getattr(found, sizes)) == values[name]
    with pytest.raises(UserError, match=r"x has no config.json, and action_in_proj.weight is missing"):
        config_of_shapes(
            {key: shape for key, shape in shapes.items() if "action_in" not in key}, config.adaptive, Path("x")
        )


@pytest.mark.parametrize("name", SETS)
def test_a_folder_of_the_trainer_tells_what_is_assumed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(tmp_path, lambda tensors: None, name)
    (folder / "optimizer.pt").write_bytes(b"\x80\x02")
    monkeypatch.setattr(openpi_torch, "config_of_shapes", lambda *_: arch_of(name))
    notes = " ".join(openpi_torch.read(folder).notes)
    assert "do not record the action horizon: 50 steps are taken" in notes
    assert ("do not record whether the prompt holds the state" in notes) == (name == "pi05_d32")
    assert openpi_torch.read(folder, arch_of(name)).notes == ()


@pytest.mark.parametrize("start", ["module.", "base_model.model.", "_orig_mod.", "module._orig_mod."])
def test_a_wrappers_start_of_names_is_left_out_and_told(start: str, tmp_path: Path) -> None:
    def wrap(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[start + name] = tensors.pop(name)

    source = openpi_torch.read(changed(tmp_path, wrap), arch_of("pi0_d32"))
    expected = dict(openpi_torch.read(GOLDEN / "pi0_d32" / "torch", arch_of("pi0_d32")).tensors())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in source.tensors())
    assert len(source.notes) == 1
    assert "in the tensors' names is dropped" in source.notes[0]


def test_compiled_parts_inside_of_names(tmp_path: Path) -> None:
    def wrap(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY.replace(".layers.", "._orig_mod.layers.")] = tensors.pop(QUERY)

    assert len(openpi_torch.read(changed(tmp_path, wrap), arch_of("pi0_d32")).notes) == 1


def test_a_start_that_some_names_lack_is_listed(tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda t: t.update({"module." + QUERY: t.pop(QUERY)}))
    with pytest.raises(UserError, match=r"1 left over \(module.paligemma"):
        load_model(folder, arch=arch_of("pi0_d32"))


def test_adapters_among_the_weights(tmp_path: Path) -> None:
    def adapt(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY.replace("q_proj.", "q_proj.base_layer.")] = tensors.pop(QUERY)
        tensors[QUERY.replace("q_proj.", "q_proj.lora_A.default.")] = torch.zeros(2, 2)

    with pytest.raises(UserError, match=r"LoRA adapters of PEFT beside the weights.* \(2 tensors, .*merge them"):
        load_model(changed(tmp_path, adapt), arch=arch_of("pi0_d32"))
    plain = changed(tmp_path, lambda tensors: None)
    (plain / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"LoRA adapters of PEFT \(adapter_config.json\) beside weights; merge them"):
        load_model(plain, arch=arch_of("pi0_d32"))


def test_arch_as_inspect_writes_it(tmp_path: Path) -> None:
    config = arch_of("pi0_d32")
    path = tmp_path / "sizes.json"
    path.write_text(json.dumps(describe(config).to_json()))
    assert load_model(GOLDEN / "pi0_d32" / "torch", arch=path).config == config
    assert load_model(GOLDEN / "pi0_d32" / "torch", arch=json.loads(path.read_text())).config == config


def test_other_folders_are_not_taken_for_one(tmp_path: Path) -> None:
    assert not openpi_torch.detect(tmp_path)
    save_file({"action_in_proj.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert not openpi_torch.detect(tmp_path)
