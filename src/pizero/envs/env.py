"""The environments by name. Each is imported when it is made, so that no simulator is needed by who does not use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pizero.plugins import Registry
from pizero.types import Env, UserError


def _tabletop(**options: Any) -> Env:
    from pizero.envs.tabletop.env import TabletopEnv

    return TabletopEnv(**options)


def _tabletop_long(**options: Any) -> Env:
    from pizero.envs.tabletop.long import TabletopLongEnv

    return TabletopLongEnv(**options)


def _metaworld(**options: Any) -> Env:
    from pizero.envs.metaworld.env import MetaWorldEnv

    return MetaWorldEnv(**options)


def _metaworld_suite(class_name: str, **options: Any) -> Env:
    from pizero.envs.metaworld import suites

    return getattr(suites, class_name)(**options)


def _pusht(**options: Any) -> Env:
    from pizero.envs.pusht.env import PushTEnv

    return PushTEnv(**options)


def _aloha(**options: Any) -> Env:
    from pizero.envs.aloha.env import AlohaEnv

    return AlohaEnv(**options)


def _so101(**options: Any) -> Env:
    from pizero.envs.so101.env import SO101Env

    return SO101Env(**options)


def _libero(suite: str, **options: Any) -> Env:
    from pizero.envs.libero.env import LiberoEnv

    return LiberoEnv(suite, **options)


ENVS: dict[str, Callable[..., Env]] = {
    "tabletop": _tabletop,
    "tabletop-long": _tabletop_long,
    "metaworld": _metaworld,
    "metaworld-mt10": partial(_metaworld_suite, "MT10Env"),
    "metaworld-mt50": partial(_metaworld_suite, "MT50Env"),
    "metaworld-mt50-lerobot": partial(_metaworld_suite, "LeRobotMT50Env"),
    "pusht": _pusht,
    "aloha": _aloha,
    "so101": _so101,
}
for _suite in ("libero-spatial", "libero-object", "libero-goal", "libero-10"):
    ENVS[_suite] = partial(_libero, _suite)
    ENVS[f"{_suite}-published"] = partial(_libero, _suite, published_images=True)

_REGISTRY = Registry("simulator", "pizero.envs", ENVS)
_MEMBERS = [*Env.__annotations__, *(name for name in vars(Env) if not name.startswith("_"))]


def check_env(name: str) -> None:
    """UserError where no environment has that name; nothing is made yet."""
    _REGISTRY.find(name)


def make_env(
    name: str, *, image_size: int | None = None, render_in_step: bool = True, tasks: Sequence[str] | None = None
) -> Env:
    """Makes the environment `name`: a key of `ENVS`, an entry point of the group pizero.envs, or module:function.

    image_size: pixels per side of every camera image; None takes the environment's own default.
    render_in_step: whether `step` returns images; `observe` always does.
    tasks: the tasks that `reset` draws from; None means all of them.
    Raises UserError for a name, size or task that does not exist, and for what is no `Env`.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size is {image_size}, expected a positive number of pixels such as 64")
    size = {} if image_size is None else {"image_size": image_size}
    env = _REGISTRY.make(name, tasks=tasks, render_in_step=render_in_step, **size)
    if missing := [member for member in _MEMBERS if not hasattr(env, member)]:
        raise UserError(
            f"simulator {name!r} made a {type(env).__name__} without {', '.join(missing)}; see docs/simulators.md"
        )
    return env
