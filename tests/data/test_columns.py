"""Rows and columns as people have them: faults of their episodes, or derived and told."""

from __future__ import annotations

import decimal
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pizero.cli.main import run
from pizero.data.datasets.files.numbers import read_columns
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.layout import BadEpisodeError
from pizero.types import UserError
from pizero.workflows.check import CheckConfig, check

GOLDEN = Path(__file__).parents[1] / "golden/lerobot/datasets"
PNG, PNG_V21 = GOLDEN / "v30_png", GOLDEN / "v21_png"
DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
STARTS = [0, 40, 78, 120, 161]


@pytest.fixture
def png(tmp_path: Path) -> Path:
    return shutil.copytree(PNG, tmp_path / "png")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(PNG_V21, tmp_path / "old")


def put(path: Path, name: str, values: Any) -> None:
    """A column anew; `None` takes it away."""
    table = pq.read_table(path)
    place = table.column_names.index(name)
    table = table.remove_column(place)
    pq.write_table(table if values is None else table.add_column(place, name, values), path)


def lists(path: Path, name: str) -> list[Any]:
    return pq.read_table(path)[name].to_pylist()


def bad_episodes(root: Path, message: str, **options: Any) -> tuple[int, ...]:
    with pytest.raises(BadEpisodeError, match=message) as caught:
        LeRobotDataset(root, **options)
    assert "\n" not in str(caught.value)
    return caught.value.episodes


def without(root: Path, bad: list[int]) -> None:
    """The other episodes are as they were."""
    good = [episode for episode in range(4) if episode not in bad]
    with pytest.warns(UserWarning, match=f"skipped {len(bad)} of 4 episodes"):
        dataset = LeRobotDataset(root, skip_bad_episodes=True)
    expected = LeRobotDataset(PNG, episodes=good)
    assert dataset.episodes.tolist() == good
    for key in ("observation.state", "action"):
        np.testing.assert_array_equal(dataset.column(key), expected.column(key))
    np.testing.assert_array_equal(dataset.images("top", [3]), expected.images("top", [3]))


# ---------------------------------------------------------------- rows of numbers


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64())], ids=str)
def test_rows_of_other_lengths(png: Path, kind: pa.DataType) -> None:
    """5 numbers and 1 more: as many in all as if each row had 3."""
    rows = lists(png / DATA, "action")
    rows[50], rows[51] = [*rows[50], 7.0, 8.0], rows[51][:1]
    put(png / DATA, "action", pa.array(rows, kind))
    text = r"file-000\.parquet, episode 1: column 'action' has 5 numbers in row 50 of the file, frame 10 of the episode"
    assert bad_episodes(png, text + r" \(and 1 more\), where others have 3; `pizero check` shows all") == (1,)
    without(png, [1])


def test_half_of_the_episodes_with_other_lengths(png: Path) -> None:
    """Of two lengths that are as frequent, that of info.json counts."""
    rows = [[*row, 1.0, 2.0] if number >= 78 else row for number, row in enumerate(lists(png / DATA, "action"))]
    put(
        png / DATA,
        "action",
        pa.array(rows[:78] + rows[78:156], pa.list_(pa.float32())).take(pa.array([*range(156)] + [155] * 5)),
    )
    assert bad_episodes(png, "has 3 numbers in row 0 of the file") == (0, 1)  # 83 rows have 5
    info = json.loads((png / "meta/info.json").read_text())
    assert info["features"]["action"]["shape"] == [3]
    table = pq.read_table(png / DATA)
    pq.write_table(table.slice(0, 156), png / DATA)
    episodes = pq.read_table(png / EPISODES)
    lengths = pa.array([40, 38, 42, 36])
    pq.write_table(episodes.set_column(episodes.column_names.index("length"), "length", lengths), png / EPISODES)
    assert bad_episodes(png, "has 5 numbers in row 78 of the file") == (2, 3)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda rows: [None if n == 130 else row for n, row in enumerate(rows)], "column 'action' is null"),
        (
            lambda rows: [[row[0], None, row[2]] if n == 130 else row for n, row in enumerate(rows)],
            "of column 'action' is null",
        ),
    ],
    ids=["row", "number"],
)
@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 3)], ids=str)
def test_nulls(png: Path, change: Any, what: str, kind: pa.DataType) -> None:
    put(png / DATA, "action", pa.array(change(lists(png / DATA, "action")), kind))
    assert bad_episodes(png, what + " in row 130 of the file, frame 10 of the episode") == (3,)
    without(png, [3])


