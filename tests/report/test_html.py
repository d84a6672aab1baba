"""HTML reports: one file, nothing from outside, all text escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pizero.model.config import small_config
from pizero.report import quickstart
from pizero.report.html import Code, Picture, Section, Table, Video, write_report
from pizero.report.pictures import loss_picture
from pizero.report.quickstart import FilmedEpisode, SampledChunk, quickstart_report

PNG = loss_picture([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}])
EVIL = '<script>alert("x")</script> & {braces} \''


class Page(HTMLParser):
    """Collects tags, attributes and text, and that every tag is closed."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_self_contained(path: Path) -> None:
    page, raw = Page(path), path.read_text(encoding="utf-8")
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "poster", "data")]
    assert all(value.startswith("data:") for value in sources)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import", raw)


def test_report_is_one_file_without_references(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    blocks = [Picture(PNG, "a picture", caption=True), Video(b"mp4", "a film"), Code("run --it")]
    table = Table(("name", "value"), [("a", "1"), ("", "2")], numbers=(1,), total=("sum", "3"))
    write_report(path, title="Title", facts={"rate": "5 %"}, sections=[Section("One", "text", [*blocks, table])])
    check_self_contained(path)
    page = Page(path)
    assert page.tags.count("img") == page.tags.count("video") == page.tags.count("table") == 1
    assert page.tags.count("tr") == 4
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_all_text_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    blocks = [Picture(PNG, EVIL, caption=True), Video(b"", EVIL), Code(EVIL), Table((EVIL,), [(EVIL,)], total=(EVIL,))]
    write_report(path, title=EVIL, facts={EVIL: EVIL}, sections=[Section(EVIL, EVIL, blocks)])
    page = Page(path)
    assert "script" not in page.tags
    assert page.text.count(EVIL) == 12  # title twice, fact twice, heading, text, two captions, code, three cells
    assert ("alt", EVIL) in page.attributes


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, title="t", facts={}, sections=[Section("s", blocks=[Code(f"[{text}]")])])
    assert f"[{text}]" in Page(path).text


def test_a_failed_write_keeps_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, title="t", facts={}, sections=[])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# -------------------------------------------------------------------------------------------------- quickstart


def rate(successes: int, episodes: int = 10) -> dict[str, Any]:
    return {
        "successes": successes,
        "episodes": episodes,
        "success_rate": successes / episodes,
        "interval": [max(0.0, successes / episodes - 0.2), min(1.0, successes / episodes + 0.2)],
    }


def results() -> dict[str, Any]:
    baselines = {"demonstrator": rate(10), "random": rate(0), "swapped instructions": rate(2), "blank images": rate(1)}
    return {
        **rate(8),
        "seconds": 64.2,
        "per_task": {"lift <it>": rate(8)},
        "baselines": baselines,
        "settings": {"training steps": 2000},
        "seed": 7,
        "command": "pizero quickstart --seed 7",
    }


METRICS = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 2, "validation_loss": 0.6}]


def test_quickstart_report_holds_every_part(tmp_path: Path) -> None:
    path, video = tmp_path / "report.html", tmp_path / "film.mp4"
    video.write_bytes(b"\0\0\0\x18ftypisom")
    config = small_config("nano")
    quickstart_report(
        path, results=results(), metrics=METRICS, config=config,
        episode=FilmedEpisode(video, np.zeros((4, 8, 8, 3), np.uint8), 10),
        chunk=SampledChunk(np.zeros((3, config.action_horizon, config.action_dim)), ["dx", "dy"]),
    )  # fmt: skip
    check_self_contained(path)
    page = Page(path)
    assert page.tags.count("img") == 5
    assert page.tags.count("video") == 1
    assert page.tags.count("table") == 3
    for text in ("80 %", "1:04 min", "swapped instructions", "VISION TOWER", "2 integration steps", "training steps",
                 "pizero quickstart --seed 7"):  # fmt: skip
        assert text in page.text


def test_quickstart_report_with_the_least(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    least = {name: results()[name] for name in ("success_rate", "interval", "episodes")}
    quickstart_report(path, results=least, metrics=METRICS, config=small_config("nano", pi05=True))
    check_self_contained(path)
    assert Page(path).tags.count("img") == 3


def test_a_large_video_stays_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "MAX_VIDEO_BYTES", 3)
    path, video, config = tmp_path / "report.html", tmp_path / "film.mp4", small_config("nano")
    video.write_bytes(b"1234")
    quickstart_report(path, results=results(), metrics=METRICS, config=config, episode=FilmedEpisode(video))
    page = Page(path)
    assert "video" not in page.tags
    assert "film.mp4" in page.text
