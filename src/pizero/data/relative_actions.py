"""Actions relative to the state at the start of their chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pizero.types import UserError

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class RelativeActions:
    """Absolute actions to relative ones and back, on the dimensions where `mask` is true.

    All steps of the chunk are relative to the one state given, the state at the chunk's start. `mask` may be shorter
    than the action: the rest stays absolute. Action dimension i goes with state dimension `state_indices[i]`, or i.
    """

    mask: tuple[bool, ...]
    state_indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.state_indices and len(self.state_indices) != len(self.mask):
            raise UserError(
                f"relative actions: got {len(self.state_indices)} state indices for a mask of {len(self.mask)}"
            )

    def __call__(self, actions: NDArray[Scalar], state: NDArray[Any]) -> NDArray[Scalar]:
        """actions [..., H, d], state [..., ds] -> relative actions, same shape and type."""
        return self._add(actions, state, -1)

    def inverse(self, actions: NDArray[Scalar], state: NDArray[Any]) -> NDArray[Scalar]:
        """Relative actions [..., H, d], state [..., ds] -> absolute actions."""
        return self._add(actions, state, 1)

    def index_pairs(self, action_dim: int, state_dim: int) -> list[tuple[int, int]]:
        """(action dimension, state dimension) of every relative dimension; UserError when one does not exist."""
        pairs = [(i, self.state_indices[i] if self.state_indices else i) for i, on in enumerate(self.mask) if on]
        for action_index, state_index in pairs:
            if action_index >= action_dim or not 0 <= state_index < state_dim:
                raise UserError(
                    f"relative actions: action dimension {action_index} goes with state dimension {state_index}, "
                    f"but there are {action_dim} action and {state_dim} state dimensions; correct the mask"
                )
        return pairs

    def _add(self, actions: NDArray[Any], state: NDArray[Any], sign: int) -> NDArray[Any]:
        pairs = self.index_pairs(actions.shape[-1], state.shape[-1])
        out = actions.copy()
        if pairs:
            action_indices, state_indices = (list(indices) for indices in zip(*pairs, strict=True))
            out[..., action_indices] += sign * state[..., None, state_indices].astype(out.dtype)
        return out