def test_a_null_is_told_by_the_name_of_its_dimension(png: Path) -> None:
    rows = lists(png / DATA, "action")
    rows[0] = [1.0, 2.0, None]
    put(png / DATA, "action", pa.array(rows, pa.list_(pa.float32())))
    path = png / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["action"]["names"] = {"motors": ["x", "y", "gripper"]}
    path.write_text(json.dumps(info))
    bad_episodes(png, "gripper of column 'action' is null")
    info["features"]["action"]["names"] = None
    path.write_text(json.dumps(info))
    bad_episodes(png, "dimension 2 of column 'action' is null")


def test_not_a_number_is_no_null(png: Path) -> None:
    rows = lists(png / DATA, "action")
    rows[0] = [1.0, float("nan"), 2.0]
    put(png / DATA, "action", pa.array(rows, pa.list_(pa.float32())))
    assert np.isnan(LeRobotDataset(png).column("action")[0]).tolist() == [False, True, False]


def test_all_episodes_with_nulls(png: Path) -> None:
    put(png / DATA, "action", pa.nulls(161))
    assert bad_episodes(png, "column 'action' is null in row 0") == (0, 1, 2, 3)


def test_columns_that_the_robot_does_not_have_are_not_looked_at(png: Path) -> None:
    put(png / DATA, "action", pa.nulls(161, pa.list_(pa.float32())))
    dataset = LeRobotDataset(png, columns=["observation.state"])
    assert dataset.column("observation.state").shape == (161, 4)
    with pytest.raises(BadEpisodeError, match="column 'action' is null"):
        dataset.column("action")


