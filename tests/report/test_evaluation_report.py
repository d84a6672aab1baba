"""The report of an evaluation: tiers and films."""

from __future__ import annotations

from pathlib import Path

import pytest

from pizero.report import evaluation
from pizero.report.evaluation import evaluation_report
from pizero.types import UserError

RATE = {"success_rate": 0.5, "interval": [0.24, 0.76], "successes": 5, "episodes": 10}


def test_report_has_tiers_and_as_many_films_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    films = [tmp_path / "videos" / f"reach-v3_{seed}.mp4" for seed in range(3)]
    films[0].parent.mkdir()
    for film in films:
        film.write_bytes(b"film")
    monkeypatch.setattr(evaluation, "MAX_VIDEO_BYTES", 9)
    results = {**RATE, "per_task": {"reach-v3": RATE}, "per_tier": {"easy": RATE}, "mean_of_tiers": 0.5, "seconds": 61}
    evaluation_report(tmp_path / "report.html", results, films)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<video") == 2
    assert "autoplay" not in page
    assert "1 more lie in videos/" in page
    assert '<td>easy</td><td class="n">50 %</td>' in page
    assert "<dt>mean of the tiers</dt><dd>50 %</dd>" in page
    assert "1:01 min" in page


def test_report_of_no_completed_episode_says_why(tmp_path: Path) -> None:
    results = {"success_rate": None, "interval": [0, 1], "episodes": 0, "error_texts": ["OSError: no display"]}
    with pytest.raises(UserError, match="OSError: no display"):
        evaluation_report(tmp_path / "report.html", results, [])
