"""Subtasks of a dataset: every place where people write them, and what is wrong with such a place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.doctor.finding import Finding, Subject
from pizero.data.doctor.subtasks import check_subtasks
from pizero.data.embodiments import generic
from pizero.data.frames import FrameCache
from pizero.data.loader import Loader, Member
from pizero.data.norm_stats import compute_norm_stats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.types import UserError
from pizero.workflows.check import CheckConfig, check

PNG = Path(__file__).parents[1] / "golden/lerobot/datasets/v30_png"
LENGTHS = [40, 38, 42, 41]  # frames, at 10 per second
DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return shutil.copytree(PNG, tmp_path / "data")


def add_column(root: Path, name: str, values: Sequence[Any], dtype: str) -> None:
    table = pq.read_table(root / DATA)
    pq.write_table(table.append_column(name, pa.array(values)), root / DATA)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][name] = {"dtype": dtype, "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))


def row(text: str | None, time: float | None = None, style: str = "subtask") -> dict[str, Any]:
    """As LeRobot's annotation writes it."""
    stamp = {} if time is None else {"timestamp": time}
    return {"role": "assistant", "content": text, "style": style, **stamp, "camera": None, "tool_calls": None}


def pieces(dataset: LeRobotDataset) -> list[tuple[int, int, int, str]]:
    found = dataset.subtasks
    assert found is not None
    return [(one.episode, one.start, one.end, one.text) for one in found.segments]


def write_csv(root: Path, text: str) -> Path:
    path = root / "meta/subtasks.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_dataset_without_any() -> None:
    dataset = LeRobotDataset(PNG)
    assert dataset.subtasks is None
    assert dataset.subtask_texts([0, 1]) == ["", ""]
    with pytest.raises(UserError, match="no column of text 'subtask'"):
        dataset.prompts([0], "subtask")


def test_a_text_of_the_persistent_column_holds_until_the_next(root: Path) -> None:
    rows = [
        [row("lift it", 0.0), row("the whole plan", 0.0, "plan"), row("put it down", 1.25)],
        [],
        [row("put it down", 3.0), row("lift it", 0.5), row(None, 4.0), row("too late", 99.0)],
        [row(" lift it ", 0.0)],
    ]
    broadcast = [own for own, length in zip(rows, LENGTHS, strict=True) for _ in range(length)]
    add_column(root, "language_persistent", broadcast, "language")
    dataset = LeRobotDataset(root)
    assert pieces(dataset) == [
        (0, 0, 13, "lift it"), (0, 13, 40, "put it down"), (2, 5, 30, "lift it"), (2, 30, 40, "put it down"),
        (3, 0, 41, "lift it"),
    ]  # fmt: skip
    assert dataset.subtask_texts([12, 13, 40, 82, 83]) == ["lift it", "put it down", "", "", "lift it"]
    assert dataset.prompts([0, 40], "subtask") == ["lift it", dataset.prompts([40])[0]]
    chosen = LeRobotDataset(root, episodes=[3, 0])
    assert pieces(chosen) == [(0, 0, 13, "lift it"), (0, 13, 40, "put it down"), (3, 0, 41, "lift it")]
    assert chosen.subtask_texts([0, 41 + 13]) == ["lift it", "put it down"]
    with pytest.raises(UserError, match="no numeric column 'language_persistent'"):
        dataset.column("language_persistent")


def test_events_begin_at_their_frame(root: Path) -> None:
    cells: list[list[dict[str, Any]]] = [[] for _ in range(sum(LENGTHS))]
    cells[0], cells[7] = [row("go"), row("hello", style="interjection")], [row("stop")]
    cells[20] = [row("what is it?", style="vqa")]
    add_column(root, "language_events", cells, "language")
    assert pieces(LeRobotDataset(root)) == [(0, 0, 7, "go"), (0, 7, 40, "stop")]


