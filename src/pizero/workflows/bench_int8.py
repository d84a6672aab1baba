"""What int8 costs a policy, on observations of a dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pizero.checkpoints.facts import make_pipeline
from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.load import load_model, read_checkpoint
from pizero.checkpoints.native.checkpoint import torch_dtype
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.int8 import weight_bits
from pizero.engine.products import check_kernels
from pizero.engine.quantize import errors, sensitivity
from pizero.model.config import Pi0Config
from pizero.types import UserError
from pizero.workflows.progress import progress_bar
from pizero.workflows.replay import recorded_observation


def bench_int8(checkpoint: str, dataset: Path, observations: int, dtype: str, worst: int) -> dict[str, Any]:
    """Errors of int8 as a whole, of each layer alone, and of int8 without its `worst` layers.

    observations: so many frames, evenly over the dataset, each with noise of its own.
    """
    folder = local_folder(checkpoint)
    source = read_checkpoint(folder)
    pipeline = make_pipeline(source.config, source.facts)
    if not isinstance(source.config, Pi0Config):
        raise UserError(f"int8 is for π0 and π0.5, and {folder} is neither")
    check_kernels("int8", torch.device("cpu"), torch_dtype(dtype))  # before gigabytes are read
    model = load_model(folder, dtype=dtype)
    data = LeRobotDataset(dataset, cameras=list(pipeline.embodiment.cameras.values()), skip_bad_episodes=True)
    frames = np.linspace(0, data.num_frames - 1, observations).round().astype(int)
    raw = [recorded_observation(data, pipeline, int(frame)) for frame in frames]
    seen = pipeline.observation(pipeline.robot_inputs(raw), "cpu")
    shape = (len(raw), model.config.action_horizon, model.config.action_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    steps = model.config.default_num_steps
    with progress_bar() as bars:
        bar = bars.add_task("layers", total=None, note="")
        found = sensitivity(model, seen, noise, steps, on_layer=lambda name: bars.update(bar, advance=1, note=name))
    keep = [f"{name}.*" for name in found.worst(worst)]
    without = errors(FastSampler(model), FastSampler(model, kernels="int8", keep=keep), seen, noise, steps)
    return {
        "checkpoint": str(checkpoint), "dataset": str(dataset), "observations": len(raw), "dtype": dtype,
        "weight_bits": weight_bits(),
        "whole": dataclasses.asdict(found.whole), "kept": keep, "without_kept": dataclasses.asdict(without),
        "layers": {name: dataclasses.asdict(value) for name, value in found.layers.items()},
    }  # fmt: skip
