"""Runs a policy, the demonstrator or random actions in environments; one rollout loop for all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.policy.chunk_executor import ChunkExecutor
from pizero.types import Env, Policy, RobotDict, UserError


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode to run: a task of the environment and the seed that fixes its initial state."""

    task: str
    seed: int


@dataclass(frozen=True)
class EpisodeResult:
    """error: text of the exception that the environment raised; such an episode is neither success nor failure.

    steps: control steps played. frames: [h, w, 3] uint8 each, of recorded episodes only.
    """

    task: str
    seed: int
    instruction: str
    success: bool
    steps: int
    error: str | None = None
    frames: list[NDArray[np.uint8]] = field(default_factory=list, repr=False)


Alter = Callable[[RobotDict, EpisodeSpec], RobotDict]
"""Changes the observation of one control step before the policy sees it: another instruction, blank images."""

OnEpisode = Callable[[EpisodeResult], None]


def rollout(
    policy: Policy,
    envs: Sequence[Env],
    episodes: Sequence[EpisodeSpec],
    execution_horizon: int,
    *,
    alter: Alter | None = None,
    on_episode: OnEpisode | None = None,
    record_first: int = 0,
) -> list[EpisodeResult]:
    """Plays the episodes, one at a time in each environment; the results are in the order of `episodes`.

    All environments ask for their next chunks in one `infer_batch`, and images are rendered for nothing else. A policy
    whose `num_history` is T > 1 gets the last T observations, the episode's first one repeated at its start. The noise
    of an episode's chunk k follows from the episode's seed and k, whatever runs beside it; it is passed as "noise" to a
    policy that has a `noise_shape`. An exception of an environment ends its episode and is kept in the result; a
    UserError and any exception of the policy is raised. `record_first`: how many episodes get frames.
    """
    history: int = getattr(policy, "num_history", 1)
    waiting = iter(
        _Run(spec, index, index < record_first, history=history, alter=alter) for index, spec in enumerate(episodes)
    )
    results: dict[int, EpisodeResult] = {}

    def finish(run: _Run) -> None:
        results[run.index] = run.result()
        if on_episode is not None:
            on_episode(results[run.index])

    executors = {slot: ChunkExecutor(execution_horizon) for slot in range(len(envs))}
    running: dict[int, _Run] = {}
    noise_shape: tuple[int, int] | None = getattr(policy, "noise_shape", None)
    while True:
        asked: dict[int, RobotDict] = {}
        for slot, env in enumerate(envs):
            run = _next_run(env, slot, running, waiting, finish)
            if run is not None:
                asked[slot] = run.question(noise_shape)
        if not asked:
            return [results[index] for index in range(len(episodes))]
        for slot, answer in zip(asked, policy.infer_batch(list(asked.values())), strict=True):
            executors[slot].load(answer["actions"])
            running[slot].play(envs[slot], executors[slot])


def run_demonstrator(
    env: Env, episodes: Sequence[EpisodeSpec], *, on_episode: OnEpisode | None = None, record_first: int = 0
) -> list[EpisodeResult]:
    """The environment's scripted demonstrator: what is possible."""
    return _run_actor(env, episodes, lambda _: env.demonstrator().act, on_episode, record_first)


def run_random(
    env: Env, episodes: Sequence[EpisodeSpec], *, on_episode: OnEpisode | None = None, record_first: int = 0
) -> list[EpisodeResult]:
    """Uniform actions of the whole range, drawn from the episode's seed: what chance gives."""

    def make_actor(spec: EpisodeSpec) -> Callable[[], NDArray[np.float32]]:
        rng, space = np.random.default_rng(spec.seed), env.action_space
        return lambda: rng.uniform(space.low, space.high).astype(np.float32)

    return _run_actor(env, episodes, make_actor, on_episode, record_first)


