"""Episodes in simulators that know no policy, actions in and observations out: in this process, or each in its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pizero.envs.env import make_env
from pizero.evaluation.subtasks import Due, SubtaskSource, caption, due_now
from pizero.processes import Workers
from pizero.types import Env, RobotDict, UserError


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode to run: a task of the environment and the seed that fixes its initial state."""

    task: str
    seed: int


@dataclass(frozen=True)
class EpisodeResult:
    """error: text of the exception that the environment raised; such an episode is neither success nor failure.

    steps: control steps played. frames: [h, w, 3] uint8 each, of recorded episodes only. captions: the lines under
    each, where there are some. subtasks: (done, all), of simulators that have some. agreed: (how often what the policy
    wrote was what was due, how often it wrote), of policies that write their subtasks. score: the highest of the
    episode, of simulators that have one.
    """

    task: str
    seed: int
    instruction: str
    success: bool
    steps: int
    error: str | None = None
    frames: list[NDArray[np.uint8]] = field(default_factory=list, repr=False)
    captions: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]], repr=False)
    subtasks: tuple[int, int] | None = None
    agreed: tuple[int, int] | None = None
    score: float | None = None


class Episode:
    """One episode under way. An exception of the environment ends it; a UserError is raised."""

    def __init__(self, env: Env, spec: EpisodeSpec, record: bool = False, source: SubtaskSource = "own") -> None:
        """source: of the subtasks that the policy is given, for the captions."""
        self.done = False
        self.due: Due | None = None
        self.said = ""
        """What the policy acts on, for the captions."""
        self._env, self._spec, self._record = env, spec, record
        self._source: SubtaskSource = source
        self._frames: list[NDArray[np.uint8]] = []
        self._captions: list[tuple[str, ...]] = []
        self._instruction, self._success, self._error, self._steps = "", False, None, 0
        self._score: float | None = None
        self.guard(self._start)

    def guard(self, call: Callable[[], Any]) -> Any:
        """The call's result; None after an exception, which ends the episode."""
        try:
            return call()
        except UserError:  # such as an unknown task: every episode would fail alike
            raise
        except Exception as error:
            self._error, self.done = f"{type(error).__name__}: {error}", True
            return None

    def step(self, action: NDArray[np.float32]) -> None:
        self.guard(lambda: self._step(action))

    def look(self) -> list[RobotDict]:
        """The present observation, unless the environment fails."""
        observation = self.guard(self._env.observe)
        return [] if observation is None else [observation]

    def result(self) -> EpisodeResult:
        return EpisodeResult(
            self._spec.task, self._spec.seed, self._instruction, self._success and self._error is None, self._steps,
            self._error, self._frames, self._captions, None if self.due is None else (self.due.done, self.due.total),
            score=self._score,
        )  # fmt: skip

    def _start(self) -> None:
        observation, info = self._env.reset(seed=self._spec.seed, options={"task": self._spec.task})
        self._instruction = observation["prompt"]
        self._see_score(info)
        self.due = due_now(self._env, info, self._spec.seed)
        self._render()

    def _step(self, action: NDArray[np.float32]) -> None:
        _, _, terminated, truncated, info = self._env.step(action)
        self._steps += 1
        self._success = bool(info["success"])
        self._see_score(info)
        self.due = due_now(self._env, info, self._spec.seed)
        self.done = self._success or terminated or truncated or self._steps >= self._env.max_steps
        self._render()

    def _see_score(self, info: dict[str, Any]) -> None:
        if "score" in info:
            self._score = max(float(info["score"]), self._score or 0.0)

    def _render(self) -> None:
        if self._record:
            self._frames.append(self._env.render())
            if self.due is not None:
                self._captions.append(caption(self.due, self._source, self.said))


@dataclass(frozen=True)
class Played:
    """seen: what a policy shall see of the control steps played, oldest first. result: of an episode that is over. due:
    of one that is not, where the simulator has subtasks.
    """

    seen: list[RobotDict]
    result: EpisodeResult | None
    due: Due | None = None


