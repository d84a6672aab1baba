"""Full-size π0 or π0.5 beside LeRobot's own, with the same random weights and inputs, in turns.

python benchmarks/peers/inference_beside_lerobot.py LEROBOT_PYTHON [--model pi05] [--rounds 5]

Feeds docs/results/inference.md; a quarter of an hour on 2 cores (make bench-inference). Prints seconds of
a whole call, ratios and how far the actions lie apart. Needs 24 GiB of memory and 14 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from worker import Worker

from pizero.checkpoints.load import save_model
from pizero.engine.fast_sampler import FastSampler
from pizero.types import Observation
from pizero.workflows.bench_inference import BenchConfig, model_config, random_model, random_observation

CASES = {"all cameras": (3, None), "one camera absent": (2, None), "one camera absent, 20 tokens": (2, 20)}


class LeRobot(Worker):
    """LeRobot in its own process."""

    def __init__(self, python: str, folder: Path, inputs: Path, threads: int) -> None:
        script = Path(__file__).parent / "lerobot_samples.py"
        super().__init__([python, str(script), str(folder), str(inputs), str(threads)], "LeRobot")
        self._inputs = inputs

    def sample(self, case: str) -> float:
        return float(self.ask(case))

    def actions(self, case: str) -> torch.Tensor:
        return torch.from_numpy(np.load(self._inputs.with_suffix(f".{case}.npy")))


def write_inputs(path: Path, cases: dict[str, Observation], noise: torch.Tensor) -> None:
    arrays: dict[str, np.ndarray] = {}
    for case, seen in cases.items():
        cameras = list(seen.images)
        assert seen.state is not None
        arrays |= {
            f"{case}/images": torch.stack([seen.images[name] for name in cameras], dim=1).numpy(),
            f"{case}/masks": torch.stack([seen.image_masks[name] for name in cameras], dim=1).numpy(),
            f"{case}/tokens": seen.prompt_tokens.numpy(), f"{case}/prompt_mask": seen.prompt_mask.numpy(),
            f"{case}/state": seen.state.numpy(), f"{case}/noise": noise.numpy(),
        }  # fmt: skip
    np.savez(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="of an environment with LeRobot 0.6.1")
    parser.add_argument("--model", choices=["pi0", "pi05", "tiny", "tiny-pi05"], default="pi0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = model_config(options.model)
    cases = {
        name: random_observation(config, BenchConfig(cameras=cameras, prompt=tokens or config.prompt_length))
        for name, (cameras, tokens) in CASES.items()
    }
    noise = torch.randn(1, config.action_horizon, config.action_dim, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_model(random_model(config, torch.bfloat16), root / "lerobot", format="lerobot")
        write_inputs(root / "inputs.npz", cases, noise)
        theirs = LeRobot(options.python, root / "lerobot", root / "inputs.npz", options.threads)
        model = random_model(config, torch.bfloat16)  # once LeRobot's, which is in float32 while it loads, is cast
        ours = {"fast": FastSampler(model, consume=not options.int8)}
        if options.int8:
            ours["int8"] = FastSampler(model, kernels="int8", consume=True)
        try:
            results = {case: compare(case, seen, noise, ours, theirs, options.rounds) for case, seen in cases.items()}
            results["lerobot_peak_bytes"] = theirs.peak()
        finally:
            theirs.close()
    print(f"LeRobot's process took at most {results['lerobot_peak_bytes'] / 2**30:.1f} GiB")
    if options.json:
        options.json.write_text(json.dumps({"model": options.model, "threads": options.threads, **results}, indent=1))


def compare(
    case: str, seen: Observation, noise: torch.Tensor, ours: dict[str, FastSampler], theirs: LeRobot, rounds: int
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"lerobot": [], **{name: [] for name in ours}}
    actions: dict[str, torch.Tensor] = {}
    for number in range(rounds + 1):
        measured = {"lerobot": theirs.sample(case)}
        for name, sampler in ours.items():
            started = time.perf_counter()
            actions[name] = sampler.sample_actions(seen, noise=noise)
            measured[name] = time.perf_counter() - started
        if number:  # the first round warms up
            for name, value in measured.items():
                seconds[name].append(value)
    reference, result = theirs.actions(case), dict[str, Any]()
    scale = float(reference.square().mean().sqrt())
    theirs_median = statistics.median(seconds["lerobot"])
    print(f"{case}: LeRobot {theirs_median:.2f} s")
    for name in ours:
        ratios = [a / b for a, b in zip(seconds["lerobot"], seconds[name], strict=True)]
        apart = float((actions[name] - reference).square().mean().sqrt()) / scale
        result[name] = {"seconds": seconds[name], "ratio": statistics.median(ratios), "apart": apart}
        print(
            f"  {name:5} {statistics.median(seconds[name]):.2f} s, {statistics.median(ratios):.2f} times as fast "
            f"({min(ratios):.2f} to {max(ratios):.2f}); actions {apart:.1%} apart (RMS)"
        )
    return {"lerobot": seconds["lerobot"], **result}


if __name__ == "__main__":
    main()
