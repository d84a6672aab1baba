"""openpi's JAX checkpoints: the table is complete, both directions agree to the bit, and nothing misfitting is read."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
from torch import Tensor

from pizero.checkpoints.files.keymap import fill
from pizero.checkpoints.files.orbax import ArrayToWrite, OrbaxArrays, write_arrays
from pizero.checkpoints.format import Facts
from pizero.checkpoints.load import load_model
from pizero.checkpoints.native.adapters import PlainState
from pizero.checkpoints.openpi import jax as openpi_jax
from pizero.checkpoints.openpi.folder import config_from_arch
from pizero.checkpoints.openpi.jax import Row, table
from pizero.model.config import GemmaConfig, Pi0Config, small_config
from pizero.model.pi0 import Pi0
from pizero.train.config import LoraConfig
from pizero.train.lora import add_lora, load_adapters
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "openpi"
SETS = ["pi0_d32", "pi05_d32"]
LAYERS = "PaliGemma/llm/layers/"


def arch_of(name: str) -> Pi0Config:
    return config_from_arch(json.loads((GOLDEN / name / "tiny_config.json").read_text()))


def arrays_of(name: str) -> dict[str, Tensor]:
    arrays = OrbaxArrays(GOLDEN / name / "jax" / "params")
    return {name: arrays.read(name) for name in arrays}


def written(folder: Path, arrays: dict[str, Tensor]) -> Path:
    """A checkpoint of these arrays, each in one chunk."""
    values = [ArrayToWrite(n, tuple(a.shape), a.dtype, lambda a=a: [a], split=False) for n, a in arrays.items()]
    write_arrays(folder / "params", values)
    return folder


def read_model(folder: Path, arch: Pi0Config | None) -> Pi0:
    source = openpi_jax.read(folder, arch)
    with torch.device("meta"):
        model = Pi0(source.config)
    fill(model, source.tensors())
    return model


def same(a: Pi0, b: Pi0) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize(("preset", "config"), [("pi0", Pi0Config.pi0()), ("pi05", Pi0Config.pi05())])
def test_table_of_the_full_sizes(preset: str, config: Pi0Config) -> None:
    """All names and shapes of the released size, and every tensor of ours once, in both directions."""
    manifest = json.loads((GOLDEN / "manifests" / f"{preset}_jax_params.json").read_text())
    rows = table(config)
    assert {row.theirs: list(row.stored_shape) for row in rows} == {n: v["shape"] for n, v in manifest.items()}
    assert len(rows) == len(manifest)
    with torch.device("meta"):
        ours = Pi0(config).state_dict()
    found: dict[str, Tensor] = {}
    for row in rows:
        for layer in range(row.depth or 1):
            names = [name.format(layer) for name in row.ours]
            parts = row.to_ours(torch.empty(row.layer_shape, device="meta"))
            assert not found.keys() & set(names)
            found.update(zip(names, parts, strict=True))
            assert row.to_theirs([ours[name] for name in names]).shape == row.layer_shape
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in ours.items()}


def test_a_row_in_both_directions_and_with_as_many_key_heads_as_heads() -> None:
    """openpi stacks query, key and value there (its gemma.py, Attention)."""
    same_heads = GemmaConfig(width=12, depth=2, mlp_dim=8, num_heads=3, num_kv_heads=3, head_dim=4)
    rows = {row.theirs: row for row in table(small_config("nano", prefix=same_heads, expert=same_heads))}
    assert LAYERS + "attn/q_einsum/w" not in rows
    row = rows[LAYERS + "attn/qkv_einsum_1/w"]
    assert row.stored_shape == (2, 3, 3, 12, 4)
    layer = torch.randn(row.layer_shape)
    query, key, value = row.to_ours(layer)
    x = torch.randn(5, 12)
    expected = torch.einsum("td,skdh->stkh", x, layer).flatten(2)
    assert torch.allclose(torch.stack([x @ query.T, x @ key.T, x @ value.T]), expected, atol=1e-6)
    assert torch.equal(row.to_theirs([query, key, value]), layer)


# ---------------------------------------------------------------- reading and writing


@pytest.mark.parametrize("name", SETS)
def test_a_golden_checkpoint_equals_the_ports(name: str) -> None:
    """Bit by bit, by its folder or by the params folder; the tensors lie in memory as any others do."""
    expected = load_model(GOLDEN / name / "torch", arch=arch_of(name))
    for folder in (GOLDEN / name / "jax", GOLDEN / name / "jax" / "params"):
        model = load_model(folder, arch=arch_of(name))
        assert same(model, expected)
        assert all(p.is_contiguous() and p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())
    stats = openpi_jax.read(GOLDEN / name / "jax" / "params", arch_of(name)).facts.norm_stats
    assert stats is not None
    recorded = json.loads((GOLDEN / name / "jax" / "assets" / "tiny" / "norm_stats.json").read_text())["norm_stats"]
    assert stats.state.to_json() == recorded["state"]
    assert stats.actions.to_json() == recorded["actions"]
    assert stats.mode == ("quantile" if name == "pi05_d32" else "zscore")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """Theirs, ours, theirs: the same arrays and the same description as Orbax wrote; dtypes stay."""
    model = load_model(GOLDEN / name / "jax", arch=arch_of(name)).to(dtype)
    openpi_jax.write(tmp_path, model, openpi_jax.read(GOLDEN / name / "jax", arch_of(name)).facts)
    again = OrbaxArrays(tmp_path / "params")
    expected = arrays_of(name)
    assert set(again) == set(expected)
    for key, array in expected.items():
        assert torch.equal(again.read(key), array.to(dtype)), key
    described, golden = (
        json.loads((p / "params" / "_METADATA").read_text()) for p in (tmp_path, GOLDEN / name / "jax")
    )
    assert described == golden
    chunks = json.loads((tmp_path / "params" / "array_metadatas" / "process_0").read_text())["array_metadatas"]
    assert len(chunks) == len(expected)
    shardings = [json.loads((p / "params" / "_sharding").read_text()) for p in (tmp_path, GOLDEN / name / "jax")]
    assert shardings[0] == shardings[1]
    assert same(load_model(tmp_path, dtype="float32"), model.float())
    assert read_model(tmp_path, None).token_embedding.weight.dtype == dtype
    assert load_model(tmp_path).config == model.config
    assert len(list((tmp_path / "params").rglob("*"))) < 20  # not one file for each array


def test_layers_are_stored_and_read_one_by_one(tmp_path: Path) -> None:
    """So that neither direction holds a stack of layers; the reference's own files have one chunk for all."""
    openpi_jax.write(tmp_path, load_model(GOLDEN / "pi0_d32" / "jax", arch=arch_of("pi0_d32")), Facts())
    name = LAYERS + "mlp/gating_einsum"
    assert OrbaxArrays(tmp_path / "params").block(name) == 1
    assert OrbaxArrays(GOLDEN / "pi0_d32" / "jax" / "params").block(name) == 4