def test_a_column_of_text_and_numbers_of_a_table(root: Path) -> None:
    texts = ["go"] * 20 + [""] * 20 + ["stop"] * 121
    add_column(root, "what", texts, "string")
    assert LeRobotDataset(root).subtasks is None  # a column of that name may be anything
    expected = [(0, 0, 20, "go"), (1, 0, 38, "stop"), (2, 0, 42, "stop"), (3, 0, 41, "stop")]
    assert pieces(LeRobotDataset(root, subtasks="what")) == expected
    with pytest.raises(UserError, match=r"no subtasks 'action'.*it has what$"):
        _ = LeRobotDataset(root, subtasks="action").subtasks
    add_column(root, "subtask_index", [{"go": 0, "": -1, "stop": 1}[text] for text in texts], "int64")
    table = pa.table({"subtask_index": [0, 1], "__index_level_0__": ["go", "stop"]})
    pq.write_table(table, root / "meta/subtasks.parquet")
    assert pieces(LeRobotDataset(root)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "episode,from,to,text\n0,0,1.2,go\n0,1.2,,\"stop, now\"\n2,0.5,1e308,go\n",
        "\ufeffepisode;from_frame;to_frame;text\n0;0;12;go\n0;12;;stop, now\n\n2;5;42;go\n",
        "text\tnote\tEpisode\tfrom\tto\nstop, now\t-\t0\t1.2\t\ngo\t-\t0\t0\t\ngo\t-\t2\t0.5\t4.2\n",
    ],
)  # fmt: skip
def test_a_file_of_segments(root: Path, text: str) -> None:
    path = write_csv(root, text)
    dataset = LeRobotDataset(root)
    assert pieces(dataset) == [(0, 0, 12, "go"), (0, 12, 40, "stop, now"), (2, 5, 42, "go")]
    assert dataset.subtasks is not None
    assert not dataset.subtasks.overlaps
    moved = path.rename(root / "elsewhere.csv")
    assert LeRobotDataset(root).subtasks is None
    assert pieces(LeRobotDataset(root, subtasks=moved)) == pieces(dataset)


def test_overlaps_and_episodes_that_are_not_there(root: Path) -> None:
    write_csv(root, "episode,from,to,text\n0,0,3,a\n0,1,2,b\n0,2.5,,c\n9,0,1,d\n")
    found = LeRobotDataset(root).subtasks
    assert found is not None
    assert [(one.text, two.text) for one, two in found.overlaps] == [("a", "b"), ("a", "c")]
    assert [found.texts[frame] for frame in (0, 10, 20, 25, 39, 40)] == ["a", "b", "a", "c", "c", ""]
    assert found.elsewhere == [9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the columns episode,from,to,text"),
        ("episode,start,end,text\n", r"expected the columns .*got episode,start,end,text"),
        ("episode,from,to,text\n0,0,1,go, now\n", "line 2: got 5 columns, expected 4"),
        ("episode,from,to,text\n0,0,1,go\nfirst,0,1,go\n", "line 3: episode is 'first', expected a whole number"),
        ("episode,from,to,text\n0,0:10,1,go\n", "line 2: from is '0:10', expected a number of seconds"),
        ("episode,from_frame,to_frame,text\n0,0.5,1,go\n", "line 2: from_frame is '0.5', expected a whole number"),
        ("episode,from,to,text\n0,-1,1,go\n", "line 2: from is '-1'"),
        ("episode,from,to,text\n0,2,1,go\n", "line 2: it ends at 1, not after 2"),
        ("episode,from,to,text\n0,0,1,\n", "line 2: no text"),
        ("episode,from,to,text\n0,,1,go\n", "line 2: no from"),
        ("episode,from,to,text\n0,4,5,go\n", "line 2: it begins at 4, where the episode ends at 4 s"),
        ("episode,from,to,text\n0,1e308,,go\n", r"line 2: it begins at 1e\+308, where the episode ends at 4 s"),
        ("episode,from,to,text\n7,0,1,go\n", "names no episode of"),
    ],
)
def test_a_wrong_file_of_segments_gets_one_line(root: Path, text: str, message: str) -> None:
    path = write_csv(root, text)
    with pytest.raises(UserError, match=message) as caught:
        _ = LeRobotDataset(root).subtasks
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_piece(root: Path) -> None:
    """As it is left where every episode that it names was taken out."""
    write_csv(root, "episode,from,to,text\n\n")
    assert pieces(LeRobotDataset(root)) == []
    assert set(LeRobotDataset(root).subtask_texts([0, 40])) == {""}


def test_a_text_over_two_lines_is_one_line_of_words(root: Path) -> None:
    write_csv(root, 'episode,from_frame,to_frame,text\r\n0,0,5,"häng \n  it 🤖"\r\n0,5,9,go\r\n')
    assert pieces(LeRobotDataset(root)) == [(0, 0, 5, "häng it 🤖"), (0, 5, 9, "go")]


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"nowhere\.csv does not exist"):
        _ = LeRobotDataset(PNG, subtasks="nowhere.csv").subtasks


