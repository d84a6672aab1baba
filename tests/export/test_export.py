"""Exports of every kind of small model beside pizero's own policy, and a runner without PyTorch."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_helpers import KINDS, observation, pipeline_of, write

from pizero.checkpoints.load import load_model, load_policy
from pizero.checkpoints.native.checkpoint import load_example
from pizero.engine.quantize import sensitivity
from pizero.export.export import export
from pizero.export.graph import Graph
from pizero.export.openvino import to_openvino
from pizero.exported.policy import load_exported
from pizero.exported.sessions import OnnxSession, Ports, as_array
from pizero.policy.chunk_executor import ChunkExecutor, RobotLoop
from pizero.types import UserError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Checkpoint and export of each kind."""
    found = {}
    for kind in KINDS:
        root = tmp_path_factory.mktemp(kind)
        checkpoint = write(root / "checkpoint", kind)
        told = export(checkpoint, root / "export", to="onnx", threads=1)
        assert told.relative <= told.tolerance
        found[kind] = checkpoint, root / "export"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_those_of_the_checkpoint(kind: str, folders: dict[str, tuple[Path, Path]]) -> None:
    checkpoint, exported = folders[kind]
    ours, theirs = load_policy(checkpoint), load_exported(exported, threads=1)
    for seed, missing, prompt in ((1, None, "go"), (2, "hand", "a longer prompt"), (3, "top", "x")):
        robot = {**observation(seed, theirs.num_history), "prompt": prompt, "subtask": "reach" if seed == 2 else ""}
        robot["noise"] = np.random.default_rng(seed).standard_normal(theirs.noise_shape, np.float32)
        if missing:
            robot["images"][missing] = None
        expected = ours.infer(robot)["actions"]
        np.testing.assert_allclose(theirs.infer(robot)["actions"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith("-delays")])
