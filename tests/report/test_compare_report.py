"""The page of `pizero compare`, and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pizero.report.compare import compare_report
from pizero.report.curves import curves_picture
from pizero.types import UserError

ROW: dict[str, Any] = {
    "rung": 0, "change": "diffusion policy: as it is", "success": 0.5, "interval": [0.3, 0.7], "episodes": 20,
    "seeds": [0], "parameters": 1000, "latency": 3.0, "seconds": 10.0, "peak_mib": 500.0, "relative_error": 0.4,
    "demonstrations": 60, "learning_rate": 1e-3,
}  # fmt: skip
STEPS = [{key: ROW[key] for key in ("rung", "change", "success", "interval", "latency")} | {"num_steps": n}
         for n in (1, 10)]  # fmt: skip
SETTINGS = {"ladder": {"env": "tabletop", "steps": 5, "batch_size": 4, "seconds": 0.0}, "demonstrations": 10}


def test_every_study_has_its_section(tmp_path: Path) -> None:
    studies = {"rows": [ROW], "single": [ROW], "demonstrations": [ROW], "rates": [ROW], "steps": STEPS}
    compare_report(tmp_path / "report.html", {"settings": SETTINGS, **studies})
    page = (tmp_path / "report.html").read_text()
    for title in ("What each step is worth", "What it costs", "One change at a time", "Demonstrations",
                  "Inference steps", "Learning rates", "20 samples"):  # fmt: skip
        assert title in page
    nothing: dict[str, Any] = {name: [] for name in studies}
    compare_report(tmp_path / "report.html", {"settings": SETTINGS, **nothing, "steps": STEPS})
    page = (tmp_path / "report.html").read_text()
    assert "Inference steps" in page
    assert "What each step is worth" not in page


def test_curves() -> None:
    one = curves_picture({"a": [(10, 0.5, 0.3, 0.7)]}, "Success", "demonstrations")
    two = curves_picture({"a": [(10, 0.5, 0.3, 0.7)], "b": [(20, 0.9, 0.8, 0.95)]}, "Success", "demonstrations")
    assert one[:4] == two[:4] == b"\x89PNG"
    assert one != two
    with pytest.raises(UserError, match="no points"):
        curves_picture({"a": []}, "Success", "x")
