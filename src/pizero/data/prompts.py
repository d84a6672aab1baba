"""The arrays of a batch's text, for every kind of prompt that a `Pipeline` has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pizero.data.fast.tokens import FastTokenizer
from pizero.data.layouts import Layout, Texts
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.types import Convention, LayoutName

PromptFormat: TypeAlias = Literal["pi0", "pi05", "fast", "none"]
PROMPT_MASKS = ("prompt_causal", "prompt_target")
FAST_BLOCK = ("fast_tokens", "fast_mask", "fast_target")
_ROUND_UP = 16
"""Texts of a model that writes end at a multiple of this, so that lengths are few."""


class Prompted(Protocol):
    """What of a `Pipeline` a prompt depends on."""

    @property
    def tokenizer(self) -> PaligemmaTokenizer: ...
    @property
    def prompt_format(self) -> PromptFormat: ...
    @property
    def prompt_length(self) -> int: ...
    @property
    def convention(self) -> Convention: ...
    @property
    def fast(self) -> FastTokenizer | None: ...
    @property
    def layout(self) -> LayoutName | None: ...
    @property
    def text_length(self) -> int: ...
    @property
    def robot_action_dim(self) -> int: ...


def prompt_arrays(
    pipeline: Prompted,
    prompts: Sequence[str],
    state: NDArray[np.floating[Any]],
    actions: NDArray[np.float32] | None,
    subtasks: Sequence[str] | None,
    question: bool = False,
) -> dict[str, NDArray[Any]]:
    """What `ModelInputs` has of text, masks and FAST tokens. state: normalised, unpadded [B, d]; the others as for
    `Pipeline.model_inputs`. Masks and FAST tokens are there where the batch has any.
    """
    if pipeline.fast is not None and pipeline.prompt_format == "fast":
        return _actions_in_prompt(pipeline, pipeline.fast, prompts, state, actions)
    in_prompt = state if pipeline.prompt_format == "pi05" else None
    if pipeline.layout is None:
        tokens, mask = pipeline.tokenizer.encode_batch(prompts, in_prompt, pipeline.prompt_length, pipeline.convention)
        return {"prompt_tokens": tokens.astype(np.int64), "prompt_mask": mask}
    layout = Layout(pipeline.layout, pipeline.tokenizer)
    if question:
        asked = layout.question_batch(prompts, in_prompt, pipeline.prompt_length, pipeline.text_length)
        arrays: dict[str, NDArray[Any]] = {"prompt_tokens": asked.tokens, "prompt_mask": asked.mask}
        return arrays | ({"prompt_causal": asked.causal} if asked.causal.any() else {})
    texts = subtasks if subtasks is not None and pipeline.text_length else [""] * len(prompts)
    encoded = layout.encode_batch(prompts, in_prompt, texts, pipeline.prompt_length)
    arrays = {"prompt_tokens": encoded.tokens, "prompt_mask": encoded.mask}
    if encoded.causal.any():
        arrays |= {"prompt_causal": encoded.causal, "prompt_target": encoded.target}
    if pipeline.fast is not None and actions is not None:
        arrays |= _actions_beside(layout, pipeline.fast, actions[..., : pipeline.robot_action_dim])
    return arrays


def _actions_beside(layout: Layout, fast: FastTokenizer, chunks: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    rows = [layout.fast(fast.to_text(codes)) for codes in fast.codec.encode_batch(chunks)]
    longest = max(len(row.tokens) for row in rows)
    block = Texts.of(rows, -(-longest // _ROUND_UP) * _ROUND_UP)
    return {"fast_tokens": block.tokens, "fast_mask": block.mask, "fast_target": block.target}


def _actions_in_prompt(
    pipeline: Prompted,
    fast: FastTokenizer,
    prompts: Sequence[str],
    state: NDArray[np.floating[Any]],
    actions: NDArray[np.float32] | None,
) -> dict[str, NDArray[Any]]:
    """Of π0-FAST: the actions after the prompt where they are given, else a prompt no longer than it must be."""
    chunks = None if actions is None else actions[..., : pipeline.robot_action_dim]
    text = fast.encode_batch(prompts, state, pipeline.prompt_length, chunks)
    if actions is None:
        used = min(-(-int(text.mask.sum(axis=1).max()) // _ROUND_UP) * _ROUND_UP, pipeline.prompt_length)
        return {"prompt_tokens": text.tokens[:, :used].astype(np.int64), "prompt_mask": text.mask[:, :used]}
    return {
        "prompt_tokens": text.tokens.astype(np.int64), "prompt_mask": text.mask, "prompt_causal": text.causal,
        "prompt_target": text.target,
    }  # fmt: skip
