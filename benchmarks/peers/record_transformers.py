"""Records what Transformers' π0 and PaliGemma compute, at small sizes with seeded random weights, for our parity tests.

    make record-transformers TRANSFORMERS_ENV=<a virtual environment with transformers 5.x and torch>

Saved by `save_pretrained`: pi0/ with golden.npz (velocity and sampled actions), paligemma/ (two shards) with golden.npz
(image features, last hidden state); manifests.json: names and shapes of both at full size.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PI0Config, PI0ForConditionalGeneration

VOCAB, IMAGE, PATCH, HORIZON, DIM = 320, 28, 14, 6, 8
TOKENS = (IMAGE // PATCH) ** 2
BATCH, CAMERAS, PROMPT = 2, 2, 7
TEXT = {
    "model_type": "gemma", "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": VOCAB,
}  # fmt: skip
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 80,
    "num_attention_heads": 4, "patch_size": PATCH, "image_size": IMAGE, "vision_use_head": False,
}  # fmt: skip
EXPERT = {**TEXT, "hidden_size": 32, "intermediate_size": 64}


def randomise(model: torch.nn.Module) -> None:
    """Every parameter seeded random, none at 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def inputs(generator: torch.Generator) -> dict[str, torch.Tensor]:
    images = torch.randint(0, 256, (BATCH, CAMERAS, 3, IMAGE, IMAGE), generator=generator, dtype=torch.uint8)
    prompt = torch.randint(4, VOCAB, (BATCH, PROMPT), generator=generator)
    mask = torch.ones(BATCH, PROMPT, dtype=torch.long)
    mask[1, 4:] = 0
    prompt[1, 4:] = 0
    return {"images": images, "prompt": prompt, "prompt_mask": mask}


def record_pi0(folder: Path) -> None:
    vlm = {
        "model_type": "paligemma", "text_config": dict(TEXT), "vision_config": dict(VISION), "projection_dim": 64,
        "image_token_id": VOCAB,
    }  # fmt: skip
    config = PI0Config(
        vlm_config=vlm, dit_config=dict(EXPERT), chunk_size=HORIZON, max_state_dim=DIM, max_action_dim=DIM
    )
    model = PI0ForConditionalGeneration(config).eval()
    randomise(model)
    generator = torch.Generator().manual_seed(1)
    given = inputs(generator)
    state = torch.randn(BATCH, DIM, generator=generator)
    noise = torch.randn(BATCH, HORIZON, DIM, generator=generator)
    image_tokens = torch.full((BATCH, CAMERAS * TOKENS), VOCAB)
    call = {
        "state": state, "input_ids": torch.cat([image_tokens, given["prompt"]], 1),
        "attention_mask": torch.cat([torch.ones_like(image_tokens), given["prompt_mask"]], 1),
        "pixel_values": given["images"].float() / 255 * 2 - 1,
        "pixel_attention_mask": torch.ones(BATCH, CAMERAS, dtype=torch.bool),
    }  # fmt: skip
    with torch.no_grad():
        velocity = model(**call, noise=noise, timestep=torch.tensor([1.0, 0.3])).logits
        sampled = model.sample_actions(**call, noise=noise.clone(), num_steps=10)
    model.save_pretrained(folder)
    np.savez(
        folder / "golden.npz", **{f"in.{name}": value.numpy() for name, value in given.items()},
        **{"in.state": state.numpy(), "in.noise": noise.numpy(), "in.time": np.array([1.0, 0.3], np.float32)},
        **{"out.velocity": velocity.numpy(), "out.sampled": sampled.numpy()},
    )  # fmt: skip


def record_paligemma(folder: Path) -> None:
    config = PaliGemmaConfig(
        text_config={**TEXT, "vocab_size": VOCAB + 64}, vision_config=dict(VISION), projection_dim=64,
        image_token_id=VOCAB + 1,
    )  # fmt: skip
    model = PaliGemmaForConditionalGeneration(config).eval()
    randomise(model)
    model.tie_weights()
    given = inputs(torch.Generator().manual_seed(2))
    image_tokens = torch.full((BATCH, TOKENS), VOCAB + 1)
    pixels = given["images"][:, 0].float() / 255 * 2 - 1
    mask = torch.cat([torch.ones_like(image_tokens), given["prompt_mask"]], 1)
    with torch.no_grad():
        features = model.model.get_image_features(pixels)
        features = features if torch.is_tensor(features) else features.pooler_output
        hidden = model.model(
            input_ids=torch.cat([image_tokens, given["prompt"]], 1), attention_mask=mask, pixel_values=pixels,
            position_ids=mask.cumsum(-1) - 1, token_type_ids=torch.zeros_like(mask),
        ).last_hidden_state  # fmt: skip
    model.save_pretrained(folder, max_shard_size="200KB")
    np.savez(
        folder / "golden.npz", **{f"in.{name}": value.numpy() for name, value in given.items()},
        **{"out.image_features": features.numpy(), "out.hidden": hidden.numpy()},
    )  # fmt: skip


def manifests() -> dict[str, dict[str, list[int]]]:
    with torch.device("meta"):
        pi0 = PI0ForConditionalGeneration(PI0Config())
        vlm = PI0Config().vlm_config
        vlm.text_config.vocab_size = 257_216
        paligemma = PaliGemmaForConditionalGeneration(vlm)
    return {
        name: {key: list(value.shape) for key, value in model.state_dict().items()}
        for name, model in (("pi0", pi0), ("paligemma", paligemma))
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    record_pi0(target / "pi0")
    record_paligemma(target / "paligemma")
    text = json.dumps({"transformers": transformers.__version__, **manifests()}, separators=(",", ":"))
    (target / "manifests.json").write_text(text)
