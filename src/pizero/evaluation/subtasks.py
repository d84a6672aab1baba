"""Who says what is to be done now, in an evaluation of long tasks, and how much of it was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from pizero.types import Env, Policy, RobotDict, SubtaskEnv, UserError

SubtaskSource: TypeAlias = Literal["own", "none", "oracle", "wrong"]
"""own: nobody; a policy that writes its subtasks acts on those. none: nobody, and such a policy is asked to write none.
oracle: the simulator says what is due. wrong: it says another of the episode's subtasks.
"""


@dataclass(frozen=True)
class Due:
    """text: the subtask that is due, empty when all is done. wrong: another one, the same until the next is due.

    done, total: subtasks of the episode.
    """

    text: str
    wrong: str
    done: int
    total: int


def due_now(env: Env, info: dict[str, Any], seed: int) -> Due | None:
    """Of an episode under way, after `reset` or `step` gave `info`; None where the simulator has no subtasks."""
    if not isinstance(env, SubtaskEnv) or "subtasks" not in info:
        return None
    done, total = info["subtasks"]
    others = [text for text in env.subtasks if text != env.subtask]
    wrong = others[np.random.default_rng([seed, done]).integers(len(others))] if others else ""
    return Due(env.subtask, wrong, done, total)


def with_subtask(seen: RobotDict, due: Due | None, source: SubtaskSource, policy: Policy) -> RobotDict:
    """What the policy is asked. One that has no `takes_subtask` is given the subtask as its instruction."""
    takes = bool(getattr(policy, "takes_subtask", False))
    if source == "own" or (source == "none" and not takes):
        return seen
    if source == "none":
        return {**seen, "subtask": ""}
    if due is None:
        raise UserError("this simulator does not say what is to be done now; evaluate with --subtasks own or none")
    text = due.text if source == "oracle" else due.wrong
    return {**seen, "subtask": text} if takes else {**seen, "prompt": text or seen["prompt"]}


def caption(due: Due, source: SubtaskSource, said: str) -> tuple[str, ...]:
    """Lines under a frame: what is due, and what the policy acts on where that is something else."""
    first = f"{due.done}/{due.total}  {due.text or 'done'}"
    if not said or (said == due.text and source != "own"):
        return (first,)
    return first, f"{'policy' if source == 'own' else 'told'}: {said}"


def per_subtask(counts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of episodes with (subtasks done, subtasks): of the first, second, ... subtask in how many it was done, of those
    that have it.
    """
    longest = max((total for _, total in counts), default=0)
    return [
        (sum(done > number for done, _ in counts), sum(total > number for _, total in counts))
        for number in range(longest)
    ]
