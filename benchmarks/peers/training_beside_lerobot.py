"""A training step of a middle-sized π0 beside LeRobot's, with the same weights, batch, noise and times, in turns.

python benchmarks/peers/training_beside_lerobot.py LEROBOT_PYTHON [--batch 2] [--rounds 5] [--threads 2] [--rows NAME]

Feeds docs/results/training.md; half an hour on 2 cores (make bench-training). Every row is a process of its
own, asleep while another one steps: seconds of a step, ratios within a round, and the process's peak of memory, from
its start. Needs 12 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.append(str(Path(__file__).parents[1] / "training"))

import numpy as np
import torch
from memory import MIDDLE
from worker import Worker

from pizero.checkpoints.load import load_model, save_model
from pizero.model.pi0 import Pi0
from pizero.train.compile import compile_blocks
from pizero.train.config import TrainConfig
from pizero.train.saving import RunOutput
from pizero.train.trainer import Trainer
from pizero.types import Observation
from pizero.workflows.memory import keep_freed_memory

ARCH = {
    "vlm": vars(MIDDLE.prefix), "expert": vars(MIDDLE.expert), "vocab_size": MIDDLE.vocab_size,
    "vision": {
        "hidden_size": MIDDLE.vision.width, "num_hidden_layers": MIDDLE.vision.depth,
        "num_attention_heads": MIDDLE.vision.num_heads, "intermediate_size": MIDDLE.vision.mlp_dim,
        "patch_size": MIDDLE.vision.patch_size, "image_size": MIDDLE.image_size,
        "projection_dim": MIDDLE.prefix.width,
    },
}  # fmt: skip
OURS: dict[str, dict[str, Any]] = {
    "pizero, mixed": {"ema_decay": 0.0},
    "pizero, mixed, compiled": {"ema_decay": 0.0, "compiled": True},
    "pizero, mixed, average": {},
    "pizero, float32": {"precision": "float32", "ema_decay": 0.0},
    "pizero, mixed, 4 draws": {"draws": 4, "ema_decay": 0.0},
}  # fmt: skip
THEIRS = {"LeRobot": "float32", "LeRobot, autocast": "autocast"}
WARM = 4
"""Rounds that are not counted: the C library's allocator takes some steps to keep what it is given back."""


def start(command: list[str]) -> Worker:
    """A process that takes a training step when asked."""
    paths = [str(Path(__file__).parents[2] / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return Worker(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"})


def write_inputs(path: Path, batch: int) -> None:
    generator, size = torch.Generator().manual_seed(0), MIDDLE.image_size
    shape = (batch, MIDDLE.action_horizon, MIDDLE.action_dim)
    arrays = {
        "images": torch.rand(batch, len(MIDDLE.cameras), size, size, 3, generator=generator) * 2 - 1,
        "masks": torch.ones(batch, len(MIDDLE.cameras), dtype=torch.bool),
        "tokens": torch.randint(1, MIDDLE.vocab_size, (batch, MIDDLE.prompt_length), generator=generator),
        "prompt_mask": torch.ones(batch, MIDDLE.prompt_length, dtype=torch.bool),
        "state": torch.randn(batch, MIDDLE.state_dim, generator=generator),
        "actions": torch.randn(shape, generator=generator), "noise": torch.randn(shape, generator=generator),
        "time": torch.rand(batch, generator=generator),
    }  # fmt: skip
    np.savez(path, **cast(Any, {name: value.numpy() for name, value in arrays.items()}))


def serve_ours(name: str, folder: Path, inputs: Path, threads: int) -> None:
    """The trainer's own step, for each line that is read; the draws' noise is its own."""
    torch.set_num_threads(threads)
    arrays = {key: torch.from_numpy(value) for key, value in np.load(inputs).items()}
    cameras = MIDDLE.cameras
    observation = Observation(
        dict(zip(cameras, arrays["images"].unbind(1), strict=True)),
        dict(zip(cameras, arrays["masks"].unbind(1), strict=True)),
        arrays["state"], arrays["tokens"], arrays["prompt_mask"],
    )  # fmt: skip
    model = cast(Pi0, load_model(folder, arch=MIDDLE))
    settings = dict(OURS[name])
    if settings.pop("compiled", False):
        compile_blocks(model)
    config = TrainConfig(batch_size=len(arrays["actions"]), **settings)
    loader = cast(Any, SimpleNamespace(batch_size=config.batch_size))
    trainer = Trainer(model, config, loader, None, RunOutput(folder / "run", cast(Any, None)))
    trainer.tensors_of = lambda batch, generator: (observation, arrays["actions"])  # type: ignore[method-assign]
    keep_freed_memory()  # as `pizero train` does
    drawn = {"noise": arrays["noise"][None], "time": arrays["time"][None]}
    if config.draws == 1:
        import pizero.train.trainer as module

        module.draw = lambda *args: drawn  # type: ignore[attr-defined]
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        loss = trainer.train_step(cast(Any, SimpleNamespace(action_dims=None))).item()
        print(json.dumps({"loss": loss, "seconds": time.perf_counter() - started}), flush=True)


def main() -> None:
    if sys.argv[1] == "--serve":
        serve_ours(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="of an environment with LeRobot 0.6.1")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", nargs="+", default=[*THEIRS, *OURS], choices=[*THEIRS, *OURS])
    parser.add_argument("--ask", action="store_true", help="wait for Enter once all are loaded: for a quiet moment")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        torch.manual_seed(0)
        save_model(Pi0(MIDDLE), root / "start", format="lerobot")
        write_inputs(root / "inputs.npz", options.batch)
        (root / "arch.json").write_text(json.dumps(ARCH))
        common = [str(root / "inputs.npz"), str(options.threads)]
        script = str(Path(__file__).parent / "lerobot_trains.py")
        commands = {name: [options.python, script, str(root / "start"), str(root / "arch.json"), *common, kind]
                    for name, kind in THEIRS.items()}  # fmt: skip
        commands |= {name: [sys.executable, __file__, "--serve", name, str(root / "start"), *common] for name in OURS}
        workers = {name: start(commands[name]) for name in options.rows}
        try:
            if options.ask:
                input("loaded; Enter starts")
            found = [
                {name: json.loads(worker.ask()) for name, worker in workers.items()}
                for _ in range(options.rounds + WARM)
            ]
            peaks = {name: worker.peak() for name, worker in workers.items()}
        finally:
            for worker in workers.values():
                worker.close()
    report(found, peaks, options.batch)
    if options.json:
        options.json.write_text(json.dumps({**vars(options), "rounds": found, "peaks": peaks}, indent=1, default=str))


def report(found: list[dict[str, dict[str, float]]], peaks: dict[str, int], batch: int) -> None:
    """The first rounds warm up; the first loss is that of the same weights."""
    print("| | s per step | fastest | samples/s | LeRobot / this | LeRobot, autocast / this | peak, GiB | first loss |")
    print("|---|---|---|---|---|---|---|---|")
    for name, peak in peaks.items():
        seconds = [step[name]["seconds"] for step in found[WARM:]]
        median = statistics.median(seconds)
        ratios = [f"{statistics.median(step[other]['seconds'] / step[name]['seconds'] for step in found[WARM:]):.2f}"
                  if other in peaks else "" for other in THEIRS]  # fmt: skip
        print(f"| {name} | {median:.2f} | {min(seconds):.2f} | {batch / median:.2f} | "
              f"{ratios[0]} | {ratios[1]} | {peak / 2**30:.2f} | {found[0][name]['loss']:.4f} |")  # fmt: skip


if __name__ == "__main__":
    main()
