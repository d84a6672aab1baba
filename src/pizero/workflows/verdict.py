"""Will a checkpoint evaluate as it trained? The answers of `pizero check`, aspect by aspect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pizero.checkpoints.native.checkpoint import Checkpoint, load_example, verify_example
from pizero.checkpoints.native.example import Example
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.doctor.finding import Finding
from pizero.data.doctor.open_loop import Replay
from pizero.data.doctor.verdict import (
    GOOD,
    USELESS,
    Answer,
    Explanation,
    Yardstick,
    conclusion,
    mean_error,
    other_readings,
)
from pizero.data.pipeline import Pipeline
from pizero.data.robot_columns import robot_state
from pizero.policy.policy import ModelPolicy
from pizero.types import UserError
from pizero.workflows.probes import CHUNKS, probe
from pizero.workflows.progress import progress_bar
from pizero.workflows.replay import spread_over

SHORT, LONG = 0.3, 4.0
"""Seconds of a chunk outside of which it is worth a look."""
ASPECT = 0.05
"""By which the ratio of an image's sides may differ from that of the training."""
_OF_FINDINGS = {
    "statistics": "statistics", "absolute or relative": "relative", "relative already": "relative",
    "no camera": "cameras", "swapped cameras": "cameras", "one camera twice": "cameras", "black video": "cameras",
    "no prompt": "prompt", "units of the state": "units", "gripper sign": "gripper", "frame rate": "chunk",
    "dimensions": "robot",
}  # fmt: skip
"""Aspect by the findings of the dataset that bear on it."""
ORDER = (
    "checkpoint", "robot", "actions", "statistics", "prompt", "cameras", "images", "units", "relative", "chunk",
    "gripper",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is judged. folder: of the checkpoint; None where its robot was replaced, so that its example says nothing.

    played, summary: of the replay; None where there was none.
    """

    dataset: LeRobotDataset
    policy: ModelPolicy
    folder: Path | None
    findings: Sequence[Finding]
    played: Replay | None
    summary: Mapping[str, Any] | None


def judge(case: Case) -> dict[str, Any]:
    """JSON: answer ("yes", "doubt", "no"), text, aspects [{aspect, state, text}]: of each the worst that was found."""
    answers = [*_facts(case), *_of_findings(case.findings)]
    if case.played is not None and case.summary is not None:
        errors = _errors(case)
        answers += [_actions(*errors), *_grippers(case.summary)]
        explained = _explanations(case, case.played, case.summary, fits=errors[0] <= GOOD * errors[1])
        answers += [explanation.answer() for explanation in explained]
    order = ("no", "doubt", "open", "yes")
    worst = {answer.aspect: answer for answer in sorted(answers, key=lambda answer: -order.index(answer.state))}
    found = [worst[aspect] for aspect in ORDER if aspect in worst]
    state, text = conclusion(found)
    return {"answer": state, "text": text, "aspects": [asdict(answer) for answer in found]}


def _explanations(case: Case, played: Replay, summary: Mapping[str, Any], *, fits: bool) -> list[Explanation]:
    dataset, policy = case.dataset, case.policy
    states = robot_state(dataset, policy.pipeline.embodiment, played.frames)
    found = list(other_readings(played, states, policy.pipeline.embodiment, map(int, summary["grippers"])))
    if found or fits:
        return found
    with progress_bar() as bars:
        bar = bars.add_task("asking otherwise", total=None, note="")
        frames = spread_over(played.frames, CHUNKS)
        return probe(policy, dataset, frames, lambda done: bars.update(bar, completed=done))


def _facts(case: Case) -> Iterator[Answer]:
    """What holds unless something else is found."""
    dataset, pipeline = case.dataset, case.policy.pipeline
    example = None if case.folder is None else load_example(case.folder)
    robot, stats = pipeline.embodiment, pipeline.norm_stats
    yield Answer("statistics", "yes", f"{stats.mode}; the checkpoint's fit the data")
    yield _prompts(dataset, pipeline)
    places = ", ".join(f"{own} as {place}" for place, own in robot.cameras.items())
    yield Answer("cameras", "yes", places)
    yield _images(dataset, pipeline, example)
    yield _example(case.policy, example)
    yield chunk_answer(dataset.fps, case.policy.noise_shape[0])
    yield Answer("units", "yes", "state and actions have the robot's ranges")
    mask = [dim for dim, on in enumerate(robot.relative_mask) if on]
    yield Answer("relative", "yes", f"actions {', '.join(map(str, mask))} relative" if mask else "absolute actions")


def _prompts(dataset: LeRobotDataset, pipeline: Pipeline) -> Answer:
    texts = dataset.tasks[:200] or [""]
    robot = pipeline.embodiment
    texts = [text if text.strip() else robot.default_prompt for text in texts]
    in_prompt = np.full(pipeline.robot_state_dim, 2.0) if pipeline.prompt_format == "pi05" else None
    lengths = [int(pipeline.tokenizer.encode(text, in_prompt, 1024, pipeline.convention)[1].sum()) for text in texts]
    cut = sum(length > pipeline.prompt_length for length in lengths)
    how = {"pi05": "instruction with the state in it", "none": "instruction alone", "pi0": "instruction, line break"}
    text = f"{how.get(pipeline.prompt_format, pipeline.prompt_format)}, up to {pipeline.prompt_length} tokens"
    if cut:
        return Answer("prompt", "doubt", f"{text}; {cut} of {len(texts)} instructions are longer and are cut")
    return Answer("prompt", "yes", text)


def _images(dataset: LeRobotDataset, pipeline: Pipeline, example: Example | None) -> Answer:
    """Sizes beside those of the checkpoint's stored example, which is a frame of its training."""
    trained = (
        {} if example is None else {name: np.shape(image) for name, image in example.observation["images"].items()}
    )
    side = "x".join(map(str, pipeline.image_size))
    told: list[str] = []
    for camera in pipeline.embodiment.cameras.values():
        if camera not in dataset.cameras:
            continue
        height, width = dataset.image_shape(camera)
        told.append(f"{camera} {width}x{height}")
        if camera in trained and len(trained[camera]) >= 3:
            h, w = trained[camera][-3], trained[camera][-2]
            if abs((width / height) / (w / h) - 1) > ASPECT:
                return Answer(
                    "images", "doubt",
                    f"{camera} is {width}x{height} here, {w}x{h} in training: another ratio, so other black borders",
                )  # fmt: skip
    return Answer("images", "yes", f"{', '.join(told)}, resized to {side}" if told else f"resized to {side}")


def chunk_answer(fps: float, horizon: int) -> Answer:
    seconds = horizon / fps
    text = f"{horizon} actions at {fps:g} a second: {seconds:.2g} s"
    if seconds > LONG:
        return Answer(
            "chunk", "doubt", f"{text}, long: play a part of it (--execution-horizon), or train a shorter one"
        )
    if seconds < SHORT:
        return Answer("chunk", "doubt", f"{text}, short: the policy is asked for all the time")
    return Answer("chunk", "yes", text)


def _example(policy: ModelPolicy, example: Example | None) -> Answer:
    if example is None:
        return Answer("checkpoint", "open", "it has no stored example to reproduce")
    try:
        error = verify_example(Checkpoint(policy.model, policy.pipeline, example))  # type: ignore[arg-type]
    except UserError as changed:
        return Answer("checkpoint", "no", str(changed))
    return Answer("checkpoint", "yes", f"its stored example is reproduced (relative error {error:.1g})")


def _of_findings(findings: Sequence[Finding]) -> Iterator[Answer]:
    for finding in findings:
        if (aspect := _OF_FINDINGS.get(finding.check)) is not None:
            surely = finding.check in ("absolute or relative", "no camera", "dimensions")
            yield Answer(aspect, "no" if surely else "doubt", f"{finding.where}: {finding.evidence}")


def _errors(case: Case) -> tuple[float, float]:
    """(error, the yardstick's) over the moving dimensions, in standard deviations; NaN where none moves."""
    played, robot = case.played, case.policy.pipeline.embodiment
    assert played is not None
    dims = range(played.recorded.shape[2])
    least = Yardstick.of(robot, robot_state(case.dataset, robot, played.frames), len(dims))
    errors = mean_error(played.recorded, played.predicted, played.padded, dims)
    return errors, least.error(played.recorded, played.padded, dims)


def _actions(error: float, least: float) -> Answer:
    if math.isnan(error):
        return Answer("actions", "open", "no action moves in these episodes")
    text = (
        f"error {error:.2f} standard deviations on recorded chunks; standing still, or one constant action, {least:.2f}"
    )
    if error >= USELESS * least:
        return Answer("actions", "no", f"{text}: no better than that; it does not fit this data, or has not learned it")
    return Answer("actions", "yes" if error <= GOOD * least else "doubt", text)


def _grippers(summary: Mapping[str, Any]) -> Iterator[Answer]:
    for dim, gripper in summary["grippers"].items():
        share = gripper["same_side"]
        text = f"dimension {dim} is on the right side in {100 * share:.0f} % of the frames"
        yield Answer("gripper", "yes" if share >= 0.5 else "doubt", text)
