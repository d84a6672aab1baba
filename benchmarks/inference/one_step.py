"""What a policy loses with fewer integration steps, and what a step costs.

    python benchmarks/inference/one_step.py replay DATASET CHECKPOINT...   error on recorded frames
    python benchmarks/inference/one_step.py two-ways               a toy whose actions are all 1 or all -1: minutes
    python benchmarks/inference/one_step.py cost MODEL [DTYPE [THREADS]]   pi0, pi05, tiny, tiny-pi05 or small: CPU time

Feeds docs/results/one_step.md, which has the commands of the success rates too. The dataset should be none that the
policies were trained on. Times are of the process, on one thread unless given, so that work beside it counts little;
the numbers of steps are taken in turns.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pizero.checkpoints.load import load_policy
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.doctor.open_loop import summarize
from pizero.engine.fast_sampler import FastSampler
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.policy.policy import ModelPolicy
from pizero.types import Observation
from pizero.workflows.bench_inference import BenchConfig, model_config, random_model, random_observation
from pizero.workflows.replay import replay as replayed
from pizero.workflows.replay import spread_over

STEPS = (1, 2, 4, 10)
FRAMES = 400


def replay_steps(root: Path, checkpoints: list[str]) -> None:
    """error: of the actions, in standard deviations of the recorded ones, mean over the moving dimensions. from ten:
    mean distance from where ten steps end from the same noise, in the same unit.
    """
    for checkpoint in checkpoints:
        policy = load_policy(checkpoint)
        robot = policy.pipeline.embodiment
        dataset = LeRobotDataset(root, cameras=list(robot.cameras.values()), columns=robot.columns)
        frames = spread_over(np.arange(dataset.num_frames), FRAMES)
        found = {}
        for steps in STEPS:
            asked = ModelPolicy(policy.model, policy.pipeline, num_steps=steps, fast=False)
            found[steps] = replayed(dataset, asked, frames)
        spread = found[STEPS[-1]].recorded[~found[STEPS[-1]].padded].std(axis=0)
        moving = spread > 1e-3
        print(checkpoint)
        for steps in STEPS:
            errors = [error for error in summarize(found[steps])["relative_error"] if error is not None]
            away = np.abs(found[steps].predicted - found[STEPS[-1]].predicted)[~found[steps].padded][:, moving]
            print(f"  {steps:>2} steps   error {np.mean(errors):.4f}   from ten {(away / spread[moving]).mean():.4f}")


def two_ways(teacher: int, student: int) -> None:
    """Chunks that are all 1 or all -1, whatever is seen: a single Euler step from noise goes between the two. Prints
    the RMS distance of the actions from the nearer of the two chunks, and the share of chunks nearer to 1.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    base = Pi0(small_config("nano"))
    _fit(base, teacher)
    model = Pi0(base.config)
    model.load_state_dict(base.state_dict())
    model.expect_one_step()
    _fit(model, student)
    for name, policy in (("before", base), ("after", model)):
        noise = torch.randn(512, 6, 4, generator=torch.Generator().manual_seed(1))
        for steps in STEPS:
            chunks = policy.sample_actions(_nothing(512), noise=noise, num_steps=steps)
            sides = chunks.mean(dim=(1, 2), keepdim=True).sign()
            away = float((chunks - sides).square().mean().sqrt())
            print(f"{name} {steps:>2} steps: {away:.3f} from the nearer, {float((sides > 0).float().mean()):.2f} at 1")


def _fit(model: Pi0, steps: int) -> None:
    rate = 3e-3
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=rate), torch.Generator().manual_seed(steps)
    for step in range(steps):
        signs = torch.randint(0, 2, (8, 1, 1), generator=generator) * 2.0 - 1
        loss = model.loss(_nothing(8), signs.expand(8, 6, 4), draws=8, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.step()


def _nothing(batch: int) -> Observation:
    """No camera, and one token."""
    cameras = small_config("nano").cameras
    masks = {name: torch.zeros(batch, dtype=torch.bool) for name in cameras}
    token = torch.zeros(batch, 1, dtype=torch.long)
    return Observation({}, masks, torch.zeros(batch, 5), token, torch.ones(batch, 1, dtype=torch.bool))


def cost(name: str, dtype: str | None = None, threads: int = 1) -> None:
    full = name in ("pi0", "pi05")
    settings = BenchConfig(name, dtype or ("bfloat16" if full else "float32"), threads=threads)  # pyright: ignore
    torch.set_num_threads(threads)
    config = model_config(settings.model)
    sampler = FastSampler(random_model(config, getattr(torch, settings.dtype)), consume=True)
    settings = replace(settings, cameras=len(config.cameras), prompt=min(48, config.prompt_length))
    observation = random_observation(config, settings)
    noise = torch.randn(1, config.action_horizon, config.action_dim)
    chosen, calls, rounds = ((1, 10), 1, 2) if full else (STEPS, 20, 7)
    seconds: dict[int, list[float]] = {steps: [] for steps in chosen}
    for _ in range(1 + rounds):  # the first one warms up
        for steps in chosen:
            started = time.process_time()
            for _ in range(calls):
                sampler.sample_actions(observation, num_steps=steps, noise=noise)
            seconds[steps].append((time.process_time() - started) / calls)
    for steps in chosen:
        rest = sorted(seconds[steps][1:])
        best, median = 1000 * rest[0], 1000 * rest[len(rest) // 2]
        print(f"{name} {steps:>2} steps: {best:.2f} ms of CPU at best, {median:.2f} median")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["replay", root, *checkpoints]:
            replay_steps(Path(root), checkpoints)
        case ["two-ways", *steps]:
            two_ways(*(int(number) for number in steps or ("1000", "1000")))
        case ["cost", name, *rest] if len(rest) <= 2:
            cost(name, *rest[:1], *map(int, rest[1:]))
        case _:
            sys.exit(__doc__)
