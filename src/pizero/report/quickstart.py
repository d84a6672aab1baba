"""The report of a training run with evaluation: what `pizero quickstart` leaves behind for reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.model.config import Pi0Config
from pizero.report.architecture import LEGEND, Architecture, caption, describe, table_text
from pizero.report.html import Block, Code, Picture, Section, Table, Video, write_report
from pizero.report.pictures import film_strip, flow_picture, loss_picture, mask_picture, success_picture

MAX_VIDEO_BYTES = 8_000_000
"""A longer video stays outside the page, which would be slow to open."""

BASELINES = {
    "demonstrator": "the scripted demonstrator, which reads the true state",
    "random": "random actions",
    "swapped instructions": "the policy with the instruction of another task, judged by the original task",
    "blank images": "the policy without sight",
}


def quickstart_report(
    path: Path, *, results: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], config: Pi0Config,
    frames: NDArray[np.uint8] | None = None, fps: float | None = None, video: Path | None = None,
    trajectory: NDArray[np.floating[Any]] | None = None, action_names: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Writes the HTML report of a run.

    results: "success_rate", "interval", "episodes", and where known "successes", "seconds", "seed", "command",
    "settings" {name: value}, "per_task" and "baselines" {name: {"success_rate", "interval", "successes", "episodes"}}.
    metrics: lines of `metrics.jsonl`. frames: [n, h, w, 3] of one episode at `fps`. video: an MP4.
    trajectory: x_t [num_steps + 1, H, D] of one action chunk, drawn for the dimensions that `action_names` names.
    """
    architecture = describe(config, num_steps=10 if trajectory is None else len(trajectory) - 1)
    low, high = results["interval"]
    facts = {
        "success rate": _percent(results["success_rate"]),
        "95 % interval": f"{100 * low:.0f} – {_percent(high)}",
        "episodes": f"{results['episodes']:,}",
        "parameters": f"{architecture.parameters:,}",
    }
    if "seconds" in results:
        facts["time"] = _duration(results["seconds"])
    if "seed" in results:
        facts["seed"] = str(results["seed"])
    sections = [*_outcome(results), *_episode(frames, fps, video), _training(metrics)]
    sections += [*_model(architecture, trajectory, action_names), *_repeat(results)]
    write_report(path, title="pizero: a policy trained and evaluated", facts=facts, sections=sections)


def _outcome(results: Mapping[str, Any]) -> Iterator[Section]:
    per_task, baselines = results.get("per_task", {}), results.get("baselines", {})
    picture = success_picture(per_task, baselines, results)
    text = "Episodes in the simulator in which the policy, acting alone, did what its prompt says."
    rows = [_rate_row("this policy", "trained here", results)]
    rows += [_rate_row(name, BASELINES.get(name, ""), entry) for name, entry in baselines.items()]
    table = Table(("Who acts", "Success", "95 % interval", "Episodes", "What it is"), rows, numbers=(1, 2, 3))
    blocks: list[Block] = [Picture(picture, "Success rate per task with intervals, beside the baselines")]
    yield Section("Does it work?", text, [*blocks, table] if baselines else blocks)


def _rate_row(name: str, meaning: str, entry: Mapping[str, Any]) -> list[str]:
    low, high = entry["interval"]
    rate = _percent(entry["success_rate"])
    return [name, rate, f"{100 * low:.0f} – {_percent(high)}", f"{entry['episodes']:,}", meaning]


def _episode(frames: NDArray[np.uint8] | None, fps: float | None, video: Path | None) -> Iterator[Section]:
    blocks: list[Block] = []
    text = ""
    if video is not None:
        size = video.stat().st_size
        if size <= MAX_VIDEO_BYTES:
            blocks.append(Video(video.read_bytes(), "Played in a loop."))
        else:
            text = f"The video ({size / 1e6:.0f} MB) lies beside this page: {video.name}"
    if frames is not None:
        blocks.append(Picture(film_strip(frames, fps=fps), "Frames of one episode, from first to last"))
    if blocks or text:
        yield Section("An episode of the policy", text, blocks)


def _training(metrics: Sequence[Mapping[str, Any]]) -> Section:
    text = "The network learns the velocity that leads from noise to the demonstrated actions."
    return Section("Training", text, [Picture(loss_picture(metrics), "Loss over training steps")])


def _model(
    architecture: Architecture, trajectory: NDArray[np.floating[Any]] | None, action_names: Sequence[str] | None
) -> Iterator[Section]:
    config = architecture.config
    if trajectory is not None:
        text = (
            "The actions of one chunk start as noise. Each integration step moves them along the predicted velocity; "
            "the bold line is the action chunk that the robot gets."
        )
        picture = Picture(flow_picture(trajectory, action_names), "Noise becoming an action chunk, per dimension")
        yield Section("From noise to actions", text, [picture])
    suffix = "The state and the noisy actions form" if config.has_state_token else "The noisy actions form"
    text = (
        f"Images and prompt form the prefix, computed once per observation and cached. {suffix} the suffix, computed "
        "at every integration step. Groups are drawn with fewer tokens than they have."
    )
    yield Section("Attention", text, [Picture(mask_picture(config), "Attention mask by token group")])
    header, rows, total = table_text(architecture)
    table = Table(header, rows, numbers=range(4, len(header)), total=total)
    yield Section("Architecture", f"{caption(architecture)}. {LEGEND}", [table])


def _repeat(results: Mapping[str, Any]) -> Iterator[Section]:
    blocks: list[Block] = []
    if results.get("settings"):
        rows = [(str(name), str(value)) for name, value in results["settings"].items()]
        blocks.append(Table(("Setting", "Value"), rows))
    if results.get("command"):
        blocks.append(Code(results["command"]))
    if blocks:
        yield Section("Settings, and the command to repeat this", "", blocks)


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
