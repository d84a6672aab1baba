"""Batches as LeRobot gives them to a policy, as the robot dictionaries of ours.

observation.images.<camera>   float [B, 3, h, w] in [0, 1], or uint8
observation.state             float [B, d], in robot units
action                        float [B, H, d], in robot units
task                          B texts, or one
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pizero.data.pipeline import CameraImages
from pizero.types import RobotDict, UserError

STATE, ACTION, TASK = "observation.state", "action", "task"


class LeRobotBatches:
    """cameras: the robot's names and LeRobot's keys of them. A camera whose key a batch lacks is absent there; where
    the robot has one camera and the batch one image, that is it, whatever its name.

    default_prompt: where a batch's task is empty or missing, as in LeRobot's PushT; a warning where this is empty too.
    """

    def __init__(self, cameras: Mapping[str, str], default_prompt: str = "") -> None:
        self.cameras, self.default_prompt = dict(cameras), default_prompt

    def observations(self, batch: Mapping[str, Any]) -> list[RobotDict]:
        """One robot dictionary for each row. UserError names a key that is missing or of another shape."""
        state, images, prompts = self.arrays(batch)
        rows = range(len(state))
        return [
            {
                "state": state[row],
                "images": {name: None if image is None else image[row] for name, image in images.items()},
                "prompt": prompts[row],
            }
            for row in rows
        ]

    def arrays(self, batch: Mapping[str, Any]) -> tuple[NDArray[np.float32], dict[str, CameraImages], list[str]]:
        """State [B, d], robot camera -> uint8 [B, h, w, 3] or None, and B prompts: as for `Pipeline.model_inputs`."""
        if STATE not in batch:
            raise UserError(f"the batch has no {STATE!r}; it has {', '.join(sorted(batch))}")
        state = _floats(STATE, batch[STATE], 2)
        images: dict[str, CameraImages] = {
            name: None if key is None else pixels(key, batch[key]) for name, key in self._keys(batch).items()
        }
        return state, images, self._prompts(batch.get(TASK, ""), len(state))

    def actions(self, batch: Mapping[str, Any]) -> NDArray[np.float32]:
        """The chunks [B, H, d] to learn."""
        if ACTION not in batch:
            raise UserError(f"the batch has no {ACTION!r}; it has {', '.join(sorted(batch))}")
        return _floats(ACTION, batch[ACTION], 3)

    def _prompts(self, given: Any, count: int) -> list[str]:
        prompts = [text if text.strip() else self.default_prompt for text in _texts(given, count)]
        if not all(prompts):
            warnings.warn(
                "LeRobot gives no instruction (its PushT has none), and neither does the robot file: it is empty. "
                "Give --policy.embodiment a robot file with default_prompt",
                stacklevel=2,
            )
        return prompts

    def _keys(self, batch: Mapping[str, Any]) -> dict[str, str | None]:
        """The batch's key of each camera of the robot."""
        found = [key for key in batch if key.startswith("observation.image") and not key.endswith("_is_pad")]
        if len(self.cameras) == len(found) == 1:
            return dict.fromkeys(self.cameras, found[0])
        keys = {name: key if key in batch else None for name, key in self.cameras.items()}
        if not any(keys.values()):
            raise UserError(
                f"the batch has none of the policy's cameras {', '.join(self.cameras.values())}; it has "
                f"{', '.join(found) or 'no image'}: give --rename_map, or train with these names"
            )
        return keys


def pixels(key: str, image: Tensor) -> NDArray[np.uint8]:
    """uint8 [B, h, w, 3] of an image as LeRobot has it: of bytes divided by 255 exactly these bytes."""
    if image.ndim != 4 or 3 not in (image.shape[1], image.shape[3]):
        raise UserError(f"{key}: got shape {tuple(image.shape)}, expected (B, 3, h, w)")
    if image.is_floating_point():
        image = (image.float() * 255).round().clamp(0, 255).to(torch.uint8)
    if image.dtype != torch.uint8:
        raise UserError(f"{key}: got type {image.dtype}, expected float in [0, 1] or uint8")
    if image.shape[1] == 3:
        image = image.permute(0, 2, 3, 1)
    return np.ascontiguousarray(image.cpu().numpy())


def previous_actions(left: Tensor | None, longest: int) -> NDArray[np.float32] | None:
    """What is left of the old chunk [n, d] (or [1, n, d]), of LeRobot's RTC: at most `longest` actions, without the
    zeros that it fills them up with. None where nothing is left.
    """
    if left is None:
        return None
    actions = (left[0] if left.ndim == 3 else left)[:longest].detach().float().cpu().numpy()
    real = np.flatnonzero(actions.any(axis=1))
    return actions[: real[-1] + 1] if real.size else None


def _floats(key: str, value: Any, axes: int) -> NDArray[np.float32]:
    array = torch.as_tensor(value).detach().float().cpu().numpy()
    if array.ndim != axes:
        raise UserError(f"{key}: got shape {array.shape}, expected {'(B, d)' if axes == 2 else '(B, H, d)'}")
    return array


def _texts(given: Any, count: int) -> list[str]:
    texts = [given] * count if isinstance(given, str) else list(cast("Sequence[str]", given))
    if len(texts) == 1:
        texts *= count
    if len(texts) != count:
        raise UserError(f"{TASK}: got {len(texts)} texts for {count} observations")
    return texts
