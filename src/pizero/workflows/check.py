"""A dataset examined, with or without a checkpoint: findings in the terminal, check.json, check.html."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.load import load_policy
from pizero.data.datasets.faults import Fault, find_faults, ranges
from pizero.data.datasets.files.columns import NumberColumns
from pizero.data.datasets.images.pictures import Pictures
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.description import read_layout
from pizero.data.doctor.codec import check_codec
from pizero.data.doctor.examine import examine
from pizero.data.doctor.finding import ORDER, Finding
from pizero.data.doctor.names import dim_text, dims_text
from pizero.data.doctor.open_loop import Replay, summarize
from pizero.data.embodiments import Embodiment, get_embodiment
from pizero.data.fast.codec import FastCodec
from pizero.data.fast.fidelity import ActionChunks, measure_fidelity
from pizero.data.loader import split_episodes
from pizero.model.config import CAMERAS
from pizero.policy.policy import ModelPolicy
from pizero.report.check import check_report
from pizero.types import UserError
from pizero.workflows.check_text import print_results
from pizero.workflows.evaluate import write_json
from pizero.workflows.fit_codec import MEASURED
from pizero.workflows.norm_stats import dataset_norm_stats
from pizero.workflows.own_robot import guess_robot, print_guess
from pizero.workflows.progress import progress_bar
from pizero.workflows.replay import replay, spread_over
from pizero.workflows.verdict import Case, judge

CHUNKS = 48
"""Chunks that are replayed."""
WORTHLESS = 0.9
"""Of a constant action's error: a policy above it has learned nothing of that dimension."""


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """embodiment: or its name; None takes the checkpoint's, else every camera and column of the dataset. horizon:
    actions per chunk; None takes the checkpoint's, else 50. episodes: to replay; none given takes those that the
    checkpoint's own run held out, else all. codec: folder of a FAST codec, to see what it loses of the actions.
    subtasks: as for `find_subtasks`.
    """

    checkpoint: str | Path | None = None
    embodiment: str | Embodiment | None = None
    horizon: int | None = None
    episodes: tuple[int, ...] = ()
    codec: str | None = None
    subtasks: str | None = None


def check(root: Path, config: CheckConfig, output: Path | None = None) -> dict[str, Any]:
    """Examines, writes check.json and check.html into `output` if given, and returns what check.json holds:
    findings (severity, check, where, evidence, advice), faults (kind, episode, text, file) of the episodes that
    training refuses, and with a checkpoint "replay" (`open_loop.summarize`) and "verdict" (`judge`). Those episodes are
    not examined further; where no other is left, the numbers of those are that have any.
    """
    policy = _policy(config)
    folder = local_folder(root, "dataset")
    robot = _given_embodiment(config, policy)
    cameras = None if robot is None else set(robot.cameras.values())
    columns = None if robot is None else robot.columns
    whole, faults, with_numbers = _faults(folder, cameras, columns)
    episodes = whole or with_numbers
    if not episodes:
        results = _results(root, "", config.horizon or 0, list(_fault_findings(faults, 0)), faults)
        if output is not None:
            write_json(output / "check.json", results)
        print_results(results, None)
        return results
    dataset = LeRobotDataset(folder, episodes=episodes, cameras=(), columns=columns, subtasks=config.subtasks)
    if whole:
        dataset.look_at(cameras)
    embodiment = _embodiment(dataset, config, policy)
    horizon = config.horizon or (policy.noise_shape[0] if policy else 50)
    examination = examine(dataset, embodiment, horizon, policy.pipeline if policy else None, pictures=bool(whole))
    names = examination.subject.action_names
    findings, played, summary = [*_fault_findings(faults, len(whole)), *examination.findings], None, None
    findings += _unusual_cameras(embodiment) if policy is None else []
    wrong = any(finding.check in ("dimensions", "no camera") for finding in findings)
    if policy is not None and whole and not wrong:
        frames, whose = _frames(dataset, config, policy)
        played = _replay(dataset, policy, frames)
        summary = summarize(played, names) | {"episodes": whose}
        findings += _worthless(summary, names)
    if config.codec is not None and not wrong:
        codec = FastCodec.load(local_folder(config.codec))
        length = horizon if config.horizon or policy else codec.horizon or horizon
        findings += _codec_findings(codec, dataset, embodiment, policy, length)
    verdict = None
    if policy is not None and config.checkpoint is not None:
        own = local_folder(config.checkpoint) if config.embodiment is None else None
        verdict = judge(Case(dataset, policy, own, findings, played, summary))
    findings.sort(key=lambda finding: ORDER.index(finding.severity))
    results = _results(root, embodiment.name, horizon, findings, faults)
    results |= {"episodes": dataset.num_episodes, "frames": dataset.num_frames, "replay": summary}
    results |= {"action_names": names, "verdict": verdict}
    if output is not None:
        write_json(output / "check.json", results)
        check_report(output / "check.html", results, examination, played)
    print_results(results, output)
    return results


def _results(
    root: Path, embodiment: str, horizon: int, findings: Sequence[Finding], faults: Sequence[Fault]
) -> dict[str, Any]:
    """What check.json holds, so far of no whole episode."""
    return {
        "dataset": str(root), "episodes": 0, "frames": 0, "embodiment": embodiment, "horizon": horizon,
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "faults": [dataclasses.asdict(fault) | {"file": str(fault.file)} for fault in faults], "replay": None,
        "action_names": None, "verdict": None,
    }  # fmt: skip


