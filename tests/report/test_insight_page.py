"""The insight page in headless Chromium: boxes open, the slider and the choices change what is drawn, nothing fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import CHROMIUM, Browser
from insight_helpers import pi0_policy, robot

from pizero.report.insight.measure import look_inside
from pizero.report.insight.page import insight_page


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_the_page_answers(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    insight_page(page, look_inside(pi0_policy(pi05=True), robot()), "pizero inspect: a")
    browser = Browser()
    try:
        browser.open(page.as_uri())
        browser.wait("document.querySelectorAll('#looks canvas').length === 4")
        button = "[...document.querySelectorAll('.box')].find(box => box.textContent.startsWith('VISION'))"
        browser.run(f"{button}.click()")
        assert "class VisionTower" in browser.run("document.querySelector('.details').textContent")
        browser.run(f"{button}.click()")
        assert browser.run("document.querySelector('.details').hidden")
        seen = {browser.run("document.querySelector('.legend').textContent")}
        for change in ("chosen.step = 0", "chosen.layer = 1", "chosen.head = 2"):
            browser.run(f"{change}; redraw()")
            seen.add(browser.run("document.querySelector('.legend').textContent"))
        assert len(seen) == 4  # each choice has figures of its own
        total = "weights().reduce((a, b) => a + b)"
        assert browser.run(total) == pytest.approx(1, abs=0.01)
        browser.run("document.querySelector('#flow button').click()")  # plays to the end
        browser.wait("chosen.step === data.steps")
        browser.open(page.as_uri(), width=390, height=844, phone=True)
        browser.wait("document.querySelectorAll('#looks canvas').length === 4")
        assert browser.run("document.documentElement.scrollWidth") == 390
        assert browser.errors == []
    finally:
        browser.close()
