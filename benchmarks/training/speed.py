"""Speed of training on this machine, as ratios within one run: attention two ways, and draws that share a prefix.

python benchmarks/training/speed.py [--threads N]

Takes about a minute on 2 cores. Feeds no page: the default of `attend` (src/pizero/model/attention.py) goes by it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from pizero.configs.presets import get_preset
from pizero.model.attention import attend
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.train.optim import product_context
from pizero.types import Observation


def interleaved(calls: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Median seconds of each call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def compare_attention(batch: int, queries: int, keys: int, heads: int, head_dim: int) -> None:
    query = torch.randn(batch, queries, heads, head_dim, requires_grad=True)
    key, value = (torch.randn(batch, keys, 1, head_dim, requires_grad=True) for _ in range(2))
    mask = torch.ones(batch, queries, keys, dtype=torch.bool)

    def fused() -> None:
        parts = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        F.scaled_dot_product_attention(*parts, attn_mask=mask[:, None], scale=1.0, enable_gqa=True).sum().backward()

    seconds = interleaved({"folded": lambda: attend(query, key, value, mask).sum().backward(), "fused": fused})
    print(
        f"attention {batch} x {queries} x {keys}, {heads} heads of {head_dim}, forward and backward: "
        f"folded {seconds['folded'] * 1e3:.1f} ms, scaled_dot_product_attention {seconds['fused'] * 1e3:.1f} ms, "
        f"ratio {seconds['fused'] / seconds['folded']:.1f}"
    )


def training_step(config: Pi0Config, batch: int, draws: int) -> Callable[[], None]:
    torch.manual_seed(0)
    model = Pi0(config)
    size = config.image_size
    observation = Observation(
        {name: torch.rand(batch, size, size, 3) * 2 - 1 for name in config.cameras},
        {name: torch.ones(batch, dtype=torch.bool) for name in config.cameras},
        torch.randn(batch, config.state_dim),
        torch.randint(0, config.vocab_size, (batch, 10)),
        torch.ones(batch, 10, dtype=torch.bool),
    )
    actions = torch.randn(batch, config.action_horizon, config.action_dim)

    def step() -> None:
        with product_context("auto", torch.device("cpu")):
            loss = model.loss(observation, actions, draws=draws).mean()
        loss.backward()
        model.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    compare_attention(64, 48, 48, 4, 32)
    compare_attention(256, 17, 65, 4, 32)
    for name in ("tabletop", "metaworld", "pusht"):
        preset = get_preset(name)
        batch = preset.train.batch_size
        seconds = interleaved({f"{n}": training_step(preset.model, batch, n) for n in (1, 4)}, rounds=5)
        print(
            f"{name}: batch {batch}, forward and backward: 1 draw {batch / seconds['1']:.0f} samples/s, "
            f"4 draws {batch / seconds['4']:.0f} samples/s; a draw costs "
            f"{seconds['4'] / seconds['1'] / 4:.2f} of a separate pass"
        )


if __name__ == "__main__":
    main()
