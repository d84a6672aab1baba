"""A robot of your own, described by arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pizero.data.embodiments.dimensions import Dims
from pizero.data.embodiments.embodiment import Embodiment


def generic(
    cameras: Mapping[str, str],
    *,
    state_dim: int | None = None,
    action_dim: int | None = None,
    relative_mask: Sequence[bool] = (),
    state_indices: Sequence[int] = (),
    state_dims: Dims = (),
    action_dims: Dims = (),
    name: str = "generic",
) -> Embodiment:
    """`cameras` maps model camera names (base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb) to the robot's."""
    return Embodiment(
        name, cameras, state_dim, action_dim, tuple(relative_mask), tuple(state_indices),
        state_dims=tuple(state_dims), action_dims=tuple(action_dims),
    )  # fmt: skip
