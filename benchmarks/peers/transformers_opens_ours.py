"""Whether Transformers opens what we write of a π0, and what it saves again is read the same.

make test-transformers-peer TRANSFORMERS_ENV=<a virtual environment with transformers 5.x and torch>
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PI0ForConditionalGeneration

from pizero.checkpoints.format import Facts
from pizero.checkpoints.transformers import pi0 as transformers_pi0

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "transformers" / "pi0"
TOLERANCE = 2e-4


def sample(model: PI0ForConditionalGeneration) -> torch.Tensor:
    arrays = dict(np.load(GOLDEN / "golden.npz"))
    images, prompt, mask = (torch.from_numpy(arrays[f"in.{name}"]) for name in ("images", "prompt", "prompt_mask"))
    batch, cameras = images.shape[:2]
    vision = model.config.vlm_config.vision_config
    tokens = torch.full((batch, cameras * (vision.image_size // vision.patch_size) ** 2), 320)
    return model.sample_actions(
        state=torch.from_numpy(arrays["in.state"]), noise=torch.from_numpy(arrays["in.noise"]).clone(),
        input_ids=torch.cat([tokens, prompt], 1), attention_mask=torch.cat([torch.ones_like(tokens), mask], 1),
        pixel_values=images.float() / 255 * 2 - 1, pixel_attention_mask=torch.ones(batch, cameras, dtype=torch.bool),
        num_steps=10,
    )  # fmt: skip


def main() -> int:
    failed = 0

    def check(what: str, difference: float, tolerance: float) -> None:
        nonlocal failed
        failed += difference > tolerance
        print(f"{'ok  ' if difference <= tolerance else 'FAIL'} {what}: {difference:.2g} (tolerance {tolerance:g})")

    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    source = transformers_pi0.read(GOLDEN)
    with tempfile.TemporaryDirectory() as name:
        ours, again = Path(name) / "ours", Path(name) / "again"
        ours.mkdir()
        transformers_pi0.write(ours, source.build(), Facts())
        model, info = PI0ForConditionalGeneration.from_pretrained(ours, output_loading_info=True)
        wrong = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]]
        check(f"from_pretrained, names that do not fit {wrong[:3]}", len(wrong), 0)
        expected = torch.from_numpy(np.load(GOLDEN / "golden.npz")["out.sampled"])
        check("its actions against those recorded", float((sample(model.eval()) - expected).abs().max()), TOLERANCE)
        model.save_pretrained(again)
        first, second = dict(source.tensors()), dict(transformers_pi0.read(again).tensors())
        check("what it saves again, all tensors", max(float((first[k] - second[k]).abs().max()) for k in first), 0)
    return failed


if __name__ == "__main__":
    sys.exit(main())
