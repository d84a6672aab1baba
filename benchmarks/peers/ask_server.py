"""Another project's client against `pizero serve`, in an environment of its own.

make test-openpi-client, make test-vla-eval, or
python benchmarks/peers/ask_server.py PYTHON SCRIPT [KEY]

PYTHON: of an environment with the client. SCRIPT: what it runs there, with the server's address and its API key.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.checkpoints.native.example import make_example
from pizero.configs.presets import tabletop as preset
from pizero.data.embodiments import tabletop
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0
from pizero.policy.policy import ModelPolicy
from pizero.serving.config import ServeConfig
from pizero.serving.hosted import blank_observation
from pizero.serving.running import background
from pizero.serving.server import PolicyServer
from pizero.workflows.serve import loaders


def tiny_policy() -> ModelPolicy:
    """The quick start's π0, untrained, with the byte tokenizer."""
    torch.manual_seed(0)
    config = preset().model
    assert isinstance(config, Pi0Config)
    stats = NormStats("zscore", FieldStats(np.zeros(7), np.ones(7)), FieldStats(np.zeros(5), np.ones(5)))
    size = (config.image_size, config.image_size)
    pipeline = Pipeline(
        tabletop(), stats, PaligemmaTokenizer.bytes(), config.cameras, "pi0", config.prompt_length, size,
        config.state_dim, config.action_dim,
    )  # fmt: skip
    return ModelPolicy(Pi0(config).eval(), pipeline)


def main() -> None:
    python, script, *keys = sys.argv[1:]
    policy = tiny_policy()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoint"
        noise = np.zeros(policy.noise_shape, np.float32)
        example = make_example(policy.model, policy.pipeline, blank_observation(policy), noise)
        save_checkpoint(folder, policy.model, policy.pipeline, example)  # type: ignore[arg-type]
        config = ServeConfig(port=0, api_keys=tuple(keys))
        with background(lambda: PolicyServer(loaders({"policy": str(folder)}), config)) as server:
            subprocess.run([python, script, server.uri, *keys], check=True)


if __name__ == "__main__":
    main()
