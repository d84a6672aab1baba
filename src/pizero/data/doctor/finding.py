"""One thing that is wrong, or may be: what, where, how one sees it, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.doctor.names import Meaning, meaning
from pizero.data.embodiments import Embodiment
from pizero.data.robot_columns import action_names, robot_actions, robot_state, state_names

Severity = Literal["error", "warning", "note"]
"""error: training on it will not work. warning: it probably hurts. note: worth knowing."""
ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """check: the kind, in a word or two. where: dimension, camera, episodes. evidence: figures. advice: what to do."""

    severity: Severity
    check: str
    where: str
    evidence: str
    advice: str


@dataclass(frozen=True)
class Subject:
    """What is examined: the dataset's state [F, ds] and actions [F, da], in the robot's numbers.

    finite [F]: where all numbers are. horizon: actions per chunk. state_names, action_names: of the dimensions, in
    meta/info.json; None where it has none.
    """

    dataset: LeRobotDataset
    embodiment: Embodiment
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    finite: NDArray[np.bool_]
    horizon: int
    state_names: tuple[str, ...] | None
    action_names: tuple[str, ...] | None

    @classmethod
    def of(cls, dataset: LeRobotDataset, embodiment: Embodiment, horizon: int) -> Subject:
        """UserError where the robot's dimensions are not the dataset's."""
        state, actions = robot_state(dataset, embodiment), robot_actions(dataset, embodiment)
        embodiment.check_dims(state.shape[1], actions.shape[1])
        finite = np.asarray(np.isfinite(state).all(axis=1) & np.isfinite(actions).all(axis=1))
        names = state_names(dataset, embodiment), action_names(dataset, embodiment)
        return cls(dataset, embodiment, state, actions, finite, horizon, *names)

    @property
    def columns(self) -> dict[str, NDArray[np.float32]]:
        return {"state": self.state, "action": self.actions}

    def names(self, what: str) -> tuple[str, ...] | None:
        return self.state_names if what == "state" else self.action_names

    @cached_property
    def state_meanings(self) -> list[Meaning] | None:
        return None if self.state_names is None else [meaning(name, of_command=False) for name in self.state_names]

    @cached_property
    def action_meanings(self) -> list[Meaning] | None:
        return None if self.action_names is None else [meaning(name, of_command=True) for name in self.action_names]

    @cached_property
    def model_state(self) -> NDArray[np.floating[Any]]:
        """The state in the model's numbers, where it and the action mean the same."""
        return self.embodiment.model_state(self.state)

    @cached_property
    def model_actions(self) -> NDArray[np.floating[Any]]:
        return self.embodiment.model_actions(self.actions)

    def episode_slices(self) -> list[slice]:
        """Of the frames, in the dataset's order."""
        starts, lengths = self.dataset.episode_starts.tolist(), self.dataset.episode_lengths.tolist()
        return [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]

    def place(self, frame: int) -> str:
        """ "frame 12 of episode 3"."""
        return f"frame {self.dataset.frame_index[frame]} of episode {self.dataset.episode_index[frame]}"
