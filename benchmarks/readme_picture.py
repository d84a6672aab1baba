"""The moving picture at the top of README.md: a trained policy's first episodes, side by side, instruction below.

    python benchmarks/readme_picture.py runs/quickstart/train docs/policy.webp

The episodes are those that `pizero evaluate` begins with (seeds from 1,000,000), not chosen by their outcome.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import pizero
from pizero.envs.env import make_env
from pizero.evaluation.benchmark import episode_specs
from pizero.evaluation.rollout import rollout
from pizero.evaluation.simulators import EpisodeResult
from pizero.evaluation.video import captioned

COLUMNS, WIDTH, STILL, MILLISECONDS = 3, 300, 5, 200
"""Episodes side by side, pixels of each, frames for which the last picture stands, and the time of one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("output", type=Path)
    parser.add_argument("--episodes", type=int, default=6)
    given = parser.parse_args()
    policy = pizero.load_policy(given.checkpoint)
    env = make_env("tabletop", image_size=policy.pipeline.image_size[0], render_in_step=False)
    specs = episode_specs(env, 2, 1_000_000)[: given.episodes]
    results = rollout(policy, [env], specs, 2, record=range(len(specs)))
    print("\n".join(f"{each.instruction}: {'success' if each.success else 'failure'}" for each in results))
    write(given.output, results)


def write(path: Path, results: Sequence[EpisodeResult]) -> None:
    length = max(len(each.frames) for each in results) + STILL
    films = [tile(each, length) for each in results]
    rows = [films[at : at + COLUMNS] for at in range(0, len(films), COLUMNS)]
    pictures = [
        Image.fromarray(np.vstack([np.hstack([film[frame] for film in row]) for row in rows]))
        for frame in range(length)
    ]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0, quality=60, method=6
    )


def tile(result: EpisodeResult, length: int) -> list[NDArray[np.uint8]]:
    """Its frames, small, with the instruction, and at the end whether it was done."""
    height = round(WIDTH * result.frames[0].shape[0] / result.frames[0].shape[1])
    small = [np.asarray(Image.fromarray(frame).resize((WIDTH, height))) for frame in result.frames]
    ends = (result.instruction, "done" if result.success else "not done")
    lines = [(result.instruction, "")] * len(small) + [ends] * (length - len(small))
    frames = [*small, *[small[-1]] * (length - len(small))]
    return [np.pad(frame, ((0, 8), (0, 8), (0, 0))) for frame in captioned(frames, lines)]


if __name__ == "__main__":
    main()