def test_the_largest_array_comes_first() -> None:
    names = [name for name, _ in openpi_jax.read(GOLDEN / "pi0_d32" / "jax", arch_of("pi0_d32")).tensors()]
    assert names[:2] == ["transformer.layers.0.prefix.mlp.gate.weight", "transformer.layers.0.prefix.mlp.up.weight"]


def test_key_paths_without_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArrayToWrite, "keys", property(lambda self: ("params", *self.name.split("/"))))
    written(tmp_path, arrays_of("pi0_d32"))
    assert "'value')" not in (tmp_path / "params" / "_METADATA").read_text()
    assert same(
        load_model(tmp_path, arch=arch_of("pi0_d32")), load_model(GOLDEN / "pi0_d32" / "torch", arch=arch_of("pi0_d32"))
    )


def test_zarr_3(tmp_path: Path) -> None:
    keys = [{"key": key, "key_type": 2} for key in ("params", "a", "value")]
    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": {"": {"key_metadata": keys}}, "use_zarr3": True}))
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "ocdbt", "base": f"{tmp_path.as_uri()}/", "path": "params.a.value/"},
        "metadata": {"shape": [2, 3], "data_type": "float32"},
    }
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensorstore.open(spec, create=True).result().write(values).result()
    assert torch.equal(OrbaxArrays(tmp_path).read("a"), torch.from_numpy(values))


