"""Checks against LeRobot itself that it opens what pizero writes and that pizero reads what LeRobot writes.

`make test-lerobot-peer` runs it in an environment of its own (.peers/lerobot), or in LEROBOT_ENV=<an environment>. It
takes the golden policies of tests/golden/lerobot and prints one line per check, for π0 and π0.5, float32 and bfloat16:

- LeRobot's from_pretrained loads every tensor of a written checkpoint, strictly, in the dtypes it would choose itself;
- its processors and policy turn raw robot observations into the actions of pizero's policy, from the same noise;
- the same with relative actions;
- a checkpoint that LeRobot saves of that policy is read by pizero and acts the same.

The published vocabulary is replaced by bytes on both sides. Leaves with status 1 if anything differs by more than its
tolerance.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import lerobot.policies.pi0.modeling_pi0 as their_pi0
import lerobot.policies.pi05.modeling_pi05 as their_pi05
import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot_sizes import use_sizes
from safetensors.torch import load_file

from pizero.checkpoints.files.keymap import fill
from pizero.checkpoints.format import Facts
from pizero.checkpoints.lerobot import policy as lerobot
from pizero.checkpoints.load import load_policy
from pizero.data.tokenizer import ByteEncoder, PaligemmaTokenizer
from pizero.model.pi0 import Pi0

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "lerobot" / "checkpoints"
EXACT, ACTIONS, HALF = 0.0, 2e-4, 0.05
MODULES: dict[str, tuple[ModuleType, str]] = {"pi0": (their_pi0, "PI0Policy"), "pi05": (their_pi05, "PI05Policy")}
failures: list[str] = []


def check(what: str, difference: float, tolerance: float) -> None:
    good = difference <= tolerance  # NaN is not
    print(f"{'ok  ' if good else 'FAIL'} {what}: greatest difference {difference:.3g} (tolerance {tolerance:.0e})")
    if not good:
        failures.append(what)


class Bytes:
    """Called as TokenizerProcessorStep calls a Transformers tokenizer."""

    def __call__(self, texts: list[str], max_length: int, **_: Any) -> dict[str, torch.Tensor]:
        ids = torch.zeros(len(texts), max_length, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            tokens = ByteEncoder().encode(text, add_bos=True)[:max_length]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}


class TheirPolicy:
    """A folder opened by LeRobot alone: policy and processors."""

    def __init__(self, name: str, folder: Path) -> None:
        module, policy = MODULES[name]
        config = PreTrainedConfig.from_pretrained(folder)
        config.device = "cpu"
        said = io.StringIO()
        with contextlib.redirect_stdout(said):  # it prints, and goes on with random weights, where it cannot load
            self.policy = getattr(module, policy).from_pretrained(folder, config=config, strict=True)
        self.loaded = "All keys loaded successfully!" in said.getvalue()
        self.before, self.after = make_pre_post_processors(
            config, str(folder), preprocessor_overrides={"tokenizer_processor": {"tokenizer": Bytes()}}
        )

    def actions(self, robot: dict[str, Any]) -> np.ndarray:
        images = {
            f"observation.images.{key}": torch.from_numpy(image).permute(2, 0, 1).float() / 255
            for key, image in robot["images"].items()
        }
        batch = {"observation.state": torch.from_numpy(robot["state"]), **images, "task": robot["prompt"]}
        noise = torch.from_numpy(robot["noise"])[None]
        chunk = self.policy.predict_action_chunk(self.before(batch), noise=noise)
        return self.after(chunk)[0].float().numpy()

    def weights_distance(self, folder: Path) -> float:
        """To what is in the file; infinite when names or dtypes differ or LeRobot did not load."""
        written, own = load_file(folder / "model.safetensors"), self.policy.state_dict()
        if not self.loaded or written.keys() != own.keys() or any(written[k].dtype != own[k].dtype for k in own):
            return float("inf")
        return max(float((written[key].double() - own[key].double()).abs().max()) for key in own)


def robots(arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    images = {name: arrays[f"e2e.raw_{name}_uint8_bchw"].transpose(0, 2, 3, 1) for name in ("top", "wrist")}
    return [
        {
            "state": arrays["e2e.raw_state"][item],
            "images": {name: np.ascontiguousarray(image[item]) for name, image in images.items()},
            "prompt": str(arrays["e2e.task"][item]),
            "noise": arrays["e2e.noise"][item],
        }
        for item in range(len(arrays["e2e.noise"]))
    ]


def distance(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


class CutAtTheEnd(PaligemmaTokenizer):
    """Cuts a long prompt of π0.5 as LeRobot does, with the loss of the state; ours cuts the instruction."""

    def encode_batch(self, prompts: Any, states: Any, length: int, convention: Any = "lerobot") -> tuple[Any, Any]:
        tokens, mask = super().encode_batch(prompts, states, 400, convention)
        return tokens[:, :length], mask[:, :length]


def our_actions(folder: Path, arch: dict[str, Any], observations: list[dict[str, Any]]) -> np.ndarray:
    policy = load_policy(folder, arch=arch, tokenizer=CutAtTheEnd.bytes())
    return np.stack([policy.infer(robot)["actions"] for robot in observations])


def read_distance(a: Path, b: Path, arch: dict[str, Any]) -> float:
    first, second = (dict(lerobot.read(folder, arch).tensors()) for folder in (a, b))
    if first.keys() != second.keys() or any(first[key].dtype != second[key].dtype for key in first):
        return float("inf")
    return max(float((first[key].double() - second[key].double()).abs().max()) for key in first)


def write(folder: Path, name: str, arch: dict[str, Any], dtype: torch.dtype, relative: tuple[bool, ...]) -> None:
    source = lerobot.read(GOLDEN / f"{name}_tiny", arch)
    with torch.device("meta"):
        model = Pi0(source.config)
    fill(model, source.tensors(), dtype=dtype)
    assert source.facts.embodiment is not None
    embodiment = dataclasses.replace(source.facts.embodiment, relative_mask=relative)
    facts: Facts = dataclasses.replace(source.facts, embodiment=embodiment)
    folder.mkdir()
    lerobot.write(folder, model, facts)


def check_written(name: str, root: Path, arch: dict[str, Any], dtype: torch.dtype) -> None:
    kind = str(dtype).removeprefix("torch.")
    arrays = dict(np.load(GOLDEN / f"{name}_tiny" / "golden.npz"))
    observations, tolerance = robots(arrays), ACTIONS if dtype == torch.float32 else HALF
    for relative in ((), (True, False, True)):
        label = f"{name} {kind}{', relative actions' if relative else ''}"
        folder = root / label.replace(", ", "-").replace(" ", "-")
        write(folder, name, arch, dtype, relative)
        theirs = TheirPolicy(name, folder)
        check(f"{label}: from_pretrained (strict), all tensors", theirs.weights_distance(folder), EXACT)
        actions = np.stack([theirs.actions(robot) for robot in observations])
        ours = our_actions(folder, arch, observations)
        check(f"{label}: LeRobot's actions against ours", distance(actions, ours), tolerance)
        if not relative:
            recorded = arrays["e2e.pred_action_chunk"]
            check(f"{label}: LeRobot's actions against the recorded", distance(actions, recorded), tolerance)
        elif distance(actions, arrays["e2e.pred_action_chunk"]) < 100 * ACTIONS:
            failures.append(f"{label}: the relative actions are as the absolute ones")
        saved = root / f"{folder.name}-saved"
        theirs.policy.save_pretrained(saved)
        for processor in (theirs.before, theirs.after):
            processor.save_pretrained(saved)
        check(
            f"{label}: what LeRobot saves of it, all tensors as we read them", read_distance(saved, folder, arch), EXACT
        )
        again = our_actions(saved, arch, observations)
        check(f"{label}: what LeRobot saves of it, our actions", distance(again, ours), ACTIONS)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for name, (module, _) in MODULES.items():
        arch = json.loads((GOLDEN / f"{name}_tiny" / "tiny_arch.json").read_text())
        use_sizes(module, arch)
        for dtype in (torch.float32, torch.bfloat16):
            with tempfile.TemporaryDirectory() as root:
                check_written(name, Path(root), arch, dtype)
    sys.exit("; ".join(failures) or None)


if __name__ == "__main__":
    main()
