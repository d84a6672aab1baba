"""Runs a policy, the demonstrator or random actions in environments; one rollout loop for all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pizero.evaluation.simulators import Episode, EpisodeResult, EpisodeSpec, LocalSimulator, Played, Simulator
from pizero.evaluation.subtasks import Due, SubtaskSource, with_subtask
from pizero.policy.chunk_executor import ChunkExecutor
from pizero.policy.held_subtask import HeldSubtask
from pizero.policy.sampling import episode_noise
from pizero.types import Env, Policy, RobotDict

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
    record: Collection[int] = (),
    subtasks: SubtaskSource = "own",
) -> list[EpisodeResult]:
    """Plays the episodes, one at a time in each environment; the results are in the order of `episodes`.

    All environments ask for their next chunks in one `infer_batch`, and images are rendered for nothing else. A policy
    whose `num_history` is T > 1 gets the last T observations, the episode's first one repeated at its start. The noise
    of an episode's chunk k follows from the episode's seed and k, whatever runs beside it; it is passed as "noise" to a
    policy that has a `noise_shape`. A subtask that the policy writes holds for its `subtask_every` chunks. An exception
    of an environment ends its episode and is kept in the result; a UserError and any exception of the policy is raised.
    `record`: places in `episodes` of those that get frames. `subtasks`: who says what is to be done now.
    """
    simulators = [LocalSimulator(env, history_of(policy)) for env in envs]
    return rollout_in(
        simulators, policy, episodes, execution_horizon,
        alter=alter, on_episode=on_episode, record=record, subtasks=subtasks,
    )  # fmt: skip


def rollout_in(
    simulators: Sequence[Simulator],
    policy: Policy,
    episodes: Sequence[EpisodeSpec],
    execution_horizon: int,
    *,
    alter: Alter | None = None,
    on_episode: OnEpisode | None = None,
    record: Collection[int] = (),
    subtasks: SubtaskSource = "own",
) -> list[EpisodeResult]:
    """`rollout` in simulators that may run at the same time: all play their chunks, then all are asked, and so on.

    As many simulators give the same batches, and so the same episodes, wherever they run.
    """
    noise_shape: tuple[int, int] | None = getattr(policy, "noise_shape", None)
    executor = ChunkExecutor(execution_horizon)
    waiting = iter(enumerate(episodes))
    running: dict[int, _Run] = {}
    results: dict[int, EpisodeResult] = {}

    def begin(slot: int) -> bool:
        """Starts the next episode there, if one is left."""
        running.pop(slot, None)
        index, spec = next(waiting, (0, None))
        if spec is None:
            return False
        running[slot] = _Run(spec, index, policy, alter, subtasks)
        simulators[slot].reset(spec, index in record, subtasks)
        return True

    at_work = [slot for slot in range(len(simulators)) if begin(slot)]
    while at_work:
        played: dict[int, Played] = {slot: simulators[slot].played() for slot in at_work}
        at_work = []
        for slot, news in played.items():
            if news.result is None:
                running[slot].see(news.seen, news.due)
                continue
            result = replace(news.result, agreed=running[slot].agreed)
            results[running[slot].index] = result
            if on_episode is not None:
                on_episode(result)
            if begin(slot):
                at_work.append(slot)
        if not at_work and running:
            at_work = sorted(running)
            questions = [running[slot].question(noise_shape) for slot in at_work]
            for slot, answer in zip(at_work, policy.infer_batch(questions), strict=True):
                executor.load(answer["actions"])
                said = running[slot].heard(answer)
                simulators[slot].play([executor.next_action() for _ in range(execution_horizon)], said)
    return [results[index] for index in range(len(episodes))]


def history_of(policy: Policy) -> int:
    """Observations that the policy sees at once."""
    return cast(int, getattr(policy, "num_history", 1))


def run_demonstrator(
    env: Env, episodes: Sequence[EpisodeSpec], *, on_episode: OnEpisode | None = None, record: Collection[int] = ()
) -> list[EpisodeResult]:
    """The environment's scripted demonstrator: what is possible."""
    return _run_actor(env, episodes, lambda _: env.demonstrator().act, on_episode, record)


