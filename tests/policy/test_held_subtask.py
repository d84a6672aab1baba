"""For how long a subtask holds that a policy wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pizero.policy.chunk_executor import ChunkExecutor, RobotLoop
from pizero.policy.held_subtask import HeldSubtask
from pizero.types import RobotDict, UserError


class Writer:
    """Writes "0", "1", ...; acts on what it is told."""

    def __init__(self) -> None:
        self.written, self.asked = 0, list[Any]()

    def infer(self, observation: RobotDict) -> dict[str, Any]:
        self.asked.append(observation.get("subtask"))
        text = observation.get("subtask")
        if text is None:
            text, self.written = str(self.written), self.written + 1
        return {"actions": np.zeros((4, 1), np.float32), "subtask": text}


def ask(held: HeldSubtask, writer: Writer, **observation: Any) -> str:
    question = held.question({"prompt": "tidy up", **observation})
    held.heard(question, writer.infer(question))
    return held.text


def test_written_for_every_chunk_unless_told_otherwise() -> None:
    held, writer = HeldSubtask(), Writer()
    assert [ask(held, writer) for _ in range(3)] == ["0", "1", "2"]


def test_so_many_chunks() -> None:
    held, writer = HeldSubtask(3), Writer()
    assert [ask(held, writer) for _ in range(7)] == ["0", "0", "0", "1", "1", "1", "2"]


def test_too_old() -> None:
    now = [0.0]
    held, writer = HeldSubtask(seconds=2.0, clock=lambda: now[0]), Writer()
    found = list[str]()
    for now[0] in (0.0, 1.9, 2.0, 2.1, 4.0, 4.2):
        found.append(ask(held, writer))
    assert found == ["0", "0", "0", "1", "1", "2"]


def test_too_old_or_too_many() -> None:
    now = [0.0]
    held, writer = HeldSubtask(2, 1.0, clock=lambda: now[0]), Writer()
    found = list[str]()
    for now[0] in (0.0, 0.1, 0.2, 1.3, 1.4):
        found.append(ask(held, writer))
    assert found == ["0", "0", "1", "2", "2"]


def test_done_or_another_instruction() -> None:
    held, writer = HeldSubtask(9), Writer()
    assert [ask(held, writer), ask(held, writer)] == ["0", "0"]
    held.forget()
    assert ask(held, writer) == "1"
    assert ask(held, writer, prompt="stop") == "2"
    assert ask(held, writer, prompt="stop") == "2"


def test_a_persons_words_end_it() -> None:
    held, writer = HeldSubtask(9), Writer()
    ask(held, writer)
    assert held.written
    for said in ("lift", ""):
        assert ask(held, writer, subtask=said) == said
        assert not held.written
    assert ask(held, writer) == "1"
    assert writer.asked == [None, "lift", "", None]


def test_an_empty_text_is_held_too() -> None:
    held = HeldSubtask(2)
    held.heard(held.question({}), {"subtask": ""})
    assert held.question({}) == {"subtask": ""}


def test_a_policy_without_text() -> None:
    held = HeldSubtask(9)
    held.heard(held.question({}), {})
    assert (held.text, held.written) == ("", False)
    assert held.question({}) == {}


@pytest.mark.parametrize(("numbers", "said"), [((0,), "subtask_every"), ((None, 0.0), "subtask_s")])
def test_numbers_that_make_no_sense(numbers: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        HeldSubtask(*numbers)


@pytest.mark.filterwarnings("ignore:the policy is late")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_in_a_control_loop(asynchronous: bool) -> None:
    writer = Writer()
    with RobotLoop(writer, ChunkExecutor(2, asynchronous=asynchronous), HeldSubtask(2)) as loop:
        while len(writer.asked) < 4:
            loop.act({"prompt": "tidy up"})
        loop.reset()
        loop.act({"prompt": "tidy up"})
        assert loop.subtask.text == "2"
    assert writer.asked == [None, "0", None, "1", None]
