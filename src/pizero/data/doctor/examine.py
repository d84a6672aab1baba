"""All checks of a dataset, the most serious findings first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.doctor.against import check_against
from pizero.data.doctor.cameras import Look, check_camera_map, check_cameras, look
from pizero.data.doctor.finding import ORDER, Finding, Subject
from pizero.data.doctor.motion import check_motion
from pizero.data.doctor.numbers import check_numbers
from pizero.data.doctor.recording import check_recording
from pizero.data.embodiments import Embodiment
from pizero.data.pipeline import Pipeline


@dataclass(frozen=True)
class Examination:
    """looks: pictures by robot camera. episodes: whose they are."""

    subject: Subject
    findings: list[Finding]
    looks: Mapping[str, Look]
    episodes: list[int]


def examine(
    dataset: LeRobotDataset, embodiment: Embodiment, horizon: int, pipeline: Pipeline | None = None
) -> Examination:
    """Looks at all numbers and at some pictures. horizon: actions per chunk. pipeline: of a checkpoint, to fit."""
    subject = Subject.of(dataset, embodiment, horizon)
    chosen, looks, findings = look(subject)
    findings += [*check_camera_map(subject), *check_recording(subject), *check_numbers(subject)]
    if subject.finite.any():
        findings += check_motion(subject)
    findings += check_cameras(subject, chosen, looks)
    if pipeline is not None:
        findings += check_against(subject, pipeline)
    findings.sort(key=lambda finding: ORDER.index(finding.severity))
    return Examination(subject, findings, looks, [int(dataset.episodes[number]) for number in chosen])
