"""Everything between robot dictionaries or dataset rows and the model's arrays, saved with the checkpoint.

Order of work, in:   the embodiment's conversions, relative actions, normalise, resize images, tokenise (with the
                     unpadded normalised state), pad.
Order of work, out:  crop, unnormalise, absolute actions, the conversions backwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pizero.data.embodiments import Embodiment
from pizero.data.fast.codec import FastCodec
from pizero.data.fast.tokens import FastTokenizer
from pizero.data.images import GreyLevels, resize_with_pad, to_float
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.prompts import FAST_BLOCK, PROMPT_MASKS, PromptFormat, prompt_arrays
from pizero.data.tokenizer import ByteEncoder, PaligemmaTokenizer
from pizero.data.transforms import Normalize, pad_to
from pizero.files import read_json, values_of, write_bytes
from pizero.types import (
    LARGEST_LENGTH,
    Convention,
    LayoutName,
    Observation,
    RobotDict,
    UserError,
    as_tuple,
    check_whole,
)  # fmt: skip

if TYPE_CHECKING:  # what runs an export has neither
    from typing import NotRequired

    import torch

CameraImages: TypeAlias = NDArray[np.uint8] | Sequence[NDArray[np.uint8] | None] | None
"""One camera of a batch: uint8 [B, h, w, 3], or one [h, w, 3] or None per sample, or None for no sample at all. With an
observation history of T > 1 each sample has [T, h, w, 3].
"""


class ModelInputs(TypedDict):
    """A batch of observations as arrays. Cameras by model name; one that no sample has is not in `images`. With an
    observation history of T > 1: images [B, T, H, W, 3] and state [B, T, state_dim], oldest first.
    """

    images: dict[str, GreyLevels]  # [B, H, W, 3]
    image_masks: dict[str, NDArray[np.bool_]]  # [B], true where the sample has the camera
    prompt_tokens: NDArray[np.int64]  # [B, L]
    prompt_mask: NDArray[np.bool_]  # [B, L], true where a token is real
    state: NotRequired[NDArray[np.float32]]  # [B, state_dim], normalised and padded; not with the formats fast and none
    prompt_causal: NotRequired[NDArray[np.bool_]]  # both [B, L], see `Observation`: of a model that writes
    prompt_target: NotRequired[NDArray[np.bool_]]
    fast_tokens: NotRequired[NDArray[np.int64]]  # the three [B, F], see `Observation`
    fast_mask: NotRequired[NDArray[np.bool_]]
    fast_target: NotRequired[NDArray[np.bool_]]


_FILES = ("pipeline.json", "norm_stats.json", "tokenizer.model")
CODEC = "fast_codec"
"""Folder of a checkpoint's action codec, in the layout of physical-intelligence/fast."""
_FIELDS = (
    "cameras", "prompt_format", "prompt_length", "image_size", "state_dim", "action_dim", "num_history", "convention"
)  # fmt: skip
_LATER = {"num_history": 1, "convention": "openpi"}  # what older checkpoints do not say


