"""Damaged and hostile files of every format: one line, or a strict load; no other exception, no hang, no memory."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import os
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
from safetensors.torch import load_file, save_file

from pizero.checkpoints.files import orbax
from pizero.checkpoints.files.orbax import ArrayToWrite, OrbaxArrays, write_arrays
from pizero.checkpoints.load import load_network, load_policy, save_model
from pizero.checkpoints.native.checkpoint import load_checkpoint, save_checkpoint, verify_example
from pizero.checkpoints.native.example import Example, make_example
from pizero.data import example
from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer, train_tokenizer
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
ARCHES = {
    "openpi-torch": GOLDEN / "openpi" / "pi0_d32" / "tiny_config.json",
    "openpi-jax": GOLDEN / "openpi" / "pi0_d32" / "tiny_config.json",
    "lerobot": GOLDEN / "lerobot" / "checkpoints" / "pi0_tiny" / "tiny_arch.json",
}
CONFIG = small_config("nano", vocab_size=259, prompt_length=14)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def same_file(source: str, target: str) -> None:
    """Large files that a test does not change are not copied."""
    if Path(source).suffix == ".safetensors":
        Path(target).symlink_to(Path(source).absolute())
    else:
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of every format that is read."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model, rng = Pi0(CONFIG).eval(), np.random.default_rng(0)
    stats = FieldStats(np.zeros(3), np.ones(3), -np.ones(3), np.ones(3))
    pipeline = Pipeline(
        generic({"base_0_rgb": "top"}, state_dim=3, action_dim=3), NormStats("zscore", stats, stats),
        train_tokenizer(["push the cube"] * 3, folder / "t.model", 384), cameras=CONFIG.cameras, prompt_format="pi0",
        prompt_length=14, image_size=(28, 28), state_dim=CONFIG.state_dim, action_dim=CONFIG.action_dim,
    )  # fmt: skip
    pipeline = dataclasses.replace(pipeline, tokenizer=PaligemmaTokenizer.bytes())
    image = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    observation = {"state": np.zeros(3, np.float32), "images": {"top": image}, "prompt": "go"}
    noise = rng.standard_normal((CONFIG.action_horizon, CONFIG.action_dim), dtype=np.float32)
    save_checkpoint(folder / "native", model, pipeline, make_example(model, pipeline, observation, noise, 2))
    save_model(Pi0(small_config("nano")).eval(), folder / "openpi", "openpi-torch")
    save_model(Pi0(small_config("nano")).eval(), folder / "jax", "openpi-jax")
    return {
        "native": folder / "native",
        "openpi-torch": folder / "openpi",
        "openpi-jax": folder / "jax",
        "lerobot": GOLDEN / "lerobot" / "checkpoints" / "pi0_tiny",
        "lerobot-diffusion": GOLDEN / "lerobot_diffusion" / "group_norm",
        "transformers": GOLDEN / "transformers" / "pi0",
        "tokenizer": folder / "t.model",
    }


def copied(source: Path, folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(source, folder, copy_function=same_file)
    return folder


def replace_file(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def arch_of(name: str) -> Path | None:
    return ARCHES[name] if name == "lerobot" else None


def refused(load: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        load()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 1500
    return line


# ---------------------------------------------------------------- safetensors


def packed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = json.dumps(tensor([2], 0, 8))
BAD_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cut short: it has 0 bytes"),
    "7 bytes": (bytes(7), "cut short: it has 7 bytes"),
    "no header": (bytes(100), "invalid JSON"),
    "length too large": (packed({}, length=1 << 40), "announce a header of 1099511627776"),
    "length negative": (b"\xff" * 8 + b"{}", "announce a header of 18446744073709551615"),
    "length one too large": (packed({}, length=3), "cut short"),
    "length into the data": (packed({}, b"x" * 200, 150), "invalid JSON"),
    "overlap": (packed({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)), "invalid offset"),
    "beyond the file": (packed({"a": tensor([2], 0, 8)}, bytes(4)), "not fully covered"),
    "a hole": (packed({"a": tensor([2], 4, 12)}, bytes(12)), "invalid offset"),
    "backwards": (packed({"a": tensor([2], 8, 0)}, bytes(8)), "invalid offset"),
    "more than the shape": (packed({"a": tensor([2], 0, 12)}, bytes(12)), "invalid shape, data type, or offset"),
    "unknown dtype": (packed({"a": tensor([2], 0, 8, "Q9")}, bytes(8)), "unknown variant `Q9`"),
    "named twice": (packed(f'{{"a":{ONE},"a":{ONE}}}'.encode(), bytes(8)), "names the tensor a twice"),
    "huge shape": (packed({"a": tensor([1 << 62, 1 << 62], 0, 8)}, bytes(8)), "overflow"),
    "shape that wraps to 8": (packed({"a": tensor([(1 << 62) + 2], 0, 8)}, bytes(8)), "overflow|invalid shape"),
    "negative shape": (packed({"a": tensor([-1], 0, 8)}, bytes(8)), "invalid value: integer `-1`"),
    "no UTF-8": (packed(b'{"\xff\xfe":1}'), "UTF-8"),
    "nested": (packed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "recursion limit"),
    "a list": (packed([]), "invalid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_safetensors_that_lie(kind: str, saved: dict[str, Path], tmp_path: Path) -> None:
    content, text = BAD_WEIGHTS[kind]
    for name in ("native", "openpi-torch", "lerobot", "lerobot-diffusion"):
        folder = copied(saved[name], tmp_path / name)
        replace_file(folder / "model.safetensors", content)
        line = refused(lambda folder=folder, name=name: load_network(folder, arch=arch_of(name)))
        assert str(folder / "model.safetensors") in line
        with pytest.raises(UserError, match=text):
            load_network(folder, arch=arch_of(name))


def test_weights_cut_anywhere(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved["native"], tmp_path / "x")
    whole = (saved["native"] / "model.safetensors").read_bytes()
    for length in [*range(40), *range(40, len(whole), len(whole) // 50), len(whole) - 1]:
        replace_file(folder / "model.safetensors", whole[:length])
        assert "copy the checkpoint again" in refused(lambda: load_network(folder))
    replace_file(folder / "model.safetensors", whole + b"x")
    assert "not fully covered" in refused(lambda: load_network(folder))


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64, torch.uint16]
)
def test_tensors_of_another_type(dtype: torch.dtype, saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved["native"], tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({**tensors, "state_proj.bias": tensors["state_proj.bias"].to(dtype)}, folder / "model.safetensors")
    assert f"1 of another type (state_proj.bias: {str(dtype)[6:]})" in refused(lambda: load_network(folder))


@pytest.mark.parametrize("name", ["lerobot", "openpi-torch"])
@pytest.mark.parametrize("change", [lambda t: t.bfloat16(), lambda t: torch.zeros(()), lambda t: t[:1]])
def test_a_token_table_and_a_head_that_differ_in_kind(
    name: str, change: Callable[..., Any], saved: dict[str, Path], tmp_path: Path
) -> None:
    """They are compared before shapes are."""
    folder = copied(saved[name], tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    head = next(key for key in tensors if key.endswith("paligemma.lm_head.weight"))
    embedded = head.replace("lm_head", "model.language_model.embed_tokens")
    save_file({**tensors, embedded: change(tensors[head].clone())}, folder / "model.safetensors")
    with warnings.catch_warnings(record=True):
        outcome(folder, arch_of(name))


@pytest.mark.parametrize(
    ("index", "text"),
    [
        ({"weight_map": {"a": "../../etc/passwd"}}, "'../../etc/passwd', which is not a file of this folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "'/etc/passwd', which is not a file of this folder"),
        ({"weight_map": {"a": "sub/x.safetensors"}}, "which is not a file of this folder"),
        ({"weight_map": {"a": "a\0b"}}, "which is not a file of this folder"),
        ({"weight_map": {"a": ".."}}, "has no '..', which"),
        ({"weight_map": {"a": ""}}, "has no '', which"),
        ({"weight_map": {"a": ["x"]}}, "which model.safetensors.index.json names"),
        ({"weight_map": {"a": "absent.safetensors"}}, "has no 'absent.safetensors'"),
        ({"weight_map": {"a": "config.json"}}, "config.json is no safetensors file"),
        ({"weight_map": []}, "has no weight_map"),
        ({}, "has no weight_map"),
        ([], "holds a list where a JSON object is expected"),
    ],
)
def test_an_index_of_shards_that_lies(index: object, text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    assert text in refused(lambda: load_network(tmp_path))


# ---------------------------------------------------------------- JSON

BAD_JSON = {
    "nested": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "no UTF-8": b"\xff\xfe{}",
    "many digits": b'{"a":' + b"1" * 10_000 + b"}",
    "a key twice": b'{"a":1,"a":2}',
    "a list": b"[]",
    "cut": b'{"a":',
    "empty": b"",
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_cannot_be_read(kind: str, saved: dict[str, Path], tmp_path: Path) -> None:
    for name, paths in {
        "native": ["config.json", "pipeline.json", "norm_stats.json"],
        "openpi-torch": ["config.json"],
        "openpi-jax": ["config.json", "params/_METADATA"],
        "lerobot": ["config.json", "policy_preprocessor.json", "policy_postprocessor.json"],
        "lerobot-diffusion": ["config.json", "policy_preprocessor.json"],
    }.items():
        for path in paths:
            folder = copied(saved[name], tmp_path / "x")
            replace_file(folder / path, BAD_JSON[kind])
            line = refused(lambda folder=folder, name=name: load_network(folder, arch=arch_of(name)))
            if not (name == "lerobot" and path == "config.json"):  # then it is taken for openpi's
                assert path.split("/")[-1] in line


ABSURD: list[tuple[tuple[str, ...], object]] = [
    (("prefix", "depth"), 10**12), (("prefix", "width"), 10**12), (("vision", "depth"), 10**30),
    (("vocab_size",), 10**12), (("vision", "patch_size"), 2**63), (("prompt_length",), 10**9),
    (("action_horizon",), 10**9), (("action_dim",), -3), (("prefix", "width"), 24.0), (("prefix", "width"), "24"),
    (("prefix", "width"), True), (("cameras",), "abc"), (("cameras",), []), (("cameras",), [["a"]]),
    (("cameras",), ["c"] * 3), (("vision",), []), (("vision",), None), (("state_input",), []),
    (("image_size",), float("nan")), (("prefix", "head_dim"), 1 << 20),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), ABSURD)
@pytest.mark.parametrize("name", ["native", "openpi-torch", "openpi-jax"])
def test_absurd_sizes(name: str, path: tuple[str, ...], value: object, saved: dict[str, Path], tmp_path: Path) -> None:
    """Refused before anything of such a size is made."""
    folder = copied(saved[name], tmp_path / "x")
    values = json.loads((folder / "config.json").read_text())
    inner = values["config" if name == "native" else "pizero"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(values))
    assert path[-1] in refused(lambda: load_network(folder)) or path == ("prefix", "head_dim")


def test_sizes_whose_product_no_tensor_has(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved["native"], tmp_path / "x")
    (folder / "pipeline.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    values["config"]["vision"].update(patch_size=1 << 20, width=1 << 20)
    values["config"]["image_size"] = 1 << 20
    (folder / "config.json").write_text(json.dumps(values))
    assert "sizes do not make a model" in refused(lambda: load_network(folder))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"empty_cameras": 10**9}, "empty_cameras is not what LeRobot writes there"),
        ({"empty_cameras": -2}, "empty_cameras is not what LeRobot writes there"),
        ({"max_action_dim": 10**12}, "max_action_dim is not what LeRobot writes there"),
        ({"chunk_size": 10**6}, "action_horizon must be at most"),
        ({"output_features": {"action": {"type": "ACTION", "shape": ["x"]}}}, "output_features is not what"),
        ({"output_features": {"action": {"type": "ACTION", "shape": []}}}, "holds a value of another kind"),
        ({"type": ["pi0"]}, "config.json says the type list"),
    ],
)
def test_absurd_values_of_lerobot(change: dict[str, Any], text: str, saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved["lerobot"], tmp_path / "x")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | change))
    arch = json.loads(ARCHES["lerobot"].read_text())
    if "chunk_size" in change:
        arch["chunk_size"] = change["chunk_size"]
    refused(lambda: load_network(folder, arch=arch))
    with pytest.raises(UserError, match=text):
        load_network(folder, arch=arch)


# ---------------------------------------------------------------- Orbax


def data_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "params").rglob("*") if path.is_file() and path.parent.name == "d")


def test_a_database_cut_anywhere(saved: dict[str, Path], tmp_path: Path) -> None:
    for cut in [*range(0, 100, 7), -1]:
        folder = copied(saved["openpi-jax"], tmp_path / "x")
        manifest = folder / "params" / "manifest.ocdbt"
        manifest.write_bytes(manifest.read_bytes()[:cut])
        assert "copy the checkpoint again" in refused(lambda folder=folder: load_network(folder))
    for place in (0.0, 0.3, 0.9):
        folder = copied(saved["openpi-jax"], tmp_path / "x")
        for path in data_files(folder):
            path.write_bytes(path.read_bytes()[: int(place * path.stat().st_size)])
        assert "copy the checkpoint again" in refused(lambda folder=folder: load_network(folder))


def test_a_database_with_other_bytes(saved: dict[str, Path], tmp_path: Path) -> None:
    """Checksums notice all but the chunks of some codecs; then NaN, or numbers that load."""
    random.seed(0)
    for _ in range(12):
        folder = copied(saved["openpi-jax"], tmp_path / "x")
        path = random.choice([*data_files(folder), folder / "params" / "manifest.ocdbt"])
        content = bytearray(path.read_bytes())
        for _ in range(20):
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(content)
        outcome(folder)


def written(folder: Path, values: torch.Tensor) -> Path:
    array = ArrayToWrite("PaliGemma/x", tuple(values.shape), values.dtype, lambda: list(values), split=True)
    write_arrays(folder, [array])
    return folder


def store(folder: Path) -> Any:
    return tensorstore.KvStore.open({"driver": "ocdbt", "base": f"{folder.absolute().as_uri()}/"}).result()


def test_an_absent_chunk_is_not_taken_for_zeros(tmp_path: Path) -> None:
    folder = written(tmp_path / "p", torch.ones(3, 4))
    keys = tensorstore.KvStore.KeyRange("params.PaliGemma.x.value/1", "params.PaliGemma.x.value/2")
    store(folder).delete_range(keys).result()
    arrays = OrbaxArrays(folder)
    assert arrays.read("PaliGemma/x", 0, 1).eq(1).all()
    assert "the array PaliGemma/x cannot be read" in refused(lambda: arrays.read("PaliGemma/x"))


ZARR = "params.PaliGemma.x.value/.zarray"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shape": [1 << 40, 4]}, "describes .* GB of arrays and its files hold"),
        ({"shape": [1 << 62, 1 << 62]}, "cannot be read|describes"),
        ({"chunks": [1 << 30, 1 << 20]}, "describes|cannot be read"),
        ({"shape": [-1, 4]}, "cannot be read"),
        ({"dtype": "<U9"}, "cannot be read"),
        ({"dtype": "|O"}, "cannot be read"),
        ({"dtype": "int4"}, "cannot be read"),
        ({"compressor": {"id": "none of these"}}, "cannot be read"),
        ({"zarr_format": 9}, "cannot be read"),
        ({"chunks": [1]}, "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_metadata_of_an_array_that_lies(change: dict[str, Any] | None, text: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "p", torch.ones(3, 4))
    database = store(folder)
    values = json.loads(database.read(ZARR).result().value)
    content = b"\xff{" if change is None else json.dumps(values | change).encode()
    database.write(ZARR, content).result()
    refused(lambda: OrbaxArrays(folder).read("PaliGemma/x"))
    with pytest.raises(UserError, match=text):
        OrbaxArrays(folder).read("PaliGemma/x")


def test_an_array_named_twice(tmp_path: Path) -> None:
    folder = written(tmp_path / "p", torch.ones(3, 4))
    values = json.loads((folder / orbax.METADATA).read_text())
    tree = values["tree_metadata"]
    tree["again"] = {"key_metadata": [{"key": "PaliGemma"}, {"key": "x"}]}
    (folder / orbax.METADATA).write_text(json.dumps(values))
    assert "the same array twice" in refused(lambda: OrbaxArrays(folder))


# ---------------------------------------------------------------- statistics, tokenizer, example


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s["state"].update(mean=[0.0, float("nan"), 0.0]), "mean holds NaN or infinity"),
        (lambda s: s["actions"].update(std=[1.0, 1.0]), r"std has shape \(2,\), expected one number"),
        (lambda s: s["actions"].update(std=[1.0, -1.0, 1.0]), "actions has a negative spread"),
        (lambda s: s["state"].update(std=["a", "b", "c"]), "another kind than expected"),
        (lambda s: s["state"].update(std=None), "got keys .*expected mean and std"),
        (lambda s: s["state"].update(mean=[[0.0] * 3], std=[[1.0] * 3], q01=[[0.0] * 3], q99=[[1.0] * 3]), "has shape"),
        (lambda s: s.update(state=[1, 2]), "norm_stats.json"),
        (lambda s: s.update(state=None), "norm_stats.json"),
        (
            lambda s: [s[name].update({key: [1.0] for key in s[name]}) for name in s],
            "1 state dimensions, .* embodiment 3",
        ),
    ],
)
def test_statistics_that_cannot_be_used(
    change: Callable[..., Any], text: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(saved["native"], tmp_path / "x")
    values = json.loads((folder / "norm_stats.json").read_text())
    change(values["norm_stats"])
    (folder / "norm_stats.json").write_text(json.dumps(values))
    refused(lambda: load_policy(folder))
    with pytest.raises(UserError, match=text):
        load_policy(folder)


def test_a_tokenizer_that_is_none(saved: dict[str, Path], tmp_path: Path) -> None:
    whole = saved["tokenizer"].read_bytes()
    path = tmp_path / "tokenizer.model"
    for content in (b"", b"x", b"\0" * 100, b"<html></html>", b"{}", whole[:-1], whole[: len(whole) // 2], whole[1:]):
        path.write_bytes(content)
        assert f"cannot read a SentencePiece model from {path}" in refused(lambda: PaligemmaTokenizer(path))
    rng = random.Random(0)
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 5, 50))):
            content[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            PaligemmaTokenizer(path).encode("push it", None, 8)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def array_file(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def header_of(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def members_of(folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(folder / "example.npz") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"noise.npy": array_file(np.array([{"a": 1}], dtype=object))}, "allow_pickle=False"),
        ({"noise.npy": header_of((10**12,))}, "would unpack to 4000000 MB"),
        ({"noise.npy": header_of((1 << 62, 1 << 62))}, "would unpack to"),
        ({"noise.npy": header_of((-4,))}, "cannot be read as an example"),
        ({"noise.npy": header_of((3,))}, "cannot be read as an example"),
        ({"noise.npy": b"\x93NUMPY\x01\x00\xff\xff{"}, "cannot be read as an example"),
        ({"noise.npy": b"no array"}, "cannot be read as an example"),
        ({"num_steps.npy": array_file(np.array([1, 2]))}, "cannot be read as an example"),
        ({"num_steps.npy": array_file(np.array("x"))}, "cannot be read as an example"),
        ({"num_steps.npy": array_file(np.array(10**9))}, "has 1000000000 steps of sampling"),
        ({"num_steps.npy": array_file(np.array(0))}, "has 0 steps of sampling"),
        ({"noise.npy": array_file(np.zeros((2, 2), np.float32))}, r"the stored example's noise is \(2, 2\)"),
        ({"noise.npy": array_file(np.zeros((6, 4), "<U3"))}, "the stored example's noise"),
        ({"actions.npy": array_file(np.zeros((6, 2), np.float32))}, "the stored example has actions"),
        ({"actions.npy": array_file(np.full((6, 3), np.nan, np.float32))}, "no longer reproduces"),
        ({"actions.npy": array_file(np.full((6, 3), "x"))}, "the stored example has actions"),
        ({"state.npy": array_file(np.zeros(7, np.float32))}, r"state: got shape \(7,\)"),
        ({"image/top.npy": array_file(np.zeros((28, 28, 3), np.float32))}, "expected uint8"),
    ],
)
def test_an_example_that_lies(changed: dict[str, bytes], text: str, saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved["native"], tmp_path / "x")
    replace_file(folder / "example.npz", zipped(members_of(folder) | changed))
    refused(lambda: verify_example(load_checkpoint(folder)))
    with pytest.raises(UserError, match=text):
        load_policy(folder, verify=True)


def test_an_example_that_unpacks_to_much(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member beside those that are read counts too, and many small ones."""
    monkeypatch.setattr(example, "_LARGEST_EXAMPLE", 100_000)
    members = members_of(saved["native"])
    for more in (
        {"x.npy": array_file(np.zeros(110_000, np.uint8))},
        {f"{n}.npy": array_file(np.zeros(90_000, np.uint8)) for n in range(5)},
    ):
        (tmp_path / "example.npz").write_bytes(zipped(members | more))
        assert "more than any example" in refused(lambda: Example.load(tmp_path / "example.npz"))
    (tmp_path / "example.npz").write_bytes(zipped(members))
    Example.load(tmp_path / "example.npz")


