"""Batches: who is joined, how long is waited, who takes turns, who is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from pizero.serving import batching
from pizero.serving.batching import Batcher, BusyError
from pizero.types import RobotDict, UserError


class Model:
    """Answers each observation by its number, and remembers its batches. Holds each call until `gate` is set."""

    def __init__(self, open_gate: bool = True) -> None:
        self.batches: list[list[Any]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        if open_gate:
            self.gate.set()

    def __call__(self, observations: Sequence[RobotDict]) -> list[dict[str, Any]]:
        self.gate.wait(10)
        self.threads.add(threading.get_ident())
        numbers = [observation["n"] for observation in observations]
        self.batches.append(numbers)
        if -1 in numbers:
            raise UserError("bad number")
        return [{"actions": number} for number in numbers]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_robots_that_ask_together_are_one_call_off_the_event_loop() -> None:
    model = Model()

    async def work() -> None:
        batcher = Batcher(model, max_batch=8, max_wait=10)
        for _ in range(3):
            answers = await asyncio.gather(*(batcher.ask({"n": n}, owner=str(n), robot=n) for n in range(4)))
            assert [answer.reply["actions"] for answer in answers] == [0, 1, 2, 3]
            assert {answer.batch for answer in answers} == {4}
        await batcher.close()

    started = time.perf_counter()
    run(work())
    assert model.batches == [[0, 1, 2, 3]] * 3
    assert time.perf_counter() - started < 10  # nobody is waited for when all are there
    assert threading.get_ident() not in model.threads
    assert len(model.threads) == 1


def test_a_late_robot_is_waited_for_no_longer_than_the_deadline() -> None:
    model = Model()

    async def work() -> float:
        batcher = Batcher(model, max_wait=0.4)
        await asyncio.gather(*(batcher.ask({"n": n}, robot=n) for n in range(2)))
        started = time.perf_counter()
        await batcher.ask({"n": 5}, robot=0)
        waited = time.perf_counter() - started
        batcher.forget(1)
        started = time.perf_counter()
        await batcher.ask({"n": 6}, robot=0)
        assert time.perf_counter() - started < 0.35  # robot 1 is gone
        await batcher.close()
        return waited

    assert 0.39 < run(work()) < 5
    assert model.batches == [[0, 1], [5], [6]]


def test_owners_take_turns() -> None:
    model = Model(open_gate=False)

    async def work() -> None:
        batcher = Batcher(model, max_batch=2, max_wait=0.0)
        asked = [asyncio.create_task(batcher.ask({"n": n}, owner="many")) for n in range(6)]
        await asyncio.sleep(0.05)  # the first two are in the model
        asked += [asyncio.create_task(batcher.ask({"n": 10 + n}, owner="few")) for n in range(2)]
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.gather(*asked)
        await batcher.close()

    run(work())
    assert model.batches[0] == [0, 1]
    assert [sorted(batch) for batch in model.batches[1:3]] == [[2, 10], [3, 11]]
    assert model.batches[3] == [4, 5]


def test_beyond_the_bound_the_owner_with_most_is_refused() -> None:
    model = Model(open_gate=False)

    async def work() -> list[Any]:
        batcher = Batcher(model, max_batch=1, max_wait=0.0, max_queue=4)
        asked = [asyncio.create_task(batcher.ask({"n": 0}, owner="many"))]
        await asyncio.sleep(0.05)
        asked += [asyncio.create_task(batcher.ask({"n": n}, owner="many")) for n in range(1, 6)]
        await asyncio.sleep(0.05)
        asked.append(asyncio.create_task(batcher.ask({"n": 10}, owner="few")))
        await asyncio.sleep(0.05)
        assert batcher.length == 4
        model.gate.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        await batcher.close()
        return found

    found = run(work())
    refused = [isinstance(answer, BusyError) for answer in found]
    assert refused == [False, False, False, False, True, True, False]
    assert "4 requests wait already" in str(found[-2])


def test_one_bad_observation_spoils_no_other_answer() -> None:
    model = Model()

    async def work() -> list[Any]:
        batcher = Batcher(model, max_wait=0.0)
        asked = (batcher.ask({"n": n}) for n in (1, -1, 2))
        found = await asyncio.gather(*asked, return_exceptions=True)
        await batcher.close()
        return list(found)

    first, bad, last = run(work())
    assert (first.reply, last.reply) == ({"actions": 1}, {"actions": 2})
    assert isinstance(bad, UserError)


def test_a_robot_that_goes_leaves_nothing_in_the_row() -> None:
    model = Model(open_gate=False)

    async def work() -> None:
        batcher = Batcher(model, max_batch=1, max_wait=0.0)
        first = asyncio.create_task(batcher.ask({"n": 0}))
        await asyncio.sleep(0.02)
        gone = asyncio.create_task(batcher.ask({"n": 1}))
        await asyncio.sleep(0.02)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.length == 0
        model.gate.set()
        await first
        assert (await batcher.ask({"n": 2})).reply == {"actions": 2}
        await batcher.close()

    run(work())
    assert model.batches == [[0], [2]]


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: -1e9)

    async def work() -> Any:
        batcher = Batcher(Model(), max_wait=0.01)
        answer = await batcher.ask({"n": 1})
        monkeypatch.setattr(time, "time", lambda: 1e12)
        later = await batcher.ask({"n": 2})
        await batcher.close()
        return answer, later

    for answer in run(work()):
        assert 0 <= answer.queued < 1
        assert 0 <= answer.inferred < 1


class Odd(Model):
    """Fails in the way of the observation's "how", once for each."""

    def __call__(self, observations: Sequence[RobotDict]) -> Any:
        hows = [how for observation in observations if (how := observation.get("how")) is not None]
        replies = super().__call__(observations)
        if not hows:
            return replies
        if isinstance(hows[0], type):
            raise hows[0]("odd")
        return {"few": replies[:-1], "many": replies * 2, "none": None, "number": 3}[hows[0]]


