"""The preset of a training that names none: by the checkpoint that it starts from or continues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pizero.checkpoints.facts import PALIGEMMA_VOCABULARY
from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.load import read_checkpoint
from pizero.checkpoints.transformers import paligemma
from pizero.configs.preset import ModelName
from pizero.configs.presets import OWN, Preset, get_preset
from pizero.data.recognition.description import of_description
from pizero.data.recognition.recognise import recognise
from pizero.data.recognition.robots import KnownRobot
from pizero.model.config import Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.train.run_folder import list_checkpoints
from pizero.types import UserError

SMALL, FULL = "small", "full"
ROBOTS = {
    "aloha": "aloha", "droid": "droid", "libero": "libero", "metaworld": "metaworld-full", "so100": "so101",
    "so101": "so101",
}  # fmt: skip
"""Fine-tuning presets by recognised robot: chunk length, batch and state input of openpi's own runs on it."""


def choose_preset(
    name: str | None, model: ModelName | None, checkpoint: str | None, run: Path | None, dataset: Path | None = None
) -> tuple[Preset, str]:
    """(the preset, what to print of it; empty where it was given).

    name, model: given, or None. Without a name a checkpoint of a released size takes the fine-tuning preset of the
    robot that recorded the dataset, or "full"; another one and none take "small". Without a model it is the
    checkpoint's. checkpoint: any format, path or id; one that is not here is known by its name alone. run: folder of a
    training that continues, whose checkpoint counts.
    """
    found = list_checkpoints(run) if run is not None else []
    start = str(found[-1]) if found else checkpoint
    own_name, own_model = _of_checkpoint(start) if start is not None else (SMALL, "pi0")
    if name is not None:
        return get_preset(name, model or own_model), ""
    why = "fine-tuning a checkpoint of a released size" if own_name == FULL else "sized by the data"
    robot = _robot_of(dataset) if own_name == FULL and dataset is not None else None
    if robot is not None and robot.name in ROBOTS:
        own_name, why = ROBOTS[robot.name], f"fine-tuning for {robot.title}; --preset full for any robot's settings"
    preset = get_preset(own_name, model or own_model)
    if own_name != SMALL:  # robot and cameras are the dataset's, which is recognised again
        preset = replace(preset, embodiment=OWN)
    return preset, f"preset: {own_name} ({why}), {preset.train.steps:,} steps of {preset.train.batch_size} samples"


def _robot_of(dataset: Path) -> KnownRobot | None:
    """None where it is not known, and of a dataset that cannot be read, of which the training says more."""
    if dataset.suffix == ".toml":
        return None
    try:
        description = of_description(dataset if dataset.is_dir() else local_folder(dataset, "dataset"))
        return recognise(description, needs_camera=False).recognised.robot
    except UserError:
        return None


def _of_checkpoint(path: str) -> tuple[str, ModelName]:
    """(preset, model); of one that is not here by its name, without a download."""
    if not Path(path).is_dir():
        plain = path.lower().replace(".", "").replace("_", "").replace("-", "")
        return FULL, "pi05" if "pi05" in plain else "pi0-fast" if "pi0fast" in plain else "pi0"
    folder = local_folder(path)
    if paligemma.detect(folder):
        return FULL, "pi0"
    config = read_checkpoint(folder).config
    size = FULL if config.vocab_size == PALIGEMMA_VOCABULARY else SMALL
    if isinstance(config, Pi0Config):
        return size, "pi05" if config.adaptive else "pi0"
    return size, "pi0-fast" if isinstance(config, Pi0FastConfig) else "diffusion"
