"""Every command of docs/from_openpi.md and docs/from_lerobot.md, at a small size."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pizero.checkpoints.files import remote
from pizero.cli import serve
from pizero.cli.main import COMMANDS, run
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.workflows import check, verdict

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("from_openpi.md", "from_lerobot.md")
SO = [f"{name}.pos" for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")]
TINY = shlex.split("--steps 1 --batch-size 2 --draws 1 --warmup-steps 0 --threads 1 --precision float32")


def commands(page: str) -> list[str]:
    """Of the page's blocks of code, in their order."""
    blocks = re.findall(r"^```\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [line.split("   ")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def record(root: Path) -> None:
    rng = np.random.default_rng(0)
    with LeRobotWriter(
        root, fps=10, robot_type="so101_follower", state_names=SO, action_names=SO, cameras={"front": (24, 24)},
        image_format="png",
    ) as writer:  # fmt: skip
        for _ in range(2):
            for step in range(16):
                states = [50 * np.sin((step + at) / 5 + np.arange(6)) for at in (0, 1)]
                writer.add_frame(states[0], states[1], {"front": rng.integers(0, 255, (24, 24, 3), np.uint8)})
            writer.save_episode("put the cube into the box")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small π0.5 in the place of every checkpoint that is elsewhere."""
    folder = tmp_path_factory.mktemp("moving")
    record(folder / "my-data")
    arguments = [str(folder / "my-data"), "--model", "pi05", "--output", str(folder / "base"), *TINY]
    assert run("train", arguments) == 0
    return folder / "base"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page(
    page: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = commands(page)
    assert len(found) >= 8
    checkpoint = next((small / "checkpoints").iterdir())
    served: list[Any] = []

    async def serve_alone(loads: Any, _: Any) -> None:
        served.append({name: load() for name, load in loads().items()})

    monkeypatch.setattr(check, "CHUNKS", 4)
    monkeypatch.setattr(verdict, "CHUNKS", 2)
    monkeypatch.setattr(serve, "_serve_alone", serve_alone)
    monkeypatch.setattr(remote, "_from_hub", lambda *_: checkpoint)
    monkeypatch.setattr(remote, "_from_fsspec", lambda *_: checkpoint)
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "my-data")
    for own in ("checkpoints/my_config/my_run/29999", "outputs/train/mine/checkpoints/last/pretrained_model"):
        (tmp_path / own).parent.mkdir(parents=True)
        (tmp_path / own).symlink_to(checkpoint)
    for text in found:
        name, command, *arguments = shlex.split(text)
        assert (name, command in COMMANDS) == ("pizero", True), text
        if command == "train":
            arguments += TINY
        status = run(command, arguments)
        shown = capsys.readouterr().err
        assert status == 0, f"{text}: {shown}"
    assert len(served) == sum(text.startswith("pizero serve") for text in found)


@pytest.mark.parametrize("page", PAGES)
def test_options_and_presets_of_the_tables_exist(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What stands beside the other project's words."""
    text = (DOCS / page).read_text()
    for command, options in re.findall(r"`pizero ([a-z-]+)((?: [^`]*)?)`", text):
        assert command in COMMANDS, command
        with pytest.raises(SystemExit):
            run(command, ["--help"])
        shown = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", options):
            assert option in shown, (command, option)
    from pizero.configs.presets import PRESETS

    assert set(re.findall(r"--preset (\S+?)[`, ]", text)) <= set(PRESETS)
