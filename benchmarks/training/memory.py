"""What `pizero train --plan` says of a step's memory beside what a step takes, at several sizes, on this machine's CPU.

python benchmarks/training/memory.py [--kept] [CASE ...]     all cases: 8 GiB, some minutes of 2 cores

Feeds docs/results/training.md. Each case runs in a process of its own: three steps of the trainer itself
on inputs of random numbers. Measured is by how much the process grew from before the model was made to its peak
(VmHWM), with an allocator that gives memory back at once (MALLOC_MMAP_THRESHOLD_=65536, glibc); --kept keeps it, as
`pizero train` does. One line of JSON per case.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from pizero.checkpoints.models import empty_model, make_model
from pizero.model.config import GemmaConfig, LanguageConfig, Pi0Config, SiglipConfig, small_config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.train.activations import checkpoint_activations
from pizero.train.config import LoraConfig, PartsConfig, TrainConfig
from pizero.train.plan import Layout, plan_step
from pizero.train.saving import RunOutput
from pizero.train.trainer import Trainer
from pizero.types import Observation
from pizero.workflows.memory import keep_freed_memory, proc_bytes

STATUS = Path("/proc/self/status")
MIDDLE = Pi0Config(
    vision=SiglipConfig(width=384, depth=12, mlp_dim=1536, num_heads=6),
    prefix=GemmaConfig(width=512, depth=14, mlp_dim=2048, num_heads=8, head_dim=64),
    expert=GemmaConfig(width=256, depth=14, mlp_dim=1024, num_heads=8, head_dim=64),
    vocab_size=32_000, cameras=("base_0_rgb", "left_wrist_0_rgb"),
)  # fmt: skip
"""106 M parameters; two images of 224 pixels, 48 prompt tokens, 50 actions."""
LARGE = dataclasses.replace(
    MIDDLE, vision=SiglipConfig(width=576, depth=12, mlp_dim=2304, num_heads=8),
    prefix=GemmaConfig(width=1024, depth=12, mlp_dim=4096, head_dim=128),
    expert=GemmaConfig(width=512, depth=12, mlp_dim=2048, head_dim=128),
)  # fmt: skip
SMALL = small_config("small")
FAST = 64
"""Slots of the FAST tokens that are learnt beside the actions."""
Network = Pi0Config | Pi0FastConfig


def writes(size: str) -> Pi0Config:
    """A π0.5 that learns text and FAST tokens."""
    return dataclasses.replace(small_config(size, pi05=True, prompt_length=72), language=LanguageConfig())


def tokens(size: str) -> Pi0FastConfig:
    """A π0-FAST."""
    pi0 = small_config(size)
    kept = {
        name: getattr(pi0, name)
        for name in ("vision", "prefix", "cameras", "image_size", "action_dim", "action_horizon")
    }
    return Pi0FastConfig(**kept, vocab_size=2048, prompt_length=96)


CASES: dict[str, tuple[Network, dict[str, Any], bool]] = {
    "small, batch 64, float32": (SMALL, {"batch_size": 64, "precision": "float32"}, False),
    "small, batch 64, mixed": (SMALL, {"batch_size": 64}, False),
    "small, batch 64, mixed, 4 draws": (SMALL, {"batch_size": 64, "draws": 4}, False),
    "small, batch 64, mixed, recomputed": (SMALL, {"batch_size": 64}, True),
    "tiny, batch 64, float32, text and FAST": (writes("tiny"), {"batch_size": 64, "precision": "float32"}, False),
    "tiny, batch 64, float32, π0-FAST": (tokens("tiny"), {"batch_size": 64, "precision": "float32"}, False),
    "small, batch 64, float32, text and FAST": (writes("small"), {"batch_size": 64, "precision": "float32"}, False),
    "small, batch 64, float32, π0-FAST": (tokens("small"), {"batch_size": 64, "precision": "float32"}, False),
    "middle, batch 2, float32": (MIDDLE, {"precision": "float32"}, False),
    "middle, batch 2, mixed": (MIDDLE, {}, False),
    "middle, batch 8, mixed": (MIDDLE, {"batch_size": 8}, False),
    "middle, batch 8, mixed, recomputed": (MIDDLE, {"batch_size": 8}, True),
    "middle, batch 8, mixed, in 4 parts": (MIDDLE, {"batch_size": 8, "accumulate": 4}, False),
    "middle, batch 2, mixed, 4 draws": (MIDDLE, {"draws": 4}, False),
    "middle, batch 2, bfloat16": (MIDDLE, {"precision": "bfloat16"}, False),
    "middle, batch 2, mixed, LoRA": (MIDDLE, {"ema_decay": 0.0, "lora": True}, False),
    "middle, batch 2, mixed, 8-bit AdamW": (MIDDLE, {"optimizer": "adamw8bit"}, False),
    "large, batch 1, mixed": (LARGE, {"batch_size": 1}, False),
    "large, batch 4, mixed, recomputed": (LARGE, {"batch_size": 4}, True),
    "large, batch 4, mixed, LoRA": (LARGE, {"batch_size": 4, "ema_decay": 0.0, "lora": True}, False),
}  # fmt: skip


def train_config(settings: dict[str, Any]) -> TrainConfig:
    changes = {"batch_size": 2, "precision": "mixed", **settings}
    base, lora, accumulate = TrainConfig(), changes.pop("lora", False), changes.pop("accumulate", 1)
    gradient = dataclasses.replace(base.gradient, accumulate=accumulate)
    parts = PartsConfig(lora=LoraConfig() if lora else None)
    return dataclasses.replace(base, gradient=gradient, parts=parts, **changes)


def random_inputs(network: Network, batch: int) -> tuple[Observation, torch.Tensor]:
    size = network.image_size
    observation = Observation(
        {name: torch.rand(batch, size, size, 3) * 2 - 1 for name in network.cameras},
        {name: torch.ones(batch, dtype=torch.bool) for name in network.cameras},
        torch.randn(batch, network.state_dim),
        torch.randint(0, network.vocab_size, (batch, network.prompt_length)),
        torch.ones(batch, network.prompt_length, dtype=torch.bool),
    )
    if isinstance(network, Pi0FastConfig):
        observation = dataclasses.replace(observation, state=None, **text_masks(observation, 0.5))
    elif network.language is not None:
        fast = torch.randint(0, network.vocab_size, (batch, FAST))
        observation = dataclasses.replace(
            observation, **text_masks(observation, 0.5), fast_tokens=fast, fast_mask=torch.ones_like(fast).bool(),
            fast_target=torch.arange(FAST).expand(batch, -1) >= 3,
        )  # fmt: skip
    return observation, torch.randn(batch, network.action_horizon, network.action_dim)


def text_masks(observation: Observation, share: float) -> dict[str, torch.Tensor]:
    """A prompt whose last slots are text."""
    length = observation.prompt_mask.shape[1]
    written = (torch.arange(length) >= (1 - share) * length).expand(len(observation.prompt_mask), -1)
    return {"prompt_causal": written, "prompt_target": written}


def measured_bytes(network: Network, config: TrainConfig, recompute: bool) -> int:
    """By how much this process grows: PyTorch's own code and buffers are there before."""
    _steps(small_config("nano"), dataclasses.replace(config, batch_size=4), recompute)
    inputs = random_inputs(network, config.batch_size)
    before = proc_bytes(STATUS, "VmRSS")
    keep_freed_memory()
    _steps(network, config, recompute, inputs)
    return proc_bytes(STATUS, "VmHWM") - before


