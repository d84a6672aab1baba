"""What a diffusion policy that came from LeRobot does in another way than ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pizero.types import LARGEST_LENGTH, UserError, check_whole

Colours = tuple[float, float, float]


@dataclass(frozen=True)
class LerobotStyle:
    """Beside these, the chunk of such a policy starts at the oldest observation of its history.

    image_shape: (height, width) of the images in an observation. image_mean, image_std: for each camera, of pixels in
        [0, 1]; the encoder sees (pixel - mean) / std.
    resize, crop: (height, width) to which the images are then resized, and cut about their centre; None: as they are.
    batch_norm: the encoder has batch norms, whose statistics stay as they are, in place of group norms.
    predicts_actions: the network's target is the action, not the noise.
    num_steps: of sampling, where nobody says how many; None: as for our own policies.
    """

    image_shape: tuple[int, int]
    image_mean: tuple[Colours, ...]
    image_std: tuple[Colours, ...]
    resize: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    batch_norm: bool = False
    predicts_actions: bool = False
    num_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_shape", "resize", "crop"):
            shape: Any = getattr(self, name)
            if shape is not None:
                height, width = shape
                check_whole(f"lerobot.{name}", height, LARGEST_LENGTH)
                check_whole(f"lerobot.{name}", width, LARGEST_LENGTH)
        if self.num_steps is not None:
            check_whole("lerobot.num_steps", self.num_steps, LARGEST_LENGTH)
        for name in ("batch_norm", "predicts_actions"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"lerobot.{name} must be true or false, got {str(getattr(self, name))[:60]}")
        if not all(len(colours) == 3 for colours in (*self.image_mean, *self.image_std)):
            raise UserError("lerobot.image_mean and image_std must have three numbers for each camera")
        if not all(0 < value < float("inf") for colours in self.image_std for value in colours):
            raise UserError(f"lerobot.image_std must be positive, got {self.image_std}")
        height, width = self.resize or self.image_shape
        if self.crop is not None and (self.crop[0] > height or self.crop[1] > width):
            raise UserError(f"lerobot.crop {self.crop} is larger than the images, {(height, width)}")

    @property
    def encoded_shape(self) -> tuple[int, int]:
        """(height, width) of what the encoder sees."""
        return self.crop or self.resize or self.image_shape

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> LerobotStyle:
        """The inverse of `dataclasses.asdict`. Unknown keys raise."""
        known = {field.name for field in dataclasses.fields(LerobotStyle)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"unknown keys in config.lerobot: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return LerobotStyle(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
