"""A small π0.5 with random weights, its exports, and how calls of it and of peers are measured in turns."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from pizero.exported.manifest import read_manifest
from pizero.exported.policy import load_exported
from pizero.exported.samplers import Pi0Sampler
from pizero.model.config import Pi0Config, small_config
from pizero.model.pi0 import Pi0
from pizero.policy.policy import ModelPolicy
from pizero.types import RobotDict
from pizero.workflows.bench_inference import random_model

DIMS = 7
"""Of the robot's state and actions; statistics change nothing."""
FAST, BASE = "pizero's fast path", "pizero OpenVINO"
NETWORK = ", network"
"""Ends the names of calls without tokenizer and statistics."""
Call = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Case:
    """seen: one observation, with images of the model's size and noise that is zero."""

    model: Pi0
    pipeline: Pipeline
    seen: RobotDict

    @property
    def config(self) -> Pi0Config:
        return self.model.config


def small_pi05(size: str, prompt_length: int | None, image_size: int | None = None) -> Case:
    """prompt_length: None takes as many tokens as the prompt has, so that no side pads."""
    config = small_config(size, pi05=True, prompt_length=prompt_length or 200)
    config = replace(config, image_size=image_size or config.image_size)
    generator = np.random.default_rng(0)
    images = {
        name.removesuffix("_0_rgb"): generator.integers(0, 256, (*config.image_shape, 3), np.uint8)
        for name in config.cameras
    }
    noise = np.zeros((config.action_horizon, config.action_dim), np.float32)
    seen = {"state": np.zeros(DIMS, np.float32), "images": images, "prompt": "lift the block", "noise": noise}
    tokens = int(_pipeline(config).robot_inputs([seen])["prompt_mask"].sum())
    config = replace(config, prompt_length=prompt_length or tokens)
    print(f"{size}: {len(images)} cameras of {config.image_size} pixels, {tokens} of {config.prompt_length} tokens")
    return Case(random_model(config, torch.float32), _pipeline(config), seen)


def _pipeline(config: Pi0Config) -> Pipeline:
    stats = FieldStats(np.zeros(DIMS), np.ones(DIMS))
    cameras = {name: name.removesuffix("_0_rgb") for name in config.cameras}
    return make_pipeline(config, Facts(generic(cameras), NormStats("zscore", stats, stats), PaligemmaTokenizer.bytes()))


def our_calls(case: Case, root: Path, threads: int) -> dict[str, Call]:
    """The fast path and the exports in float32."""
    plain = ModelPolicy(case.model, case.pipeline)
    inputs, noise = case.pipeline.robot_inputs([case.seen]), case.seen["noise"]
    calls: dict[str, Call] = {FAST: lambda: plain.infer(case.seen)["actions"]}
    for to, name in (("openvino", BASE), ("onnx", "pizero ONNX")):
        settings = Settings(to, threads=threads)  # type: ignore[arg-type]
        export_network(lambda: case.model, case.pipeline, root / to, settings)
        policy = load_exported(root / to, threads=threads)
        sampler = Pi0Sampler(root / to, read_manifest(root / to), threads)
        calls[name] = lambda policy=policy: policy.infer(case.seen)["actions"]
        calls[name + NETWORK] = lambda sampler=sampler: sampler(inputs, noise)
    return calls


def measure(calls: dict[str, Call], rounds: int) -> None:
    """Each round calls every one once, in a new order. Prints medians of the processor's time, medians of its ratio to
    pizero's export to OpenVINO in the same round, and how far the chunk lies from pizero's, of its largest action.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    expected, apart = calls[FAST](), dict[str, float]()
    order, draw = list(calls), random.Random(0)
    for number in range(rounds + 3):
        draw.shuffle(order)
        for name in order:
            started = time.process_time()
            chunk = calls[name]()
            if number >= 3:  # the first ones warm up
                taken[name].append(1000 * (time.process_time() - started))
            apart[name] = float(np.abs(chunk[:, :DIMS] - expected).max() / np.abs(expected).max())
    for name, values in taken.items():
        base = taken[BASE + NETWORK if name.endswith(NETWORK) else BASE]
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        print(f"{name:30} processor {statistics.median(values):7.2f} ms  ratio {ratio:.2f}  apart {apart[name]:.1g}")
