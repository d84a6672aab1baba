"""Sizes of a model that is trained from scratch, by the data that it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pizero.baseline.config import BaselineConfig, wide_enough
from pizero.checkpoints.models import NetworkConfig
from pizero.configs.preset import OF_THE_DATA, Preset
from pizero.data.layouts import Layout
from pizero.data.robot_columns import robot_widths
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import CAMERAS, Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import UserError
from pizero.workflows.own_robot import print_guess
from pizero.workflows.progress import console
from pizero.workflows.start import Start
from pizero.workflows.training_data import Source, prompts_of, subtasks_of

SIDES = (32, 64, 96)
"""Image sizes to choose from; with more than three cameras the last one would be slow."""
SHORTEST, LONGEST = 10, 50
"""Actions of a chunk: those of a second, within these limits."""
LONGEST_PROMPT = 512
"""Tokens; a longer instruction is cut, with a warning."""


def sized(preset: Preset, sources: Sequence[Source]) -> Preset:
    """A preset `from_data` with the sizes of these datasets; another as it is."""
    if not preset.from_data:
        return preset
    cameras = robot_cameras(sources)
    horizon = min(max(round(max(source.dataset.fps for source in sources)), SHORTEST), LONGEST)
    widths = [robot_widths(source.dataset, source.embodiment) for source in sources]
    sizes: dict[str, Any] = {
        "cameras": tuple(sorted(cameras, key=lambda name: (CAMERAS.index(name) if name in CAMERAS else len(CAMERAS)))),
        "image_size": _side(sources, len(cameras)),
        "state_dim": max(state for state, _ in widths), "action_dim": max(action for _, action in widths),
        "action_horizon": horizon,
    }  # fmt: skip
    model = preset.model
    if isinstance(model, BaselineConfig):
        sizes["stem_stride"] = min(sizes["image_size"] // 16, 4)  # leaves 4 x 4 positions or more for the keypoints
        model = wide_enough(replace(model, **sizes))
    else:
        sizes["vision"] = replace(model.vision, patch_size=16 if sizes["image_size"] > 32 else 8)
        model = replace(model, **sizes)
    return replace(preset, model=model, execution_horizon=max(horizon // 2, 1))


def robot_cameras(sources: Sequence[Source]) -> list[str]:
    """The model's names of the cameras that the robots have."""
    return list(dict.fromkeys(name for source in sources for name in source.embodiment.cameras))


def with_cameras(preset: Preset, sources: Sequence[Source]) -> Preset:
    """The preset with the robots' cameras after its own."""
    cameras = tuple(dict.fromkeys([*preset.model.cameras, *robot_cameras(sources)]))
    return replace(preset, model=replace(preset.model, cameras=cameras))


