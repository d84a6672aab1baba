"""Whether LeRobot opens datasets that we write or convert, and returns what it returned of the originals.

make test-lerobot-peer
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.language_render import active_at
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from pizero.data.datasets import lerobot as ours
from pizero.data.datasets.writer.lerobot_writer import LeRobotWriter
from pizero.workflows.convert_dataset import convert_dataset

GOLDEN = Path(__file__).parents[2] / "tests/golden/lerobot/datasets"


def written(source: Path, target: Path) -> None:
    """The same frames, recorded frame by frame."""
    dataset = ours.LeRobotDataset(source)
    images = {camera: dataset.images(camera, np.arange(dataset.num_frames)) for camera in dataset.cameras}
    with LeRobotWriter(
        target, fps=dataset.fps, robot_type=dataset.robot_type, image_format="png",
        state_names=[f"s{i}" for i in range(4)], action_names=[f"a{i}" for i in range(3)],
        cameras={camera: dataset.image_shape(camera) for camera in dataset.cameras},
    ) as writer:  # fmt: skip
        for start, length in zip(dataset.episode_starts, dataset.episode_lengths, strict=True):
            for frame in range(start, start + length):
                state, action = (dataset.column(key)[frame] for key in ("observation.state", "action"))
                writer.add_frame(state, action, {camera: found[frame] for camera, found in images.items()})
            writer.save_episode(dataset.prompts([start])[0])


def difference(root: Path, expected: dict[str, np.ndarray]) -> float:
    """The greatest of all that LeRobot returns, pixels in grey levels; infinite where something else differs."""
    window = {"action": [i / 10 for i in range(10)]}
    dataset = LeRobotDataset("local/dataset", root=root, delta_timestamps=window, video_backend="pyav")
    worst = 0.0
    for row, index in enumerate(expected["query_index"]):
        item = dataset[int(index)]
        if (
            item["task"] != expected["task"][row]
            or (item["action_is_pad"].numpy() != expected["action_is_pad"][row]).any()
        ):
            return float("inf")
        for key in ("action", "observation.state"):
            worst = max(worst, float(np.abs(item[key].numpy() - expected[key][row]).max()))
        for camera in ("top", "wrist"):
            key = f"observation.images.{camera}"
            worst = max(worst, float(np.abs(item[key].numpy() * 255 - expected[f"{key}__uint8_chw"][row]).max()))
    return worst


def subtasks_differ(folder: Path) -> int:
    """Frames of which LeRobot finds another subtask than was recorded, of a dataset with several of them."""
    texts = ["lift it"] * 4 + ["put it down"] * 3
    with LeRobotWriter(
        folder, fps=10, robot_type="toy", image_format="png", state_names=["x", "y"], action_names=["dx", "dy"],
        cameras={"top": (16, 16)},
    ) as writer:  # fmt: skip
        for _ in range(2):
            for text in texts:
                writer.add_frame([0.0, 0.0], [0.0, 0.0], {"top": np.zeros((16, 16, 3), np.uint8)}, text)
            writer.save_episode("tidy up")
    dataset = LeRobotDataset("local/dataset", root=folder)
    wrong = 0
    for index, text in enumerate(texts * 2):
        item = dataset[index]
        row = active_at(float(item["timestamp"]), persistent=item["language_persistent"], style="subtask")
        wrong += row is None or row["content"] != text
    return wrong


def one_dimension_differs(folder: Path) -> float:
    """The greatest difference of what LeRobot reads of a state and an action of one dimension: a dataset that we write,
    and one of version 2.1 with lists of one that we convert.
    """
    states, actions = np.arange(6, dtype=np.float32) / 4, np.arange(6, dtype=np.float32)[::-1].copy()
    with LeRobotWriter(
        folder / "written", fps=10, robot_type="toy", image_format="png", state_names=["x"], action_names=["dx"],
        cameras={"top": (16, 16)},
    ) as writer:  # fmt: skip
        for state, action in zip(states, actions, strict=True):
            writer.add_frame([state], [action], {"top": np.zeros((16, 16, 3), np.uint8)})
        writer.save_episode("push")
    dataset = LeRobotDataset("local/dataset", root=folder / "written")
    worst = 0.0
    for index, (state, action) in enumerate(zip(states, actions, strict=True)):
        item = dataset[index]
        found = (float(item["observation.state"]) - state, float(item["action"]) - action)
        worst = max(worst, *(abs(float(value)) for value in found))
    source = shutil.copytree(GOLDEN / "v21_png", folder / "old")
    for path in (source / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        narrow = pa.array([row[:1] for row in table["action"].to_pylist()], pa.list_(pa.float32()))
        place = table.schema.get_field_index("action")
        pq.write_table(table.set_column(place, "action", narrow), path)
    info = json.loads((source / "meta/info.json").read_text())
    info["features"]["action"] |= {"shape": [1], "names": ["gripper.pos"]}
    (source / "meta/info.json").write_text(json.dumps(info))
    convert_dataset(source, folder / "new")
    expected = ours.LeRobotDataset(source).column("action")
    dataset = LeRobotDataset("local/dataset", root=folder / "new")
    return max(worst, *(abs(float(dataset[index]["action"]) - float(expected[index, 0])) for index in (0, 80, 160)))


def main() -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        for source, make in (("v21_png", convert_dataset), ("v21_av1", convert_dataset), ("v30_png", written)):
            target = Path(name) / source
            make(GOLDEN / source, target)
            found = difference(target, dict(np.load(GOLDEN / source / "expected.npz")))
            failed += found > 1e-3
            what = "written again" if make is written else "converted to v3.0"
            print(f"{'ok  ' if found <= 1e-3 else 'FAIL'} {source} {what}: greatest difference {found:.2g}")
        apart = one_dimension_differs(Path(name) / "one")
        failed += apart > 0
        print(f"{'FAIL' if apart else 'ok  '} state and action of one dimension: greatest difference {apart:.2g}")
        wrong = subtasks_differ(Path(name) / "subtasks")
        failed += wrong > 0
        print(f"{'FAIL' if wrong else 'ok  '} subtasks in language_persistent: {wrong} frames with another text")
    return failed


if __name__ == "__main__":
    sys.exit(main())
