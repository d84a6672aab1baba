"""The playground: what the sliders, words and drags do to a scene, and its page in headless Chromium."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import CHROMIUM, Browser
from serving_helpers import make_policy, make_text_policy
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from pizero.baseline.config import small_baseline
from pizero.baseline.policy import DiffusionPolicy
from pizero.data.embodiments import generic
from pizero.policy.course import Course, sample_course
from pizero.policy.policy import ModelPolicy
from pizero.policy.sampling import episode_noise
from pizero.serving.playground import session as module
from pizero.serving.playground.server import PlaygroundServer, obey
from pizero.serving.playground.session import Lane, Player, Session, lane_state
from pizero.serving.running import Background, background
from pizero.types import UserError
from pizero.workflows import playground as workflow

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def player() -> Player:
    return Player("nano", make_policy())


def poses(lane: Lane) -> list[float]:
    world = lane.env.world
    assert world is not None
    return [world.x, world.y, world.z, *(value for thing in world.things for value in (thing.x, thing.y))]


# ---------------------------------------------------------------- a session


def test_a_course_ends_at_the_policys_chunk(player: Player) -> None:
    session = Session([player])
    seen = session.lanes[0].env.observe()
    noise = episode_noise(3, 0, player.policy.noise_shape)
    course = sample_course(player.policy, seen, noise, 2)
    assert course.actions.shape == (3, 6, 5)
    assert np.abs(course.chunk - player.policy.infer({**seen, "noise": noise})["actions"]).max() < 1e-5
    assert np.abs(course.actions[0] - 0.5 * noise).max() < 1e-6  # the norm stats have a deviation of 0.5


def test_two_policies_on_one_seed(player: Player) -> None:
    session = Session([player, Player("again", player.policy)])
    session.begin("tabletop", "lift", 7)
    for _ in range(4):
        session.step()
    assert poses(session.lanes[0]) == poses(session.lanes[1])
    before = poses(session.lanes[0])
    session.begin("tabletop", "lift", 7)
    session.change(noise=1)
    for _ in range(4):
        session.step()
    assert poses(session.lanes[0]) != before


def test_an_answer_comes_as_late_as_the_slider_says(player: Player) -> None:
    """Meanwhile the old chunk is played; the first answer is waited for."""
    session = Session([player])
    session.begin("tabletop", "reach", 1)
    session.change(delay=2, execution_horizon=3)
    lane = session.lanes[0]
    under_way = []
    for _ in range(9):
        session.step()
        under_way.append(lane.answer is not None)
    assert under_way == [False, False, False, True, True, False, True, True, False]
    assert lane.chunks == 3
    session.change(delay=0)
    session.step()
    assert lane.answer is None


def test_the_horizon_and_steps_of_the_sliders(player: Player) -> None:
    session = Session([player])
    session.change(execution_horizon=2, num_steps=5)
    for _ in range(6):
        session.step()
    assert session.lanes[0].chunks == 3
    assert session.lanes[0].course is not None
    assert len(session.lanes[0].course.actions) == 6
    for wrong in ({"execution_horizon": 7}, {"num_steps": -1}, {"delay": 6}):
        with pytest.raises(UserError, match="must be"):
            session.change(**wrong)


def test_each_policy_takes_its_own_steps_until_the_slider_is_moved(player: Player) -> None:
    model, pipeline = player.policy.model, player.policy.pipeline
    session = Session([player, *(Player("other", ModelPolicy(model, pipeline, num_steps=n)) for n in (1, 3))])
    own = [player.policy.num_steps, 1, 3]
    for wanted, taken in ((None, own), (4, [4, 4, 4]), (0, own)):
        if wanted is not None:
            obey(session, {"do": "set", "num_steps": wanted})
        session.step()
        assert [lane_state(lane, True)["num_steps"] for lane in session.lanes] == taken


@pytest.mark.parametrize(("wanted", "taken"), [(20, 20), (19, 10), (3, 2), (1, 1)])
def test_a_diffusion_policy_takes_the_steps_that_it_can(wanted: int, taken: int) -> None:
    policy = type(
        "P", (), {"model": DiffusionPolicy(small_baseline("nano", objective="diffusion", diffusion_steps=100))}
    )
    assert module.possible_steps(policy, wanted) == taken  # type: ignore[arg-type]
    assert module.possible_steps(make_policy(), wanted) == wanted


def test_words_and_drags(player: Player) -> None:
    session = Session([player])
    session.begin("tabletop", None, 2)
    env = session.lanes[0].env
    assert env.world is not None
    other = len(env.world.things) - 1
    words = f"turn the {env.world.things[other].name}"
    assert words in session.suggestions()
    obey(session, {"do": "instruct", "text": words})
    assert (env.task, env.target, session.own_words) == ("turn", other, False)
    obey(session, {"do": "instruct", "text": "dance"})
    assert (session.prompt, session.own_words) == ("dance", True)
    obey(session, {"do": "move", "object": 0, "x": 0.3, "y": -0.2})
    assert (env.world.things[0].x, env.world.things[0].y) == (0.3, -0.2)
    for wrong in ({"object": 9, "x": 0, "y": 0}, {"object": 0, "x": float("nan"), "y": 0}, {"object": 0}):
        with pytest.raises(UserError):
            obey(session, {"do": "move", **wrong})


def demonstrated(session: Session, lane: Lane) -> Course:
    """The scripted demonstrator in the place of a policy, one action at a time."""
    action = lane.env.demonstrator().act()
    chunk = np.repeat(action[None], session.horizon, axis=0)
    return Course(np.stack([chunk + 0.2, chunk]), "", 1.0)


@pytest.fixture
def demonstrator(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(session: Session, lane: Lane) -> Course:
        lane.executor.question({})
        return demonstrated(session, lane)

    monkeypatch.setattr(module.Session, "_ask", ask)


@pytest.mark.usefixtures("demonstrator")
def test_an_outcome(player: Player) -> None:
    session = Session([player])
    session.change(execution_horizon=1)
    session.begin("tabletop", "lift", 5)
    for _ in range(25):
        session.step()
    assert session.lanes[0].solved_after is not None
    assert session.resting
    session.move(0, 0.5, 0.5)
    assert session.lanes[0].solved_after is None
    assert not session.resting


def test_another_robots_policy_is_refused() -> None:
    policy = make_policy()
    object.__setattr__(policy.pipeline, "embodiment", generic({"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}))
    with pytest.raises(UserError, match="pizero replay or pizero evaluate"):
        PlaygroundServer([Player("arm", policy)])


def test_a_policy_that_plans_beside_itself_without_words() -> None:
    policy = make_text_policy()
    session = Session([Player("plans", policy), Player("flat", policy, plans=False)])
    seen = session.lanes[0].env.observe()
    noise = episode_noise(0, 0, policy.noise_shape)
    session.step()
    courses = [lane.course for lane in session.lanes]
    own, flat = (policy.infer({**seen, **extra, "noise": noise}) for extra in ({}, {"subtask": ""}))
    assert own["subtask"]
    for course, answer in zip(courses, (own, flat), strict=True):
        assert course is not None
        assert course.subtask == answer["subtask"]
        assert np.abs(course.chunk - answer["actions"]).max() < 1e-4
        assert len(course.actions) == policy.num_steps + 1


# ---------------------------------------------------------------- which policies


def test_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[Path] = []
    monkeypatch.setattr(workflow, "quickstart", trained.append)
    assert workflow.find_checkpoint(None, tmp_path) == str(tmp_path / "train")
    assert trained == [tmp_path]
    shown = " ".join(capsys.readouterr().err.split())
    assert "It runs first" in shown
    assert "3 to 5 minutes on 2 cores: demonstrations, training, evaluation. Then the page's address" in shown
    (tmp_path / "results.json").write_text("{}")
    workflow.find_checkpoint(None, tmp_path)
    assert workflow.find_checkpoint("mine", tmp_path) == "mine"
    assert trained == [tmp_path]
    assert capsys.readouterr().err == ""


def test_beside(checkpoint: Path) -> None:
    assert [player.name for player in workflow.players(str(checkpoint), str(checkpoint))] == [
        f"{checkpoint.parent.name}/checkpoint"
    ] * 2
    with pytest.raises(UserError, match="writes no text"):
        workflow.players(str(checkpoint), "flat")


# ---------------------------------------------------------------- the page


@pytest.fixture
def server(player: Player) -> Iterator[Background]:
    with background(lambda: PlaygroundServer([player, Player("second", player.policy)])) as running:  # type: ignore[arg-type, return-value]
        yield running


def test_for_this_machine_alone(server: Background) -> None:
    page = server.uri.replace("ws", "http", 1)
    assert b"playground.js" in urllib.request.urlopen(f"{page}/").read()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{page}/page/page.html")
    with pytest.raises(InvalidStatus), connect(f"{server.uri}/live", origin="http://evil.example"):  # type: ignore[arg-type]
        pass
    asked = urllib.request.Request(f"{page}/", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(asked)


OUTCOME = "document.querySelector('.outcome').textContent"


def drag(browser: Browser, start: list[float], end: list[float]) -> None:
    for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
        browser.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


@needs_chromium
@pytest.mark.usefixtures("demonstrator")
def test_the_page_types_drags_and_reads_the_outcome(server: Background) -> None:
    browser = Browser()
    try:
        browser.open(server.uri.replace("ws", "http", 1) + "/")
        browser.wait("document.getElementById('status').textContent === 'live' && lanes.length === 2")
        assert browser.run("at('num_steps-value').textContent") == "each policy's own"
        for name, value in (("execution_horizon", 1), ("num_steps", 4)):
            browser.run(f"at('{name}').value = {value}; at('{name}').dispatchEvent(new Event('change'))")
        browser.wait("state.settings.execution_horizon === 1 && state.settings.num_steps === 4")
        browser.run("at('words').focus(); at('words').select()")
        words = browser.run("state.suggestions.find(text => text.startsWith('lift'))")
        browser.send("Input.insertText", text=words)
        browser.send("Input.dispatchKeyEvent", type="keyDown", key="Enter", windowsVirtualKeyCode=13, text="\r")
        browser.wait(f"state.prompt === {words!r} && {OUTCOME}.startsWith('solved in')")
        browser.run("lanes[0].canvas.scrollIntoView()")
        spot = (
            "(([x, y]) => { const b = lanes[0].canvas.getBoundingClientRect(); const p = pixel(lanes[0].canvas, x, y);"
        )
        spot += (
            " return [b.x + p[0] * b.width / lanes[0].canvas.width, b.y + p[1] * b.height / lanes[0].canvas.height] })"
        )
        start = browser.run(f"{spot}([lanes[0].told.objects[0].x, lanes[0].told.objects[0].y])")
        drag(browser, start, browser.run(f"{spot}([0.5, 0.1])"))
        browser.wait("state.lanes.every(lane => lane.objects.length && Math.abs(lane.objects[0].x - 0.5) < 0.15)")
        browser.run("at('next').click()")
        browser.wait(f"state.seed === 1 && {OUTCOME}.startsWith('step')")
        assert browser.run("state.lanes.every(lane => lane.pictures.top.startsWith('data:'))")
        sources = browser.run("performance.getEntriesByType('resource').map(entry => entry.name)")
        assert all("127.0.0.1" in source or source.startswith("data:") for source in sources)
        browser.open(server.uri.replace("ws", "http", 1) + "/", width=390, height=844, phone=True)
        browser.wait("typeof lanes !== 'undefined' && lanes.length === 2")
        assert browser.run("document.documentElement.scrollWidth") == 390
        assert browser.errors == []
    finally:
        browser.close()
