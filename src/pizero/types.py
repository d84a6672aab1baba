"""Containers and protocols shared by every part. Imports nothing heavy: torch is named in annotations only.

Shape legend used in the whole package:
    B batch · T observation history · N draws of (noise, time) per sample · H action horizon · D action dimensions
    L prompt tokens · P prefix tokens (images, prompt) · S suffix tokens (maybe state, actions) · W width of an expert
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

RobotDict: TypeAlias = dict[str, Any]
"""One raw robot observation: {"state": float32 [d], "images": {robot camera: uint8 [h, w, 3]}, "prompt": str}.

"subtask", optional: what is to be done now, in words, from a person or a simulator; a policy with the attribute
`takes_subtask` acts on it in the place of what it would write, and writes nothing where it is empty. Its answer has
"subtask" too: the text that the actions are for.

For a policy with an observation history of T > 1: state [T, d] and images [T, h, w, 3], oldest first.
"""

Convention: TypeAlias = Literal["openpi", "lerobot"]
"""Whose way of preparing inputs a checkpoint was trained with; they differ in three small things.

images: openpi shrinks with a low-pass filter and rounds to grey levels; lerobot interpolates plainly, without rounding.
prompt: openpi strips it and turns "_" and line breaks into spaces; lerobot's π0 leaves it as it is.
normalisation: openpi adds 1e-6 to every scale, in both directions; lerobot 1e-8, when dividing by a standard deviation,
and in the place of a quantile range that is 0.
"""

LayoutName: TypeAlias = Literal["openpi", "opentau", "lerobot"]
"""Whose way of putting prompt, state, text and FAST tokens of a π0.5 into one sequence (`data/layouts.py`)."""


class UserError(ValueError):
    """A mistake of the user's, in one line that says what to do; commands print it without a traceback.

    Line breaks and control characters in the text, from files' names or contents, are made harmless.
    """

    def __init__(self, line: str) -> None:
        super().__init__("".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in line))


LARGEST, LARGEST_LENGTH, DEEPEST = 1 << 20, 10_000, 1_000
"""Far above any model; a number beyond comes from a broken file, and would be filled with memory or time."""
LONGEST_CHUNK = 512
"""Actions of a chunk: ten seconds at 50 Hz. No weight depends on their number, so a wrong one would cost time alone."""
_MOST_CAMERAS = 100


def check_cameras(cameras: object) -> None:
    """UserError unless these are distinct names, at least one."""
    names = cast("tuple[object, ...]", cameras if isinstance(cameras, tuple) else ())
    fits = 0 < len(names) <= _MOST_CAMERAS and all(isinstance(name, str) and name for name in names)
    if not fits or len(set(names)) != len(names):
        got = repr(cast(object, cameras))[:200]
        raise UserError(f"cameras must be named and distinct, 1 to {_MOST_CAMERAS} of them, got {got}")


def as_tuple(value: Any) -> Any:
    """A list as a tuple; anything else as it is, for the checks to refuse."""
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


def check_whole(name: str, value: object, limit: int = LARGEST) -> None:
    """UserError unless `value` is a whole number from 1 to `limit`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name} must be a whole number, got {str(value)[:60]}")
    if value <= 0:
        raise UserError(f"{name} must be positive, got {str(value)[:60]}")
    if value > limit:
        raise UserError(f"{name} must be at most {limit}; the value given is beyond any model")


