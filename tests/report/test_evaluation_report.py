"""The report of an evaluation: tiers and films."""

from __future__ import annotations

from pathlib import Path

import pytest

from pizero.report import evaluation
from pizero.report.evaluation import evaluation_report
from pizero.report.pictures import short_names
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


def test_report_has_a_row_for_a_task_of_which_no_episode_was_completed(tmp_path: Path) -> None:
    none = {"success_rate": None, "interval": [0.0, 1.0], "successes": 0, "episodes": 0}
    results = {**RATE, "per_task": {"reach": RATE, "lift": none}, "per_tier": {"easy": RATE, "hard": none}}
    evaluation_report(tmp_path / "report.html", results | {"baselines": {"random": none}}, [])
    assert '<td>hard</td><td class="n">–</td>' in (tmp_path / "report.html").read_text()


def test_long_names_are_shortened_and_stand_in_a_table(tmp_path: Path) -> None:
    bowls = [
        f"pick_up_the_black_bowl_{where}_and_place_it_on_the_plate" for where in ("next_to_the_plate", "from_table")
    ]
    assert short_names(bowls) == ["…next_to_the_plate…", "…from_table…"]
    assert short_names(["KITCHEN_SCENE3_turn_on_the_stove", "lift"]) == ["KITCHEN_SCENE…n_on_the_stove", "lift"]
    assert short_names(["reach", "push"]) == ["reach", "push"]
    evaluation_report(tmp_path / "report.html", RATE | {"per_task": dict.fromkeys(bowls, RATE)}, [])
    assert all(f">{name}</td>" in (tmp_path / "report.html").read_text() for name in bowls)


def test_report_of_no_completed_episode_says_why(tmp_path: Path) -> None:
    results = {"success_rate": None, "interval": [0, 1], "episodes": 0, "error_texts": ["OSError: no display"]}
    with pytest.raises(UserError, match="OSError: no display"):
        evaluation_report(tmp_path / "report.html", results, [])
