"""A small policy by pizero's fast path and by its exports, in turns: milliseconds of a call.

    python benchmarks/inference/export_speed.py --size tiny --threads 1 --rounds 40

Random weights. Each round calls every path once, in a new order. The table has medians of the wall's clock and of the
processor's time, which other programs on the machine hardly change, and the median of the latter's ratio to the fast
path's in the same round. --text N: a π0.5 that writes a text of N tokens before its actions.

Feeds docs/results/export.md.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pizero.checkpoints.facts import make_pipeline
from pizero.checkpoints.format import Facts
from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.export.export import Settings, export_network
from pizero.exported.policy import load_exported
from pizero.model.config import LanguageConfig, small_config
from pizero.policy.policy import ModelPolicy
from pizero.workflows.bench_inference import random_model

EXPORTS = [(to, dtype) for to in ("onnx", "openvino") for dtype in ("float32", "bfloat16", "int8")]
DIMS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("tiny", "small"), default="tiny")
    parser.add_argument("--pi05", action="store_true")
    parser.add_argument("--text", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    language = LanguageConfig(text_length=given.text, fast_weight=0) if given.text else None
    config = small_config(
        given.size, pi05=given.pi05 or bool(given.text), prompt_length=148 + given.text if given.text else 48,
        language=language,
    )  # fmt: skip
    stats = FieldStats(np.zeros(DIMS), np.ones(DIMS))
    cameras = {name: name.removesuffix("_0_rgb") for name in config.cameras}
    facts = Facts(generic(cameras), NormStats("zscore", stats, stats), PaligemmaTokenizer.bytes())
    pipeline = make_pipeline(config, facts)
    model = random_model(config, torch.float32)
    policies: dict[str, Any] = {
        "pizero float32": ModelPolicy(model, pipeline),
        "pizero bfloat16": ModelPolicy(random_model(config, torch.bfloat16), pipeline),
    }
    generator = np.random.default_rng(0)
    images = {name: generator.integers(0, 256, (*config.image_shape, 3), np.uint8) for name in cameras.values()}
    seen = {"state": np.zeros(DIMS, np.float32), "images": images, "prompt": "lift the block"}
    with tempfile.TemporaryDirectory() as root:
        for to, dtype in EXPORTS:
            folder = Path(root) / f"{to}-{dtype}"
            told = export_network(lambda: model, pipeline, folder, Settings(to, dtype, threads=given.threads))
            policies[f"{to} {dtype}"] = load_exported(folder, threads=given.threads)
            print(f"{to} {dtype}: {told.relative:.2g} of the largest action apart", flush=True)
        measure(policies, seen, given.rounds)


def measure(policies: dict[str, Any], seen: dict[str, Any], rounds: int) -> None:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
    order, draw = list(policies), random.Random(0)
    for number in range(rounds + 3):
        draw.shuffle(order)
        for name in order:
            wall, processor = time.perf_counter(), time.process_time()
            policies[name].infer(seen)
            if number >= 3:
                taken[name].append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - processor)))
    first = taken["pizero float32"]
    for name, values in taken.items():
        wall, processor = (statistics.median(side) for side in zip(*values, strict=True))
        ratio = statistics.median(own[1] / other[1] for own, other in zip(values, first, strict=True))
        print(f"{name:18} wall {wall:7.2f} ms  processor {processor:7.2f} ms  ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
