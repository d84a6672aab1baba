"""All checks of a dataset, the most serious findings first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.doctor.against import check_against
from pizero.data.doctor.cameras import Look, check_camera_map, check_cameras, look
from pizero.data.doctor.finding import ORDER, Finding, Subject
from pizero.data.doctor.grippers import check_grippers
from pizero.data.doctor.motion import check_motion
from pizero.data.doctor.numbers import check_numbers, check_widths
from pizero.data.doctor.pairing import check_pairing, find_pairs, measure_fit
from pizero.data.doctor.recording import check_recording
from pizero.data.doctor.subtasks import check_subtasks
from pizero.data.embodiments import Embodiment
from pizero.data.pipeline import Pipeline
from pizero.data.robot_columns import robot_widths
from pizero.types import UserError


@dataclass(frozen=True)
class Examination:
    """looks: pictures by robot camera. episodes: whose they are."""

    subject: Subject
    findings: list[Finding]
    looks: Mapping[str, Look]
    episodes: list[int]


def examine(
    dataset: LeRobotDataset,
    embodiment: Embodiment,
    horizon: int,
    pipeline: Pipeline | None = None,
    *,
    pictures: bool = True,
) -> Examination:
    """Looks at all numbers and at some pictures. horizon: actions per chunk. pipeline: of a checkpoint, to fit.

    pictures: whether the files of the cameras are there.

    A robot whose dimensions are not the dataset's is a finding; the rest is then looked at without them. UserError
    where a column of the robot is not there.
    """
    mismatch = _mismatch(dataset, embodiment)
    subject = Subject.of(dataset, _without_dimensions(embodiment) if mismatch else embodiment, horizon)
    chosen, looks, findings = look(subject) if pictures else ([], {}, [])
    findings += [*mismatch, *check_widths(subject), *check_camera_map(subject), *check_recording(subject)]
    findings += [*check_subtasks(subject), *check_numbers(subject)]
    if subject.finite.any():
        fit = measure_fit(subject)
        pairs = find_pairs(subject, fit)
        moves = list(check_motion(subject, pairs))
        already = any(finding.check == "relative already" for finding in moves)
        findings += [*moves, *check_grippers(subject), *check_pairing(subject, fit, pairs, relative_already=already)]
    findings += check_cameras(subject, chosen, looks)
    if pipeline is not None and not mismatch:
        findings += check_against(subject, pipeline)
    findings.sort(key=lambda finding: ORDER.index(finding.severity))
    return Examination(subject, findings, looks, [int(dataset.episodes[number]) for number in chosen])


def _mismatch(dataset: LeRobotDataset, embodiment: Embodiment) -> list[Finding]:
    for key in (embodiment.state_key, embodiment.action_key):
        dataset.column(key)
    try:
        embodiment.check_dims(*robot_widths(dataset, embodiment))
    except UserError as error:
        advice = "correct the robot file, or give the dataset's own robot with --embodiment"
        return [Finding("error", "dimensions", f"robot {embodiment.name}", str(error), advice)]
    return []


def _without_dimensions(embodiment: Embodiment) -> Embodiment:
    return replace(
        embodiment, state_dim=None, action_dim=None, state_dims=(), action_dims=(), relative_mask=(), state_indices=(),
        grippers=(), conversions=(),
    )  # fmt: skip
