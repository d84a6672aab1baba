"""What meta/info.json says of single columns, in the shapes in which people write it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from pizero.data.datasets.files.json_files import as_table, as_whole

Feature = dict[str, Any]
_CHANNELS = (1, 3, 4)
IMAGE_PREFIX = "observation.images."
NO_NUMBERS = ("video", "image", "string", "language")
"""Kinds of columns; "language" are LeRobot's lists of texts."""
LARGEST = 2**14
"""Of a shape's sizes; what is larger is no picture and no robot."""


def read_features(said: Mapping[str, Any], notes: list[str]) -> dict[str, Feature]:
    """The columns, each with a "dtype" and a "shape" [whole numbers]; notes of what had to be assumed.

    A shape that cannot be read is empty: the data's own counts.
    """
    features: dict[str, Feature] = {}
    kinds: list[str] = []
    for key, value in said.items():
        feature = dict(as_table(value))
        kind = feature.get("dtype")
        if not isinstance(kind, str):
            camera = key.startswith(IMAGE_PREFIX)
            kind = "video" if camera else "float32"
            kinds.append(f"{key!r} ({kind})")
        shape = _shape(feature.get("shape"))
        features[key] = {**feature, "dtype": kind, "shape": shape or []}
    if kinds:
        notes.append(f"meta/info.json has no dtype for {', '.join(kinds)}: what is in brackets is assumed")
    return features


def camera_keys(features: Mapping[str, Feature]) -> dict[str, str]:
    """The columns that are cameras, by the camera's name."""
    return {
        key.removeprefix(IMAGE_PREFIX): key
        for key, feature in features.items()
        if feature.get("dtype") in ("video", "image")
    }


def number_keys(features: Mapping[str, Feature]) -> list[str]:
    """The columns that hold numbers."""
    return [key for key, feature in features.items() if feature.get("dtype") not in NO_NUMBERS]


def depth_cameras(features: Mapping[str, Feature]) -> dict[str, str]:
    """Why, by the camera's name, of those that info.json says to be of depth; others are known by their pictures."""
    found: dict[str, str] = {}
    for camera, key in camera_keys(features).items():
        feature = features[key]
        facts = [feature, as_table(feature.get("info")), as_table(feature.get("video_info"))]
        size = picture_size(feature)
        flat = len(feature.get("shape") or []) == 2 or (size is not None and size[2] == 1)
        if any(table.get(name) is True for table in facts for name in ("is_depth_map", "video.is_depth_map")):
            found[camera] = "it is a depth camera (is_depth_map); only colours are used"
        elif "depth" in key.lower() and flat:
            found[camera] = "it is a depth camera by its name and its one channel; only colours are used"
    return found


def picture_size(feature: Feature) -> tuple[int, int, int] | None:
    """(height, width, channels) by info.json: by `names` where possible, else by where 1, 3 or 4 stands in `shape`."""
    shape = [size for size in map(as_whole, feature.get("shape") or []) if size is not None]
    letters = [name.strip().lower()[:1] for name in dimension_names(feature.get("names"))]
    if len(shape) == 2:
        return (shape[1], shape[0], 1) if letters == ["w", "h"] else (shape[0], shape[1], 1)
    if len(shape) != 3:
        return None
    if sorted(letters) == ["c", "h", "w"]:
        height, width, channels = (shape[letters.index(letter)] for letter in "hwc")
        return height, width, channels
    if shape[2] in _CHANNELS:
        return shape[0], shape[1], shape[2]
    return (shape[1], shape[2], shape[0]) if shape[0] in _CHANNELS else None


def dimension_names(names: Any) -> tuple[str, ...]:
    """The `names` of a column, flat; empty where there are none.

    Known forms: a list, lists of lists, `{"motors": [...]}` or `{"axes": [...]}`, one list for each part of the robot
    (where two parts share a name, each says its part: "left.joint_1"), and `{name: position}`.
    """
    if isinstance(names, str):
        return (names,)
    if isinstance(names, list):
        parts = [dimension_names(part) for part in cast("list[Any]", names)]
        return sum(parts, ()) if all(parts) else ()
    table = as_table(names)
    if table and all(as_whole(value) is not None for value in table.values()):
        return tuple(sorted(table, key=lambda name: as_whole(table[name]) or 0))
    groups = {str(group): dimension_names(value) for group, value in table.items()}
    return _joined(groups) if all(groups.values()) else ()


def _joined(groups: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    flat = [name for names in groups.values() for name in names]
    if len(set(flat)) == len(flat):
        return tuple(flat)
    return tuple(f"{group}.{name}" for group, names in groups.items() for name in names)


def _shape(said: Any) -> list[int] | None:
    """None where it cannot be read."""
    sizes: Iterable[Any] = cast("list[Any]", said) if isinstance(said, list) else [said]
    shape = [as_whole(size) for size in sizes]
    return [size for size in shape if size] if all(size and 0 < size <= LARGEST for size in shape) else None
