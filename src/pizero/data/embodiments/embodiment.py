"""A robot as the data side sees it: its cameras, the layout of its state and action, the names of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pizero.data.transforms import RelativeActions
from pizero.types import UserError, as_tuple, check_whole


@dataclass(frozen=True)
class Embodiment:
    """Everything about a robot that a pipeline needs and a checkpoint must remember.

    cameras: model camera name -> robot camera name. A model camera not named here is absent.
    state_dim, action_dim: the robot's own widths; None takes them from the norm stats.
    relative_mask: true where the action is learned relative to the state; may be shorter than the action.
    state_indices: state dimension that goes with each action dimension of the mask; empty means the same index.
    The keys name the columns of a LeRobot dataset. grippers: action dimensions; empty means that nobody said.
    """

    name: str
    cameras: Mapping[str, str]
    state_dim: int | None = None
    action_dim: int | None = None
    relative_mask: tuple[bool, ...] = ()
    state_indices: tuple[int, ...] = ()
    state_key: str = "observation.state"
    action_key: str = "action"
    prompt_key: str = "task"
    image_prefix: str = "observation.images."
    grippers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", dict(self.cameras))
        texts = (self.name, self.state_key, self.action_key, self.prompt_key, self.image_prefix)
        if not all(isinstance(text, str) for text in (*texts, *self.cameras, *self.cameras.values())):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UserError("embodiment: the name, the keys and the names of cameras must be texts")
        if not self.cameras or len(set(self.cameras.values())) != len(self.cameras):
            raise UserError(
                f"embodiment {self.name}: got cameras {dict(self.cameras)}, "
                "expected at least one, each robot camera named once"
            )
        for what, dim in (("state_dim", self.state_dim), ("action_dim", self.action_dim)):
            if dim is not None:
                check_whole(f"embodiment {self.name}: {what}", dim)
        if self.action_dim is not None and len(self.relative_mask) > self.action_dim:
            raise UserError(
                f"embodiment {self.name}: relative mask of {len(self.relative_mask)} for {self.action_dim} actions"
            )
        _ = self.relative  # checks the state indices

    @property
    def relative(self) -> RelativeActions:
        return RelativeActions(self.relative_mask, self.state_indices)

    def image_key(self, robot_camera: str) -> str:
        """Dataset column of a robot camera."""
        return self.image_prefix + robot_camera

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Embodiment:
        """Raises UserError for an unknown or a missing key."""
        known = {field.name for field in fields(cls)}
        if not {"name", "cameras"} <= data.keys() or not data.keys() <= known:
            raise UserError(
                f"embodiment: got keys {sorted(data)}, expected name, cameras, maybe more of {sorted(known)}"
            )
        values = dict(data)
        for key, kind in (("relative_mask", bool), ("state_indices", int), ("grippers", int)):
            values[key] = as_tuple(values.get(key, ()))
            if not isinstance(values[key], tuple) or not all(type(value) is kind for value in values[key]):
                raise UserError(f"embodiment: {key} must be a list of {kind.__name__}, got {str(values[key])[:60]}")
        return cls(**values)