def test_an_old_chunk_is_continued_as_the_checkpoint_does(kind: str, folders: dict[str, tuple[Path, Path]]) -> None:
    """Of a model trained with delays: at most as many actions are settled as it was trained to continue."""
    checkpoint, exported = folders[kind]
    ours, theirs = load_policy(checkpoint), load_exported(exported, threads=1)
    robot = {**observation(7), "noise": np.random.default_rng(7).standard_normal(theirs.noise_shape, np.float32)}
    old = ours.infer(robot)["actions"][2:]
    for delay, settled in ((0, 0), (2, 2), (9, 3)):
        asked = {**robot, "previous_actions": old, "inference_delay": delay}
        answer = theirs.infer(asked)["actions"]
        np.testing.assert_allclose(answer, ours.infer(asked)["actions"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(answer[:settled], old[:settled], rtol=1e-4, atol=1e-4)
    assert not np.allclose(answer, theirs.infer(robot)["actions"], atol=1e-2)
    with pytest.raises(UserError, match="previous_actions: got shape"):
        theirs.prepare({**robot, "previous_actions": old[:, :1]})


def test_a_real_time_loop_plays_an_export_of_a_model_with_delays(folders: dict[str, tuple[Path, Path]]) -> None:
    executor = ChunkExecutor(2, asynchronous=True, real_time=True)
    with RobotLoop(load_exported(folders["pi0-delays"][1], threads=1), executor) as loop:
        actions = [loop.act(observation(seed)) for seed in range(6)]
    assert all(np.isfinite(action).all() for action in actions)


def test_the_runner_loads_no_torch(folders: dict[str, tuple[Path, Path]]) -> None:
    code = """if True:
        import sys, time
        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("torch", "tokenizers", "scipy", "safetensors", "onnx"):
                    raise ImportError(f"{name} is not installed")
        sys.meta_path.insert(0, NoTorch())
        started = time.perf_counter()
        from pizero.exported.policy import load_exported
        import pizero.policy.chunk_executor
        seconds = time.perf_counter() - started
        import numpy as np
        for folder in sys.argv[1:]:
            policy = load_exported(folder, threads=1, verify=True)
            past = (policy.num_history,) if policy.num_history > 1 else ()
            seen = {
                "state": np.zeros((*past, 3), np.float32), "prompt": "go",
                "images": {name: np.zeros((*past, 30, 40, 3), np.uint8) for name in ("top", "hand")},
            }
            assert np.isfinite(policy.infer(seen)["actions"]).all()
        print(seconds, *{name.split(".")[0] for name in sys.modules if "." not in name})
    """
    exports = [str(exported) for _, exported in folders.values()]
    shown = subprocess.run([sys.executable, "-c", code, *exports], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "torch" not in shown.stdout.split()


def test_what_the_runner_imports_is_python_3_10_and_in_its_wheel(folders: dict[str, tuple[Path, Path]]) -> None:
    """Syntax, and names of the standard library that came later and are read at import."""
    later = {"NotRequired", "Required", "Self", "StrEnum", "Never", "assert_never", "tomllib", "ExceptionGroup", "UTC"}
    code = (
        "import sys, pizero.exported.policy, pizero.policy.chunk_executor\n"
        "print(*(module.__file__ for name, module in sys.modules.items() if name.split('.')[0] == 'pizero'))"
    )
    files = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(files) > 20
    runner = tomllib.loads((ROOT / "integrations" / "pizero_runner" / "pyproject.toml").read_text())
    packed = {ROOT / "src" / name.replace(".", "/") for name in runner["tool"]["setuptools"]["packages"]}
    assert {Path(file).parent for file in files} <= packed
    for file in files:
        tree = ast.parse(Path(file).read_text(), feature_version=(3, 10))
        for node in tree.body:  # what is imported in functions, or for annotations alone, is not read
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & later, (file, names & later)


def test_an_observation_is_checked_as_everywhere(folders: dict[str, tuple[Path, Path]]) -> None:
    policy = load_exported(folders["pi0"][1], threads=1)
    robot = observation()
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "no state": ({"state": np.zeros(2, np.float32)}, "state: got shape"),
        "NaN": ({"state": np.array([0, np.nan, 0], np.float32)}, r"dimensions \[1\] are NaN"),
        "no camera": ({"images": {"top": robot["images"]["top"]}}, "no camera 'hand'"),
        "noise": ({"noise": np.zeros((2, 2))}, "noise: got shape"),
        "old chunk": ({"previous_actions": np.zeros((2, 2))}, "cannot continue a chunk, since its model"),
    }
    for change, message in wrong.values():
        with pytest.raises(UserError, match=message):
            policy.infer({**robot, **change})
        with pytest.raises(UserError, match=message):
            policy.prepare({**robot, **change})
    assert policy.infer_batch([]) == []


def test_the_same_seed_gives_the_same_chunks(folders: dict[str, tuple[Path, Path]]) -> None:
    first, again, other = (load_exported(folders["pi0"][1], seed=seed, threads=1) for seed in (3, 3, 4))
    chunks = [policy.infer(observation())["actions"] for policy in (first, again, other)]
    assert np.array_equal(chunks[0], chunks[1])
    assert not np.allclose(chunks[0], chunks[2])


def test_a_loop_plays_an_export(folders: dict[str, tuple[Path, Path]]) -> None:
    policy = load_exported(folders["pi05"][1], threads=1)
    with RobotLoop(policy, ChunkExecutor(3)) as loop:
        actions = [loop.act(observation(seed)) for seed in range(5)]
    assert all(action is not None and action.shape == (2,) for action in actions)


@pytest.mark.parametrize(
    ("kind", "to", "dtype", "expected"),
    [
        ("pi05", "onnx", "bfloat16", 2e-2),
        ("diffusion", "onnx", "float16", 2e-3),
        ("pi0", "onnx", "int8", 5e-2),
        ("pi05-text", "openvino", "float32", 1e-4),
        ("diffusion", "openvino", "float32", 1e-4),
        ("pi0", "openvino", "int8", 5e-2),
        ("pi05", "openvino", "bfloat16", 5e-2),
        ("pi0", "openvino", "float16", 5e-3),
    ],
)
def test_other_runtimes_and_dtypes(
    kind: str, to: Any, dtype: Any, expected: float, folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """As near as the dtype allows, and smaller where it should be; absent cameras as before."""
    pytest.importorskip("openvino" if to == "openvino" else "onnxruntime")
    checkpoint, whole = folders[kind]
    told = export(checkpoint, tmp_path / "export", to=to, dtype=dtype, threads=1)
    assert told.relative <= expected
    policy, exact = load_exported(tmp_path / "export", threads=1), load_exported(whole, threads=1)
    robot = observation(5, policy.num_history) | {"noise": np.zeros(policy.noise_shape, np.float32), "subtask": "lift"}
    robot["images"]["top"] = None
    ours, theirs = exact.infer(robot)["actions"], policy.infer(robot)["actions"]
    assert np.abs(theirs - ours).max() <= 2 * expected * np.abs(ours).max()
    if dtype in ("bfloat16", "float16"):
        weights = "step.bin" if to == "openvino" else "step.0.bin"
        assert (tmp_path / "export" / weights).stat().st_size < (whole / "step.0.bin").stat().st_size


def test_openvino_widens_16_bits_where_they_are_read(tmp_path: Path) -> None:
    """Weights of a matrix in float16: a memory map of the file, and no wider copy when it is opened."""
    openvino = pytest.importorskip("openvino")
    graph = Graph("product", "float16", "openvino")
    product = graph.product(graph.input("x", ["tokens", 8]), "layer", lambda: torch.eye(8))
    graph.output(product, "y", ["tokens", 8])
    graph.save(tmp_path)
    to_openvino(tmp_path, "product")
    casts = [
        node
        for node in openvino.Core().read_model(tmp_path / "product.xml").get_ops()
        if "decompression_0" in node.get_rt_info()
    ]
    assert [node.get_type_name() for node in casts] == ["Convert"]


def test_an_export_is_no_checkpoint(folders: dict[str, tuple[Path, Path]]) -> None:
    with pytest.raises(UserError, match="is an export, no checkpoint; pizero serve"):
        load_policy(folders["pi0"][1])


def test_int8_names_the_error_of_each_layer(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """As `pizero bench int8` measures it; the manifest keeps it."""
    told = export(folders["pi0"][0], tmp_path / "export", to="onnx", dtype="int8", threads=1)
    example, model = load_example(folders["pi0"][0]), load_model(folders["pi0"][0])
    assert example is not None
    seen = pipeline_of(model.config)
    inputs = seen.observation(seen.robot_inputs([example.observation]), "cpu")
    noise = torch.from_numpy(example.noise[None])
    expected = sensitivity(model, inputs, noise, example.num_steps).layers
    assert told.layers == {name: errors.actions for name, errors in expected.items()}
    assert any(told.layers.values())
    proof = load_exported(tmp_path / "export", threads=1).manifest.proof
    assert {f"layer {name}": error for name, error in told.layers.items()}.items() <= proof.items()


def test_an_int8_product_names_both_zero_points(tmp_path: Path) -> None:
    """ONNX Runtime 1.23 reads the last one where it is missing, and ends the process."""
    graph = Graph("product", "int8")
    product = graph.product(graph.input("x", ["tokens", 4]), "layer", lambda: torch.eye(3, 4))
    graph.output(product, "y", ["tokens", 3])
    graph.save(tmp_path)
    nodes = pytest.importorskip("onnx").load(tmp_path / "product.onnx").graph.node
    assert [len(node.input) for node in nodes if node.op_type == "MatMulInteger"] == [4]
    session = OnnxSession(tmp_path / "product.onnx", Ports(["x"], ["y"]), "int8", 1)
    x = np.array([[1.0, -2.0, 127.0, 50.0]], np.float32)
    np.testing.assert_allclose(as_array(session({"x": x})["y"]), x[:, :3], rtol=1e-6)


def test_an_int8_product_does_not_saturate(tmp_path: Path) -> None:
    """Nor where two products of 255 and 127 are added in 16 bits first: on x86 without VNNI."""
    graph = Graph("product", "int8")
    graph.output(
        graph.product(graph.input("x", ["tokens", 64]), "layer", lambda: torch.ones(8, 64)), "y", ["tokens", 8]
    )
    graph.save(tmp_path)
    session = OnnxSession(tmp_path / "product.onnx", Ports(["x"], ["y"]), "int8", 1)
    y = as_array(session({"x": np.full((3, 64), 5, np.float32)})["y"])
    np.testing.assert_allclose(y, np.full((3, 8), 320.0), rtol=1e-5)


def test_int8_is_for_pi0_alone(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="int8 is for"):
        export(folders["flow"][0], tmp_path / "export", to="onnx", dtype="int8", threads=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"num_steps": 0}, {"num_steps": 10**9}, {"threads": 0}, {"threads": -1}])
def test_numbers_that_cannot_be(wrong: dict[str, int], folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))} must be"):
        export(folders["pi0"][0], tmp_path / "export", to="onnx", **wrong)
    assert list(tmp_path.iterdir()) == []
    if "threads" in wrong:
        with pytest.raises(UserError, match="threads must be"):
            load_exported(folders["pi0"][1], **wrong)


def test_weights_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the limit each, and together the same policy."""
    for module in ("graph", "words"):
        monkeypatch.setattr(f"pizero.export.{module}.PART_BYTES", 40_000)
    export(write(tmp_path / "checkpoint", "pi05"), tmp_path / "export", to="onnx", threads=1)
    parts = list((tmp_path / "export").glob("*.bin"))
    assert len(parts) > 4
    assert max(path.stat().st_size for path in parts) <= 40_000