def check_least(least: int, **values: float) -> None:
    """UserError for a number below `least`, or NaN, by its name."""
    for name, value in values.items():
        if not value >= least:
            raise UserError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class Observation:
    """What the model sees at one control step, as tensors; everything before it is dictionaries and NumPy.

    images: camera name -> [B, h, w, 3] float in [-1, 1]; a camera that no sample has may be absent.
    image_masks: camera name -> [B] bool, true where the sample has that camera. Kept on the host by `to`, so that
        choosing the present images never waits for the device.
    state: [B, state_dim] float, normalised and padded; None for a model that does not read it.
    prompt_tokens: [B, L] integer; prompt_mask: [B, L] bool, true where a token is real.
    prompt_causal: [B, L] bool, true where a prompt token starts a block of its own, as text that the model writes does;
        None: prompt and images are one block.
    prompt_target: [B, L] bool, in training: the prompt tokens that are to be predicted, each from the one before.
    fast_tokens, fast_mask, fast_target: [B, F] of the FAST tokens that π0.5 learns to predict in training beside the
        prompt; each is a block of its own, and neither the prompt nor the actions see it.

    For a model with an observation history of T > 1, images are [B, T, h, w, 3] and state is [B, T, state_dim], oldest
    first; the masks stay [B].
    """

    images: Mapping[str, Tensor]
    image_masks: Mapping[str, Tensor]
    state: Tensor | None
    prompt_tokens: Tensor
    prompt_mask: Tensor
    prompt_causal: Tensor | None = None
    prompt_target: Tensor | None = None
    fast_tokens: Tensor | None = None
    fast_mask: Tensor | None = None
    fast_target: Tensor | None = None

    @property
    def batch_size(self) -> int:
        return self.prompt_tokens.shape[0]

    def present_images(self, cameras: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The images that are there, in the order of `cameras`, a model's.

        Raises ValueError at a camera that the model does not know, and at a mask that is missing or does not fit.
        """
        batch = self.batch_size
        unknown = sorted((set(self.images) | set(self.image_masks)) - set(cameras))
        if unknown:
            raise ValueError(f"images: unknown camera {', '.join(unknown)}; this model has {', '.join(cameras)}")
        for name in cameras:
            mask, image = self.image_masks.get(name), self.images.get(name)
            if mask is None:
                raise ValueError(f"image_masks[{name!r}] is missing; for an absent camera give a mask that is false")
            if tuple(mask.shape) != (batch,) or str(mask.dtype) != "torch.bool":
                raise ValueError(
                    f"image_masks[{name!r}]: got {mask.dtype} {tuple(mask.shape)}, expected bool ({batch},)"
                )
            if image is not None:
                yield name, image
            elif mask.device.type == "cpu" and bool(mask.any()):
                raise ValueError(f"images[{name!r}] is missing, but its mask says that some samples have it")

    def check_prompt(self) -> None:
        """Raises ValueError unless the tokens are integers and the mask is bool, both [B, L]."""
        tokens, mask = self.prompt_tokens, self.prompt_mask
        for name, value in (("prompt_tokens", tokens), ("prompt_mask", mask)):
            if value.ndim != 2 or value.shape != tokens.shape:
                raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected (B, L), tokens and mask alike")
        if str(mask.dtype) != "torch.bool" or tokens.is_floating_point():
            raise ValueError(f"prompt: got tokens {tokens.dtype} and mask {mask.dtype}, expected integer and bool")
        for name in ("prompt_causal", "prompt_target"):
            self._check_flags(name, tuple(tokens.shape))
        if self.fast_tokens is not None:
            for name in ("fast_mask", "fast_target"):
                self._check_flags(name, (self.batch_size, self.fast_tokens.shape[-1]), needed=True)

    def _check_flags(self, name: str, shape: tuple[int, ...], needed: bool = False) -> None:
        value: Tensor | None = getattr(self, name)
        if value is None and not needed:
            return
        if value is None or tuple(value.shape) != shape or str(value.dtype) != "torch.bool":
            got = "nothing" if value is None else f"{value.dtype} {tuple(value.shape)}"
            raise ValueError(f"{name}: got {got}, expected bool {shape}")

    def to(self, device: Any) -> Observation:
        """A copy on `device`; the image masks stay on the host."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, Mapping):
                value = value.to(device, non_blocking=True)
            values[field.name] = value
        values["images"] = {name: image.to(device, non_blocking=True) for name, image in self.images.items()}
        values["image_masks"] = dict(self.image_masks)
        return Observation(**values)

    def __getitem__(self, index: Any) -> Observation:
        """The samples that `index` (a slice or an index tensor) selects."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                values[field.name] = {name: item[index] for name, item in value.items()}  # pyright: ignore
            else:
                values[field.name] = None if value is None else value[index]
        return Observation(**values)


@runtime_checkable
class Policy(Protocol):
    """Raw robot dictionaries in, action chunks in robot units out."""

    def infer(self, observation: RobotDict) -> dict[str, Any]:
        """{"actions": float32 [H, robot_action_dim]} for one observation; maybe more beside it."""
        ...

    def infer_batch(self, observations: Sequence[RobotDict]) -> list[dict[str, Any]]:
        """The same for several observations at once."""
        ...


@runtime_checkable
class Env(Protocol):
    """A simulator or robot with the gymnasium calls; observations are raw robot dictionaries (`RobotDict`).

    `step` returns no images when the environment was made with `render_in_step=False`; `observe` always does.
    `info["success"]` says whether the task is done, `info["score"]`, where there is one, how much of it, 0 to 1.
    `task_names` lists what `reset(options={"task": name})` takes; without the option the task is drawn from the seed.
    """

    fps: float
    max_steps: int
    task_names: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_space: Any
    """gymnasium's box [d] of actions: `low`, `high`, `shape`."""
    demonstration_noise: float
    """Standard deviation of the noise on executed actions that a demonstrator easily corrects."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[RobotDict, dict[str, Any]]: ...
    def step(self, action: NDArray[np.float32]) -> tuple[RobotDict, float, bool, bool, dict[str, Any]]: ...
    def observe(self) -> RobotDict: ...
    def render(self) -> NDArray[np.uint8]: ...
    def demonstrator(self) -> Demonstrator: ...
    def close(self) -> None: ...


@runtime_checkable
class SubtaskEnv(Protocol):
    """What an `Env` of long tasks has besides, once an episode was begun; `info["subtasks"]` is (done, all)."""

    @property
    def subtask(self) -> str:
        """What is to be done now, in words, whoever acts; empty when all is done."""
        ...

    @property
    def subtasks(self) -> tuple[str, ...]:
        """Every subtask that the episode can ask for."""
        ...


class Demonstrator(Protocol):
    """A scripted policy that reads the environment's true state. Made for one episode, after `reset`."""

    def act(self) -> NDArray[np.float32]:
        """The action for the environment's present state."""
        ...
