"""The report of a training run with evaluation: what `pizero quickstart` leaves behind for reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.model.config import Pi0Config
from pizero.report.architecture import LEGEND, Architecture, caption, describe, table_text
from pizero.report.evaluation import MAX_VIDEO_BYTES, film_grid, outcome, repeat, result_facts
from pizero.report.html import Block, Picture, Section, Table, Video, write_report
from pizero.report.mask import mask_picture
from pizero.report.pictures import film_strip, flow_picture, loss_picture


@dataclass(frozen=True)
class FilmedEpisode:
    """video: its MP4. frames: [n, h, w, 3] at `fps`, shown as pictures."""

    video: Path
    frames: NDArray[np.uint8] | None = None
    fps: float | None = None


@dataclass(frozen=True)
class SampledChunk:
    """trajectory: x_t [num_steps + 1, H, D] of one chunk, robot units. action_names: with units, of its dimensions."""

    trajectory: NDArray[np.floating[Any]]
    action_names: Sequence[str]


def quickstart_report(
    path: Path, *, results: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], config: Pi0Config,
    episode: FilmedEpisode | None = None, films: Sequence[Path] = (), chunk: SampledChunk | None = None,
) -> None:  # fmt: skip
    """Writes the HTML report of a run.

    results: as for `evaluation_report`. metrics: lines of `metrics.jsonl`. films: MP4s of other episodes.
    """
    architecture = describe(config, num_steps=10 if chunk is None else len(chunk.trajectory) - 1)
    facts = result_facts(results) | {"parameters": f"{architecture.parameters:,}"}
    if "seed" in results:
        facts["seed"] = str(results["seed"])
    sections = [outcome(results), *_episode(episode), *film_grid(films), _training(metrics)]
    sections += [*_model(architecture, chunk), *repeat(results)]
    write_report(path, title="pizero: a policy trained and evaluated", facts=facts, sections=sections)


def _episode(episode: FilmedEpisode | None) -> Iterator[Section]:
    if episode is None:
        return
    blocks: list[Block] = []
    text, size = "", episode.video.stat().st_size
    if size <= MAX_VIDEO_BYTES:
        blocks.append(Video(episode.video.read_bytes(), "Played in a loop."))
    else:
        text = f"The video ({size / 1e6:.0f} MB) lies beside this page: {episode.video.name}"
    if episode.frames is not None:
        strip = film_strip(episode.frames, fps=episode.fps)
        blocks.append(Picture(strip, "Frames of one episode, from first to last"))
    yield Section("An episode of the policy", text, blocks)


def _training(metrics: Sequence[Mapping[str, Any]]) -> Section:
    text = "The network learns the velocity that leads from noise to the demonstrated actions."
    return Section("Training", text, [Picture(loss_picture(metrics), "Loss over training steps")])


def _model(architecture: Architecture, chunk: SampledChunk | None) -> Iterator[Section]:
    config = architecture.config
    if chunk is not None:
        text = (
            "The actions of one chunk start as noise. Each integration step moves them along the predicted velocity; "
            "the bold line is the action chunk that the robot gets."
        )
        picture = flow_picture(chunk.trajectory, chunk.action_names)
        yield Section(
            "From noise to actions", text, [Picture(picture, "Noise becoming an action chunk, per dimension")]
        )
    suffix = "The state and the noisy actions form" if config.has_state_token else "The noisy actions form"
    text = (
        f"Images and prompt form the prefix, computed once per observation and cached. {suffix} the suffix, computed "
        "at every integration step. Groups are drawn with fewer tokens than they have."
    )
    yield Section("Attention", text, [Picture(mask_picture(config), "Attention mask by token group")])
    header, rows, total = table_text(architecture)
    table = Table(header, rows, numbers=range(4, len(header)), total=total)
    yield Section("Architecture", f"{caption(architecture)}. {LEGEND}", [table])
