"""The numbers of a dataset that are a robot's: its columns, joined, and of them the dimensions that it chooses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.embodiments import Embodiment
from pizero.data.embodiments.dimensions import chosen
from pizero.data.embodiments.embodiment import Key


def robot_state(dataset: LeRobotDataset, robot: Embodiment, frames: ArrayLike | None = None) -> NDArray[np.float32]:
    """float32 [..., ds] at `frames` [...], or of all frames [F, ds]; in the robot's numbers."""
    values = dataset.column(robot.state_key)
    return _choose(values if frames is None else values[np.asarray(frames)], state_indices(dataset, robot))


def robot_actions(dataset: LeRobotDataset, robot: Embodiment) -> NDArray[np.float32]:
    """float32 [F, da], in the robot's numbers."""
    return _choose(dataset.column(robot.action_key), action_indices(dataset, robot))


def robot_action_window(
    dataset: LeRobotDataset, robot: Embodiment, frames: ArrayLike, horizon: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(actions [N, horizon, da], is_pad [N, horizon]), as `LeRobotDataset.window`."""
    values, padded = dataset.window(robot.action_key, frames, horizon)
    return _choose(values, action_indices(dataset, robot)), padded


def robot_widths(dataset: LeRobotDataset, robot: Embodiment) -> tuple[int, int]:
    """(state dimensions, action dimensions) of the data that are the robot's."""
    chosen_ones = state_indices(dataset, robot), action_indices(dataset, robot)
    keys = robot.state_key, robot.action_key
    state, action = (
        dataset.column(key).shape[1] if dims is None else len(dims) for key, dims in zip(keys, chosen_ones, strict=True)
    )
    return state, action


def state_names(dataset: LeRobotDataset, robot: Embodiment) -> tuple[str, ...] | None:
    """What meta/info.json calls the robot's state dimensions; None where it does not."""
    return _names(dataset, robot.state_key, state_indices(dataset, robot))


def action_names(dataset: LeRobotDataset, robot: Embodiment) -> tuple[str, ...] | None:
    return _names(dataset, robot.action_key, action_indices(dataset, robot))


def state_indices(dataset: LeRobotDataset, robot: Embodiment) -> list[int] | None:
    """Which of the columns' dimensions the robot's state has, in its order; None for all, as they are."""
    return _indices(dataset, robot, "state", robot.state_key)


def action_indices(dataset: LeRobotDataset, robot: Embodiment) -> list[int] | None:
    return _indices(dataset, robot, "action", robot.action_key)


def _indices(dataset: LeRobotDataset, robot: Embodiment, what: str, key: Key) -> list[int] | None:
    dims = robot.state_dims if what == "state" else robot.action_dims
    if not dims:
        return None
    return chosen(f"embodiment {robot.name}: {what}_dims", dims, dataset.names(key), dataset.column(key).shape[1])


def _names(dataset: LeRobotDataset, key: Key, indices: list[int] | None) -> tuple[str, ...] | None:
    names = dataset.names(key)
    return names if names is None or indices is None else tuple(names[index] for index in indices)


def _choose(values: NDArray[Any], indices: list[int] | None) -> NDArray[Any]:
    return values if indices is None else values[..., indices]