def run_random(
    env: Env, episodes: Sequence[EpisodeSpec], *, on_episode: OnEpisode | None = None, record: Collection[int] = ()
) -> list[EpisodeResult]:
    """Uniform actions of the whole range, drawn from the episode's seed: what chance gives."""

    def make_actor(spec: EpisodeSpec) -> Callable[[], NDArray[np.float32]]:
        rng, space = np.random.default_rng(spec.seed), env.action_space
        return lambda: rng.uniform(space.low, space.high).astype(np.float32)

    return _run_actor(env, episodes, make_actor, on_episode, record)


def _run_actor(
    env: Env,
    episodes: Sequence[EpisodeSpec],
    make_actor: Callable[[EpisodeSpec], Callable[[], NDArray[np.float32]]],
    on_episode: OnEpisode | None,
    record: Collection[int],
) -> list[EpisodeResult]:
    results: list[EpisodeResult] = []
    for index, spec in enumerate(episodes):
        episode = Episode(env, spec, index in record)
        act = episode.guard(lambda spec=spec: make_actor(spec))
        while act is not None and not episode.done:
            action = episode.guard(act)
            if action is not None:
                episode.step(action)
        results.append(episode.result())
        if on_episode is not None:
            on_episode(results[-1])
    return results


class _Run:
    """What the policy has seen of an episode under way."""

    def __init__(
        self, spec: EpisodeSpec, index: int, policy: Policy, alter: Alter | None, source: SubtaskSource
    ) -> None:
        self.index = index
        self.agreed: tuple[int, int] | None = None
        self._spec, self._alter, self._chunks = spec, alter, 0
        self._policy, self._due, self._asked = policy, cast("Due | None", None), RobotDict()
        self._source: SubtaskSource = source
        self._held = HeldSubtask(getattr(policy, "subtask_every", None))
        self._history = history_of(policy)
        self._seen = deque[RobotDict](maxlen=self._history)

    def see(self, observations: Sequence[RobotDict], due: Due | None) -> None:
        self._due = due
        self._seen += [self._alter(seen, self._spec) if self._alter else seen for seen in observations]

    def question(self, noise_shape: tuple[int, int] | None) -> RobotDict:
        """What the policy is asked: the last observations, with the noise of the episode's next chunk."""
        observation = joined([self._seen[0]] * (self._history - len(self._seen)) + list(self._seen))
        observation = with_subtask(observation, self._due, self._source, self._policy)
        observation = self._asked = self._held.question(observation)
        self._chunks += 1
        if noise_shape is None:
            return observation
        return {**observation, "noise": episode_noise(self._spec.seed, self._chunks - 1, noise_shape)}

    def heard(self, answer: Mapping[str, Any]) -> str:
        """The subtask that the answer is for: written by the policy, or given to it."""
        own: str | None = answer.get("subtask")
        self._held.heard(self._asked, answer)
        if self._due is None:
            return own or ""
        if self._source == "own" and own is not None:
            right, asked = self.agreed or (0, 0)
            self.agreed = right + (own.strip().lower() == self._due.text.lower()), asked + 1
        return own or {"oracle": self._due.text, "wrong": self._due.wrong}.get(self._source, "")


def joined(observations: Sequence[RobotDict]) -> RobotDict:
    """Consecutive observations as one, images [T, h, w, 3] and state [T, d]; a single one stays as it is."""
    newest = observations[-1]
    if len(observations) == 1:
        return newest
    images = {name: np.stack([seen["images"][name] for seen in observations]) for name in newest["images"]}
    return {**newest, "images": images, "state": np.stack([seen["state"] for seen in observations])}
