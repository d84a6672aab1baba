"""The wheel and the sdist, and the wheel alone in an empty environment: `make test-wheel`.

It downloads PyTorch, at the version of constraints.txt, from the index that pip is set to use. On Linux PyPI's is the
CUDA build, several GB, as for everybody who installs the package there; PIP_EXTRA_INDEX_URL with PyTorch's own index of
CPU builds avoids that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel
ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta as b; f = sys.argv[1]; b.build_sdist(f); b.build_wheel(f)"
LARGEST, HELP_SECONDS = 5e6, 0.5
QUICKSTART = """
from dataclasses import replace
from pathlib import Path
from pizero.configs.presets import tabletop
from pizero.workflows import demo
from pizero.workflows.collect import CollectConfig
from pizero.workflows.evaluate import EvaluateConfig

if __name__ == "__main__":
    preset = tabletop("pi0")
    train = replace(preset.train, steps=4, batch_size=4, warmup_steps=2, save_every=4, validate_every=4)
    collect = CollectConfig("tabletop", episodes=6, image_format="png", workers=2)
    evaluate = EvaluateConfig("tabletop", episodes=1, num_videos=1)
    demo.preset_demo("smoke", replace(preset, train=train), Path("quickstart"), collect, evaluate, baseline_episodes=1)
"""
"""`pizero quickstart`, with a little of everything."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """sdist and wheel, built of the files that git knows: as a checkout holds them."""
    folder = tmp_path_factory.mktemp("built")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.strip("\0").split("\0"):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=folder / "source", capture_output=True, check=True)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an environment that holds the wheel and what it asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("empty") / "env"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    install = [str(programs / "python"), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*install, "--no-compile", str(built[1])], check=True)
    return programs


@pytest.fixture(scope="module")
def trained(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that the installed package trained, some steps on some demonstrations."""
    folder = tmp_path_factory.mktemp("trained")
    pizero(installed, "collect", "tabletop", "--output", "data", "--episodes", "5", folder=folder)
    small = ["--preset", "tabletop", "--steps", "5", "--batch-size", "4", "--warmup-steps", "2", "--output", "run"]
    pizero(installed, "train", "data", *small, folder=folder)
    return folder


def pizero(installed: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs away from the checkout, without what this environment has set."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(installed / "pizero"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)


def test_what_the_wheel_holds(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    assert wheel.stat().st_size < LARGEST
    assert sdist.stat().st_size < LARGEST
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name.removeprefix("src/") for name in tracked.split()} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pizero"}
    with tarfile.open(sdist) as content:
        assert any(name.endswith("src/pizero/py.typed") for name in content.getnames())


def test_help_comes_at_once(installed: Path, tmp_path: Path) -> None:
    def seconds() -> float:
        """Of a core, so that other work on the machine does not count."""
        before = os.times()
        assert "quickstart" in pizero(installed, "--help", folder=tmp_path).stdout
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < HELP_SECONDS


def test_the_quick_start_leaves_its_report(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "smoke.py").write_text(QUICKSTART)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(installed / "python"), "smoke.py"]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert "success" in (tmp_path / "quickstart" / "report.html").read_text(encoding="utf-8")


def test_from_demonstrations_to_a_success_rate(installed: Path, trained: Path) -> None:
    shown = pizero(installed, "evaluate", "run", "--env", "tabletop", "--episodes", "1", folder=trained)
    assert "%" in shown.stdout + shown.stderr
    assert "pizero 0." in pizero(installed, "--version", folder=trained).stdout
    assert "complete" in pizero(installed, "completion", "bash", folder=trained).stdout


def test_the_playground_opens(installed: Path, trained: Path) -> None:
    command = [str(installed / "pizero"), "playground", "run", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, cwd=trained, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "http://" in line)
        with urllib.request.urlopen(line.split()[1]) as page:
            assert b"<html" in page.read()
        process.terminate()