def with_prompts(preset: Preset, sources: Sequence[Source], tokenizer: PaligemmaTokenizer) -> Preset:
    """The preset with room for the longest instruction of the data; no weight depends on that."""
    model = preset.model
    state = np.full(model.state_dim, 2.0) if model.state_input == "prompt" else None  # whose bins are longest
    prompts = {text for source in sources for text in prompts_of(source)}
    longest = max(
        int(tokenizer.encode(text, state, LONGEST_PROMPT)[1].sum()) for text in prompts
    )  # fmt: skip
    length = max(model.prompt_length, -(-longest // 8) * 8)
    return replace(preset, model=replace(model, prompt_length=length))


def with_text(preset: Preset, sources: Sequence[Source], tokenizer: PaligemmaTokenizer) -> Preset:
    """The preset with room for the longest subtask of the data after the longest instruction; no weight depends on it.
    A model that writes no text, as it is. UserError where no dataset has subtasks.
    """
    model = preset.model
    if not isinstance(model, Pi0Config) or model.language is None or not model.language.writes_text:
        return preset
    texts = {text for source in sources for text in subtasks_of(source)}
    if not texts:
        raise UserError("no dataset has subtasks, of which text could be learnt; give them with --subtasks")
    layout = Layout(model.language.layout, tokenizer)
    widths = [robot_widths(source.dataset, source.embodiment)[0] for source in sources]
    bins = [255] * max(widths) if model.state_input == "prompt" else None
    prompts = {text for source in sources for text in prompts_of(source)}
    question = max(len(layout.question(prompt, bins).tokens) for prompt in prompts)
    longest = max(len(layout.encode("", bins, text).tokens) for text in texts) - len(layout.question("", bins).tokens)
    language = replace(model.language, text_length=-(-longest // 8) * 8)
    length = max(model.prompt_length, -(-(question + language.text_length) // 8) * 8)
    return replace(preset, model=replace(model, language=language, prompt_length=length))


def with_language_of(preset: Preset, config: NetworkConfig) -> Preset:
    """The preset with what a checkpoint learns to write, where the preset does not say it."""
    model = preset.model
    if not isinstance(model, Pi0Config) or not isinstance(config, Pi0Config) or model.language is not None:
        return preset
    return replace(preset, model=replace(model, language=config.language))


def as_started(preset: Preset, model: NetworkConfig) -> Preset:
    """The preset with what the model of its run took from the data, which may have grown since."""
    if type(model) is not type(preset.model):
        return preset
    kept = (*OF_THE_DATA, "vocab_size") if preset.from_data else ("cameras", "prompt_length", "vocab_size")
    names = [name for name in kept if hasattr(model, name)]
    changes = {name: getattr(model, name) for name in names}
    if isinstance(model, Pi0Config) and isinstance(preset.model, Pi0Config):
        own, asked = model.language, preset.model.language
        if own is not None and asked is not None:
            changes["language"] = replace(asked, text_length=own.text_length, tied_head=own.tied_head)
    horizon = max(model.action_horizon // 2, 1) if preset.from_data else preset.execution_horizon
    return replace(preset, model=replace(preset.model, **changes), execution_horizon=horizon)


def model_cameras(preset: Preset, start: Start | None) -> tuple[str, ...] | None:
    """Of the model that will be trained; None where it gets as many as the dataset has."""
    if start is not None and start.source is not None:
        return start.source.config.cameras
    return None if preset.from_data else preset.model.cameras


def print_choices(preset: Preset, sources: Sequence[Source], from_scratch: bool) -> None:
    """What was taken from the data without being asked for: a table of each robot, and the model's sizes."""
    more = [("model", _model_text(preset, sources))] if preset.from_data and from_scratch else []
    robots = {source.embodiment.name: source.guess for source in sources}
    guesses = [guess for guess in robots.values() if guess is not None]
    for guess in guesses:
        print_guess(guess, more if guess is guesses[-1] else ())
    if not guesses:
        for what, text in more:
            console.print(f"{what}: {text}")


def _model_text(preset: Preset, sources: Sequence[Source]) -> str:
    model = preset.model
    seconds = model.action_horizon / max(source.dataset.fps for source in sources)
    return (
        f"small {_kind(model)} from scratch: images {model.image_size} x {model.image_size}, {model.state_dim} state "
        f"and {model.action_dim} action dimensions, chunks of {model.action_horizon} actions ({seconds:.2g} s), "
        f"instructions of up to {model.prompt_length} tokens"
    )


def _kind(model: NetworkConfig) -> str:
    if isinstance(model, Pi0FastConfig):
        return "π0-FAST"
    return "diffusion policy" if isinstance(model, BaselineConfig) else "π0.5" if model.adaptive else "π0"


def _side(sources: Sequence[Source], num_cameras: int) -> int:
    """The largest of the sides that the images fill."""
    largest = max(
        max(source.dataset.image_shape(own)) for source in sources for own in source.embodiment.cameras.values()
    )  # fmt: skip
    choices = SIDES if num_cameras <= len(CAMERAS) else SIDES[:-1]
    return max((side for side in choices if side <= largest), default=choices[0])