def test_zeros_are_stored_too(tmp_path: Path) -> None:
    """A reader must not have to guess what an absent chunk held."""
    write_arrays(tmp_path / "p", [ArrayToWrite("a", (2, 3), torch.float32, lambda: [torch.zeros(3)] * 2, split=True)])
    database = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"{(tmp_path / 'p').as_uri()}/"}).result()
    assert {b"params.a.value/0.0", b"params.a.value/1.0"} < set(database.list().result())


# ---------------------------------------------------------------- LoRA


def lora_arrays(prefix: int | None, expert: int | None) -> dict[str, Tensor]:
    """The golden π0 with random adapters of these ranks beside every matrix of the experts' layers."""
    generator = torch.Generator().manual_seed(0)
    arrays = arrays_of("pi0_d32")
    for name, rank in (("", prefix), ("_1", expert)):
        for weight in (
            "attn/q_einsum{}/w",
            "attn/kv_einsum{}/w",
            "attn/attn_vec_einsum{}/w",
            "mlp{}/gating_einsum",
            "mlp{}/linear",
        ):
            theirs = LAYERS + weight.format(name)
            shape, root = arrays[theirs].shape, theirs[:-1] if theirs.endswith("/w") else theirs + "_"
            if rank is not None:
                arrays[root + "lora_a"] = torch.randn(*shape[:-1], rank, generator=generator)
                arrays[root + "lora_b"] = torch.randn(*shape[:-2], rank, shape[-1], generator=generator)
    return arrays


def einsum(x: Tensor, *factors: Tensor, steps: tuple[str, ...]) -> Tensor:
    for factor, step in zip(factors, steps, strict=True):
        x = torch.einsum(step, x, factor)
    return x


@pytest.mark.parametrize(("ranks", "dtype"), [((16, 32), torch.float32), ((16, None), torch.bfloat16)])
def test_lora_adapters_are_merged(tmp_path: Path, ranks: tuple[int, int | None], dtype: torch.dtype) -> None:
    """Merged layers against openpi's sums: x through the weight, plus x through a and then b, scale 1.

    The equations are those that openpi derives for its two factors. In attn_vec_einsum both sum over the heads.
    """
    arrays = lora_arrays(*ranks)
    arrays = {n: a if "lora" in n or "llm/layers" not in n else a.to(dtype) for n, a in arrays.items()}
    source = openpi_jax.read(written(tmp_path, arrays), arch_of("pi0_d32"))
    assert [note for note in source.notes if "LoRA" in note and "16" in note]
    merged, layer = dict(source.tensors()), 2
    for mark, expert, rank in (("", "prefix", ranks[0]), ("_1", "expert", ranks[1])):
        ours = f"transformer.layers.{layer}.{expert}."
        for theirs, names, weight, factors in (
            (f"attn/q_einsum{mark}/", ("query",), "td,ndh->tnh", ("td,ndl->tnl", "tnl,nlh->tnh")),
            (f"attn/kv_einsum{mark}/", ("key", "value"), "td,skdh->stkh", ("td,skdl->stkl", "stkl,sklh->stkh")),
            (f"attn/attn_vec_einsum{mark}/", ("output",), "tnh,nhd->td", ("tnh,nhl->tl", "tl,nld->td")),
            (f"mlp{mark}/gating_einsum", ("mlp.gate", "mlp.up"), "td,sdf->stf", ("td,sdl->stl", "stl,slf->stf")),
            (f"mlp{mark}/linear", ("mlp.down",), "tf,fd->td", ("tf,fl->tl", "tl,ld->td")),
        ):
            w = arrays[LAYERS + theirs + ("w" if theirs.endswith("/") else "")][layer].double()
            x = torch.randn(6, *w.shape[:2]) if "attn_vec" in theirs else torch.randn(6, w.shape[-2])
            x = x.double()
            expected = einsum(x, w, steps=(weight,))
            if rank is not None:
                root = LAYERS + theirs + ("" if theirs.endswith("/") else "_")
                a, b = (arrays[root + end][layer].double() for end in ("lora_a", "lora_b"))
                expected = expected + einsum(x, a, b, steps=factors)
            weights = [merged[f"{ours}{name}.weight"] for name in names]
            assert all(w.dtype == (dtype if rank is None else torch.float32) for w in weights)
            actual = torch.stack([x.flatten(1) @ w.double().T for w in weights])
            assert torch.allclose(actual, expected.reshape(actual.shape), rtol=1e-4, atol=1e-3), theirs


