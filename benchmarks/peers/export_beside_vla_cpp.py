"""A small π0.5's exports beside vla.cpp, with the same random weights and inputs, in turns.

VLA_N_THREADS=1 PYTHONPATH=src python benchmarks/peers/export_beside_vla_cpp.py VLA_CPP LIBVLA --rounds 30

VLA_CPP: a checkout of vla.cpp at b18873d; its converter needs the package gguf. LIBVLA: its shared library, built with
-O3 -march=native and without OpenMP. Feeds docs/results/export.md.

vla.cpp takes 256 tokens an image alone, so images have 16 patches a side. Its converter knows π0.5 at full size alone:
pizero's sizes are put into it. Its call has no tokenizer; it takes token ids, and images of the model's size.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_pi05 import DIMS, NETWORK, Call, Case, measure, our_calls, small_pi05

from pizero.checkpoints.load import save_model

PATCHES = 16
PATCH = {"tiny": 8, "small": 16}


def convert(case: Case, checkout: Path, folder: Path) -> Path:
    """pizero's weights as LeRobot's checkpoint, and that as GGUF by vla.cpp's converter."""
    config, weights = case.config, folder / "model.safetensors"
    save_model(case.model, folder, format="lerobot")
    save_file({name.removeprefix("model."): value for name, value in load_file(weights).items()}, weights)
    values = json.loads((folder / "config.json").read_text())
    values |= {"min_period": 4e-3, "max_period": 4.0, "vision_config": {"num_attention_heads": config.vision.num_heads}}
    values["input_features"]["observation.state"]["shape"] = values["output_features"]["action"]["shape"] = [DIMS]
    (folder / "config.json").write_text(json.dumps(values))
    same = {"mean": [0.0] * DIMS, "std": [1.0] * DIMS, "q01": [-1.0] * DIMS, "q99": [1.0] * DIMS}
    (folder / "stats.json").write_text(json.dumps({"observation.state": same, "action": same}))
    sys.path.append(str(checkout / "scripts"))
    import convert_pi05_to_gguf as converter

    prefix, expert = config.prefix, config.expert
    converter.GEMMA_2B = {
        "hidden": prefix.width, "n_q_heads": prefix.num_heads, "n_kv_heads": prefix.num_kv_heads,
        "head_dim": prefix.head_dim, "intermediate": prefix.mlp_dim,
    }  # fmt: skip
    converter.GEMMA_300M = {"expert_h": expert.width, "expert_inter": expert.mlp_dim}
    sys.argv = [sys.argv[0], "--ckpt", str(folder), "--dataset-stats", str(folder / "stats.json")]
    assert converter.main() == 0
    return folder / "pi05.gguf"


def their_calls(case: Case, checkout: Path, library: Path, folder: Path) -> dict[str, Call]:
    os.environ["VLA_LIBRARY"] = str(library)
    sys.path.append(str(checkout / "bindings" / "python"))
    import vla_cpp

    weights, calls = str(convert(case, checkout, folder)), dict[str, Call]()
    inputs = case.pipeline.robot_inputs([case.seen])
    tokens = inputs["prompt_tokens"][0][inputs["prompt_mask"][0]].tolist()
    images, noise = list(case.seen["images"].values()), case.seen["noise"].ravel()
    model: Any = vla_cpp.load(weights)  # which keeps its large weights in bfloat16
    calls["vla.cpp" + NETWORK] = lambda: model.predict(images, tokens, noise=noise)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("library", type=Path)
    parser.add_argument("--size", choices=tuple(PATCH), default="tiny")
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(1)
    case = small_pi05(given.size, None, PATCHES * PATCH[given.size])
    with tempfile.TemporaryDirectory() as root:
        theirs = their_calls(case, given.checkout, given.library, Path(root) / "lerobot")
        measure(our_calls(case, Path(root), 1) | theirs, given.rounds)


if __name__ == "__main__":
    main()
