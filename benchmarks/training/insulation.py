"""What a batch with nothing but actions saves under insulation: no backward pass through the prefix.

    python benchmarks/training/insulation.py [--draws 1 2 4] [--steps 8]

Forward and backward passes of the same batch with insulation and without, in turn, on one thread, by CPU time; the
median of the ratios. Sizes: the preset `metaworld` with --model pi05 (two images of 64 x 64, batches of 32).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from pizero.configs.presets import get_preset
from pizero.model.config import LanguageConfig, Pi0Config
from pizero.model.pi0 import Pi0
from pizero.types import Observation


def seconds(model: Pi0, observation: Observation, actions: torch.Tensor, draws: int, insulation: bool) -> float:
    assert model.config.language is not None
    model.config = replace(model.config, language=replace(model.config.language, insulation=insulation))
    model.zero_grad(set_to_none=True)
    start = time.process_time()
    model.loss(observation, actions, draws=draws).mean().backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    preset = get_preset("metaworld", "pi05")
    assert isinstance(preset.model, Pi0Config)
    config, batch = replace(preset.model, language=LanguageConfig()), preset.train.batch_size
    model, size = Pi0(config), config.image_size
    observation = Observation(
        images={name: torch.rand(batch, size, size, 3) * 2 - 1 for name in config.cameras},
        image_masks={name: torch.ones(batch, dtype=torch.bool) for name in config.cameras},
        state=None,
        prompt_tokens=torch.randint(0, config.vocab_size, (batch, config.prompt_length)),
        prompt_mask=torch.ones(batch, config.prompt_length, dtype=torch.bool),
    )
    actions = torch.randn(batch, config.action_horizon, config.action_dim)
    for draws in arguments.draws:
        for insulation in (True, False):
            seconds(model, observation, actions, draws, insulation)
        pairs = [
            [seconds(model, observation, actions, draws, insulation) for insulation in (True, False)]
            for _ in range(arguments.steps)
        ]
        with_it, without = np.median(pairs, axis=0)
        ratios = [pair[1] / pair[0] for pair in pairs]
        print(
            f"draws {draws}: {without:.3f} s without, {with_it:.3f} s with insulation, "
            f"ratio {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
