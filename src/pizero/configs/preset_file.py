"""A preset from a TOML file: another preset with some of its values changed (examples/my_preset.toml)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast, get_args

from pizero.baseline.config import BaselineConfig, wide_enough
from pizero.configs.preset import OF_THE_DATA, Preset
from pizero.data.norm_stats import Mode
from pizero.files import read_toml
from pizero.train.config import TrainConfig
from pizero.types import UserError

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list",
    dict: "a table",
}


def preset_of_file(path: Path, find: Callable[[str], Preset]) -> Preset:
    """The preset that the file describes. find: gives the preset of a name, for `like`.

    Raises UserError, naming the file and the key, for an unknown key and for a value of another type.
    """
    values = read_toml(path)
    try:
        like = values.pop("like", None)
        if not isinstance(like, str) or like.endswith(".toml"):
            raise UserError(f'like must be the name of a preset to start from, such as "small", got {str(like)[:60]}')
        return _changed(find(like), like, values, path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _changed(preset: Preset, like: str, values: Mapping[str, Any], folder: Path) -> Preset:
    # asdict: to_json leaves out what the preset does not use
    old = {**vars(preset), "model": asdict(preset.model), "train": preset.train.to_json()}
    new = _merged(old, values, "")
    if new["norm_mode"] not in get_args(Mode):
        raise UserError(f"norm_mode must be one of {', '.join(get_args(Mode))}, got {new['norm_mode']}")
    if new["from_data"] and (taken := [name for name in OF_THE_DATA if name in values.get("model", {})]):
        raise UserError(
            f"with like = {like!r} the dataset decides model.{taken[0]}; add from_data = false and all sizes"
        )
    if new["embodiment"].endswith(".toml"):
        new["embodiment"] = str(folder / new["embodiment"])
    model, train = type(preset.model).from_json(new["model"]), TrainConfig.from_json(new["train"])
    if isinstance(model, BaselineConfig) and "down_dims" not in values.get("model", {}):
        model = wide_enough(model)
    return replace(preset, **{**new, "model": model, "train": train})


def _merged(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`old` with the values of `new`, table by table; a value that is None may become anything."""
    merged = dict(old)
    for key, value in new.items():
        if key not in old:
            near = difflib.get_close_matches(key, old, n=1)
            meant = f"did you mean {where}{near[0]}?" if near else f"expected some of {', '.join(old)}"
            raise UserError(f"unknown key {where}{key}; {meant}")
        kind = type(old[key])
        if isinstance(value, dict) and kind is dict:
            value = _merged(old[key], cast("dict[str, Any]", value), f"{where}{key}.")
        elif isinstance(value, list) and kind is tuple:
            value = tuple(cast("list[Any]", value))
        elif kind is float and type(value) is int:
            value = float(value)
        elif old[key] is not None and type(value) is not kind:
            raise UserError(f"{where}{key} must be {_KINDS[kind]}, got {str(value)[:60]}")
        merged[key] = value
    return merged