def test_examples_of_other_bytes(saved: dict[str, Path], tmp_path: Path) -> None:
    random.seed(0)
    path, whole = tmp_path / "example.npz", (saved["native"] / "example.npz").read_bytes()
    for content in (b"", b"PK", array_file(np.zeros(3)), b"\x80\x04N.", whole[:300], whole[300:]):
        path.write_bytes(content)
        assert "cannot be read as an example" in refused(lambda: Example.load(path))
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(4):
            content[random.randrange(len(content))] = random.randrange(256)
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            Example.load(path)


# ---------------------------------------------------------------- anything


def outcome(folder: Path, arch: object = None) -> bool:
    """Whether it loads; a long refusal, or any other exception, fails."""
    line = ""
    try:
        load_network(folder, arch=arch)  # pyright: ignore[reportArgumentType]
    except UserError as error:
        line = str(error)
    assert len(line.splitlines()) <= 1
    assert len(line) < 3000
    return not line


ATOMS: list[Any] = [
    None, True, False, 0, -1, 1, 3, 10**12, 10**400, 1.5, float("nan"), float("inf"), "", "x", "pi0", "\0", "a\nb",
    [], [1], [[]], ["x"], [None], {}, {"x": 1}, {"type": []}, "../x", [10**12, 10**12], [2**62, 2**62, 16],
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places(inner)


def mutated(values: Any, rng: random.Random) -> Any:
    """One to three values exchanged, left out, or added."""
    values = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = list(places(values))
        if not found:
            break
        parent, key = rng.choice(found)
        what = rng.random()
        if what < 0.7:
            parent[key] = copy.deepcopy(rng.choice(ATOMS))
        elif what < 0.8:
            del parent[key]
        elif isinstance(parent, dict):
            parent[rng.choice(("x", "type", "mean"))] = copy.deepcopy(rng.choice(ATOMS))
        else:
            parent.append(copy.deepcopy(rng.choice(ATOMS)))
    return values


FUZZED = {
    "transformers": ("config.json",),
    "native": ("config.json", "pipeline.json", "norm_stats.json"),
    "openpi-torch": ("config.json",),
    "openpi-jax": ("config.json", "params/_METADATA"),
    "lerobot": ("config.json", "policy_preprocessor.json", "policy_postprocessor.json"),
    "lerobot-diffusion": ("config.json", "policy_preprocessor.json", "policy_postprocessor.json"),
}
ROUNDS = {"openpi-jax": 15, "lerobot-diffusion": 8, "lerobot": 20}
"""Of one file; fewer where one takes long."""


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in FUZZED.items() for file in files])
def test_any_json(name: str, file: str, saved: dict[str, Path], tmp_path: Path) -> None:
    rng = random.Random(f"{name} {file}")
    folder = copied(saved[name], tmp_path / "x")
    values = json.loads((folder / file).read_text())
    loaded = []
    for _ in range(ROUNDS.get(name, 60)):
        changed = mutated(values, rng)
        (folder / file).write_text(json.dumps(changed))
        try:
            loaded.append(outcome(folder, arch_of(name)))
        except Exception as error:
            raise AssertionError(f"{file}: {json.dumps(changed)[:3000]}") from error
    assert not all(loaded)


