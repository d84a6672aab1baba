"""Each command that takes a checkpoint takes this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pizero.cli.main import run as command
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.serving.client import PolicyClient, ServerError
from pizero.serving.config import ServeConfig
from pizero.serving.running import background
from pizero.serving.server import PolicyServer
from pizero.workflows.replay import recorded_observation
from pizero.workflows.serve import loaders, named


def use_with_every_command(run: Path, dataset: Path, model: str, folder: Path) -> tuple[dict[str, Any], str]:
    """What the served checkpoint answers, and with what line it refuses an old chunk that is too long."""
    checkpoint, data = str(run), str(dataset)
    assert command("inspect", [checkpoint]) == 0
    assert command("check", [data, "--checkpoint", checkpoint]) in (0, 1)  # 1: an untrained model does not fit
    assert command("replay", [checkpoint, data, "--episode", "0", "--output", str(folder / "replay")]) == 0
    played = ["--env", "tabletop", "--episodes", "1", "--output", str(folder / "evaluation")]
    assert command("evaluate", [checkpoint, *played]) == 0
    started = ["--preset", "tabletop", "--checkpoint", checkpoint, "--output", str(folder / "run"), "--plan"]
    assert command("train", [data, "--model", model, *started]) == 0
    loads = loaders(named([checkpoint]))
    with background(lambda: PolicyServer(loads, ServeConfig(port=0))) as server, PolicyClient(server.uri) as client:
        pipeline = server.server.service.hosted["policy"].policy.pipeline
        seen = recorded_observation(LeRobotDataset(dataset), pipeline, 0)
        answer = client.infer(seen)
        with pytest.raises(ServerError) as refused:
            client.infer({**seen, "previous_actions": np.zeros((99, 5), np.float32)})
    return answer, str(refused.value)
