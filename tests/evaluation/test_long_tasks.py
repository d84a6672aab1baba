"""Evaluations of long tasks: who says what is to be done, what is counted, what stands under the films."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pizero.envs.tabletop.long import TabletopLongEnv
from pizero.evaluation.benchmark import RolloutConfig, evaluate, summarize
from pizero.evaluation.rollout import EpisodeResult, EpisodeSpec, rollout, run_demonstrator
from pizero.evaluation.subtasks import SubtaskSource, per_subtask
from pizero.evaluation.video import LINE, captioned
from pizero.report.evaluation import evaluation_report
from pizero.types import RobotDict, UserError

SPECS = [EpisodeSpec("swap", seed) for seed in range(2)]


class Following:
    """The demonstrator as a policy; remembers what it was asked."""

    def __init__(self, env: TabletopLongEnv, takes_subtask: bool = True, writes: str | None = None) -> None:
        self.env, self.takes_subtask, self.writes = env, takes_subtask, writes
        self.asked: list[RobotDict] = []

    def infer(self, observation: RobotDict) -> dict[str, Any]:
        self.asked.append(observation)
        answer: dict[str, Any] = {"actions": self.env.demonstrator().act()[None]}
        return answer if self.writes is None else {**answer, "subtask": self.writes}

    def infer_batch(self, observations: Sequence[RobotDict]) -> list[dict[str, Any]]:
        return [self.infer(observation) for observation in observations]


def play(source: SubtaskSource, **kind: Any) -> tuple[list[EpisodeResult], list[RobotDict]]:
    env = TabletopLongEnv(image_size=8, render_in_step=False)
    policy = Following(env, **kind)
    results = rollout(policy, [env], SPECS, 1, record=[0], subtasks=source)
    assert all(result.success and result.subtasks == (3, 3) for result in results)
    return results, policy.asked


def test_the_simulator_says_what_is_due_or_something_else() -> None:
    due: dict[str, list[str]] = {}
    for source in ("oracle", "wrong"):
        results, asked = play(source)
        own = asked[: results[0].steps]
        assert {seen["prompt"] for seen in own} == {results[0].instruction}
        due[source] = [seen["subtask"] for seen in own]
        assert len(set(due[source])) >= 2
        plain = [seen["prompt"] for seen in play(source, takes_subtask=False)[1][: results[0].steps]]
        assert plain == due[source]  # as the instruction, where the policy takes no subtask
    assert all(right != wrong for right, wrong in zip(due["oracle"], due["wrong"], strict=True))
    assert due["oracle"][0].startswith("move the ")


def test_nobody_says_it() -> None:
    assert all("subtask" not in seen for seen in play("own")[1])
    assert all(seen["subtask"] == "" for seen in play("none")[1])
    assert all("subtask" not in seen for seen in play("none", takes_subtask=False)[1])


def test_what_the_policy_writes_is_compared_and_shown() -> None:
    results, _ = play("own")
    assert results[0].agreed is None
    text = results[0].captions[0][0].removeprefix("0/3  ")
    results, _ = play("own", writes=text)
    right, asked = results[0].agreed or (0, 0)
    assert 0 < right < asked
    assert asked == results[0].steps
    assert len(results[0].captions) == len(results[0].frames) == results[0].steps + 1
    assert results[0].captions[1][1] == f"policy: {text}"
    assert results[0].captions[-1][0] == "3/3  done"
    summary = summarize(results)
    assert 0 < summary["subtask_agreement"] < 1
    wrong, _ = play("wrong")
    assert wrong[0].captions[1][1].startswith("told: move the ")


@pytest.mark.parametrize("every", [1, 3])
def test_a_written_subtask_holds_for_some_chunks(every: int) -> None:
    """Sent back in between, and written anew in each episode; what a simulator says is never held."""

    class Holding(Following):
        subtask_every = every

        def infer(self, observation: RobotDict) -> dict[str, Any]:
            self.writes = observation.get("subtask") or f"text {len(self.asked)}"
            return super().infer(observation)

    env = TabletopLongEnv(image_size=8, render_in_step=False)
    policy = Holding(env)
    results = rollout(policy, [env], SPECS, 1)
    first = 0
    for steps in (result.steps for result in results):
        given = [seen.get("subtask") for seen in policy.asked[first : first + steps]]
        expected = [None if chunk % every == 0 else f"text {first + chunk // every * every}" for chunk in range(steps)]
        assert given == expected
        first += steps
    told = Holding(env)
    rollout(told, [env], SPECS[:1], 1, subtasks="oracle")
    assert [seen["subtask"] for seen in told.asked] == [
        seen["subtask"] for seen in play("oracle")[1][: len(told.asked)]
    ]


def test_shares_of_subtasks_are_counted() -> None:
    def result(done: int, total: int) -> EpisodeResult:
        return EpisodeResult("swap", 0, "swap", done == total, 9, subtasks=(done, total))

    summary = summarize([result(3, 3), result(1, 3), result(0, 4)])
    found = summary["subtasks"]
    assert (found["done"], found["all"], found["rate"]) == (4, 10, 0.4)
    assert found["interval"][0] < 0.4 < found["interval"][1]
    assert found["per_subtask"] == [[2, 3], [1, 3], [1, 3], [0, 1]]
    assert summary["per_task"]["swap"]["subtasks"] == found
    assert per_subtask([]) == []
    assert "subtasks" not in summarize([EpisodeResult("lift", 0, "lift", True, 9)])


def test_the_demonstrator_does_all_subtasks() -> None:
    env = TabletopLongEnv(image_size=8, render_in_step=False)
    assert [result.subtasks for result in run_demonstrator(env, SPECS)] == [(3, 3)] * 2


@pytest.mark.parametrize("processes", [0, 1])
def test_films_and_report_show_subtasks(tmp_path: Path, processes: int) -> None:
    class Still:
        takes_subtask = True

        def infer(self, observation: RobotDict) -> dict[str, Any]:
            return {"actions": np.zeros((200, 5), np.float32)}

        def infer_batch(self, observations: Sequence[RobotDict]) -> list[dict[str, Any]]:
            return [self.infer(seen) for seen in observations]

    config = RolloutConfig(
        "tabletop-long", 1, ("swap",), execution_horizon=200, image_size=8, num_videos=1, processes=processes,
        subtasks="wrong",
    )  # fmt: skip
    results = evaluate(Still(), config, videos=tmp_path)
    assert results["subtasks"]["per_subtask"] == [[0, 1]] * 3
    (film,) = tmp_path.glob("*.mp4")
    with av.open(str(film)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert frame.shape == (256 + 2 * LINE, 520, 3)
    evaluation_report(tmp_path / "report.html", results, [film])
    page = (tmp_path / "report.html").read_text()
    assert "How far did it come?" in page
    assert "Under the picture" in page
    assert 'class="films wide-films"' in page


def test_captions_have_room_and_are_cut_where_they_have_none() -> None:
    frames = [np.full((20, 80, 3), 9, np.uint8)] * 2
    one, two = captioned(frames, [("short",), ("a text that is longer than the frame is wide", "second")])
    assert one.shape == two.shape == (20 + 2 * LINE, 80, 3)
    assert (one[:20] == 9).all()
    assert not (one[20 : 20 + LINE] == two[20 : 20 + LINE]).all()
    assert len({tuple(pixel) for pixel in one[20 + LINE :].reshape(-1, 3).tolist()}) == 1  # nothing in its second line
    assert list(captioned(frames, [])) == frames


def test_a_simulator_without_subtasks_cannot_say_them() -> None:
    from pizero.envs.tabletop.env import TabletopEnv

    env = TabletopEnv(image_size=8, render_in_step=False)
    policy = Following(TabletopLongEnv(image_size=8))
    with pytest.raises(UserError, match="does not say what is to be done now"):
        rollout(policy, [env], [EpisodeSpec("lift", 0)], 1, subtasks="oracle")


@pytest.mark.parametrize("takes_subtask", [True, False])
def test_no_words_are_no_words_in_a_simulator_without_subtasks_too(takes_subtask: bool) -> None:
    """Once such a policy wrote its own there, and "none" and "own" gave the same results."""
    from pizero.envs.tabletop.env import TabletopEnv

    env = TabletopEnv(image_size=8, render_in_step=False)
    policy = Following(TabletopLongEnv(image_size=8), takes_subtask)
    policy.env.reset(seed=0)
    rollout(policy, [env], [EpisodeSpec("lift", 0)], 1, subtasks="none")
    assert {seen.get("subtask") for seen in policy.asked} == ({""} if takes_subtask else {None})