def _faults(
    folder: Path, cameras: Collection[str] | None, columns: Sequence[str] | None
) -> tuple[list[int], list[Fault], list[int]]:
    """(whole episodes, faults of the others, episodes whose numbers are whole), by these cameras and columns."""
    layout = read_layout(folder)
    looked_at = NumberColumns(layout.features, columns)
    faults, rows = find_faults(layout, layout.episodes, cameras, Pictures(layout), looked_at)
    bad = {fault.episode for fault in faults}
    with_numbers = [episode.index for episode in layout.episodes if episode.index in rows]
    return [index for index in with_numbers if index not in bad], faults, with_numbers


def _fault_findings(faults: list[Fault], whole: int) -> Iterator[Finding]:
    """What training refuses, in the same words: one finding for each kind."""
    total = whole + len({fault.episode for fault in faults})
    for kind in dict.fromkeys(fault.kind for fault in faults):
        found = [fault for fault in faults if fault.kind == kind]
        episodes = {fault.episode for fault in found}
        yield Finding(
            "error", kind, f"{'episodes' if len(episodes) > 1 else 'episode'} {ranges(episodes)}",
            f"{len(episodes)} of {total} episodes; the first: {found[0].text}",
            "training refuses them: mend them (see below), or skip them with --skip-bad-episodes",
        )  # fmt: skip


def _policy(config: CheckConfig) -> ModelPolicy | None:
    if config.checkpoint is None:
        return None
    return load_policy(config.checkpoint, embodiment=config.embodiment)


def _given_embodiment(config: CheckConfig, policy: ModelPolicy | None) -> Embodiment | None:
    if policy is not None:
        return policy.pipeline.embodiment
    return get_embodiment(config.embodiment) if isinstance(config.embodiment, str) else config.embodiment


def _embodiment(dataset: LeRobotDataset, config: CheckConfig, policy: ModelPolicy | None) -> Embodiment:
    if (given := _given_embodiment(config, policy)) is not None:
        return given
    guess = guess_robot(dataset, needs_camera=False)
    print_guess(guess)
    return guess.robot


def _unusual_cameras(embodiment: Embodiment) -> list[Finding]:
    other = [camera for camera in embodiment.cameras if camera not in CAMERAS]
    if not other:
        return []
    return [Finding(
        "note", "more cameras", f"cameras {', '.join(embodiment.cameras[camera] for camera in other)}",
        f"the released models have the {len(CAMERAS)} cameras {', '.join(CAMERAS)}, and no {', '.join(other)}",
        "a model that is fine-tuned on this robot gets them and learns them anew; without them in the robot file it "
        "learns less",
    )]  # fmt: skip


def _frames(dataset: LeRobotDataset, config: CheckConfig, policy: ModelPolicy) -> tuple[NDArray[np.int64], str]:
    """Where chunks are replayed, evenly over the episodes, and whose they are."""
    assert config.checkpoint is not None
    if config.episodes:
        unknown = sorted(set(config.episodes) - set(dataset.episodes.tolist()))
        if unknown:
            raise UserError(f"{dataset.root} has no episode {unknown[0]}")
        positions = np.flatnonzero(np.isin(dataset.episode_index, config.episodes))
        whose = f"episodes {', '.join(map(str, config.episodes))}"
    elif (settings := _run_settings(local_folder(config.checkpoint))) is not None:
        positions = split_episodes(dataset, settings["validation_fraction"], settings["seed"])[1]
        whose = "the episodes that the checkpoint's run held out, if it was trained on this dataset"
    else:
        positions, whose = np.arange(dataset.num_frames), "all episodes; those it was trained on flatter it"
    if not len(positions):
        positions, whose = np.arange(dataset.num_frames), "all episodes: its run held none out"
    return spread_over(positions, CHUNKS), whose


def _codec_findings(
    codec: FastCodec, dataset: LeRobotDataset, embodiment: Embodiment, policy: ModelPolicy | None, horizon: int
) -> list[Finding]:
    """With the checkpoint's statistics, else the data's quantiles, as π0-FAST has them."""
    stats = policy.pipeline.norm_stats if policy else dataset_norm_stats(dataset, embodiment, "quantile", horizon)
    frames = spread_over(np.arange(dataset.num_frames), MEASURED)
    return list(check_codec(measure_fidelity(codec, ActionChunks(dataset, embodiment, stats, horizon), frames)))


def _run_settings(checkpoint: str | Path) -> dict[str, Any] | None:
    path = Path(checkpoint).parent.parent / "run.json"
    return json.loads(path.read_text())["train"] if path.is_file() else None


def _replay(dataset: LeRobotDataset, policy: ModelPolicy, frames: NDArray[np.int64]) -> Replay:
    with progress_bar() as bars:
        bar = bars.add_task("replaying", total=len(frames), note="")
        return replay(dataset, policy, frames, lambda done: bars.update(bar, completed=done))


def _worthless(summary: dict[str, Any], names: Sequence[str] | None) -> list[Finding]:
    pairs = zip(summary["relative_error"], summary["constant_error"], strict=True)
    bad = [dim for dim, (error, constant) in enumerate(pairs) if error is not None and error > WORTHLESS * constant]
    if not bad:
        return []
    dim = bad[0]
    return [
        Finding(
            "warning", "no better than constant", dims_text("action", bad, names),
            f"error {summary['relative_error'][dim]:.2f} standard deviations for {dim_text('action', dim, names)}; one "
            f"constant action reaches {summary['constant_error'][dim]:.2f}",
            "the checkpoint does not fit this data: other units, order or cameras, or it needs training on it",
        )
    ]  # fmt: skip
