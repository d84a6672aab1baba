"""What a policy that plans in words is doing: given by a person or a simulator, else written by its model."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from pizero.data.layouts import Layout
from pizero.data.pipeline import Pipeline
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.text_writer import write_text
from pizero.model.action_model import ActionSampler
from pizero.model.pi0 import Pi0
from pizero.types import RobotDict


def with_subtasks(
    model: ActionSampler,
    pipeline: Pipeline,
    observations: Sequence[RobotDict],
    device: torch.device,
    timing: dict[str, float],
) -> tuple[list[RobotDict], ActionSampler]:
    """The observations, each with "subtask": the one that it brings, else what the model writes for it, all of these in
    one call. And what samples their actions: on the fast path, where all were written, on the cache of the texts.

    timing: gets "text_ms" where the model wrote.
    """
    if pipeline.layout is None or not isinstance(model, FastSampler | Pi0):
        return list(observations), model
    rows = [row for row, observation in enumerate(observations) if observation.get("subtask") is None]
    found, sampler = list(observations), model
    if not rows:
        return found, sampler
    start = time.perf_counter()
    layout = Layout(pipeline.layout, pipeline.tokenizer)
    inputs = pipeline.robot_inputs([{**observations[row], "subtask": None} for row in rows], question=True)
    observation = pipeline.observation(inputs, device)
    ids, starts = layout.closing
    closing = torch.tensor(ids), torch.tensor(starts)
    if isinstance(model, Pi0):
        written = model.write(observation, pipeline.text_length, closing).tokens
    else:
        text = write_text(model, observation, pipeline.text_length, closing)
        written = text.tokens
        if len(rows) == len(observations):
            sampler = text.after
    for row, tokens in zip(rows, written.cpu(), strict=True):
        found[row] = {**observations[row], "subtask": layout.read([int(token) for token in tokens])}
    timing["text_ms"] = 1000 * (time.perf_counter() - start)
    return found, sampler
