"""Simulators, robots and presets from outside the package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest

from pizero.baseline.config import BaselineConfig
from pizero.cli.main import run
from pizero.configs.presets import PRESETS, ModelName, Preset, get_preset, small, tabletop
from pizero.data.embodiments import get_embodiment
from pizero.envs import ENVS, make_env
from pizero.types import UserError

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```\w*\n(.*?)```", (ROOT / "docs" / "simulators.md").read_text(), re.DOTALL)


def block(words: str) -> str:
    """The one of docs/simulators.md with these words."""
    (found,) = (text for text in BLOCKS if words in text)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with the simulator and the preset of docs/simulators.md."""
    (tmp_path / "dot.py").write_text(block("class DotEnv"))
    (tmp_path / "dot.toml").write_text(block('embodiment = "dot:robot"'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "dot", raising=False)
    yield tmp_path
    sys.modules.pop("dot", None)


@pytest.fixture
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution `dots` that offers names."""
    site = folder / "site"
    (site / "dots-1.0.dist-info").mkdir(parents=True)
    (site / "dots-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: dots\nVersion: 1.0\n")
    offered = block("project.entry-points").replace("[project.entry-points.", "[").replace('"', "")
    (site / "dots-1.0.dist-info" / "entry_points.txt").write_text(f"{offered}lost = nowhere:f\ntabletop = dot:preset\n")
    (folder / "dot.py").rename(site / "dot.py")
    preset = (
        "from pizero.configs.presets import get_preset\ndef dot(model):\n    return get_preset('dot.toml', model)\n"
    )
    (site / "dot_presets.py").write_text(preset)
    monkeypatch.syspath_prepend(str(site))
    return folder


def test_the_example_of_the_docs(folder: Path) -> None:
    """Its commands, with fewer episodes and steps: collect with workers, train and measure in it, evaluate."""
    few = {
        "collect": ["--episodes", "3", "--workers", "2"],
        "train": ["--steps", "2", "--batch-size", "2", "--draws", "1", "--evaluate-env", "dot:DotEnv",
                  "--evaluate-every", "2", "--evaluate-episodes", "1"],
        "evaluate": ["--episodes", "1"],
    }  # fmt: skip
    for line in block("pizero collect dot:DotEnv").splitlines():
        _, command, *arguments = line.split()
        assert run(command, [*arguments, *few.pop(command)]) == 0
    assert not few
    assert (folder / "dot-run" / "evaluation" / "results.json").is_file()
    assert '"success_rate"' in (folder / "dot-run" / "metrics.jsonl").read_text()


def test_names_of_an_installed_distribution(installed: Path) -> None:
    assert make_env("dot", image_size=9, tasks=["red"]).task_names == ("red",)
    assert get_embodiment("dot").cameras == {"base_0_rgb": "top"}
    assert get_preset("dot", "pi05").train.steps == 600
    (installed / "near.toml").write_text('[robot]\nlike = "dot"\nstate_dim = 2\n')
    assert get_embodiment("near.toml").cameras == {"base_0_rgb": "top"}
    assert get_preset("tabletop") == tabletop()
    with pytest.raises(
        UserError, match=r"unknown simulator 'dott' \(did you mean dot\?\); .*tabletop.* dot, or module"
    ):
        make_env("dott")
    with pytest.raises(UserError, match=r"preset 'lost' of dots \(nowhere:f\) cannot be loaded: ModuleNotFoundError"):
        get_preset("lost")


def test_built_in_names_read_no_entry_points() -> None:
    code = (
        "import importlib.metadata as m; m.entry_points = None\n"
        "from pizero.envs import make_env; make_env('tabletop')\n"
        "from pizero.data.embodiments import get_embodiment; get_embodiment('aloha')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


WRONG = """
from dot import DotEnv
class Half:
    fps, max_steps, task_names, state_names, action_names = 1.0, 1, (), (), ()
    action_space, demonstration_noise = None, 0.0
    reset = step = render = demonstrator = close = None
def breaks(**options):
    raise ValueError("no\\nlicence")
def half(**options):
    return Half()
def plain():
    return DotEnv()
number = 3
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong:brakes", r"simulator 'wrong:brakes': .*wrong\.py has no function 'brakes' \(did you mean breaks\?\)"),
        ("wrong:number", "has no function 'number'"),
        ("wrong:breaks", r"'wrong:breaks' cannot be made: ValueError: no licence \(.*wrong\.py, line 8\)"),
        ("wrong:half", "'wrong:half' made a Half without observe; see docs/simulators.md"),
        ("wrong:plain", "TypeError: plain.. got an unexpected keyword argument"),
        (
            "worse:f",
            r"'worse' cannot be imported: ModuleNotFoundError: No module named 'hurdles' \(.*worse.py, line 1\)",
        ),
        ("nowhere:f", "'nowhere' cannot be imported: there is no such module in this folder, and none is installed"),
        (
            "tabeltop",
            r"unknown simulator 'tabeltop' \(did you mean tabletop.*\?\); expected one of tabletop, tabletop-long, ",
        ),
    ],
)
def test_a_wrong_simulator_is_one_line(
    name: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "wrong.py").write_text(WRONG)
    (folder / "worse.py").write_text("import hurdles\n")
    sys.modules.pop("wrong", None)
    assert run("collect", [name, "--output", "data", "--episodes", "1"]) == 2
    line, *more = capsys.readouterr().err.strip().splitlines()
    assert not more
    assert re.search(message, line)
    assert run("train", ["data", "--preset", "tabletop", "--output", "run", "--evaluate-env", name]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    with pytest.raises(UserError, match=message):
        make_env(name)


def test_what_is_no_robot_or_preset() -> None:
    with pytest.raises(UserError, match="embodiment 'os:getcwd': expected an Embodiment, got a str"):
        get_embodiment("os:getcwd")
    with pytest.raises(UserError, match="preset 'json:dumps': expected a Preset, got a str"):
        get_preset("json:dumps")
    with pytest.raises(UserError, match=r"unknown preset 'smal' .did you mean small"):
        get_preset("smal")


@pytest.mark.parametrize(("command", "names"), [("collect", ENVS), ("evaluate", ENVS), ("train", PRESETS)])
def test_help_lists_the_built_in_names(command: str, names: dict, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(command, ["--help"])
    shown = capsys.readouterr().out
    assert [name for name in names if name.removesuffix("-published") not in shown] == []
    assert ("-published" in shown) == any(name.endswith("-published") for name in names)
    assert "docs/simulators.md" in " ".join(re.sub("[│|]", " ", shown).split())


def preset_of(text: str, tmp_path: Path, model: ModelName = "pi0") -> Preset:
    (tmp_path / "mine.toml").write_text(text)
    return get_preset(str(tmp_path / "mine.toml"), model)


def test_a_preset_file(tmp_path: Path) -> None:
    mine = preset_of(
        'like = "tabletop"\nembodiment = "arm.toml"\nexecution_horizon = 3\n[model]\ncameras = ["base_0_rgb"]\n'
        "[model.expert]\nmlp_dim = 64\n[train]\nlearning_rate = 1\n[train.parts]\nfreeze = ['vision']\n"
        "[train.gradient]\naccumulate = 2\n",
        tmp_path,
    )
    assert mine.embodiment == str(tmp_path / "arm.toml")
    assert (mine.execution_horizon, mine.model.cameras, mine.model.expert.mlp_dim) == (3, ("base_0_rgb",), 64)
    assert (mine.train.learning_rate, mine.train.parts.freeze, mine.train.gradient.accumulate) == (1.0, ("vision",), 2)
    assert mine.train.steps == tabletop().train.steps
    assert preset_of('like = "small"', tmp_path) == small()
    assert get_preset(str(ROOT / "examples" / "my_preset.toml")).model.action_horizon == 16


@pytest.mark.parametrize("name", ["tabletop", "metaworld-mt50"])
@pytest.mark.parametrize("model", get_args(ModelName))
def test_a_preset_file_may_set_every_size(name: str, model: ModelName, tmp_path: Path) -> None:
    """Also those that are not in use, and so not in the model's JSON: `stem_width`."""
    preset = get_preset(name, model)
    assert preset_of(f'like = "{name}"\nmodel = {as_toml(asdict(preset.model))}', tmp_path, model) == preset
    if model != "diffusion":
        mine = preset_of(f'like = "{name}"\n[model.vision]\nstem_width = 8', tmp_path, model)
        assert mine.model.vision.stem_width == 8


def as_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(inner)}" for key, inner in value.items() if inner is not None) + "}"
    return json.dumps(value)