@pytest.mark.parametrize(
    "how",
    [StopIteration, StopAsyncIteration, asyncio.CancelledError, GeneratorExit, SystemExit, KeyboardInterrupt,
     MemoryError, asyncio.TimeoutError, BaseExceptionGroup, "few", "many", "none", "number"],
)  # fmt: skip
def test_whatever_a_model_call_does_the_next_one_is_answered(how: Any) -> None:
    async def work() -> None:
        batcher = Batcher(Odd(), max_wait=0.0)
        for _ in range(2):
            asked = (batcher.ask({"n": 1}), batcher.ask({"n": 2, "how": how}), batcher.ask({"n": 3}))
            first, odd, last = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(odd, Exception)
            assert not isinstance(odd, StopIteration | asyncio.CancelledError)
            assert (first.reply, last.reply) == ({"actions": 1}, {"actions": 3})  # type: ignore[union-attr]
            assert (await batcher.ask({"n": 4})).reply == {"actions": 4}
            assert not batcher.stuck
        await batcher.close()

    run(work())


def test_batches_that_ended_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        batcher = Batcher(Model(), max_wait=0.0)
        with monkeypatch.context() as patch:
            patch.setattr(batcher, "_take", lambda: 1 / 0)
            with pytest.raises(RuntimeError, match="the batches ended"):
                await batcher.ask({"n": 1})
        assert batcher.length == 0
        assert (await batcher.ask({"n": 2})).reply == {"actions": 2}
        await batcher.close()
        with pytest.raises(BusyError, match="the server ends"):
            await batcher.ask({"n": 3})

    run(work())


def test_the_end_waits_for_no_model_call() -> None:
    model = Model(open_gate=False)

    async def work() -> list[Any]:
        batcher = Batcher(model, max_batch=1, max_wait=0.0)
        asked = [asyncio.create_task(batcher.ask({"n": n})) for n in range(3)]
        while not batcher.calling:
            await asyncio.sleep(0.001)
        await batcher.close()
        return list(await asyncio.gather(*asked, return_exceptions=True))

    assert [str(error) for error in run(work())] == ["the server ends"] * 3
    model.gate.set()


def test_a_call_that_takes_too_long_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(open_gate=False)

    async def work() -> None:
        batcher = Batcher(model, max_wait=0.0)
        asked = asyncio.create_task(batcher.ask({"n": 1}))
        while not batcher.calling:
            await asyncio.sleep(0.001)
        assert not batcher.stuck
        monkeypatch.setattr(batching, "LONGEST_CALL", 0.0)
        assert batcher.stuck
        batcher.slowest = 10.0  # others took as long
        assert not batcher.stuck
        model.gate.set()
        await asked
        batcher.slowest = 0.0
        assert not batcher.stuck
        await batcher.close()

    run(work())
