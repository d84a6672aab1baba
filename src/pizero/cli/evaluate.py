"""pizero evaluate: success rates of a checkpoint in a simulator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """Rollouts in a simulator: success rate with Wilson interval, videos, results.json, report.html.

    Example: pizero evaluate runs/tabletop --env tabletop --episodes 40
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint folder of any format, the folder of a run, whose newest checkpoint is taken, or a hub id; demonstrator
    or random: the simulator's scripted demonstrator, uniform actions."""
    env: str
    """Simulator: tabletop, tabletop-long, metaworld, metaworld-mt10, metaworld-mt50, metaworld-mt50-lerobot, pusht,
    aloha, so101, libero-spatial, libero-object, libero-goal, libero-10 (these four also with -published); one that
    an installed package offers; or module:function (docs/simulators.md)."""
    episodes: int = 50
    """Episodes of each task."""
    tasks: tuple[str, ...] = ()
    """Tasks by name; all of the simulator's default tasks when none is given."""
    seed: int = 1_000_000
    """The first episode's; keep it away from the demonstrations' seeds."""
    execution_horizon: int | None = None
    """Actions played before the next chunk is requested; by default half of the model's action horizon."""
    num_steps: int | None = None
    """Steps of sampling; without it the model's own number: 10 for π0, 1 for a one-step
    policy, 20 for the diffusion policy. Not for π0-FAST."""
    num_envs: int = 16
    """Environments side by side, served by one model call. Another number may round otherwise, and end a close episode
    in another way."""
    envs: int = 0
    """Above 0: so many environments instead, each in a process of its own, for simulators that need the time."""
    image_size: int | None = None
    """Pixels per side of every camera, as the demonstrations had them; the simulator's own without it."""
    subtasks: Literal["own", "none", "oracle", "wrong"] = "own"
    """Who says what is to be done now, in simulators of long tasks (tabletop-long). own: the policy, if it writes
    subtasks; none: nobody, and such a policy writes none; oracle: the simulator; wrong: the simulator, another subtask
    than the one that is due. A policy that takes no subtask beside its instruction gets it as the instruction."""
    subtask_every: int = 1
    """Chunks for which a subtask holds that the policy wrote, before it writes the next one."""
    num_videos: int = 4
    """Episodes of the policy that are recorded, of each task in turn."""
    embodiment: str | None = None
    """Robot, if the checkpoint does not record it: a name, a TOML file, module:function, or the folder of a dataset
    that describes it. Same for the options below."""
    norm_stats: Path | None = None
    """norm_stats.json of the robot's data, pizero's or openpi's; the folder that holds it, or a dataset's."""
    tokenizer: Path | None = None
    """SentencePiece model."""
    codec: Path | None = None
    """Of a π0-FAST: folder of its action codec."""
    arch: Path | None = None
    """JSON with the model's sizes, as `pizero inspect --json` writes it."""
    output: Path | None = None
    """Folder for results.json, report.html and videos; without it `evaluation` in the run's or checkpoint's own."""


def run(arguments: Arguments) -> int:
    from pizero.workflows.demo import print_results
    from pizero.workflows.evaluate import ACTORS, EvaluateConfig, evaluate_checkpoint

    values = vars(arguments).copy()
    checkpoint, output = values.pop("checkpoint"), values.pop("output")
    values["processes"] = values.pop("envs")
    options = {name: values.pop(name) for name in ("embodiment", "norm_stats", "tokenizer", "codec", "arch")}
    folder = output or Path(checkpoint if Path(checkpoint).exists() else ".") / "evaluation"
    results = evaluate_checkpoint(checkpoint, EvaluateConfig(**values), folder, **options)
    print_results(results, folder, checkpoint if checkpoint in ACTORS else "policy")
    return 1 if results["errors"] else 0
