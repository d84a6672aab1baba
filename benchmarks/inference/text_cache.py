"""What a π0.5 saves that samples its actions on the cache of the text that it wrote.

    python benchmarks/inference/text_cache.py [--tokens 12] [--rounds 20]

A text and a chunk in ten steps of one observation, on the cache and with images and prompt anew, in turn, on one
thread, by CPU time; medians, and the largest difference of the actions. Sizes: the preset `metaworld` with --model pi05
(two images of 64 x 64), weights that are not trained.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from pizero.configs.presets import get_preset
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.text_writer import write_text
from pizero.model.config import LanguageConfig, Pi0Config
from pizero.model.pi0 import Pi0
from pizero.types import Observation

CLOSING = torch.tensor([1]), torch.tensor([True])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    preset = get_preset("metaworld", "pi05").model
    assert isinstance(preset, Pi0Config)
    config, size = replace(preset, language=LanguageConfig()), preset.image_size
    sampler = FastSampler(Pi0(config).eval())
    question = Observation(
        images={name: torch.rand(1, size, size, 3) * 2 - 1 for name in config.cameras},
        image_masks={name: torch.ones(1, dtype=torch.bool) for name in config.cameras},
        state=None,
        prompt_tokens=torch.randint(2, config.vocab_size, (1, config.prompt_length)),
        prompt_mask=torch.ones(1, config.prompt_length, dtype=torch.bool),
    )
    noise = torch.randn(1, config.action_horizon, config.action_dim)

    def run(share: bool) -> tuple[list[float], torch.Tensor]:
        """Milliseconds of text and of actions, and these."""
        start = time.process_time()
        text = write_text(sampler, question, arguments.tokens, CLOSING)
        written = time.process_time()
        told = torch.cat([question.prompt_tokens, text.tokens, CLOSING[0][None]], dim=1)
        causal = torch.arange(told.shape[1])[None] >= config.prompt_length
        asked = replace(question, prompt_tokens=told, prompt_mask=torch.ones_like(causal), prompt_causal=causal)
        actions = (text.after if share else sampler).sample_actions(asked, num_steps=10, noise=noise)
        return [1000 * (written - start), 1000 * (time.process_time() - written)], actions

    pairs = [[run(share) for share in (True, False)] for _ in range(arguments.rounds + 1)][1:]
    spent = np.array([[one[0] for one in pair] for pair in pairs])  # [rounds, shared or not, text or actions]
    ratios = spent.sum(axis=2)[:, 1] / spent.sum(axis=2)[:, 0]
    for name, (text, actions) in zip(("on the cache", "anew"), np.median(spent, axis=0), strict=True):
        print(f"{name}: text {text:.1f} ms, actions {actions:.1f} ms")
    print(f"anew / on the cache: {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})")
    print(f"largest difference: {max(float((a[1] - b[1]).abs().max()) for a, b in pairs):.1e}")


if __name__ == "__main__":
    main()
