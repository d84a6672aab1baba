"""Training steps of a full-size π0 on one GPU: samples/s, share of the peak speed (MFU), peak memory.

python benchmarks/training/gpu.py [--size full|tiny] [--device cuda] [--batches N ...] [--seconds 150]

Feeds docs/results/training.md: 3 minutes on an H100; `--size tiny --device cpu` checks the script in seconds. The
trainer's own step (mixed precision, AdamW, no average) on random weights and inputs: 3 cameras, 48 prompt tokens,
50 actions. Reading and augmenting data is not part of it. One line of JSON for each item as it ends; an item that fails
says so and the next one follows. Items that would start after --seconds are left out. Needs torch, numpy, safetensors.

mfu: 3 forward passes' operations, whatever is recomputed or frozen, by the data sheet's 989e12 a second of an H100 or
H200; mfu_of_measured: by what one bfloat16 product of 8192 x 8192 matrices reaches here. needed: operations of forward
and backward that these weights need, recomputation left out; with LoRA fewer than 3 forward passes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pizero.checkpoints.models import empty_model, make_model
from pizero.model.attention import attend
from pizero.model.config import Pi0Config, small_config
from pizero.model.pi0 import Pi0
from pizero.train.activations import checkpoint_activations
from pizero.train.compile import compile_blocks
from pizero.train.config import LoraConfig, PartsConfig, TrainConfig
from pizero.train.distributed import Placement
from pizero.train.parts import choose_parts
from pizero.train.saving import RunOutput
from pizero.train.trainer import Trainer
from pizero.types import Observation

DATA_SHEET = 989e12
FULL = TrainConfig(precision="mixed", ema_decay=0.0)
LORA = dataclasses.replace(FULL, parts=PartsConfig(lora=LoraConfig()))
LORA_FROZEN_VISION = dataclasses.replace(FULL, parts=PartsConfig(freeze=("vision",), lora=LoraConfig()))
WAYS: dict[str, tuple[TrainConfig, bool, bool, list[int]]] = {
    "full, recomputed": (FULL, True, False, [8, 16, 32, 64]),
    "LoRA, recomputed": (LORA, True, False, [8, 32, 64]),
    "full, recomputed, compiled": (FULL, True, True, [32]),
    "LoRA": (LORA, False, False, [8, 16, 32]),
    "LoRA, compiled": (LORA, False, True, [16]),
    "full, compiled": (FULL, False, True, [8]),
}
"""Settings, whether activations are recomputed, whether blocks are compiled, batches until one does not fit."""


class Bench:
    def __init__(self, size: str, device: str, seconds: float) -> None:
        self.network = Pi0Config.pi0() if size == "full" else small_config(size)
        self.device, self.end, self.peak = torch.device(device), time.monotonic() + seconds, DATA_SHEET
        self.started = time.monotonic()

    def item(self, name: str, measure: Callable[..., dict[str, Any]], *args: Any) -> bool:
        """Prints what `measure` finds; false when it failed or when there was no time left."""
        if time.monotonic() > self.end:
            print(json.dumps({"item": name, "skipped": "no time left"}), flush=True)
            return False
        self._free()
        try:
            found = measure(*args)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:600]}
        self._free()
        print(json.dumps({"item": name, **found, "at": round(time.monotonic() - self.started, 1)}), flush=True)
        return "error" not in found

    def seconds_of(self, call: Callable[[], object], least: int = 3, most: int = 10, about: float = 3.0) -> float:
        """Median of some calls, after two."""
        times: list[float] = []
        while len(times) < 2 + least or (sum(times[2:]) < about and len(times) < 2 + most):
            self._wait()
            started = time.perf_counter()
            call()
            self._wait()
            times.append(time.perf_counter() - started)
        return sorted(times[2:])[len(times[2:]) // 2]

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    # ---------------------------------------------------------------- items

    def machine(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        side = 8192 if cuda else 512
        matrix = torch.randn(side, side, device=self.device).bfloat16()
        self.peak = 2 * side**3 / self.seconds_of(lambda: matrix @ matrix, most=50, about=0.5)
        name = torch.cuda.get_device_name() if cuda else "cpu"
        return {"device": name, "torch": torch.__version__, "bfloat16_tflops": round(self.peak / 1e12, 2)}

    def attention(self, batch: int) -> dict[str, Any]:
        """Forward and backward of one prefix layer's attention, milliseconds."""
        one, length = self.network.prefix, self.prefix_length
        shape = {"device": self.device, "dtype": torch.bfloat16, "requires_grad": True}
        query = torch.randn(batch, length, one.num_heads, one.head_dim, **cast(Any, shape))
        key, value = (torch.randn(batch, length, one.num_kv_heads, one.head_dim, **cast(Any, shape)) for _ in range(2))
        mask = torch.ones(batch, length, length, dtype=torch.bool, device=self.device)

        def shared() -> Tensor:
            parts = (x.transpose(1, 2) for x in (query, key, value))
            return F.scaled_dot_product_attention(*parts, attn_mask=mask[:, None], scale=1.0, enable_gqa=True)

        calls = {"attend": lambda: attend(query, key, value, mask), "enable_gqa": shared,
                 "no mask": lambda: attend(query, key, value)}  # fmt: skip
        return {"batch": batch, **{
            name: round(1e3 * self.seconds_of(lambda call=call: call().sum().backward(), about=0.5), 3)
            for name, call in calls.items()
        }}  # fmt: skip

    @property
    def prefix_length(self) -> int:
        config = self.network
        return len(config.cameras) * (config.image_size // config.vision.patch_size) ** 2 + config.prompt_length

    def inputs(self, batch: int, device: torch.device) -> tuple[Observation, Tensor]:
        config, size = self.network, self.network.image_size
        with device:
            images = {name: torch.rand(batch, size, size, 3) * 2 - 1 for name in config.cameras}
            state, actions = (
                torch.randn(batch, config.state_dim),
                torch.randn(1, config.action_horizon, config.action_dim),
            )
            tokens = torch.ones(batch, config.prompt_length, dtype=torch.long)
        present = {name: torch.ones(batch, dtype=torch.bool) for name in config.cameras}
        return Observation(images, present, state, tokens, tokens.bool()), actions.repeat(batch, 1, 1)

    def operations(self, config: TrainConfig) -> tuple[int, int]:
        """Of one sample's forward pass, and of forward and backward; counted on shapes alone."""
        model = cast(Pi0, empty_model(self.network))
        with torch.device("meta"):
            choose_parts(model, config.parts)
        with FlopCounterMode(display=False) as counter:
            observation, actions = self.inputs(1, torch.device("meta"))
            loss = model.loss(observation, actions, noise=actions, time=actions[:, 0, 0]).mean()
            forward = counter.get_total_flops()
            loss.backward()
        return forward, counter.get_total_flops()

    def trainer(self, way: str, folder: str) -> Trainer:
        config, recompute, compiled, _ = WAYS[way]
        with self.device:
            model = make_model(self.network)
        if compiled:
            torch.compiler.reset()
            compile_blocks(model)
        if recompute:
            checkpoint_activations(model)
        loader = cast(Any, SimpleNamespace(batch_size=1))
        output = RunOutput(Path(folder), cast(Any, None))
        return Trainer(model, config, loader, None, output, placement=Placement(self.device))

    def steps(self, trainer: Trainer, batch: int, operations: tuple[int, int]) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        inputs = self.inputs(batch, self.device)
        trainer.tensors_of = lambda batch, generator: inputs  # type: ignore[method-assign]
        started = time.perf_counter()
        try:
            loss = float(trainer.train_step(cast(Any, SimpleNamespace(action_dims=None))))
            first = time.perf_counter() - started
            seconds = self.seconds_of(lambda: trainer.train_step(cast(Any, SimpleNamespace(action_dims=None))), most=6)
        finally:
            trainer.model.zero_grad(set_to_none=True)
        forward, needed = operations
        return {
            "batch": batch, "seconds": round(seconds, 4), "samples_per_second": round(batch / seconds, 2),
            "mfu": round(3 * forward * batch / seconds / DATA_SHEET, 4),
            "mfu_of_measured": round(3 * forward * batch / seconds / self.peak, 4),
            "needed_of_measured": round(needed * batch / seconds / self.peak, 4),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
            "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if cuda else None,
            "first_step": round(first, 2), "loss": round(loss, 4),
        }  # fmt: skip

    def profile(self, trainer: Trainer) -> dict[str, Any]:
        """Where the device's time of one more step goes: milliseconds of the longest kernels, summed by name."""
        activity = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as found:
            trainer.train_step(cast(Any, SimpleNamespace(action_dims=None)))
            self._wait()
        rows = [(row.self_device_time_total / 1e3, row.key, row.count) for row in found.key_averages()
                if str(row.device_type).endswith("CUDA")]  # fmt: skip
        rows.sort(reverse=True)
        return {"kernels_ms": round(sum(row[0] for row in rows), 1),
                "longest": [[round(ms, 1), name[:90], count] for ms, name, count in rows[:25]]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seconds", type=float, default=150)
    options = parser.parse_args()
    bench = Bench(options.size, options.device, options.seconds)
    bench.item("machine", bench.machine)
    bench.item("attention", bench.attention, 8)
    for way in options.ways:
        train_way(bench, way, options.batches or WAYS[way][3])


def train_way(bench: Bench, way: str, batches: list[int]) -> None:
    kept: dict[str, Any] = {}

    def prepare() -> dict[str, Any]:
        kept["operations"] = bench.operations(WAYS[way][0])
        kept["trainer"] = bench.trainer(way, tempfile.mkdtemp())
        forward, needed = kept["operations"]
        return {"forward_tflop": forward / 1e12, "needed_tflop": needed / 1e12}

    if not bench.item(f"{way}: prepare", prepare):
        return
    for batch in batches:
        if not bench.item(f"{way}, batch {batch}", bench.steps, kept["trainer"], batch, kept["operations"]):
            return
        if way == "full, recomputed" and batch == batches[:2][-1]:
            bench.item(f"{way}, batch {batch}: profile", bench.profile, kept["trainer"])


if __name__ == "__main__":
    main()
