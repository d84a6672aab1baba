"""Exports a full-size π0 or π0.5 with random weights, opens the export and runs it; the folder is deleted at the end.

    python benchmarks/inference/export_full_size.py pi0 onnx bfloat16 FOLDER --threads 2

Feeds docs/results/export.md. Prints seconds, bytes, the largest resident size (GiB) and the proof of each stage.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from pizero.checkpoints.facts import make_pipeline
from pizero.checkpoints.format import Facts
from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.export.export import Settings, export_network
from pizero.exported.policy import load_exported
from pizero.model.config import CAMERAS, Pi0Config
from pizero.types import RobotDict
from pizero.workflows.bench_inference import random_model

CONFIGS = {"pi0": Pi0Config.pi0, "pi05": Pi0Config.pi05}
DIMS = 14
ROBOT_CAMERAS = {name: name.removesuffix("_0_rgb") for name in CAMERAS}


def told(text: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{time.perf_counter() - STARTED:7.1f} s  peak {peak:5.2f} GiB  {text}", flush=True)


def pipeline_of(config: Pi0Config) -> Pipeline:
    stats = FieldStats(np.zeros(DIMS), np.ones(DIMS))
    facts = Facts(generic(ROBOT_CAMERAS), NormStats("zscore", stats, stats), PaligemmaTokenizer.bytes())
    return make_pipeline(config, facts)


def blank_observation() -> RobotDict:
    image = np.zeros((224, 224, 3), np.uint8)
    images = dict.fromkeys(ROBOT_CAMERAS.values(), image)
    return {"state": np.zeros(DIMS, np.float32), "images": images, "prompt": "lift the block"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("to", choices=("onnx", "openvino"))
    parser.add_argument("dtype", choices=("float32", "bfloat16", "float16", "int8"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config = CONFIGS[given.model]()
    dtype = torch.float32 if given.dtype == "float32" else torch.bfloat16
    try:
        result = export_network(
            lambda: random_model(config, dtype), pipeline_of(config), given.folder,
            Settings(given.to, given.dtype, threads=given.threads), on_step=told,
        )  # fmt: skip
        told(f"proved: {result.difference:.3g} apart, {result.relative:.3g} of the largest, {result.num_bytes} bytes")
        largest = max(path.stat().st_size for path in given.folder.iterdir())
        told(f"largest file {largest} bytes")
        policy = load_exported(given.folder, threads=given.threads)
        told("opened again")
        for _ in range(given.runs):
            answer = policy.infer(blank_observation())
            told(f"ran: {answer['policy_timing']['model_ms'] / 1000:.2f} s")
    finally:
        if not given.keep:
            shutil.rmtree(given.folder, ignore_errors=True)


if __name__ == "__main__":
    STARTED = time.perf_counter()
    main()
