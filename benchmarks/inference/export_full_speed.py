"""A full-size π0 or π0.5 by pizero's fast path and by its exports, in turns: seconds of a call.

    python benchmarks/inference/export_full_speed.py pi0 FOLDER --threads 1 --turns 2

Random weights, three cameras, ten steps. Two of these models do not fit into 24 GiB beside each other, so every path
opens in a process of its own, one after the other, and again in the next turn; of its two calls the second is told. The
exports are made first, unless FOLDER has them (30 GB, kept). Feeds docs/results/export.md.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from export_full_size import CONFIGS, blank_observation, pipeline_of

from pizero.engine.fast_sampler import FastSampler
from pizero.exported.policy import load_exported
from pizero.policy.policy import ModelPolicy
from pizero.workflows.bench_inference import random_model

PATHS = (
    "pizero-float32", "onnx-float32", "pizero-bfloat16", "openvino-bfloat16", "pizero-int8", "onnx-int8",
    "openvino-int8",
)  # fmt: skip


def opened(path: str, model: str, folder: Path, threads: int) -> Any:
    runtime, dtype = path.split("-")
    if runtime != "pizero":
        return load_exported(folder / path, threads=threads)
    config = CONFIGS[model]()
    network = random_model(config, torch.float32 if dtype == "float32" else torch.bfloat16)
    sampler = FastSampler(network, kernels="int8" if dtype == "int8" else "auto", consume=True)
    return ModelPolicy(sampler, pipeline_of(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS)
    parser.add_argument("--one", choices=PATHS, help="measure this path, in this process")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        policy, seen = opened(given.one, given.model, given.folder, given.threads), blank_observation()
        policy.infer(seen)
        wall, processor = time.perf_counter(), time.process_time()
        policy.infer(seen)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{given.one:18} wall {wall:6.2f} s  processor {processor:6.2f} s  peak {peak:5.2f} GiB", flush=True)
        return
    for path in given.paths:
        runtime, dtype = path.split("-")
        if runtime != "pizero" and not (given.folder / path).is_dir():
            made = given.model, runtime, dtype, str(given.folder / path)
            run("export_full_size.py", *made, "--keep", "--runs", "0", "--threads", str(given.threads))
    for _ in range(given.turns):
        for path in given.paths:
            run(Path(__file__).name, given.model, str(given.folder), "--threads", str(given.threads), "--one", path)


def run(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *arguments], check=True)


if __name__ == "__main__":
    main()
