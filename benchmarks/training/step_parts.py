"""Where the time of a small π0's training step goes, on one core: CPU milliseconds a sample of each part.

    python benchmarks/training/step_parts.py [--preset metaworld-mt10] [--rounds 15]

Each part runs in turn, alone; medians. vision: the tower over the preset's images, forward and backward, as without
what follows it. network: all of forward and backward, with the preset's draws. optimizer: its step, once with the
preset's own and once with AdamW. average: of the weights. Both precisions where the processor multiplies bfloat16.
Without the loader, whose share of the time every run's metrics.jsonl has ("data_share").

Feeds docs/results/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from pizero.configs.presets import get_preset
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.train.optim import WeightAverage, has_bfloat16, make_optimizers, product_context
from pizero.types import Observation

CPU = torch.device("cpu")


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU milliseconds of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if number >= 2:
                times[name].append(1000 * (time.process_time() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="metaworld-mt10")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    preset = get_preset(given.preset)
    config, train = preset.model, preset.train
    assert isinstance(config, Pi0Config)
    model, batch, size = Pi0(config), train.batch_size, config.image_shape
    images = {name: torch.rand(batch, *size, 3) * 2 - 1 for name in config.cameras}
    real = torch.ones(batch, config.prompt_length, dtype=torch.bool)
    observation = Observation(
        images, {name: torch.ones(batch, dtype=torch.bool) for name in config.cameras},
        torch.randn(batch, config.state_dim), torch.randint(0, config.vocab_size, real.shape), real,
    )  # fmt: skip
    actions = torch.randn(batch, config.action_horizon, config.action_dim)
    joined = torch.cat(list(images.values()))

    def vision(precision: str) -> None:
        with product_context(precision, CPU):  # pyright: ignore[reportArgumentType]
            tokens = model.vision_tower(joined)
        tokens.float().sum().backward()

    def network(precision: str) -> None:
        with product_context(precision, CPU):  # pyright: ignore[reportArgumentType]
            loss = model.loss(observation, actions, draws=train.draws).mean()
        loss.backward()

    calls: dict[str, Callable[[], object]] = {}
    for precision in ("float32", "mixed") if has_bfloat16(CPU) else ("float32",):
        calls[f"vision, {precision}"] = lambda precision=precision: vision(precision)
        calls[f"network, {precision}"] = lambda precision=precision: network(precision)
    network("float32")
    for name in dict.fromkeys((train.optimizer, "adamw")):
        for number, optimizer in enumerate(make_optimizers(model, replace(train, optimizer=name))):
            calls[f"{name}, its part {number + 1}"] = optimizer.step
    average = WeightAverage(model, train.ema_decay)
    calls["average"] = lambda: average.update(1)
    print(
        f"{given.preset}: batch {batch}, {train.draws} draws, {len(images)} images of {size}, torch {torch.__version__}"
    )
    for name, milliseconds in medians(calls, given.rounds).items():
        print(f"{name:24} {milliseconds:8.1f} ms a step  {milliseconds / batch:7.2f} ms a sample")


if __name__ == "__main__":
    main()
