"""Any format to any other: proved before it gets its name, and nothing is left when it fails."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pizero.checkpoints.convert as convert_module
from pizero import load_model, load_policy, save_model
from pizero.baseline.config import small_baseline
from pizero.baseline.policy import DiffusionPolicy
from pizero.checkpoints.convert import convert
from pizero.checkpoints.facts import FACTS, GivenFacts
from pizero.checkpoints.format import SIZES
from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.cli.main import run
from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import CAMERAS, LanguageConfig, Pi0Config, SiglipConfig, small_config
from pizero.model.pi0 import Pi0
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "openpi"
ROBOT = generic({"base_0_rgb": "front"}, state_dim=4, action_dim=4)


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stats") / "norm_stats.json"
    field = FieldStats(np.full(4, 0.2), np.full(4, 0.5), q01=np.full(4, -1.0), q99=np.full(4, 1.0))
    NormStats("zscore", field, field).save(path)
    return path


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native π0 of which nothing but the weights is known."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("nano") / "m"
    save_checkpoint(folder, Pi0(small_config("nano", vocab_size=259)))
    return folder


@pytest.mark.parametrize("to", ["openpi-torch", "openpi-jax", "lerobot"])
@pytest.mark.parametrize("pi05", [False, True])
def test_there_and_back_is_the_same_to_the_bit(to: str, pi05: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Pi0(small_config("nano", pi05=pi05))
    save_checkpoint(tmp_path / "a", model)
    there = convert(tmp_path / "a", tmp_path / "b", to)
    back = convert(tmp_path / "b", tmp_path / "c", "native")
    assert max(there.difference, back.difference) < 1e-5  # the kernels may take another order at another address
    assert (there.source, back.source) == ("native", to)
    again = load_model(tmp_path / "c").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_a_dtype_is_chosen_and_the_difference_said(nano: Path, tmp_path: Path) -> None:
    result = convert(nano, tmp_path / "half", "native", dtype="bfloat16")
    assert result.dtypes == ("bfloat16", "float32")
    assert 0 < result.difference < 0.1 * max(result.largest, 1)


def test_what_is_unknown_stays_unknown(nano: Path, stats: Path, tmp_path: Path) -> None:
    result = convert(nano, tmp_path / "part", "native", given=GivenFacts(norm_stats=stats))
    assert (result.known, result.unknown) == (("norm_stats",), ("embodiment", "tokenizer"))
    assert json.loads((tmp_path / "part" / FACTS).read_text())["embodiment"] is None
    with pytest.raises(UserError, match=r"does not record embodiment nor tokenizer.*--embodiment, --tokenizer"):
        load_policy(tmp_path / "part")
    policy = load_policy(tmp_path / "part", embodiment=ROBOT, tokenizer=PaligemmaTokenizer.bytes())
    image = np.zeros((8, 8, 3), np.uint8)
    actions = policy.infer({"state": np.zeros(4, np.float32), "images": {"front": image}, "prompt": "go"})["actions"]
    assert actions.shape[1] == 4


def test_a_robot_that_is_known_gets_an_example(nano: Path, stats: Path, tmp_path: Path) -> None:
    tokenizer = PaligemmaTokenizer.bytes()
    result = convert(nano, tmp_path / "all", "native", given=GivenFacts(ROBOT, stats, tokenizer))
    assert result.unknown == ()
    assert load_policy(tmp_path / "all", verify=True).pipeline.embodiment == ROBOT


def test_sizes_that_the_source_tells_must_agree(nano: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="differ from arch"):
        convert(nano, tmp_path / "b", "openpi-torch", arch=Pi0Config.pi0())
    assert not list(tmp_path.iterdir())


def test_a_diffusion_policy_stays_native(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "a", DiffusionPolicy(small_baseline("nano")))
    assert convert(tmp_path / "a", tmp_path / "b", "native").difference < 1e-5
    with pytest.raises(UserError, match="openpi has no DiffusionPolicy"):
        convert(tmp_path / "a", tmp_path / "c", "openpi-torch")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_convolutional_stem_stays_native(tmp_path: Path) -> None:
    vision = SiglipConfig(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4, stem_width=8)
    save_model(Pi0(small_config("nano", vision=vision)), tmp_path / "stem")
    assert load_model(tmp_path / "stem").config.vision == vision
    for to in ("openpi-torch", "openpi-jax", "lerobot", "transformers"):
        with pytest.raises(UserError, match=r"convolutional stem \(stem_width 8\) is stored in native folders alone"):
            convert(tmp_path / "stem", tmp_path / to, to=to)
        assert not (tmp_path / to).exists()


def test_a_result_that_acts_otherwise_is_not_kept(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = convert_module.find_format("openpi-torch").write

    def wrong(folder: Path, model: Pi0, facts: object) -> None:
        with torch.no_grad():
            model.action_out_proj.bias.add_(1.0)
        write(folder, model, facts)  # type: ignore[arg-type]

    monkeypatch.setattr(convert_module.FORMATS["openpi-torch"], "write", wrong)
    with pytest.raises(UserError, match="samples other actions than the source"):
        convert(nano, tmp_path / "b", "openpi-torch")
    assert not list(tmp_path.iterdir())


def test_a_wrong_target(nano: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    before = sorted(nano.rglob("*"))
    for target, text in ((tmp_path / "b", "exists already"), (nano, "lies in the source"), (nano / "b", "lies in")):
        with pytest.raises(UserError, match=text):
            convert(nano, target, "openpi-torch")
    assert sorted(nano.rglob("*")) == before
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "notes.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_nothing(
    error: BaseException, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = convert_module.FORMATS["openpi-torch"].write

    def fails(folder: Path, model: Pi0, facts: object) -> None:
        write(folder, model, facts)  # type: ignore[arg-type]
        raise error

    monkeypatch.setattr(convert_module.FORMATS["openpi-torch"], "write", fails)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        convert(nano, tmp_path / "b", "openpi-torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["native", "openpi-torch", "openpi-jax", "lerobot"])
def test_a_file_that_cannot_grow(to: str, nano: Path, tmp_path: Path) -> None:
    """A limit of the kernel on the size of files stands for a disk that gets full while it is written."""
    script = f"import sys; from pizero.cli.main import run; sys.exit(run('convert', sys.argv[1:] + ['--to', {to!r}]))"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    child = subprocess.run(
        [sys.executable, "-c", script, str(nano), str(tmp_path / "b")], preexec_fn=limit, capture_output=True, text=True
    )
    assert child.returncode == 2, child.stderr
    assert "Traceback" not in child.stderr
    assert not list(tmp_path.iterdir())


def test_command(nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", [str(nano), str(tmp_path / "b"), "--to", "openpi-jax"]) == 0
    shown = capsys.readouterr().err
    assert "native -> openpi-jax" in shown
    assert re.search(r"at most (0|\de-0[678]|\d\.\de-0[678]) apart", shown)
    assert "--embodiment" in shown
    assert run("convert", [str(tmp_path / "none"), str(tmp_path / "c"), "--to", "native"]) == 2
    assert "there is nothing at this path" in capsys.readouterr().err
    assert run("convert", [str(GOLDEN / "pi0_d32" / "jax"), str(tmp_path / "c"), "--to", "native"]) == 2
    assert "arch" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["openpi-jax", "openpi-torch"])
@pytest.mark.parametrize("cameras", [(*CAMERAS, "side_0_rgb"), CAMERAS[::-1]], ids=["four", "another order"])
def test_cameras_that_openpi_does_not_see(to: str, cameras: tuple[str, ...], tmp_path: Path) -> None:
    """It takes its three, in its order, and nothing else (openpi src/openpi/models/model.py, IMAGE_KEYS)."""
    save_checkpoint(tmp_path / "source", Pi0(small_config("nano", cameras=cameras)))
    with pytest.raises(UserError, match=rf"^openpi sees the cameras .* alone, .* this model has {', '.join(cameras)}:"):
        convert(tmp_path / "source", tmp_path / "result", to)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("to", ["lerobot", "transformers"])
def test_a_fourth_camera_where_the_format_has_a_place(to: str, tmp_path: Path) -> None:
    """The same actions; what the format has no place for lies beside it."""
    config = small_config("nano", cameras=(*CAMERAS, "side_0_rgb"))
    save_checkpoint(tmp_path / "source", Pi0(config))
    result = convert(tmp_path / "source", tmp_path / "result", to)
    assert result.difference < 1e-5
    assert any(f"{SIZES} holds them" in note for note in result.notes)
    assert load_model(tmp_path / "result").config.cameras == config.cameras


@pytest.mark.parametrize("to", ["openpi-jax", "openpi-torch", "lerobot", "transformers"])
def test_a_small_copy_is_read_without_arch(to: str, tmp_path: Path) -> None:
    """Patches of 8 pixels and a text to write, for which LeRobot and Transformers have no place."""
    vision = SiglipConfig(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=8)
    model = Pi0(small_config("nano", vision=vision, image_size=32, language=LanguageConfig(fast_weight=0.0)))
    save_checkpoint(tmp_path / "source", model)
    convert(tmp_path / "source", tmp_path / "converted", to)
    save_model(model, tmp_path / "saved", to)
    for folder in (tmp_path / "converted", tmp_path / "saved"):
        assert load_model(folder).config == model.config


def test_sizes_beside_a_copy(tmp_path: Path) -> None:
    """Without the file, or with one that does not fit, one line says which file and what to do."""
    model = Pi0(small_config("nano", image_size=42))
    with pytest.warns(UserWarning, match="cannot open it"):
        save_model(model, tmp_path / "copy", "lerobot")
    beside = tmp_path / "copy" / SIZES
    for text, message in (
        ('{"config": {"widht": 3}}', rf"unknown keys in config: widht.*{SIZES}"),
        ("{", rf"{SIZES}"),
        (json.dumps(small_config("nano").to_json()), rf"arch contradicts config.json: image_size 28.*{SIZES}"),
    ):
        beside.write_text(text)
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / "copy")
    beside.unlink()
    with pytest.raises(UserError, match=f"of width 2048, but the weights have 24; give the sizes with arch, .*{SIZES}"):
        load_model(tmp_path / "copy")