def _steps(network: Network, config: TrainConfig, recompute: bool, inputs: Any = None) -> None:
    inputs = inputs or random_inputs(network, config.batch_size)
    model = make_model(network)
    if recompute:
        checkpoint_activations(model)
    loader = SimpleNamespace(batch_size=config.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, config, cast(Any, loader), None, RunOutput(Path(folder), cast(Any, None)))
        trainer.tensors_of = lambda batch, generator: inputs  # type: ignore[method-assign]
        for _ in range(3):
            trainer.train_step(cast(Any, SimpleNamespace(action_dims=None)))


def compare(case: str) -> dict[str, Any]:
    """In this process, which must be a fresh one."""
    torch.set_num_threads(2)
    network, settings, recompute = CASES[case]
    config = train_config(settings)
    measured = measured_bytes(network, config, recompute)
    plan = plan_step(network, config, Layout(recompute=recompute))
    return {
        "case": case, "parameters": sum(p.numel() for p in empty_model(network).parameters()), "planned": plan.total,
        "measured": measured, "ratio": round(plan.total / measured, 3), **dataclasses.asdict(plan),
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--here"]:
        print(json.dumps(compare(sys.argv[2])))
        return
    names = [argument for argument in sys.argv[1:] if argument != "--kept"]
    allocator = {} if "--kept" in sys.argv else {"MALLOC_MMAP_THRESHOLD_": "65536"}
    for case in names or CASES:
        subprocess.run([sys.executable, __file__, "--here", case], check=True, env=os.environ | allocator)


if __name__ == "__main__":
    main()