@pytest.mark.parametrize("ranks", [(16, 32), (16, None), (None, 32)])
def test_lora_adapters_apart(tmp_path: Path, ranks: tuple[int | None, int | None]) -> None:
    """The checkpoint without its adapters, with these in the model, is what the merged one is."""
    folder = written(tmp_path, lora_arrays(*ranks))
    source, adapters = openpi_jax.read_unmerged(folder, arch_of("pi0_d32"))
    assert not any("LoRA" in note for note in source.notes)
    with torch.device("meta"):
        model = Pi0(source.config)
    fill(model, source.tensors())
    assert same(model, read_model(GOLDEN / "pi0_d32" / "jax", source.config))
    prefix, expert = (rank or 0 for rank in ranks)
    add_lora(model, LoraConfig(prefix, max(prefix, 1), expert, max(expert, 1)))
    load_adapters(model, adapters)
    merged, expected = PlainState(model), read_model(folder, source.config).state_dict()
    assert set(merged) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: a.pop(LAYERS + "mlp/linear_lora_b"), "1 missing (PaliGemma/llm/layers/mlp/linear_lora_b)"),
        (lambda a: a.update({LAYERS + "mlp/linear_lora_b": torch.zeros(4, 15, 64)}), "(4, 128, 16) and (4, 15, 64)"),
        (lambda a: a.update({"PaliGemma/img/head/kernel_lora_a": torch.zeros(1)}), "1 left over (PaliGemma/img/head"),
    ],
)
def test_lora_adapters_that_do_not_fit(tmp_path: Path, change: Callable[..., object], text: str) -> None:
    arrays = lora_arrays(16, 32)
    change(arrays)
    with pytest.raises(UserError, match="weights do not fit") as error:
        openpi_jax.read(written(tmp_path, arrays), arch_of("pi0_d32"))
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("ranks", "text"), [((8, 32), "rank 8, openpi's own 16"), ((None, 16), "rank 16, openpi's own 32")]
)
def test_a_rank_whose_scale_is_not_known(tmp_path: Path, ranks: tuple[int | None, int | None], text: str) -> None:
    with pytest.raises(UserError, match=text):
        openpi_jax.read(written(tmp_path, lora_arrays(*ranks)), arch_of("pi0_d32"))


# ---------------------------------------------------------------- what does not fit


MISFITS: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
    (lambda a: a.pop("state_proj/bias"), "1 missing (state_proj/bias); 0 left over"),
    (lambda a: a.update(surprise=torch.zeros(1)), "0 missing; 1 left over (surprise)"),
    (lambda a: a.update({"state_proj/kernel": torch.zeros(64, 32)}), "state_proj/kernel: (64, 32) instead of (32, 64)"),
    (
        lambda a: a.update({LAYERS + "mlp/linear": a[LAYERS + "mlp/linear"][:3]}),
        "mlp/linear: (3, 128, 64) instead of (4, 128, 64)",
    ),
]


@pytest.mark.parametrize(("change", "text"), MISFITS)
def test_arrays_that_do_not_fit(tmp_path: Path, change: Callable[..., object], text: str) -> None:
    arrays = arrays_of("pi0_d32")
    change(arrays)
    with pytest.raises(UserError, match="weights do not fit") as error:
        load_model(written(tmp_path, arrays), arch=arch_of("pi0_d32"))
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_nan_is_refused(tmp_path: Path) -> None:
    arrays = arrays_of("pi0_d32")
    arrays[LAYERS + "mlp/linear"][3, 5, 7] = torch.nan
    with pytest.raises(UserError, match=r"1 with NaN or Inf \(transformer.layers.3.prefix.mlp.down.weight\)"):
        load_model(written(tmp_path, arrays), arch=arch_of("pi0_d32"))


def test_the_other_arch() -> None:
    with pytest.raises(UserError, match="not of the adaptive-norm kind, the arch says otherwise"):
        load_model(GOLDEN / "pi0_d32" / "jax", arch=arch_of("pi05_d32"))