@pytest.mark.parametrize(("asked", "widths"), [("", (72, 144, 288)), ("down_dims = [40, 80, 120]", (40, 80, 120))])
def test_a_preset_file_of_a_large_robot_has_a_wider_unet(asked: str, widths: tuple[int, ...], tmp_path: Path) -> None:
    mine = preset_of(f'like = "tabletop"\n[model]\naction_dim = 34\n{asked}', tmp_path, "diffusion")
    assert isinstance(mine.model, BaselineConfig)
    assert mine.model.down_dims == widths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nsteps = 3", "like must be the name of a preset"),
        ('like = "smal"', "unknown preset 'smal' .did you mean small"),
        ('like = "tabletop"\n[train]\nstep = 3', r"unknown key train\.step; did you mean train\.steps\?"),
        ('like = "tabletop"\nrobot = 3', "unknown key robot; expected some of embodiment, "),
        ('like = "tabletop"\n[train]\nsteps = 1.5', r"train\.steps must be a whole number, got 1\.5"),
        ('like = "tabletop"\ntrain = 3', "train must be a table, got 3"),
        ('like = "tabletop"\nnorm_mode = "z"', "norm_mode must be one of zscore, quantile, got z"),
        ('like = "tabletop"\n[model]\nimage_size = 31', "image_size 31 is not divisible"),
        ('like = "tabletop"\n[train]\nsteps = 0', "steps must be positive"),
        (
            'like = "small"\n[model]\naction_horizon = 9',
            r"the dataset decides model\.action_horizon; add from_data = false",
        ),
        ("like = ", "cannot be read as TOML"),
    ],
)
def test_a_preset_file_with_a_mistake_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"mine\.toml.*{message}") as told:
        preset_of(text, tmp_path)
    assert "\n" not in str(told.value)
