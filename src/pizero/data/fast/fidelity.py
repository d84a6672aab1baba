"""What a FAST codec costs on a robot's own actions: tokens, and how far a decoded chunk is from the recorded one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.doctor.grippers import gripper_dimensions
from pizero.data.doctor.signals import two_ends
from pizero.data.embodiments import Embodiment
from pizero.data.fast.codec import FastCodec
from pizero.data.norm_stats import NEAR_CONSTANT, NormStats
from pizero.data.robot_columns import action_names, robot_action_window, robot_state
from pizero.data.transforms import Normalize

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class ActionChunks:
    """The action chunks of a robot's dataset as a model sees them, and the way back to the robot's numbers."""

    dataset: LeRobotDataset
    embodiment: Embodiment
    stats: NormStats
    horizon: int

    @property
    def _normalise(self) -> Normalize:
        return Normalize(self.stats.actions, self.stats.mode, self.stats.epsilon, self.stats.convention)

    def recorded(self, frames: ArrayLike) -> NDArray[np.float32]:
        """[N, horizon, d] in the robot's numbers; past the end of an episode its last action."""
        return robot_action_window(self.dataset, self.embodiment, frames, self.horizon)[0]

    def normalised(self, frames: ArrayLike) -> NDArray[np.float32]:
        """[N, horizon, d] as a network is trained on them."""
        own = self.embodiment.model_actions(self.recorded(frames))
        return self._normalise(self.embodiment.relative(own, self._state(frames))).astype(np.float32)

    def to_robot(self, chunks: Floats, frames: ArrayLike) -> NDArray[np.float32]:
        """Normalised chunks that start at these frames -> the robot's numbers."""
        absolute = self.embodiment.relative.inverse(self._normalise.inverse(chunks), self._state(frames))
        return self.embodiment.robot_actions(absolute).astype(np.float32)

    def _state(self, frames: ArrayLike) -> Floats:
        return self.embodiment.model_state(robot_state(self.dataset, self.embodiment, frames))


@dataclass(frozen=True)
class Fidelity:
    """median, p99, worst [d]: absolute error of a decoded action, robot units. spread [d]: standard deviation of the
    recorded actions. grippers: by action dimension, the share of actions decoded to the wrong side of its middle.
    tokens: of each chunk [N]. repaired: share of chunks that the codec has no tokens for, as they are.
    """

    names: tuple[str, ...] | None
    tokens: NDArray[np.int64]
    repaired: float
    median: NDArray[np.float64]
    p99: NDArray[np.float64]
    worst: NDArray[np.float64]
    rms: NDArray[np.float64]
    spread: NDArray[np.float64]
    grippers: dict[int, float]

    @property
    def relative(self) -> NDArray[np.float64]:
        """[d]: root mean square error by spread; 0 where a dimension does not move."""
        return np.where(self.spread < NEAR_CONSTANT, 0.0, self.rms / np.maximum(self.spread, NEAR_CONSTANT))

    def to_json(self) -> dict[str, Any]:
        return {
            "chunks": len(self.tokens), "tokens_mean": float(self.tokens.mean()), "tokens_max": int(self.tokens.max()),
            "repaired": self.repaired, "names": self.names, "median": self.median.tolist(), "p99": self.p99.tolist(),
            "worst": self.worst.tolist(), "spread": self.spread.tolist(), "relative": self.relative.tolist(),
            "grippers_wrong": {str(dim): share for dim, share in self.grippers.items()},
        }  # fmt: skip


def measure_fidelity(codec: FastCodec, chunks: ActionChunks, frames: NDArray[np.int64]) -> Fidelity:
    """Encodes and decodes the chunks that start at these frames."""
    recorded, normalised = chunks.recorded(frames), chunks.normalised(frames)
    tokens, repaired = codec.encode_repaired(normalised)
    decoded = np.stack([codec.decode(row, *normalised.shape[1:]) for row in tokens])
    played = chunks.to_robot(decoded, frames)
    error = np.abs(played - recorded).astype(np.float64).reshape(-1, recorded.shape[2])
    flat = recorded.reshape(-1, recorded.shape[2])
    names = action_names(chunks.dataset, chunks.embodiment)
    return Fidelity(
        names=names,
        tokens=np.array([len(row) for row in tokens]),
        repaired=float(repaired.mean()),
        median=np.median(error, axis=0),
        p99=np.quantile(error, 0.99, axis=0),
        worst=error.max(axis=0),
        rms=np.sqrt(np.square(error).mean(axis=0)),
        spread=flat.std(axis=0, dtype=np.float64),
        grippers={
            dim: _wrong_side(recorded[..., dim], played[..., dim])
            for dim in sorted({*chunks.embodiment.grippers, *gripper_dimensions(flat, names)})
        },
    )


def _wrong_side(recorded: NDArray[np.float32], played: NDArray[np.float32]) -> float:
    """Of the actions, those on the other side of the gripper's middle; 0 for one that does not move."""
    ends = two_ends(recorded)
    if ends is None:
        return 0.0
    middle = sum(ends) / 2
    return float(((recorded > middle) != (played > middle)).mean())