class Player:
    """An environment and the episode in it. history: observations that the policy sees at once."""

    def __init__(self, env: Env, history: int) -> None:
        self._env, self._history = env, history

    def reset(self, spec: EpisodeSpec, record: bool, source: SubtaskSource = "own") -> Played:
        self._episode = Episode(self._env, spec, record, source)
        return self._played([])

    def play(self, actions: Sequence[NDArray[np.float32]], said: str = "") -> Played:
        """The actions [n, d] up to the episode's end. said: the subtask that they are for, for the captions."""
        self._episode.said = said
        seen: list[RobotDict] = []
        for number, action in enumerate(actions, 1):
            self._episode.step(action)
            if self._episode.done:
                break
            if 0 < len(actions) - number < self._history:
                seen += self._episode.look()
        return self._played(seen)

    def _played(self, seen: list[RobotDict]) -> Played:
        if not self._episode.done:
            seen += self._episode.look()
        return Played(seen, self._episode.result() if self._episode.done else None, self._episode.due)


class Simulator(Protocol):
    """A `Player` that may work while others are asked: `played` waits for what the last call gave."""

    def reset(self, spec: EpisodeSpec, record: bool, source: SubtaskSource = "own") -> None: ...
    def play(self, actions: Sequence[NDArray[np.float32]], said: str = "") -> None: ...
    def played(self) -> Played: ...


class LocalSimulator:
    """In this process."""

    def __init__(self, env: Env, history: int) -> None:
        self._player = Player(env, history)

    def reset(self, spec: EpisodeSpec, record: bool, source: SubtaskSource = "own") -> None:
        self._last = self._player.reset(spec, record, source)

    def play(self, actions: Sequence[NDArray[np.float32]], said: str = "") -> None:
        self._last = self._player.play(actions, said)

    def played(self) -> Played:
        return self._last


class ProcessSimulator:
    """In a process of its own. UserError, naming the episode, when that process is ended from outside."""

    def __init__(self, workers: Workers, env_name: str, history: int, options: dict[str, Any]) -> None:
        self._workers, self._what = workers, "its start"
        self._last: Future[Any] = workers.submit(_make, env_name, history, options)

    def reset(self, spec: EpisodeSpec, record: bool, source: SubtaskSource = "own") -> None:
        self._what = f"{spec.task}, seed {spec.seed}"
        self._submit(_reset, spec, record, source)

    def play(self, actions: Sequence[NDArray[np.float32]], said: str = "") -> None:
        self._submit(_play, np.stack(actions), said)

    def played(self) -> Played:
        try:
            return self._last.result()
        except BrokenProcessPool:
            raise self._broken() from None

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            self._last = self._workers.submit(function, *arguments)
        except BrokenProcessPool:
            raise self._broken() from None

    def _broken(self) -> UserError:
        return UserError(
            f"the process of a simulator ended in the middle of {self._what}: it crashed, or was ended from outside, "
            "perhaps for want of memory; try fewer --envs"
        )


@contextmanager
def process_simulators(count: int, env_name: str, history: int, options: dict[str, Any]) -> Iterator[list[Simulator]]:
    """`count` simulators, each in a process of its own that ends with the context. options: as for `make_env`."""
    with ExitStack() as stack:
        simulators = [
            ProcessSimulator(stack.enter_context(Workers(1)), env_name, history, options) for _ in range(count)
        ]
        for simulator in simulators:
            simulator.played()
        yield list(simulators)


_player: Player | None = None
"""In a worker process: its own."""


def _make(env_name: str, history: int, options: dict[str, Any]) -> None:
    global _player
    _player = Player(make_env(env_name, **options), history)


def _reset(spec: EpisodeSpec, record: bool, source: SubtaskSource) -> Played:
    assert _player is not None
    return _player.reset(spec, record, source)


def _play(actions: NDArray[np.float32], said: str) -> Played:
    assert _player is not None
    return _player.play(list(actions), said)