@pytest.mark.parametrize("command", ["check", "norm-stats", "convert-dataset"])
def test_commands_tell_bad_rows_alike(
    old: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = old / "data/chunk-000/episode_000001.parquet"
    put(path, "action", pa.array([[0.0] if n == 5 else row for n, row in enumerate(lists(path, "action"))]))
    arguments = [str(old)] + ([str(tmp_path / "new")] if command == "convert-dataset" else [])
    assert run(command, arguments) == (1 if command == "check" else 2)
    shown = " ".join(capsys.readouterr().err.split())
    assert "column 'action' has 1 numbers in row 5 of the file, frame 5 of the episode, where others have 3" in shown
    assert "--skip-bad-episodes" in shown
    if command != "check":
        assert run(command, [*arguments, "--skip-bad-episodes"]) == 0


def test_nested_sliced_and_chunked_columns(tmp_path: Path) -> None:
    """Every form of list, read row by row, whatever lies before and after it in memory."""
    nested = pa.array(
        [[[1, 2], [3]], [[4, 5, 6]], None, [[7], [8], None], [[], [9, 10, 11]]], pa.list_(pa.list_(pa.int64()))
    )
    fixed = pa.array([[0.0, 0.0], [1.0, 2.0], None, [3.0, None], [5.0, 6.0], [7.0, 8.0]], pa.list_(pa.float32(), 2))
    table = pa.table(
        {
            "nested": pa.chunked_array([nested.slice(0, 2), nested.slice(2)]),
            "fixed": pa.chunked_array([fixed.slice(1, 2), fixed.slice(3)]),
            "whole": pa.array([[1], [2, 3], [], [4], [5]], pa.list_(pa.int8())).slice(0),
            "decimal": pa.array([decimal.Decimal("1.5"), None, *map(decimal.Decimal, "234")]),
            "category": pa.array([1.0, 2.0, 1.0, None, 3.0]).dictionary_encode(),
            "switch": pa.array([True, None, False, True, True]),
            "text": pa.array(list("abcde")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    columns = read_columns(tmp_path / "a.parquet", ["nested", "fixed", "whole", "decimal", "category", "switch"])
    assert columns["nested"].widths[[0, 1, 4]].tolist() == [3, 3, 3]
    assert columns["nested"].nulls.tolist() == [False, False, True, True, False]
    assert columns["nested"].take(np.array([4, 0, 1]), 3).tolist() == [[9, 10, 11], [1, 2, 3], [4, 5, 6]]
    assert columns["fixed"].nulls.tolist() == [False, True, True, False, False]
    assert columns["fixed"].take(np.array([0, 3, 4]), 2).tolist() == [[1, 2], [5, 6], [7, 8]]
    assert columns["whole"].widths.tolist() == [1, 2, 0, 1, 1]
    for name, values in (
        ("decimal", [1.5, None, 2, 3, 4]),
        ("category", [1, 2, 1, None, 3]),
        ("switch", [1, None, 0, 1, 1]),
    ):
        assert [None if np.isnan(value) else value for value in columns[name].scalars()] == values
    with pytest.raises(UserError, match="'text' holds no numbers but string"):
        read_columns(tmp_path / "a.parquet", ["text"])


def test_widths_that_are_not_the_datas(png: Path) -> None:
    path = png / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["action"]["shape"] = [7]
    path.write_text(json.dumps(info))
    dataset = LeRobotDataset(png)
    assert dataset.notes == ["meta/info.json says 7 numbers of 'action', the data has 3: the data counts"]
    assert dataset.column("action").shape == (161, 3)
    assert dataset.names("action") == LeRobotDataset(PNG).names("action")


# ---------------------------------------------------------------- index columns


@pytest.mark.parametrize("kind", ["missing", "null", "some null", "text"])
@pytest.mark.parametrize("name", ["frame_index", "timestamp", "task_index"])
def test_index_columns_are_derived(png: Path, name: str, kind: str) -> None:
    values = {
        "missing": None,
        "null": pa.nulls(161),
        "some null": pa.array([None if n == 90 else value for n, value in enumerate(lists(png / DATA, name))]),
        "text": pa.array(["x"] * 161),
    }[kind]
    put(png / DATA, name, values)
    dataset, expected = LeRobotDataset(png), LeRobotDataset(PNG)
    (note,) = dataset.notes
    count = "1 frames of 1" if kind == "some null" else "161 frames of 4"
    assert note.startswith(f"{name} is missing in {count} of 4 episodes: ")
    for column in ("frame_index", "task_index", "episode_index"):
        np.testing.assert_array_equal(getattr(dataset, column), getattr(expected, column))
    np.testing.assert_allclose(dataset.timestamp, expected.timestamp, atol=1e-6)


@pytest.mark.parametrize("name", ["index", "episode_index"])
def test_numbers_that_are_not_needed(old: Path, name: str) -> None:
    """A file for each episode: all its rows are the episode's."""
    for path in (old / "data").rglob("*.parquet"):
        put(path, name, None)
    dataset = LeRobotDataset(old)
    np.testing.assert_array_equal(dataset.column("action"), LeRobotDataset(PNG_V21).column("action"))
    told = ["episodes 0, 1, 2, 3: the data has no episode_index, the lengths give the rows"]
    assert dataset.notes == (told if name == "episode_index" else [])


def test_a_file_of_several_episodes_without_their_numbers(png: Path) -> None:
    put(png / DATA, "episode_index", None)
    np.testing.assert_array_equal(LeRobotDataset(png).column("action"), LeRobotDataset(PNG).column("action"))
    table = pq.read_table(png / DATA)
    pq.write_table(table.slice(0, 150), png / DATA)
    assert bad_episodes(png, "0 frames, but the description says 40") == (0, 1, 2, 3)


def test_a_task_that_nothing_tells(png: Path) -> None:
    put(png / DATA, "task_index", None)
    put(png / EPISODES, "tasks", None)
    with pytest.raises(UserError, match="episode 0: nothing says which of 2 tasks it is"):
        LeRobotDataset(png)
    (png / "meta/tasks.parquet").unlink()
    dataset = LeRobotDataset(png)
    assert dataset.notes == ["meta/ has no task at all: every prompt is empty unless the robot has a default_prompt"]
    assert dataset.prompts([3], default="push") == ["push"]


def test_no_table_of_tasks(old: Path) -> None:
    (old / "meta/tasks.jsonl").unlink()
    dataset, expected = LeRobotDataset(old), LeRobotDataset(PNG_V21)
    assert dataset.prompts(range(161)) == expected.prompts(range(161))
    assert dataset.notes == ["meta/ has no table of tasks: the tasks that it lists with the episodes are used"]


def test_rows_that_are_not_in_the_order_of_time(png: Path) -> None:
    table = pq.read_table(png / DATA)
    order = [*range(78), *range(119, 77, -1), *range(120, 161)]
    pq.write_table(table.take(pa.array(order)), png / DATA)
    dataset, expected = LeRobotDataset(png), LeRobotDataset(PNG)
    assert dataset.notes == [
        "42 frames of 1 of 4 episodes are not in the order of their frame_index: they are put in it"
    ]
    np.testing.assert_array_equal(dataset.column("action"), expected.column("action"))
    np.testing.assert_array_equal(dataset.images("top", [80, 100]), expected.images("top", [80, 100]))


# ---------------------------------------------------------------- files


def split(root: Path, parts: list[range], said: list[int]) -> None:
    """The data file in several, and the file that meta/ says of each episode."""
    table = pq.read_table(root / DATA)
    for number, rows in enumerate(parts):
        target = root / f"data/chunk-000/file-{number:03d}.parquet"
        pq.write_table(table.slice(rows.start, len(rows)), target)
    put(root / EPISODES, "data/file_index", pa.array(said))


@pytest.mark.parametrize("said", [[0, 0, 0, 1], [0, 1, 1, 1], [0, 7, 1, 1]], ids=["next", "previous", "none"])
def test_an_episode_in_another_file(png: Path, said: list[int]) -> None:
    split(png, [range(78), range(78, 161)], said)
    moved = 2 if said[2] == 0 else 1
    dataset, expected = LeRobotDataset(png), LeRobotDataset(PNG)
    assert dataset.notes == [f"episode {moved} is in another data file than meta/ says, and used from there"]
    np.testing.assert_array_equal(dataset.column("action"), expected.column("action"))
    np.testing.assert_array_equal(dataset.images("top", [60, 100]), expected.images("top", [60, 100]))


@pytest.mark.parametrize("last", ["gone", "torn", "empty"])
def test_an_interrupted_recording(png: Path, last: str) -> None:
    split(png, [range(120), range(120, 161)], [0, 0, 0, 1])
    path = png / "data/chunk-000/file-001.parquet"
    if last == "gone":
        path.unlink()
    elif last == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    dataset = LeRobotDataset(png)
    assert dataset.notes[0].startswith("episode 3 is listed in meta/, but the data ends before (the recording was")
    assert "total_episodes 4 and total_frames 161, but meta/ lists 3 and 120" in dataset.notes[1]
    np.testing.assert_array_equal(dataset.column("action"), LeRobotDataset(PNG, episodes=[0, 1, 2]).column("action"))
    with pytest.raises(UserError, match="has no episode 3; it has 3, from 0 to 2"):
        LeRobotDataset(png, episodes=[3])


def test_an_incomplete_copy_is_no_interrupted_recording(old: Path) -> None:
    for index in (1, 2):
        (old / f"data/chunk-000/episode_{index:06d}.parquet").unlink()
    assert bad_episodes(old, r"episode_000001\.parquet, episode 1: the file is missing") == (1, 2)
    (old / "data/chunk-000/episode_000003.parquet").unlink()
    assert bad_episodes(old, "the file is missing") == (1, 2, 3)


def test_data_that_meta_does_not_list(png: Path) -> None:
    pq.write_table(pq.read_table(png / EPISODES).slice(0, 2), png / EPISODES)
    dataset = LeRobotDataset(png)
    assert "the data has episodes 2, 3, which meta/ does not list: not used" in dataset.notes
    assert dataset.num_frames == 78


def test_a_file_that_numbers_its_episode_otherwise(old: Path) -> None:
    path = old / "data/chunk-000/episode_000002.parquet"
    put(path, "episode_index", pa.array([0] * 42))
    dataset = LeRobotDataset(old)
    assert dataset.notes == ["episode 2: the data file has another episode_index, all its rows are used"]
    assert dataset.episode_index[80] == 2
    np.testing.assert_array_equal(dataset.column("action"), LeRobotDataset(PNG_V21).column("action"))


@pytest.mark.parametrize("values", [None, pa.array(["[0, 1, 2]"] * 38)])
def test_a_column_that_some_files_do_not_have(old: Path, values: Any) -> None:
    put(old / "data/chunk-000/episode_000001.parquet", "action", values)
    message = r"episode 1: column 'action' is not there, or holds no numbers, as it does in other files;"
    assert bad_episodes(old, message) == (1,)
    without(old, [1])


@pytest.mark.parametrize("column", ["action", "task_index", "timestamp"])
def test_a_file_that_is_damaged_in_one_column(old: Path, column: str) -> None:
    path = old / "data/chunk-000/episode_000001.parquet"
    meta = pq.ParquetFile(path).metadata.row_group(0)
    chunks = [meta.column(number) for number in range(meta.num_columns)]
    (chunk,) = (chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)
    assert bad_episodes(old, "episode 1: the file is damaged: columns .* cannot be read") == (1,)
    without(old, [1])
    assert [fault["episode"] for fault in check(old, CheckConfig(horizon=3))["faults"]] == [1]


def test_a_footer_with_a_damaged_name(old: Path) -> None:
    path = old / "data/chunk-000/episode_000001.parquet"
    path.write_bytes(path.read_bytes().replace(b"frame_index", b"fram\xff_index"))
    assert bad_episodes(old, "episode 1: the file cannot be read as a parquet file") == (1,)


def test_rows_that_are_there_twice(png: Path) -> None:
    table = pq.read_table(png / DATA)
    pq.write_table(pa.concat_tables([table, table.slice(0, 2)]), png / DATA)
    message = "episode 0: 42 frames, but the description says 40; the description is wrong, or rows are there twice"
    assert bad_episodes(png, message) == (0,)


def test_task_numbers_that_the_table_does_not_have(old: Path, tmp_path: Path) -> None:
    put(old / "data/chunk-000/episode_000002.parquet", "task_index", pa.array([0] * 40 + [7, 7]))
    message = r"episode 2: task_index 7 \(frame 40\) is not in the table of tasks of meta/, which has 2 tasks;"
    assert bad_episodes(old, message) == (2,)
    without(old, [2])
    results = check(old, CheckConfig(horizon=3))
    assert [(fault["kind"], fault["episode"]) for fault in results["faults"]] == [("unknown task", 2)]