class ManifestArrays(dict[str, Any]):
    """Stands in for `OrbaxArrays` at full size: shapes alone."""

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self[name]["shape"])


@pytest.mark.parametrize(("preset", "config"), [("pi0", Pi0Config.pi0()), ("pi05", Pi0Config.pi05())])
def test_without_arch(preset: str, config: Pi0Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released sizes are known; that horizon and state are assumed is said. Other sizes ask for arch."""
    arrays = ManifestArrays(json.loads((GOLDEN / "manifests" / f"{preset}_jax_params.json").read_text()))
    monkeypatch.setattr(openpi_jax, "OrbaxArrays", lambda folder: arrays)
    source = openpi_jax.read(tmp_path)
    assert source.config == config
    assert ["horizon" in note for note in source.notes] == ([True] if preset == "pi0" else [True, False])
    assert ("discrete_state_input" in " ".join(source.notes)) == (preset == "pi05")
    assert openpi_jax.read(tmp_path, dataclasses.replace(config, action_horizon=10)).notes == ()
    for kernel, axis in (("action_in_proj/kernel", 0), ("action_out_proj/kernel", 1), ("action_out_proj/bias", 0)):
        arrays[kernel]["shape"][axis] = 7
    if preset == "pi0":
        arrays["state_proj/kernel"]["shape"][0] = 7
    assert openpi_jax.read(tmp_path).config == dataclasses.replace(config, action_dim=7, state_dim=7)
    arrays["PaliGemma/img/head/bias"]["shape"] = [2047]
    with pytest.raises(
        UserError, match=r"other sizes than gemma_2b.*give them with arch.*\(2047,\) instead of \(2048,\)"
    ):
        openpi_jax.read(tmp_path)


def copied(folder: Path) -> Path:
    shutil.copytree(GOLDEN / "pi0_d32" / "jax" / "params", folder / "params")
    return folder / "params"


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda p: (p / "manifest.ocdbt").unlink(), "no manifest.ocdbt"),
        (lambda p: shutil.rmtree(p / "ocdbt.process_0"), "copy the checkpoint again"),
        (lambda p: (p / "_METADATA").write_text("{"), "_METADATA cannot be read"),
        (lambda p: (p / "_METADATA").write_text("{}"), "has no tree_metadata"),
        (lambda p: (p / "_METADATA").write_text('{"tree_metadata": {"a": {}}}'), "a tree without names"),
    ],
)
def test_a_damaged_checkpoint(tmp_path: Path, damage: Callable[[Path], object], text: str) -> None:
    damage(copied(tmp_path))
    with pytest.raises(UserError, match=text) as error:
        load_model(tmp_path, arch=arch_of("pi0_d32"))
    assert "\n" not in str(error.value)


def test_data_files_that_are_cut(tmp_path: Path) -> None:
    for path in (copied(tmp_path) / "ocdbt.process_0" / "d").iterdir():
        if path.stat().st_size > 1_000_000:
            path.write_bytes(path.read_bytes()[:500_000])
    with pytest.raises(UserError, match="copy the checkpoint again"):
        load_model(tmp_path, arch=arch_of("pi0_d32"))


def test_tensorstore_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(UserError, match=r"pip install 'pizero\[openpi\]'"):
        load_model(GOLDEN / "pi0_d32" / "jax", arch=arch_of("pi0_d32"))


def test_other_folders_are_not_taken_for_one(tmp_path: Path) -> None:
    assert not openpi_jax.detect(tmp_path)
    assert not openpi_jax.detect(GOLDEN / "pi0_d32" / "torch")
    written(tmp_path, {"weights/kernel": torch.zeros(2)})
    assert not openpi_jax.detect(tmp_path)


def test_a_row_knows_its_adapters() -> None:
    row = Row("PaliGemma/llm/layers/mlp_1/linear", ("x",), (2, 3), (1, 0), 1, 4)
    assert sorted(row.adapters) == [row.theirs + "_lora_a", row.theirs + "_lora_b"]
    assert not Row("state_proj/kernel", ("x",), (2, 3), (1, 0), 1).adapters
