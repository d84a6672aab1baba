"""The action codec of a training whose model writes actions as tokens, and room for them in its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pizero.checkpoints.facts import PALIGEMMA_VOCABULARY, fast_tokenizer
from pizero.checkpoints.files.remote import local_folder, paligemma_tokenizer
from pizero.checkpoints.format import Facts
from pizero.configs.preset import Preset
from pizero.data.fast.codec import FastCodec
from pizero.data.fast.fidelity import ActionChunks
from pizero.data.fast.tokens import SKIP
from pizero.data.norm_stats import NormStats
from pizero.data.tokenizer import PaligemmaTokenizer, state_bins
from pizero.model.config import Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import Convention, UserError
from pizero.workflows.fit_codec import MEASURED, MOST_CHUNKS
from pizero.workflows.replay import spread_over
from pizero.workflows.start import Start
from pizero.workflows.training_data import Source, prompts_of, robots_stats


def fit_actions(
    preset: Preset, sources: Sequence[Source], facts: Facts, start: Start | None, given: str | Path | None
) -> tuple[Preset, FastCodec, Mapping[str, NormStats]]:
    """The preset `with_codec`, the codec, and the statistics of the robots, by name, that the actions are normalised
    with. The codec is the one given, the initial checkpoint's, or one that is fitted to all datasets' chunks.

    facts: of the initial checkpoint, with this training's tokenizer. UserError for a π0-FAST to start from whose codec
    is not known: of another one's tokens its weights know nothing.
    """
    stats = robots_stats(sources, preset, facts)
    codec = facts.codec if given is None else FastCodec.load(local_folder(given))
    if codec is None and start is not None and start.source is not None and isinstance(preset.model, Pi0FastConfig):
        raise UserError(
            f"{start.folder} does not record the codec of its actions; give it with --codec (physical-intelligence/"
            "fast for openpi's and LeRobot's released ones)"
        )
    if codec is None:
        codec = FastCodec.fit(_chunks(sources, stats, preset.model.action_horizon, MOST_CHUNKS), preset.codec_size)
    tokenizer = facts.tokenizer or PaligemmaTokenizer(paligemma_tokenizer())
    return with_codec(preset, sources, stats, tokenizer, codec, facts.convention), codec, stats


def with_codec(
    preset: Preset,
    sources: Sequence[Source],
    stats: Mapping[str, NormStats],
    tokenizer: PaligemmaTokenizer,
    codec: FastCodec,
    convention: Convention = "openpi",
) -> Preset:
    """The preset with room for the codec in the vocabulary and, of π0-FAST, in the prompt for the longest instruction,
    state and chunk of the data. No weight depends on the prompt's length; PaliGemma's vocabulary stays as it is.
    """
    model = cast("Pi0Config | Pi0FastConfig", preset.model)
    if model.vocab_size != PALIGEMMA_VOCABULARY:
        model = replace(model, vocab_size=max(model.vocab_size, tokenizer.vocab_size + codec.size + SKIP))
    if isinstance(model, Pi0Config):
        return replace(preset, model=model)
    text = fast_tokenizer(model, tokenizer, codec, convention)
    bins: dict[int, list[int]] = {}
    longest_prompt = 0
    for source in sources:
        width = stats[source.embodiment.name].state.dim
        full = bins.setdefault(width, cast("list[int]", state_bins(np.full(width, 2.0)).tolist()))  # the longest
        longest_prompt = max([longest_prompt, *(len(text.prompt_ids(prompt, full)) for prompt in prompts_of(source))])
    chunks = _chunks(sources, stats, model.action_horizon, MEASURED)
    longest_chunk = max(len(tokens) for array in chunks for tokens in codec.encode_batch(array))
    needed = longest_prompt + len(text.action_ids) + longest_chunk + len(text.end_ids)
    length = max(model.prompt_length, -(-needed * 9 // 64) * 8)  # an eighth more: not every chunk was measured
    return replace(preset, model=replace(model, prompt_length=length))


def _chunks(
    sources: Sequence[Source], stats: Mapping[str, NormStats], horizon: int, count: int
) -> list[NDArray[np.float32]]:
    """Of each dataset its share of `count`, evenly from all its frames."""
    found: list[NDArray[np.float32]] = []
    for source in sources:
        frames = spread_over(np.arange(source.dataset.num_frames), -(-count // len(sources)))
        chunks = ActionChunks(source.dataset, source.embodiment, stats[source.embodiment.name], horizon)
        found.append(chunks.normalised(frames))
    return found