def _run_actor(
    env: Env,
    episodes: Sequence[EpisodeSpec],
    make_actor: Callable[[EpisodeSpec], Callable[[], NDArray[np.float32]]],
    on_episode: OnEpisode | None,
    record_first: int,
) -> list[EpisodeResult]:
    results: list[EpisodeResult] = []
    for index, spec in enumerate(episodes):
        run = _Run(spec, index, index < record_first)
        run.reset(env)
        act = run.guard(lambda spec=spec: make_actor(spec))
        while act is not None and not run.done:
            action = run.guard(act)
            if action is not None:
                run.step(env, action)
        results.append(run.result())
        if on_episode is not None:
            on_episode(results[-1])
    return results


def _next_run(
    env: Env, slot: int, running: dict[int, _Run], waiting: Iterator[_Run], finish: Callable[[_Run], None]
) -> _Run | None:
    """The slot's episode, which has seen its present, after a finished one was replaced; None when none is left."""
    while True:
        run = running.get(slot)
        if run is not None and not run.done:
            run.look(env)
            if not run.done:
                return run
        if run is not None:
            finish(running.pop(slot))
        following = next(waiting, None)
        if following is None:
            return None
        running[slot] = following
        following.reset(env)


class _Run:
    """One episode under way."""

    def __init__(
        self, spec: EpisodeSpec, index: int, record: bool, *, history: int = 1, alter: Alter | None = None
    ) -> None:
        self.spec, self.index = spec, index
        self.done = False
        self._record, self._frames = record, list[NDArray[np.uint8]]()
        self._alter, self._history, self._seen = alter, history, deque[RobotDict](maxlen=history)
        self._instruction, self._success, self._error = "", False, None
        self._steps = self._chunks = 0

    def guard(self, call: Callable[[], Any]) -> Any:
        """The call's result; None after an exception, which ends the episode."""
        try:
            return call()
        except UserError:  # such as an unknown task: every episode would fail alike
            raise
        except Exception as error:
            self._error, self.done = f"{type(error).__name__}: {error}", True
            return None

    def reset(self, env: Env) -> None:
        def start() -> None:
            observation, _ = env.reset(seed=self.spec.seed, options={"task": self.spec.task})
            self._instruction = observation["prompt"]
            self._render(env)

        self.guard(start)

    def step(self, env: Env, action: NDArray[np.float32]) -> None:
        def advance() -> None:
            _, _, terminated, truncated, info = env.step(action)
            self._steps += 1
            self._success = bool(info["success"])
            self.done = self._success or terminated or truncated or self._steps >= env.max_steps
            self._render(env)

        self.guard(advance)

    def play(self, env: Env, executor: ChunkExecutor) -> None:
        """The loaded chunk, up to the next one or the episode's end."""
        while not executor.needs_chunk and not self.done:
            self.step(env, executor.next_action())
            if 0 < executor.remaining < self._history and not self.done:
                self.look(env)

    def look(self, env: Env) -> None:
        """Keeps what the policy shall see of the present control step."""
        observation = self.guard(env.observe)
        if observation is not None:
            self._seen.append(self._alter(observation, self.spec) if self._alter else observation)

    def question(self, noise_shape: tuple[int, int] | None) -> RobotDict:
        """What the policy is asked: the last observations, with the noise of the episode's next chunk."""
        observation = _joined([self._seen[0]] * (self._history - len(self._seen)) + list(self._seen))
        rng = np.random.default_rng([self.spec.seed, self._chunks])
        self._chunks += 1
        if noise_shape is None:
            return observation
        return {**observation, "noise": rng.standard_normal(noise_shape, np.float32)}

    def result(self) -> EpisodeResult:
        return EpisodeResult(
            self.spec.task, self.spec.seed, self._instruction, self._success and self._error is None, self._steps,
            self._error, self._frames,
        )  # fmt: skip

    def _render(self, env: Env) -> None:
        if self._record:
            self._frames.append(env.render())


def _joined(observations: Sequence[RobotDict]) -> RobotDict:
    """Consecutive observations as one, images [T, h, w, 3] and state [T, d]; a single one stays as it is."""
    newest = observations[-1]
    if len(observations) == 1:
        return newest
    images = {name: np.stack([seen["images"][name] for seen in observations]) for name in newest["images"]}
    return {**newest, "images": images, "state": np.stack([seen["state"] for seen in observations])}
