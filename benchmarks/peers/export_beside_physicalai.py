"""A small π0.5's exports beside physicalai's own export to OpenVINO, with the same random weights and inputs, in turns.

HF_HUB_OFFLINE=1 PYTHONPATH=src .peers/physicalai/bin/python benchmarks/peers/export_beside_physicalai.py --rounds 30

Needs an environment of Python 3.12 with benchmarks/peers/physicalai_requirements.txt. Feeds docs/results/export.md.
physicalai has π0.5 at full size alone, and its tokenizer is on a hub: `use_sizes` puts pizero's sizes into its network,
and bytes stand in for the tokenizer on both sides. Its exporter and its runtime are as they come; noise is zero.

A whole call is state, images of the model's size and instruction in, actions in robot units out. "network" is what is
left of it without tokenizer, statistics and, for physicalai, image preparation.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import physicalai.policies.pi05.model as their_module
import torch
from lerobot_sizes import use_sizes
from physicalai.inference import InferenceModel
from physicalai.policies.pi05 import Pi05
from physicalai.policies.pi05.pretrained_utils import fix_state_dict_keys
from safetensors.torch import load_file
from small_pi05 import DIMS, NETWORK, Call, measure, our_calls, small_pi05
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pizero.checkpoints.load import save_model
from pizero.model.pi0 import Pi0
from pizero.types import RobotDict


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """pizero's `ByteEncoder` as Transformers has tokenizers: byte b is token 3 + b, after a begin mark."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    marks = {"<pad>": 0, "<eos>": 1, "<bos>": 2}
    tokenizer = Tokenizer(models.BPE({**marks, **{letters[byte]: 3 + byte for byte in range(256)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="right"
    )


def physicalai_export(model: Pi0, folder: Path) -> None:
    """pizero's weights in physicalai's network, exported by physicalai."""
    config = model.config
    vision = {
        "hidden_size": config.vision.width, "num_hidden_layers": config.vision.depth,
        "num_attention_heads": config.vision.num_heads, "intermediate_size": config.vision.mlp_dim,
        "patch_size": config.vision.patch_size, "image_size": config.image_size,
        "projection_dim": config.prefix.width,
    }  # fmt: skip
    sizes = {"vlm": vars(config.prefix), "expert": vars(config.expert), "vision": vision}
    use_sizes(their_module, {**sizes, "vocab_size": config.vocab_size})
    numbers = {"mean": [0.0] * DIMS, "std": [1.0] * DIMS, "shape": (DIMS,)}
    stats: dict[str, Any] = {
        "observation.state": {"name": "observation.state", "type": "STATE", **numbers},
        "action": {"name": "action", "type": "ACTION", **numbers},
    }
    for camera in config.cameras:
        name = f"observation.images.{camera.removesuffix('_0_rgb')}"
        stats[name] = {"name": name, "type": "VISUAL", "shape": (3, *config.image_shape)}
    policy = Pi05(
        dtype="float32", chunk_size=config.action_horizon, n_action_steps=config.action_horizon,
        max_action_dim=config.action_dim, max_state_dim=config.state_dim, num_inference_steps=config.default_num_steps,
        use_random_input_noise=False, image_resolution=config.image_shape, tokenizer_max_length=config.prompt_length,
        gradient_checkpointing=False, normalization_mode="MEAN_STD", dataset_stats=stats,
    )  # fmt: skip
    save_model(model, folder / "lerobot", format="lerobot")
    weights = fix_state_dict_keys(load_file(folder / "lerobot" / "model.safetensors"))
    missing, unexpected = policy.model.load_state_dict(weights, strict=False)
    assert not [name for name in missing if not name.startswith("target_time_mlp")], missing  # of its one-step students
    assert not unexpected, unexpected
    policy._preprocessor._tokenizer = byte_tokenizer()
    policy.export(folder, "openvino")


def their_calls(folder: Path, seen: RobotDict, threads: int) -> dict[str, Call]:
    model = InferenceModel(folder, device="CPU", INFERENCE_NUM_THREADS=threads)

    def inputs() -> dict[str, Any]:
        images = {name: image.transpose(2, 0, 1)[None] for name, image in seen["images"].items()}
        return {"state": seen["state"][None], "images": images, "task": [seen["prompt"]]}

    prepared = inputs()
    for preprocessor in model.preprocessors:
        prepared = preprocessor(prepared)
    prepared = {name: prepared[name] for name in model.adapter.input_names}
    return {
        "physicalai OpenVINO": lambda: model.predict_action_chunk(inputs()),
        "physicalai OpenVINO" + NETWORK: lambda: model.adapter.predict(prepared)["action"][0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "small"), default="tiny")
    parser.add_argument("--prompt-length", type=int, help="default: as many tokens as the prompt has")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    case = small_pi05(given.size, given.prompt_length)
    with tempfile.TemporaryDirectory() as root:
        physicalai_export(case.model, Path(root) / "theirs")
        calls = our_calls(case, Path(root), given.threads)
        measure(calls | their_calls(Path(root) / "theirs", case.seen, given.threads), given.rounds)


if __name__ == "__main__":
    main()