@dataclass(frozen=True)
class Pipeline:
    """Robot units to model arrays and back.

    cameras: the model's cameras; one that the embodiment does not name is absent in every sample.
    prompt_format: "pi0", state as an array; "pi05", state as text in the prompt; "fast", the same in π0-FAST's words;
        "none", no state for the model.
    prompt_length: prompt tokens L. image_size: (height, width) of the model's images.
    state_dim, action_dim: the model's widths, at least the robot's.
    num_history: observations per sample T, oldest first. From 2 on images and state have an axis for them, before their
        own axes; the newest state is the one that relative actions start from.
    convention: how images are resized and prompts cleaned; the norm stats have their own.
    fast: writes and reads actions as tokens, for a model that does; the format "fast" needs it.
    layout: of prompt and text, for a π0 or π0.5 that learns to write; text_length: most tokens of a text, 0 for a model
        that learns FAST tokens alone.
    """

    embodiment: Embodiment
    norm_stats: NormStats
    tokenizer: PaligemmaTokenizer
    cameras: tuple[str, ...]
    prompt_format: PromptFormat
    prompt_length: int
    image_size: tuple[int, int]
    state_dim: int
    action_dim: int
    num_history: int = 1
    convention: Convention = "openpi"
    fast: FastTokenizer | None = None
    layout: LayoutName | None = None
    text_length: int = 0

    def __post_init__(self) -> None:
        if self.prompt_format not in get_args(PromptFormat):
            raise UserError(f"prompt_format: got {self.prompt_format!r}, expected one of {get_args(PromptFormat)}")
        if self.convention not in get_args(Convention):
            raise UserError(f"convention: got {self.convention!r}, expected one of {get_args(Convention)}")
        for name in ("num_history", "prompt_length", "state_dim", "action_dim"):
            check_whole(name, getattr(self, name))
        for size in self.image_size:
            check_whole("image_size", size, LARGEST_LENGTH)
        if self.prompt_format == "fast" and self.fast is None:
            raise UserError("the model writes actions as tokens: its pipeline needs their codec")
        if self.num_history > 1 and self.prompt_format in ("pi05", "fast"):
            raise UserError(f"num_history {self.num_history}: a prompt holds one state; choose another prompt_format")
        if not self.embodiment.cameras:
            raise UserError(f"the {self.embodiment.name} embodiment names no camera; a policy needs at least one")
        unknown = sorted(set(self.embodiment.cameras) - set(self.cameras))
        if unknown:
            raise UserError(
                f"the {self.embodiment.name} embodiment names the camera {unknown[0]}, the model has {self.cameras}"
            )
        for what, stats, own in (
            ("state", self.norm_stats.state, self.robot_state_dim),
            ("action", self.norm_stats.actions, self.robot_action_dim),
        ):
            if own > stats.dim:
                raise UserError(
                    f"norm stats have {stats.dim} {what} dimensions, the {self.embodiment.name} embodiment {own}; "
                    "compute them from this robot's data"
                )
        self._check_room("action", self.robot_action_dim, self.action_dim)
        if self.prompt_format == "pi0":
            self._check_room("state", self.robot_state_dim, self.state_dim)
        self.embodiment.check_dims(self.robot_state_dim, self.robot_action_dim)

    def _check_room(self, what: str, robot: int, model: int) -> None:
        if robot > model:
            raise UserError(
                f"the {self.embodiment.name} embodiment has {robot} {what} dimensions, the model room for {model}: "
                f"choose some with {what}_dims in a robot file (pizero robot DATASET lists those that move), or train "
                "with --preset small, which has room for all"
            )

    @property
    def robot_state_dim(self) -> int:
        return self.embodiment.state_dim or self.norm_stats.state.dim

    @property
    def robot_action_dim(self) -> int:
        return self.embodiment.action_dim or self.norm_stats.actions.dim

    @property
    def _history(self) -> tuple[int, ...]:
        """The axes of the observation history in shapes."""
        return (self.num_history,) if self.num_history > 1 else ()

    @property
    def _note(self) -> str:
        return f": a history of {self.num_history} observations, oldest first" if self.num_history > 1 else ""

    @property
    def _state_note(self) -> str:
        dims = ", ".join(map(str, self.embodiment.state_dims))
        return self._note + (f": of the robot's state those that its state_dims choose, {dims}" if dims else "")

    def robot_inputs(self, observations: Sequence[RobotDict], question: bool = False) -> ModelInputs:
        """Raw robot dictionaries -> `model_inputs` of their batch. Raises UserError naming the key that is wrong.

        One without a prompt, or with an empty one, gets the embodiment's default. The key "subtask" is read where the
        model has a layout of text. question: as for `model_inputs`.
        """
        default = self.embodiment.default_prompt
        for index, observation in enumerate(observations):
            for key in ("state", "images", *(() if default else ("prompt",))):
                if key not in observation:
                    raise UserError(
                        f"observation {index}: no {key!r}; got {sorted(observation)}, expected state, images, prompt"
                    )
            _check_cameras(observation["images"], self.embodiment)
        states = [np.asarray(observation["state"]) for observation in observations]
        for state in states:
            _check_shape("state", state.shape, (*self._history, self.robot_state_dim), self._state_note)
        images = {
            camera: [observation["images"][camera] for observation in observations]
            for camera in self.embodiment.cameras.values()
        }
        prompts = [observation.get("prompt", default) for observation in observations]
        if default:
            prompts = [default if isinstance(prompt, str) and not prompt.strip() else prompt for prompt in prompts]
        said = [observation.get("subtask") for observation in observations]
        subtasks = None if self.layout is None else ["" if text is None else text for text in said]
        return self.model_inputs(images, np.stack(states), prompts, subtasks=subtasks, question=question)

    def model_inputs(
        self,
        images: Mapping[str, CameraImages],
        state: NDArray[np.floating[Any]],
        prompts: Sequence[str],
        actions: NDArray[np.float32] | None = None,
        subtasks: Sequence[str] | None = None,
        question: bool = False,
    ) -> ModelInputs:
        """Robot camera -> images, state [B, d] in robot units, B prompts -> arrays for `observation`.

        actions: what `model_actions` gives for these samples, which a model with a codec is to write after the prompt.
        subtasks: B texts that a model with a layout is to write, or to act on; "" for none. question: the prompts end
        where it is to write.
        With an observation history of T > 1: images [B, T, h, w, 3] and state [B, T, d].
        """
        batch = len(prompts)
        _check_cameras(images, self.embodiment)
        for name, texts in (("prompt", prompts), ("subtask", subtasks or ())):
            for text in cast("Sequence[object]", texts):
                if not isinstance(text, str):
                    raise UserError(f"{name}: got {type(text).__name__}, expected text")
        own = self.embodiment.model_state(self._checked_state(state, batch))
        normalised = self._normaliser(self.norm_stats.state)(own)
        present: dict[str, GreyLevels] = {}
        masks = {camera: np.zeros(batch, dtype=np.bool_) for camera in self.cameras}
        for camera, robot_camera in self.embodiment.cameras.items():
            image, masks[camera] = self._camera(images[robot_camera], batch, robot_camera)
            if image is not None:
                present[camera] = image
        if not present:
            raise UserError("images: every camera is absent; expected at least one image")
        text = prompt_arrays(self, prompts, normalised, actions, subtasks, question)
        inputs = ModelInputs(images=present, image_masks=masks, **text)
        if self.prompt_format not in ("fast", "none"):
            inputs["state"] = pad_to(normalised.astype(np.float32), self.state_dim)
        return inputs

    def encode_prompts(
        self, prompts: Sequence[str], state: NDArray[np.floating[Any]], subtasks: Sequence[str] | None = None
    ) -> tuple[NDArray[np.integer[Any]], NDArray[np.bool_]]:
        """B prompts, state and subtasks as for `model_inputs` -> their (tokens, mask) in it, both [B, L]."""
        own = self.embodiment.model_state(self._checked_state(state, len(prompts)))
        text = prompt_arrays(self, prompts, self._normaliser(self.norm_stats.state)(own), None, subtasks)
        return text["prompt_tokens"], text["prompt_mask"]

    def model_actions(
        self, actions: NDArray[np.floating[Any]], state: NDArray[np.floating[Any]]
    ) -> NDArray[np.float32]:
        """Robot actions [B, H, d] and the state, as for `model_inputs` -> training targets [B, H, action_dim]."""
        _check_shape("actions", actions.shape, (len(actions), "H", self.robot_action_dim))
        own = self.embodiment.model_actions(actions)
        relative = self.embodiment.relative(own, self._newest_state(state, len(actions)))
        return pad_to(self._normaliser(self.norm_stats.actions)(relative).astype(np.float32), self.action_dim)

    def robot_actions(
        self, actions: NDArray[np.floating[Any]], state: NDArray[np.floating[Any]]
    ) -> NDArray[np.float32]:
        """Model actions [B, H, action_dim] and the state, as for `model_inputs` -> robot actions [B, H, d]."""
        _check_shape("actions", actions.shape, (len(actions), "H", self.action_dim))
        own = self._normaliser(self.norm_stats.actions).inverse(actions[..., : self.robot_action_dim])
        absolute = self.embodiment.relative.inverse(own, self._newest_state(state, len(actions)))
        return self.embodiment.robot_actions(absolute).astype(np.float32)

    def observation(self, inputs: ModelInputs, device: torch.device | str) -> Observation:
        """The arrays of `model_inputs` as tensors on `device`; images become float32 in [-1, 1] there."""
        import torch

        def tensor(value: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(value)).to(device)  # pyright: ignore[reportUnknownMemberType]

        return Observation(
            images={name: to_float(tensor(image)) for name, image in inputs["images"].items()},
            image_masks={name: torch.from_numpy(mask) for name, mask in inputs["image_masks"].items()},  # pyright: ignore[reportUnknownMemberType]
            state=tensor(inputs["state"]) if "state" in inputs else None,
            prompt_tokens=tensor(inputs["prompt_tokens"]),
            prompt_mask=tensor(inputs["prompt_mask"]),
            **{name: tensor(cast("Any", inputs)[name]) for name in (*PROMPT_MASKS, *FAST_BLOCK) if name in inputs},
        )

    def to_json(self) -> dict[str, Any]:
        """All but the norm stats and the vocabulary, which have files of their own."""
        kind = "bytes" if isinstance(self.tokenizer.encoder, ByteEncoder) else "sentencepiece"
        values = {name: getattr(self, name) for name in _FIELDS}
        values |= {"embodiment": self.embodiment.to_json(), "tokenizer": kind}
        if self.fast is not None:
            values["fast"] = {"skip": self.fast.skip, "vocab_size": self.fast.vocab_size}
        if self.layout is not None:
            values["text"] = {"layout": self.layout, "length": self.text_length}
        return values

    @classmethod
    def from_json(
        cls,
        data: Mapping[str, Any],
        norm_stats: NormStats,
        tokenizer: PaligemmaTokenizer,
        codec: FastCodec | None = None,
    ) -> Pipeline:
        """Raises UserError when a key is missing or unknown. codec: where the values have a key "fast"."""
        data = {**_LATER, **data}
        fast, text = data.pop("fast", None), data.pop("text", None)
        expected = {*_FIELDS, "embodiment", "tokenizer"}
        if set(data) != expected:
            raise UserError(f"pipeline: got keys {sorted(data)}, expected {sorted(expected)}")
        height, width = data["image_size"]
        values: dict[str, Any] = {name: data[name] for name in _FIELDS}
        values["image_size"], values["cameras"] = (height, width), as_tuple(data["cameras"])
        if fast is not None and codec is not None:
            skip, vocab_size = int(fast["skip"]), int(fast["vocab_size"])
            values["fast"] = FastTokenizer(tokenizer, codec, skip, vocab_size, data["convention"])
        if text is not None:
            values["layout"], values["text_length"] = text["layout"], int(text["length"])
        return cls(Embodiment.from_json(data["embodiment"]), norm_stats, tokenizer, **values)

    def save(self, folder: Path | str) -> None:
        """Writes pipeline.json, norm_stats.json, tokenizer.model and, where there is one, the codec into `folder`."""
        pipeline, stats, tokenizer = (Path(folder) / name for name in _FILES)
        data = self.to_json()
        if data["tokenizer"] == "sentencepiece":
            self.tokenizer.save(tokenizer)
        self.norm_stats.save(stats)
        if self.fast is not None:
            self.fast.codec.save(Path(folder) / CODEC)
        write_bytes(pipeline, json.dumps(data, indent=1).encode())

    @classmethod
    def load(cls, folder: Path | str) -> Pipeline:
        """Reads what `save` wrote."""
        pipeline, stats, tokenizer = (Path(folder) / name for name in _FILES)
        values = read_json(pipeline)
        byte_level = values.get("tokenizer") == "bytes"
        read = PaligemmaTokenizer.bytes() if byte_level else PaligemmaTokenizer(tokenizer)
        norm_stats = NormStats.load(stats)
        codec = None if values.get("fast") is None else FastCodec.load(Path(folder) / CODEC)
        with values_of(pipeline):
            return cls.from_json(values, norm_stats, read, codec)

    def _normaliser(self, stats: FieldStats) -> Normalize:
        return Normalize(stats, self.norm_stats.mode, self.norm_stats.epsilon, self.norm_stats.convention)

    def _checked_state(self, state: NDArray[np.floating[Any]], batch: int) -> NDArray[np.floating[Any]]:
        _check_shape("state", state.shape, (batch, *self._history, self.robot_state_dim), self._state_note)
        if state.dtype.kind not in "fiu":
            raise UserError(f"state: got type {state.dtype}, expected float32")
        bad = np.flatnonzero(~np.isfinite(state).reshape(-1, self.robot_state_dim).all(axis=0))
        if bad.size:
            raise UserError(f"state: dimensions {bad.tolist()} are NaN or infinite; expected numbers")
        return state

    def _newest_state(self, state: NDArray[np.floating[Any]], batch: int) -> NDArray[np.floating[Any]]:
        """[B, d] in the model's numbers, of a state as for `model_inputs`."""
        checked = self._checked_state(state, batch)
        return self.embodiment.model_state(checked[:, -1] if self.num_history > 1 else checked)

    def _camera(self, images: CameraImages, batch: int, name: str) -> tuple[GreyLevels | None, NDArray[np.bool_]]:
        """([B, (T,) H, W, 3] with black where a sample has none, or None if no sample has it; mask [B])."""
        if images is None:
            return None, np.zeros(batch, dtype=np.bool_)
        _check_shape(f"images/{name}: number of samples", (len(images),), (batch,))
        if isinstance(images, np.ndarray):
            _check_image(images, name, (batch, *self._history, "h", "w", 3), self._note)
            return resize_with_pad(images, *self.image_size, self.convention), np.ones(batch, dtype=np.bool_)
        mask = np.array([image is not None for image in images])
        if not mask.any():
            return None, mask
        kind = np.uint8 if self.convention == "openpi" else np.float32
        out = np.zeros((batch, *self._history, *self.image_size, 3), dtype=kind)
        for row, image in enumerate(images):
            if image is not None:
                _check_image(image, name, (*self._history, "h", "w", 3), self._note)
                out[row] = resize_with_pad(image, *self.image_size, self.convention)
        return out, mask


