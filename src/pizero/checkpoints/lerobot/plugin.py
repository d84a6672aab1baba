"""Folders that LeRobot opens with pizero's plugin (integrations/lerobot_policy_pizero): a native checkpoint inside.

config.json                    type "pizero", and the features of the robot under LeRobot's names
policy_preprocessor.json       steps that change no number, since the checkpoint has a pipeline of its own
policy_postprocessor.json
pizero/                        the native checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pizero.checkpoints.facts import make_pipeline, needed_options
from pizero.checkpoints.files.json_file import peek
from pizero.checkpoints.format import Arch, Facts, StoredCheckpoint
from pizero.checkpoints.lerobot.keys import NORMALIZE, POSTPROCESSOR, PREPROCESSOR, RENAME, UNNORMALIZE
from pizero.checkpoints.lerobot.processors import IMAGES, observation_key, write_steps
from pizero.checkpoints.lerobot.stats import ACTION, STATE
from pizero.checkpoints.models import Network
from pizero.checkpoints.native import checkpoint as native
from pizero.data.pipeline import Pipeline
from pizero.model.pi0 import Pi0
from pizero.types import UserError

NAME = "lerobot-plugin"
CONFIG, TYPE, INSIDE = "config.json", "pizero", "pizero"
UNCHANGED = {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "IDENTITY"}
"""LeRobot's normalization_mapping that leaves every number as it is."""


def detect(folder: Path) -> bool:
    """Told by the type that config.json names and by the checkpoint inside."""
    return peek(folder / CONFIG).get("type") == TYPE and native.detect(folder / INSIDE)


def read(folder: Path, arch: Arch | None = None) -> StoredCheckpoint:
    """The checkpoint inside."""
    return replace(native.read(folder / INSIDE, arch), format=NAME)


def write(folder: Path, model: Network, facts: Facts) -> None:
    """UserError where the robot is not known: LeRobot asks the policy for its cameras and widths."""
    if not isinstance(model, Pi0):
        raise UserError(f"the format {NAME} has no {type(model).__name__}: the plugin plays π0 and π0.5")
    if missing := needed_options(facts, model.config):
        options = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise UserError(f"the checkpoint does not record {', '.join(missing)}, which LeRobot needs; give {options}")
    pipeline = make_pipeline(model.config, facts)
    inputs, outputs = features(pipeline)
    values = {"type": TYPE, "input_features": inputs, "output_features": outputs, "normalization_mapping": UNCHANGED}
    (folder / CONFIG).write_text(json.dumps(values, indent=4) + "\n")
    device = ("device_processor", {"device": "cpu", "float_dtype": None})
    before = [(RENAME, {"rename_map": {}}), ("to_batch_processor", {}), device]
    options = {"eps": 1e-8, "norm_map": UNCHANGED}
    before.append((NORMALIZE, {**options, "features": {**inputs, **outputs}}))
    write_steps(folder, PREPROCESSOR, before, {})
    write_steps(folder, POSTPROCESSOR, [(UNNORMALIZE, {**options, "features": outputs}), device], {})
    (folder / INSIDE).mkdir()
    native.write(folder / INSIDE, model, facts)


def features(pipeline: Pipeline) -> tuple[dict[str, Any], dict[str, Any]]:
    """LeRobot's input_features and output_features of the robot; images in the model's size, which nothing checks.

    UserError for a robot file that chooses dimensions: LeRobot sends and plays all that the robot has.
    """
    robot = pipeline.embodiment
    if robot.state_dims or robot.action_dims:
        raise UserError(
            f"the {robot.name} embodiment chooses dimensions of the robot's columns, which LeRobot's commands cannot; "
            "use pizero serve and its client"
        )
    visual = {"type": "VISUAL", "shape": [3, *pipeline.image_size]}
    inputs = dict.fromkeys(camera_keys(pipeline).values(), visual)
    inputs[STATE] = {"type": "STATE", "shape": [pipeline.robot_state_dim]}
    return inputs, {ACTION: {"type": "ACTION", "shape": [pipeline.robot_action_dim]}}


def camera_keys(pipeline: Pipeline) -> Mapping[str, str]:
    """The robot's cameras and their keys in LeRobot's observations: the dataset's column where that is one of them."""
    robot = pipeline.embodiment
    return {name: observation_key(robot.image_key(name), IMAGES + name) for name in robot.cameras.values()}