def test_batches_have_the_texts(root: Path) -> None:
    write_csv(root, "episode,from,to,text\n0,0,1,go\n0,1,2,stop\n")
    size = (16, 16)

    def member(dataset: LeRobotDataset) -> Member:
        statistics = compute_norm_stats(dataset.column("observation.state"), dataset.column("action"), "zscore")
        pipeline = Pipeline(
            generic({"base_0_rgb": "top"}), statistics, PaligemmaTokenizer.bytes(), ("base_0_rgb",), "pi0", 64, size,
            state_dim=8, action_dim=6,
        )  # fmt: skip
        return Member(dataset, pipeline, FrameCache(dataset, ["top"], size, store="decode"), np.array([0, 9, 10, 30]))

    def texts(*roots: Path) -> Sequence[str] | None:
        members = [member(LeRobotDataset(one)) for one in roots]
        frames = [0, 10, 30, *(members[0].dataset.num_frames + 5 for _ in members[1:])]
        return Loader(members, horizon=4, batch_size=4, seed=0).read(np.array(frames)).subtasks

    assert texts(root) == ["go", "stop", ""]
    assert texts(root, PNG) == ["go", "stop", "", ""]
    assert texts(PNG) is None
    assert texts(PNG, PNG) is None


# --- what `pizero check` finds ---------------------------------------------------------------------------------------


def findings(root: Path) -> dict[str, Finding]:
    dataset = LeRobotDataset(root)
    found = list(check_subtasks(Subject.of(dataset, generic({"base_0_rgb": "top"}), 10)))
    return {finding.check: finding for finding in found}


def test_good_subtasks_and_none_at_all_are_no_finding(root: Path) -> None:
    assert findings(root) == {}
    lines = [f"{episode},{half},{half + 2 if half == 0 else ''},do {half}" for episode in range(4) for half in (0, 2)]
    write_csv(root, "\n".join(["episode,from,to,text", *lines]))
    assert findings(root) == {}


def test_what_is_wrong_with_subtasks(root: Path) -> None:
    write_csv(
        root,
        "episode,from,to,text\n0,0,1,go\n0,1,1.1,stop\n0,1.1,2,go\n0,2,3,Go.\n0,2.5,,turn\n"
        "1,1,1.5,go\n3,0,,look\n8,0,1,go\n",
    )
    found = findings(root)
    assert set(found) == {
        "subtasks of no episode", "no subtask", "frames without subtask", "subtasks overlap", "short subtask",
        "spellings of subtasks",
    }  # fmt: skip
    assert (found["no subtask"].where, found["no subtask"].severity) == ("episode 2", "warning")
    assert "1 of 4 episodes" in found["no subtask"].evidence
    assert found["frames without subtask"].where == "episode 1"
    assert "frame 0 of episode 1" in found["frames without subtask"].evidence
    assert "'Go.' (frames 20 to 29) and 'turn' (from 25) in episode 0" in found["subtasks overlap"].evidence
    assert "'stop', 0.1 s, at frame 10 of episode 0" in found["short subtask"].evidence
    assert "'go' (3) and 'Go.' (1)" in found["spellings of subtasks"].evidence
    assert found["subtasks of no episode"].where == "episode 8"


def test_a_long_subtask(root: Path) -> None:
    lines = [f"0,{frame / 10},{(frame + 4) / 10},step {frame}" for frame in range(0, 40, 4)]
    write_csv(root, "\n".join(["episode,from,to,text", *lines, "1,0,,all of it", "2,0,,all", "3,0,,all"]))
    found = findings(root)
    assert set(found) == {"long subtask"}
    assert "3 of 13" in found["long subtask"].evidence
    assert "'all', 4.2 s, at frame 0 of episode 2" in found["long subtask"].evidence


def test_check_reports_them(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(root, "episode,from,to,text\n0,0,1,go\n1,0,,go\n2,0,,go\n").rename(root / "own.csv")
    assert not [finding for finding in check(root, CheckConfig())["findings"] if "subtask" in finding["check"]]
    results = check(root, CheckConfig(subtasks=str(path)))
    assert {"no subtask", "frames without subtask"} <= {finding["check"] for finding in results["findings"]}
    assert "1 of 4 episodes have none in" in capsys.readouterr().err
