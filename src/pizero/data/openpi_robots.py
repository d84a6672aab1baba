"""Observations as the robots of openpi send them to its policy server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pizero.data.embodiments import Embodiment
from pizero.types import RobotDict, UserError

UNSEEN = frozenset({"cam_low"})
"""Cameras that openpi's robots send and its policies never look at: ALOHA's low one (aloha_policy.py)."""


def from_openpi(observation: Mapping[str, Any], embodiment: Embodiment) -> RobotDict:
    """What such a robot sends, as a `RobotDict` of the embodiment.

    Either {"state", "images": {camera: image}, "prompt"} like ALOHA, where each camera but the embodiment's first may
    be missing, or {"observation/<column>": value, "prompt"} like DROID and LIBERO. Images are uint8 or float in [0, 1],
    [h, w, 3] or [3, h, w]. Facts: openpi src/openpi/policies. UserError names a key that is missing or wrong.
    """
    images: dict[str, NDArray[Any] | None] = {}
    cameras = list(embodiment.cameras.values())
    if "images" in observation:
        given = observation["images"]
        if not isinstance(given, Mapping):
            raise UserError(f"images: got {type(given).__name__}, expected a dictionary by camera")
        sent = cast("Mapping[str, Any]", given)
        state = _get(observation, "state")
        _get(sent, cameras[0])
        for camera in cameras:
            images[camera] = _image(sent[camera], camera) if camera in sent else None
    else:
        keys = (embodiment.state_key,) if isinstance(embodiment.state_key, str) else embodiment.state_key
        parts = [_get(observation, "observation/" + key.removeprefix("observation.")) for key in keys]
        state = np.concatenate([np.atleast_1d(np.asarray(part)) for part in parts])
        for camera in cameras:
            images[camera] = _image(_get(observation, "observation/" + camera), camera)
    robot: RobotDict = {"state": np.asarray(state), "images": images}
    if "prompt" in observation:
        prompt = observation["prompt"]
        robot["prompt"] = prompt.decode("utf-8", "replace") if isinstance(prompt, bytes) else prompt
    return robot


def _get(values: Mapping[str, Any], key: str) -> Any:
    if key not in values:
        raise UserError(f"observation: no {key!r}; got {sorted(map(str, values))}")
    return values[key]


def _image(value: object, camera: str) -> NDArray[Any]:
    """uint8 [h, w, 3]; floats are cut to whole grey levels, as openpi cuts them."""
    image = np.asarray(value)
    if image.dtype.kind == "f":
        if not ((image >= 0) & (image <= 1)).all():
            raise UserError(f"images/{camera}: a float image must lie in [0, 1]")
        image = (255 * image).astype(np.uint8)
    return image.transpose(1, 2, 0) if image.ndim == 3 and image.shape[0] == 3 else image
