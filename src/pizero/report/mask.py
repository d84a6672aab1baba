"""The picture of a model's attention mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pizero.model.attention import block_mask
from pizero.model.config import Pi0Config, small_config
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.report.pictures import GROUP_COLOURS, INK, MUTED, PALE, finish, new_figure, rgb, set_title
from pizero.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_TOKENS, SHOWN_ACTIONS, SHOWN_WORDS = 4, 8, 4
"""Image tokens per camera, actions, and tokens of text and of FAST that the mask picture draws; more would be too small
to see.
"""


def mask_picture(config: Pi0Config | Pi0FastConfig, path: Path | None = None, *, prompt_tokens: int = 6) -> bytes:
    """Who sees whom: the mask of the model, with fewer tokens per group; the last prompt token is padding.

    prompt_tokens: how many are drawn, at least 2.
    """
    mask, groups = _small_mask(config, prompt_tokens)
    owner = [name for name, count in groups.items() for _ in range(count)]
    total, padding = len(owner), groups["images"] + groups["prompt"] - 1
    image = np.empty((total, total, 3))
    image[:] = rgb(PALE)
    for column, name in enumerate(owner):
        image[mask[:, column], column] = rgb(GROUP_COLOURS[name])
    image[padding, :] = image[:, padding] = rgb("#e3e7eb")

    figure = new_figure(6.2, 6.35)
    axes = figure.add_axes((0.205, 0.05, 0.77, 0.77 * 6.2 / 6.35))
    axes.imshow(image, interpolation="nearest", extent=(0, total, total, 0))
    for line in range(1, total):
        axes.axhline(line, color="white", linewidth=0.5)
        axes.axvline(line, color="white", linewidth=0.5)
    start = 0
    for name, count in groups.items():
        _label_group(axes, name, _real_count(config, name), start, count, total)
        start += count
    axes.text(padding + 0.5, 1.015 * total, "padding", color=MUTED, fontsize=8, ha="center", va="top")
    axes.set_xlim(0, total)
    axes.set_ylim(total, 0)
    axes.set_axis_off()
    set_title(figure, "Attention: who sees whom", f"Each row looks at its coloured columns. {_seen(config)}.")
    return finish(figure, path)


def _seen(config: Pi0Config | Pi0FastConfig) -> str:
    if isinstance(config, Pi0FastConfig):
        return "A FAST token sees the prefix and those before it"
    actions = "earlier actions" if config.action_attention == "causal" else "each other"
    prefix = "the prefix" if config.language is None else "images, prompt and text, never FAST"
    return (
        f"Actions see {prefix}, the state and {actions}"
        if config.has_state_token
        else f"Actions see {prefix} and {actions}"
    )


def _small_mask(config: Pi0Config | Pi0FastConfig, prompt_tokens: int) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """The mask [T, T] of a model with the same switches and few tokens, and the tokens per group."""
    if prompt_tokens < 2:
        raise UserError(f"prompt_tokens is {prompt_tokens}; the mask picture needs at least 2, one of them padding")
    if isinstance(config, Pi0FastConfig):
        groups = {"images": SHOWN_TOKENS * len(config.cameras), "prompt": prompt_tokens, "FAST": SHOWN_ACTIONS}
        starts = torch.arange(sum(groups.values())) >= groups["images"] + prompt_tokens
        valid = torch.arange(len(starts)) != groups["images"] + prompt_tokens - 1
        return block_mask(valid[None], starts)[0].numpy(), groups
    switches = ("cameras", "state_input", "time_conditioning", "action_attention")
    few = small_config("nano", action_horizon=SHOWN_ACTIONS, **{name: getattr(config, name) for name in switches})
    with torch.device("meta"):
        model = Pi0(few)
    starts = model.suffix_block_starts(torch.device("cpu"))
    groups = {"images": SHOWN_TOKENS * len(config.cameras), "prompt": prompt_tokens}
    prefix = sum(groups.values())
    words = {} if config.language is None else {"text": SHOWN_WORDS, "FAST": SHOWN_WORDS}
    groups |= words
    if config.has_state_token:
        groups["state"] = 1
    groups["actions"] = SHOWN_ACTIONS
    starts = torch.cat([torch.zeros(prefix, dtype=torch.bool), torch.ones(sum(words.values())).bool(), starts])
    valid = torch.ones(1, len(starts), dtype=torch.bool)
    valid[0, prefix - 1] = False
    mask = block_mask(valid, starts)[0]
    if words:
        fast = prefix + SHOWN_WORDS
        mask[fast + SHOWN_WORDS :, fast : fast + SHOWN_WORDS] = False
    return mask.numpy(), groups


def _real_count(config: Pi0Config | Pi0FastConfig, group: str) -> str:
    """How many tokens the group really has."""
    images = (config.image_size // config.vision.patch_size) ** 2
    return {
        "images": f"{len(config.cameras)} × {images} tokens",
        "prompt": f"up to {config.prompt_length}",
        "state": "1",
        "actions": f"{config.action_horizon}",
        "text": "that it writes",
        "FAST": "written" if isinstance(config, Pi0FastConfig) else "in training",
    }[group]


def _label_group(axes: Axes, name: str, real: str, start: int, count: int, total: int) -> None:
    """Name and coloured bar of one group at the left and at the top, and the lines that end the group."""
    colour, middle, end = GROUP_COLOURS[name], start + count / 2, start + count
    gap = 0.02 * total
    axes.plot([-gap, -gap], [start + 0.08, end - 0.08], color=colour, linewidth=4, solid_capstyle="butt", clip_on=False)
    axes.plot([start + 0.08, end - 0.08], [-gap, -gap], color=colour, linewidth=4, solid_capstyle="butt", clip_on=False)
    text = f"{name}\n{real}" if count > 1 else name
    axes.text(-2 * gap, middle, text, color=INK, fontsize=9.5, ha="right", va="center", linespacing=1.35)
    axes.text(middle, -2 * gap, name, color=INK, fontsize=9.5, ha="center", va="bottom")
    if end < total:
        axes.axhline(end, color=INK, linewidth=1.2)
        axes.axvline(end, color=INK, linewidth=1.2)
