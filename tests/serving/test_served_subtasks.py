"""A served policy that plans in words: what it writes, for how long it holds, who overrules it, what is recorded."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, Browser
from serving_helpers import observation
from websockets.sync.client import connect

from pizero.configs.language import with_language
from pizero.configs.presets import get_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.policy.policy import ModelPolicy
from pizero.serving.client import PolicyClient, ServerError
from pizero.serving.live import Robot
from pizero.serving.running import Background
from pizero.types import UserError
from pizero.workflows.check import CheckConfig, check
from pizero.workflows.train import train_policy

Serve = Callable[..., Background]


def robot_of(server: Background) -> Robot:
    return next(iter(server.server.service.live.robots.values()))


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_subtask_is_written_kept_and_overruled(serve: Serve, text_policy: ModelPolicy) -> None:
    server = serve(text_policy, subtask_every=2)
    with PolicyClient(server.uri) as client:
        assert client.metadata["takes_subtask"] is True
        answers = [client.infer(observation(0)) for _ in range(4)]
        assert [answer["subtask"] for answer in answers] == ["lift it"] * 4
        assert ["text_ms" in answer["policy_timing"] for answer in answers] == [True, False, True, False]
        assert "text_ms" in client.infer(observation(1))["policy_timing"]  # another instruction
        for said in ("push", ""):
            answer = client.infer({**observation(1), "subtask": said})
            assert (answer["subtask"], "text_ms" in answer["policy_timing"]) == (said, False)
        assert "text_ms" in client.infer({**observation(1), "subtask": None})["policy_timing"]
        for wrong, got in ((3, "int"), (False, "bool"), ([], "list"), (b"push", "bytes"), (np.zeros(2), "ndarray")):
            with pytest.raises(ServerError, match=f"subtask: got {got}, expected text"):
                client.infer({**observation(1), "subtask": wrong})
        with pytest.raises(ServerError, match="no room for an instruction"):
            client.infer({**observation(1), "subtask": "word " * 100})
        assert client.infer({**observation(1), "subtask": "häng 🤖 \n auf"})["subtask"] == "häng 🤖 \n auf"
        assert client.infer(observation(1))["subtask"] == "lift it"
        assert client.connections == 1


def test_it_becomes_too_old(serve: Serve, text_policy: ModelPolicy) -> None:
    server = serve(text_policy, subtask_s=60.0)
    with PolicyClient(server.uri) as client:
        wrote = ["text_ms" in client.infer(observation(0))["policy_timing"] for _ in range(3)]
        held = robot_of(server).subtask
        assert held is not None
        held._since -= 61
        wrote += ["text_ms" in client.infer(observation(0))["policy_timing"] for _ in range(2)]
    assert wrote == [True, False, False, True, False]


@pytest.mark.parametrize("wrong", [{"subtask_every": 0}, {"subtask_s": 0.0}, {"subtask_s": float("nan")}])
def test_a_pace_that_makes_no_sense(serve: Serve, text_policy: ModelPolicy, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"subtask_.* must be"):
        serve(text_policy, **wrong)


def test_a_policy_that_takes_none_says_so(serve: Serve) -> None:
    server = serve()
    with PolicyClient(server.uri) as client, connect(server.uri + "/live") as page:
        assert client.metadata["takes_subtask"] is False
        with pytest.raises(ServerError, match="subtask: this policy was not trained with text and takes none"):
            client.infer({**observation(), "subtask": "push"})
        assert "subtask" not in client.infer({**observation(), "subtask": None})
        page.send("{}")
        page.send(json.dumps({"do": "subtask", "robot": 1, "text": "push"}))
        page.send(json.dumps({"do": "prompt", "robot": 1, "text": "stop"}))
        wait(lambda: robot_of(server).new_prompt == "stop")
        assert robot_of(server).new_subtask is None
        assert "subtask" not in client.infer(observation())


def test_a_feed_takes_words_alone(serve: Serve, text_policy: ModelPolicy) -> None:
    server = serve(text_policy)
    with PolicyClient(server.uri) as client, connect(server.uri + "/live") as page:
        page.send("{}")
        for hostile in ('{"do": "subtask"}', '{"do": "subtask", "robot": []}', '{"do": "subtask", "robot": 7}'):
            page.send(hostile)
        page.send(json.dumps({"do": "subtask", "robot": 1, "text": "\ud800 push  "}))
        wait(lambda: robot_of(server).new_subtask == "? push")
        assert client.infer({**observation(), "subtask": "the robot's own"})["subtask"] == "? push"
        page.send(json.dumps({"do": "subtask", "robot": 1, "text": "x" * 900}))
        wait(lambda: robot_of(server).new_subtask == "x" * 500)
        with pytest.raises(ServerError, match="no room for an instruction"):  # and the page can take it back
            client.infer(observation())
        page.send(json.dumps({"do": "subtask", "robot": 1, "text": " "}))
        wait(lambda: robot_of(server).new_subtask is None)
        assert client.infer(observation())["subtask"] == "lift it"


def test_what_was_done_in_words_is_recorded(serve: Serve, text_policy: ModelPolicy, tmp_path: Path) -> None:
    server = serve(text_policy, record=tmp_path, record_fps=5.0)
    told = {3: "push it", 4: "push it", 5: "push it", 10: "", 11: ""}
    texts = list[str]()
    with PolicyClient(server.uri) as client:
        for step in range(12):
            said = {"subtask": told[step]} if step in told else {}
            texts.append(client.infer({**observation(step, 32), "prompt": "tidy up", **said})["subtask"])
    server.stop()
    dataset = LeRobotDataset(tmp_path / "policy")
    assert dataset.subtasks is not None
    assert texts[3:6] + texts[10:] == ["push it"] * 3 + [""] * 2
    assert any(texts[:3])  # what a nano model writes of other images may be anything
    assert list(dataset.subtasks.texts) == texts
    report = check(tmp_path / "policy", CheckConfig(embodiment="tabletop", horizon=4))
    assert "frames without subtask" in {finding["check"] for finding in report["findings"]}
    preset = get_preset("tabletop", "pi05")
    quick = dataclasses.replace(preset.train, steps=2, batch_size=2, validate_every=2, save_every=2, log_every=1)
    preset = with_language(dataclasses.replace(preset, train=quick), "openpi", fast=False, insulation=True)
    trained = train_policy(tmp_path / "policy", tmp_path / "run", preset)
    assert np.isfinite(trained.loss)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_a_person_says_another_one_on_the_page(serve: Serve, text_policy: ModelPolicy) -> None:
    server, browser = serve({"words": text_policy}), Browser()
    said = "document.getElementById('said').textContent"
    try:
        browser.open(server.uri.replace("ws", "http", 1) + "/")
        browser.wait("document.getElementById('status').textContent === 'live'")
        with PolicyClient(server.uri) as client:
            client.infer({**observation(), "prompt": "tidy up"})
            browser.wait(f"{said} === 'Written by the policy: “lift it”.'")
            assert browser.run("document.getElementById('subtask').value") == "lift it"
            browser.run("document.getElementById('subtask').value = 'push <b>it</b>'")
            browser.run("document.getElementById('plan').requestSubmit()")
            browser.wait("!document.getElementById('unsaid').hidden")
            assert client.infer({**observation(), "prompt": "tidy up"})["subtask"] == "push <b>it</b>"
            browser.wait(f"{said}.startsWith('From this page')")
            browser.run("document.getElementById('unsaid').click()")
            browser.wait("document.getElementById('unsaid').hidden")
            assert client.infer({**observation(), "prompt": "tidy up"})["subtask"] == "lift it"
            browser.wait(f"{said} === 'Written by the policy: “lift it”.'")
            client.infer({**observation(), "subtask": "wait"})
            browser.wait(f"{said} === 'The robot\\'s own words: “wait”.'")
        browser.open("about:blank")
        assert browser.errors == []
    finally:
        browser.close()


def test_the_simulated_robot_plays_long_tasks(serve: Serve, text_policy: ModelPolicy) -> None:
    server = serve(text_policy)
    with connect(server.uri + "/live") as page:
        page.send("{}")
        page.send(json.dumps({"do": "simulate", "checkpoint": "policy"}))
        wait(lambda: bool(server.server.service.live.robots) and robot_of(server).figures.requests > 0)
        robot = robot_of(server)
        assert robot.to_json()["written"]
        page.send(json.dumps({"do": "subtask", "robot": robot.number, "text": "push"}))
        wait(lambda: robot.to_json()["subtask"] == "push")
        assert "then" in robot.prompt or "swap" in robot.prompt or "clear" in robot.prompt
        page.send(json.dumps({"do": "stop"}))
        wait(lambda: not server.server.service.live.robots)