@pytest.mark.parametrize("name", ["native", "openpi-torch", "lerobot", "lerobot-diffusion", "transformers"])
def test_any_header(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    rng = random.Random(name)
    folder = copied(saved[name], tmp_path / "x")
    whole = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    values, data = json.loads(whole[8:end]), whole[end:]
    loaded = []
    for number in range(ROUNDS.get(name, 60)):
        if number % 2:
            content = packed(mutated(values, rng), data)
        else:
            header = bytearray(whole[:end])
            for _ in range(rng.choice((1, 2, 8))):
                header[rng.randrange(end)] = rng.randrange(256)
            content = bytes(header) + data
        replace_file(folder / "model.safetensors", content)
        loaded.append(outcome(folder, arch_of(name)))
    assert not all(loaded)


@pytest.mark.parametrize("name", ["config.json", "pipeline.json", "norm_stats.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_in_a_checkpoint(name: str, kind: str, saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved["native"], tmp_path / "x")
    never_ending(folder / name, kind)
    refused(lambda: load_policy(folder))
    (folder / name).unlink()
    shutil.copy(saved["native"] / name, folder / name)
    load_policy(folder)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_tokenizer_that_never_ends(kind: str, tmp_path: Path) -> None:
    never_ending(tmp_path / "tokenizer.model", kind)
    assert "a device or a pipe" in refused(lambda: PaligemmaTokenizer(tmp_path / "tokenizer.model"))


def never_ending(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
