"""The page at /, in headless Chromium: what it shows, what it does, on a phone, without the internet, behind a key."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
from chromium import CHROMIUM, Browser
from serving_helpers import observation
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from pizero.serving import admission, feed
from pizero.serving.client import PolicyClient
from pizero.serving.running import Background

Serve = Callable[..., Background]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


def page(server: Background) -> str:
    return server.uri.replace("ws", "http", 1) + "/"


def click(browser: Browser, name: str) -> None:
    browser.run(f"document.getElementById('{name}').click()")


LIVE = "document.getElementById('status').textContent === 'live'"
ROWS = "[...document.querySelectorAll('#robots tbody tr')].map(row => row.textContent)"


@needs_chromium
def test_a_robot_is_seen_and_its_instruction_changed(serve: Serve, browser: Browser) -> None:
    server = serve()
    browser.open("about:blank")  # the page of an earlier test asks for its server until it is left
    browser.errors.clear()
    browser.open(page(server))
    browser.wait(LIVE)
    assert browser.run("document.getElementById('nobody').offsetHeight") > 0
    assert (
        60 <= browser.run("historyPlot.scales.x.max - historyPlot.scales.x.min") <= 120
    )  # seconds, before any request
    with PolicyClient(server.uri) as client:
        client.infer({**observation(), "prompt": "lift the <b>disc</b>"})
        browser.wait("document.querySelectorAll('#chunk canvas').length === 5")
        browser.wait("document.getElementById('words').value === 'lift the <b>disc</b>'")
        assert browser.run("document.querySelectorAll('#images img').length") == 2
        assert browser.wait("[...document.images].every(image => image.naturalWidth > 0)")
        assert browser.run("document.getElementById('robots-count').textContent") == "1"
        browser.run("document.getElementById('words').value = 'push the disc'")
        browser.run("document.getElementById('prompt').requestSubmit()")
        robot = next(iter(server.server.service.live.robots.values()))
        browser.wait("!document.getElementById('own').hidden")
        client.infer(observation())
        assert robot.last.observation is not None
        assert robot.last.observation["prompt"] == "push the disc"
        click(browser, "own")
        browser.wait("document.getElementById('own').hidden")
        client.infer(observation(3))
        assert robot.last.observation["prompt"] == observation(3)["prompt"]
    browser.wait("!document.getElementById('nobody').hidden")
    sources = browser.run("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert sources
    assert all(source.startswith((page(server), "data:")) for source in sources)
    assert browser.errors == []


@needs_chromium
def test_the_simulated_robot_on_a_phone(serve: Serve, browser: Browser) -> None:
    server = serve()
    browser.open("about:blank")  # the page of an earlier test asks for its server until it is left
    browser.errors.clear()
    browser.open(page(server), width=390, height=844, phone=True)
    browser.wait(LIVE)
    click(browser, "start")
    browser.wait(f"{ROWS}.some(text => text.includes('simulated'))")
    browser.wait("document.querySelector('figure.scene img')?.naturalWidth > 0")
    browser.wait("document.getElementById('stages').textContent.includes('infer')")
    before = browser.run("document.querySelector('figure.scene img').src")
    browser.wait(f"document.querySelector('figure.scene img').src !== {json.dumps(before)}")
    assert browser.run("document.documentElement.scrollWidth") == 390
    click(browser, "start")
    browser.wait("document.getElementById('start').textContent.startsWith('Start')")
    assert server.server.service.live.robots == {}
    assert browser.errors == []


@needs_chromium
def test_the_page_asks_for_a_key_and_comes_back_after_the_server(serve: Serve, browser: Browser) -> None:
    server = serve(api_keys=("right",))
    port = server.server.port
    browser.open(page(server))
    browser.wait("!document.getElementById('door').hidden")
    assert browser.run("document.getElementById('about').textContent") == ""
    for name in ("start", "tiles", "nobody", "history"):  # nothing that the page does not know
        assert browser.run(f"document.getElementById('{name}').offsetHeight") == 0
    for key in ("wrong", "right"):
        browser.run(f"document.getElementById('key').value = '{key}'")
        browser.run("document.getElementById('door').requestSubmit()")
        time.sleep(0.7)
    browser.wait(LIVE)
    assert browser.run("document.getElementById('tiles').offsetHeight") > 0
    server.stop()
    browser.wait("document.getElementById('status').textContent === 'no connection'")
    serve(api_keys=("right",), port=port)
    browser.wait(LIVE)


def test_pages_that_give_no_key_take_no_place_for_long(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(api_keys=("right",))
    monkeypatch.setattr(feed, "KEY_S", 0.3)
    monkeypatch.setattr(admission, "MOST_PAGES", 2)
    with connect(server.uri + "/live") as one, connect(server.uri + "/live"):
        with pytest.raises(InvalidStatus, match="503"), connect(server.uri + "/live"):
            pass
        with pytest.raises(ConnectionClosed):
            one.recv(timeout=10)
    with connect(server.uri + "/live") as late:
        late.send('{"key": "right"}')
        assert "robots" in json.loads(late.recv(timeout=10))


def test_a_feed_takes_only_what_is_meant(serve: Serve) -> None:
    server = serve()
    with PolicyClient(server.uri) as client, connect(server.uri + "/live") as page:
        page.send("{}")
        for hostile in (
            "",
            "[]",
            "{" * 4000,
            b"\x00",
            '{"do": "watch", "robot": []}',
            '{"do": "simulate"}',
            "9" * 9000,
        ):
            page.send(hostile)
        page.send(json.dumps({"do": "prompt", "robot": 1, "text": "x" * 900}))
        deadline = time.monotonic() + 10
        while server.server.service.live.robots[1].new_prompt is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(server.server.service.live.robots[1].new_prompt) == 500
        state = json.loads(page.recv())
        assert [robot["robot"] for robot in state["robots"]] == [1]
        assert client.infer(observation())["actions"].shape == (6, 5)
