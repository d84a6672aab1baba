"""The tasks of an environment by name, and which one an episode is of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from pizero.types import Env, UserError


def choose_tasks(names: Sequence[str] | None, known: Collection[str]) -> tuple[str, ...]:
    """`names`, or all `known` tasks where None. UserError for one unknown, one named twice, and none at all."""
    if names is None:
        return tuple(known)
    if not names:
        raise UserError(f"tasks is empty: expected some of {', '.join(known)}")
    return distinct_tasks([check_task(name, known) for name in names])


def distinct_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """The names; UserError where one is there twice, whose episodes would count as more than they are."""
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise UserError(f"task {twice[0]!r} is named twice; name each task once")
    return tuple(names)


def check_task(name: str, known: Collection[str]) -> str:
    """The name; UserError where it is not known."""
    if name not in known:
        raise UserError(f"unknown task {name!r}: expected some of {', '.join(known)}")
    return name


def draw_task(rng: np.random.Generator, names: Sequence[str]) -> str:
    """One of `names`. It takes as much from `rng` for one name as for several (`integers(1)` takes nothing), so what is
    drawn next, the scene, is the same for a seed whatever the number of tasks that were chosen.
    """
    return names[int(rng.integers(max(len(names), 2))) % len(names)]


def asked_task(options: dict[str, Any] | None, drawn: str) -> str:
    """`options["task"]` of a reset, or `drawn` where it is None or not there."""
    asked: str | None = (options or {}).get("task")
    return drawn if asked is None else asked


def episode_task(rng: np.random.Generator, names: Sequence[str], options: dict[str, Any] | None) -> str:
    """`options["task"]`, else a task drawn from `rng`, which is drawn in any case. UserError for one not in `names`."""
    return check_task(asked_task(options, draw_task(rng, names)), names)


def demonstrated_tasks(env: Env, named: Sequence[str]) -> Sequence[str]:
    """What the demonstrator is asked for: the tasks that were named, else those that it does well."""
    return env.task_names if named else getattr(env, "demonstrated_tasks", env.task_names)


def require_demonstrator(env: Env, tasks: Sequence[str], seed: int) -> None:
    """UserError, before anything is played, for a task that was named nevertheless and has no demonstrator."""
    for task in tasks:
        if task not in getattr(env, "demonstrated_tasks", tasks):
            env.reset(seed=seed, options={"task": task})
            env.demonstrator()
