"""What `pizero train --plan` says of a step's memory beside what a step takes, at several sizes, on this machine's CPU.

python benchmarks/training_memory.py [CASE ...]     all cases need 12 GiB and some minutes

Each case runs in a process of its own: three steps of the trainer itself on inputs of random numbers. Measured is by
how much the process grew from before the model was made to its peak (VmHWM). One line of JSON per case.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from pizero.checkpoints.models import make_model
from pizero.model.config import GemmaConfig, Pi0Config, SiglipConfig, small_config
from pizero.train.activations import checkpoint_activations
from pizero.train.config import LoraConfig, PartsConfig, TrainConfig
from pizero.train.plan import Layout, plan_step
from pizero.train.trainer import Trainer
from pizero.types import Observation

MIDDLE = Pi0Config(
    vision=SiglipConfig(width=576, depth=12, mlp_dim=2152, num_heads=8),
    prefix=GemmaConfig(width=768, depth=12, mlp_dim=3072, num_heads=8, head_dim=96),
    expert=GemmaConfig(width=384, depth=12, mlp_dim=1536, num_heads=8, head_dim=96),
    vocab_size=32_000, image_size=224,
)  # fmt: skip
LARGE = dataclasses.replace(
    MIDDLE, prefix=GemmaConfig(width=1024, mlp_dim=4096), expert=GemmaConfig(width=512, mlp_dim=2048),
)  # fmt: skip
SMALL = small_config("small")
CASES: dict[str, tuple[Pi0Config, dict[str, Any], bool]] = {
    "small, batch 64, float32": (SMALL, {"batch_size": 64, "precision": "float32"}, False),
    "small, batch 64, mixed": (SMALL, {"batch_size": 64, "precision": "mixed"}, False),
    "small, batch 64, mixed, 4 draws": (SMALL, {"batch_size": 64, "precision": "mixed", "draws": 4}, False),
    "middle, batch 4, float32": (MIDDLE, {"precision": "float32"}, False),
    "middle, batch 4, mixed": (MIDDLE, {"precision": "mixed"}, False),
    "middle, batch 4, mixed, recomputed": (MIDDLE, {"precision": "mixed"}, True),
    "middle, batch 4, mixed, in 4 parts": (MIDDLE, {"precision": "mixed", "accumulate": 4}, False),
    "middle, batch 4, bfloat16": (MIDDLE, {"precision": "bfloat16"}, False),
    "middle, batch 4, LoRA": (MIDDLE, {"precision": "mixed", "ema_decay": 0.0, "lora": True}, False),
    "middle, batch 1, muon": (MIDDLE, {"precision": "mixed", "optimizer": "muon", "batch_size": 1}, False),
    "large, batch 1, mixed": (LARGE, {"precision": "mixed", "batch_size": 1}, False),
    "large, batch 4, mixed, recomputed": (LARGE, {"precision": "mixed"}, True),
}  # fmt: skip


def train_config(settings: dict[str, Any]) -> TrainConfig:
    changes = {"batch_size": 4, **settings}
    base, lora, accumulate = TrainConfig(), changes.pop("lora", False), changes.pop("accumulate", 1)
    gradient = dataclasses.replace(base.gradient, accumulate=accumulate)
    parts = PartsConfig(lora=LoraConfig() if lora else None)
    return dataclasses.replace(base, gradient=gradient, parts=parts, **changes)


def random_inputs(network: Pi0Config, batch: int) -> tuple[Observation, torch.Tensor]:
    size = network.image_size
    observation = Observation(
        {name: torch.rand(batch, size, size, 3) * 2 - 1 for name in network.cameras},
        {name: torch.ones(batch, dtype=torch.bool) for name in network.cameras},
        torch.randn(batch, network.state_dim),
        torch.randint(0, network.vocab_size, (batch, network.prompt_length)),
        torch.ones(batch, network.prompt_length, dtype=torch.bool),
    )
    return observation, torch.randn(batch, network.action_horizon, network.action_dim)


def measured_bytes(network: Pi0Config, config: TrainConfig, recompute: bool) -> int:
    """By how much this process grows: PyTorch's own code and buffers are there before."""
    _steps(small_config("nano"), dataclasses.replace(config, batch_size=4), recompute)
    inputs = random_inputs(network, config.batch_size)
    before = _status("VmRSS")
    _steps(network, config, recompute, inputs)
    return _status("VmHWM") - before


def _steps(network: Pi0Config, config: TrainConfig, recompute: bool, inputs: Any = None) -> None:
    inputs = inputs or random_inputs(network, config.batch_size)
    model = make_model(network)
    if recompute:
        checkpoint_activations(model)
    loader = SimpleNamespace(batch_size=config.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, cast(Any, None), config, cast(Any, loader), None, Path(folder))
        trainer._to_device = lambda batch, generator: inputs  # type: ignore[method-assign]
        for _ in range(3):
            trainer.train_step(cast(Any, SimpleNamespace(action_dims=None)))


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def compare(case: str) -> dict[str, Any]:
    """In this process, which must be a fresh one."""
    torch.set_num_threads(2)
    network, settings, recompute = CASES[case]
    config = train_config(settings)
    measured = measured_bytes(network, config, recompute)
    plan = plan_step(network, config, Layout(recompute=recompute))
    return {
        "case": case, "parameters": sum(p.numel() for p in make_model(network).parameters()), "planned": plan.total,
        "measured": measured, "ratio": round(plan.total / measured, 3), **dataclasses.asdict(plan),
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--here"]:
        print(json.dumps(compare(sys.argv[2])))
        return
    for case in sys.argv[1:] or CASES:
        subprocess.run([sys.executable, __file__, "--here", case], check=True)


if __name__ == "__main__":
    main()
