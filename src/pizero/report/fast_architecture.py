"""π0-FAST as a table: the same boxes as π0's up to the prefix, then the tokens that are written one after the other."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from pizero.model.pi0_fast import Decoder, Pi0Fast, Pi0FastConfig
from pizero.report.architecture import Architecture, Call, Row, hook, layers_text, shapes_observation
from pizero.types import UserError

WORDS = 6
"""Tokens around the codes of a chunk: "Action: ", "|" and the end, about."""


def describe_fast(
    config: Pi0FastConfig, *, num_cameras: int | None = None, prompt_tokens: int | None = None,
    tokens: int | None = None,
) -> Architecture:  # fmt: skip
    """Measures the network for one observation, as `architecture.describe` does.

    prompt_tokens: None takes half of the config's `prompt_length`, which the actions share. tokens: written for a
    chunk; None takes one for each action, and those around them.
    """
    num_cameras = len(config.cameras) if num_cameras is None else num_cameras
    prompt_tokens = max(config.prompt_length // 2, 1) if prompt_tokens is None else prompt_tokens
    tokens = config.action_horizon + WORDS if tokens is None else tokens
    if not 1 <= num_cameras <= len(config.cameras):
        raise UserError(f"num_cameras is {num_cameras}; this model takes 1 to {len(config.cameras)}")
    if prompt_tokens < 1 or tokens < 1:
        raise UserError(f"prompt_tokens {prompt_tokens} and tokens {tokens} must be at least 1")
    with torch.device("meta"):
        model = Pi0Fast(config).eval()
    before: dict[str, Call] = {}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        handles = hook(model, counter, before)
        decoder = Decoder(model, shapes_observation(config, num_cameras, prompt_tokens), tokens)
        for handle in handles:
            handle.remove()
    prefill, keys = counter.get_total_flops(), tuple(decoder.keys[0].shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder.step(torch.empty(1, dtype=torch.long, device="meta"))
    step = counter.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = tuple(model.logits(decoder.last).shape)
    head = counter.get_total_flops()
    tower, projection, table = before["vision_tower"], before["vision_tower.projection"], before["token_embedding"]
    sizes = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name, _ in model.named_children()}
    projected = sum(p.numel() for p in model.get_submodule("vision_tower.projection").parameters())
    gemma, width = f"Gemma, {layers_text(config.prefix.depth)}", config.prefix.width
    rows = (
        Row("INPUT", "images", None, tower.input),
        Row("INPUT", "prompt tokens", None, table.input),
        Row("VISION TOWER", f"SigLIP, {layers_text(config.vision.depth)}", tower.input, projection.input,
            sizes["vision_tower"] - projected, tower.flops - projection.flops),
        Row("VISION TOWER", "projection", projection.input, projection.output, projected, projection.flops),
        Row("TOKEN TABLE", f"{config.vocab_size:,} tokens", table.input, table.output, sizes["token_embedding"]),
        Row("LANGUAGE MODEL", gemma, before["norm"].input, before["norm"].output,
            sizes["layers"] + sizes["norm"], prefill - tower.flops),
        Row("LANGUAGE MODEL", "KV cache", None, keys, tensors=2 * config.prefix.depth),
        Row("WRITING", "one more token", (1, 1, width), (1, 1, width), flops=step, runs=tokens - 1),
        Row("WRITING", "head: the token table", (1, width), logits, flops=head, runs=tokens),
        Row("OUTPUT", "tokens", None, (1, tokens)),
        Row("OUTPUT", "actions, by the codec", None, (1, config.action_horizon, config.action_dim)),
    )  # fmt: skip
    return Architecture(config, num_cameras, prompt_tokens, tokens, rows)
