"""One thing that is wrong, or may be: what, where, how one sees it, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import Embodiment

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
    """What is examined: the dataset's state [F, ds] and actions [F, da], and the frames' episodes [F].

    finite [F]: where all numbers are. starts, lengths: of the episodes. horizon: actions per chunk.
    """

    dataset: LeRobotDataset
    embodiment: Embodiment
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    finite: NDArray[np.bool_]
    horizon: int

    @classmethod
    def of(cls, dataset: LeRobotDataset, embodiment: Embodiment, horizon: int) -> Subject:
        state, actions = dataset.column(embodiment.state_key), dataset.column(embodiment.action_key)
        finite = np.asarray(np.isfinite(state).all(axis=1) & np.isfinite(actions).all(axis=1))
        return cls(dataset, embodiment, state, actions, finite, horizon)

    @property
    def columns(self) -> dict[str, NDArray[np.float32]]:
        return {"state": self.state, "action": self.actions}

    def episode_slices(self) -> list[slice]:
        """Of the frames, in the dataset's order."""
        starts, lengths = self.dataset.episode_starts.tolist(), self.dataset.episode_lengths.tolist()
        return [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]

    def place(self, frame: int) -> str:
        """ "frame 12 of episode 3"."""
        return f"frame {self.dataset.frame_index[frame]} of episode {self.dataset.episode_index[frame]}"