def _check_cameras(images: object, embodiment: Embodiment) -> None:
    expected = sorted(embodiment.cameras.values())
    if not isinstance(images, Mapping):
        raise UserError(f"images: got {type(images).__name__}, expected a dictionary with the cameras {expected}")
    got = cast("Mapping[str, object]", images)
    for camera in embodiment.cameras.values():
        if camera not in got:
            raise UserError(f"images: no camera {camera!r}; got {sorted(got)}, expected {expected} (None if absent)")


def _check_image(image: object, name: str, shape: tuple[int | str, ...], note: str) -> None:
    if not isinstance(image, np.ndarray):
        raise UserError(f"images/{name}: got {type(image).__name__}, expected a uint8 array")
    array = cast("NDArray[Any]", image)
    if array.dtype != np.uint8:
        raise UserError(f"images/{name}: got type {array.dtype}, expected uint8 in [0, 255]")
    _check_shape(f"images/{name}", array.shape, shape, note)
    if 0 in array.shape:
        raise UserError(f"images/{name}: got an empty image of shape {array.shape}")


def _check_shape(name: str, got: tuple[int, ...], expected: tuple[int | str, ...], note: str = "") -> None:
    """A text in `expected` stands for any size; `note` explains the expectation."""
    if len(got) != len(expected) or any(isinstance(e, int) and g != e for g, e in zip(got, expected, strict=True)):
        text = "(" + ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "") + ")"
        raise UserError(f"{name}: got shape {got}, expected {text}{note}")
