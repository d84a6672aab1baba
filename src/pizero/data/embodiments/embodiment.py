"""A robot as the data side sees it: its cameras, the layout of its state and action, the names of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from pizero.data.conversions import Conversion, Numbers, to_model, to_robot
from pizero.data.embodiments.dimensions import Dims, check_dims
from pizero.data.embodiments.values import READERS
from pizero.data.relative_actions import RelativeActions
from pizero.files import lies_inside
from pizero.types import UserError, check_whole

Key: TypeAlias = str | tuple[str, ...]
"""A column, or several that are joined in this order."""


@dataclass(frozen=True)
class Embodiment:
    """Everything about a robot that a pipeline needs and a checkpoint must remember.

    cameras: model camera name -> robot camera name. A model camera not named here is absent.
    state_dims, action_dims: the dimensions of the columns that go to the model, in this order; empty means all. They
    are all that a policy of the robot is given and answers, and whatever else is given here counts them alone.
    state_dim, action_dim: the robot's own widths; None takes those of the choice, else of the norm stats.
    relative_mask: true where the action is learned relative to the state; may be shorter than the action.
    state_indices: state dimension that goes with each action dimension of the mask; empty means the same index.
    The keys name the columns of a LeRobot dataset. prompt_key: "task", the dataset's own tasks, or a column of text.
    grippers: action dimensions; empty means unknown.
    conversions: from the robot's numbers to the model's, first of all on the way in and last on the way out.
    default_prompt: the instruction where the dataset or the robot gives none.
    """

    name: str
    cameras: Mapping[str, str]
    state_dim: int | None = None
    action_dim: int | None = None
    relative_mask: tuple[bool, ...] = ()
    state_indices: tuple[int, ...] = ()
    state_key: Key = "observation.state"
    action_key: Key = "action"
    prompt_key: str = "task"
    image_prefix: str = "observation.images."
    grippers: tuple[int, ...] = ()
    conversions: tuple[Conversion, ...] = ()
    default_prompt: str = ""
    state_dims: Dims = ()
    action_dims: Dims = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", dict(self.cameras))
        keys = self.columns
        texts = (self.name, *keys, self.prompt_key, self.image_prefix, self.default_prompt)
        if not all(isinstance(text, str) for text in (*texts, *self.cameras, *self.cameras.values())):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UserError("embodiment: the name, the keys and the names of cameras must be texts")
        if not lies_inside(Path(self.name), Path()):
            raise UserError(f"embodiment: the name {self.name!r} cannot be that of a folder, which it becomes")
        if not self.state_key or not self.action_key or not all(keys):
            raise UserError(f"embodiment {self.name}: state_key and action_key must name columns")
        if len(set(self.cameras.values())) != len(self.cameras):
            raise UserError(
                f"embodiment {self.name}: got cameras {dict(self.cameras)}, expected each robot camera named once"
            )
        for what in ("state", "action"):
            dims, width = getattr(self, f"{what}_dims"), getattr(self, f"{what}_dim")
            check_dims(f"embodiment {self.name}: {what}_dims", dims, width)
            object.__setattr__(self, f"{what}_dim", len(dims) or width)
        for what, dim in (("state_dim", self.state_dim), ("action_dim", self.action_dim)):
            if dim is not None:
                check_whole(f"embodiment {self.name}: {what}", dim)
        if self.action_dim is not None and len(self.relative_mask) > self.action_dim:
            raise UserError(
                f"embodiment {self.name}: relative mask of {len(self.relative_mask)} for {self.action_dim} actions"
            )
        _ = self.relative  # checks the state indices

    @property
    def columns(self) -> tuple[str, ...]:
        """The dataset's columns that make up state and actions."""
        keys = (self.state_key, self.action_key)
        return tuple(part for key in keys for part in (key if isinstance(key, tuple) else (key,)))

    @property
    def relative(self) -> RelativeActions:
        return RelativeActions(self.relative_mask, self.state_indices)

    def image_key(self, robot_camera: str) -> str:
        """Dataset column of a robot camera."""
        return self.image_prefix + robot_camera

    def model_state(self, state: Numbers) -> Numbers:
        """The robot's state [..., d] in the model's numbers, not yet normalised."""
        return to_model(state, self._conversions("state"))

    def model_actions(self, actions: Numbers) -> Numbers:
        """The robot's actions [..., d] in the model's numbers, absolute, not yet normalised."""
        return to_model(actions, self._conversions("action"))

    def robot_actions(self, actions: Numbers) -> Numbers:
        """The inverse of `model_actions`."""
        return to_robot(actions, self._conversions("action"))

    def check_dims(self, state_dim: int, action_dim: int) -> None:
        """UserError where a width, or something of a dimension, is said that data of these widths does not have."""
        for what, own, found in (("state", self.state_dim, state_dim), ("action", self.action_dim, action_dim)):
            if own is not None and own != found:
                raise UserError(
                    f"embodiment {self.name}: {what}_dim is {own}, but the data has {found}; correct it or leave it out"
                )
        self.relative.index_pairs(action_dim, state_dim)
        said = [("action", "a gripper", self.grippers)]
        for what in ("state", "action"):
            said += [(what, "converted", conversion.dims) for conversion in self._conversions(what)]
        for what, how, dims in said:
            dim = state_dim if what == "state" else action_dim
            for index in dims:
                if not 0 <= index < dim:
                    raise UserError(
                        f"embodiment {self.name}: {what} dimension {index} is {how}, but there are {dim}, from 0 on"
                    )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Embodiment:
        """Raises UserError, naming the key, for an unknown or a missing one and for a value of another type."""
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                raise UserError(f"embodiment: unknown key {str(key)[:60]!r}; expected some of {', '.join(known)}")
        for key in ("name", "cameras"):
            if key not in data:
                raise UserError(f"embodiment: no {key!r}; it is needed")
        return cls(**{key: READERS[key](value, f"embodiment: {key}") for key, value in data.items()})

    def _conversions(self, what: str) -> list[Conversion]:
        return [conversion for conversion in self.conversions if conversion.of in (what, "both")]
