"""An observation that does not fit gives one line: which key, what came, what was expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_helpers import make_actions, make_observation, random_model

from pizero.types import Observation

BASE = "base_0_rgb"
MODEL = random_model()


def with_image(image: torch.Tensor) -> Callable[[Observation], Observation]:
    return lambda observation: replace(observation, images={**observation.images, BASE: image})


def with_mask(mask: torch.Tensor) -> Callable[[Observation], Observation]:
    return lambda observation: replace(observation, image_masks={**observation.image_masks, BASE: mask})


def leave_out(field: str) -> Callable[[Observation], Observation]:
    def change(observation: Observation) -> Observation:
        kept = {name: value for name, value in getattr(observation, field).items() if name != BASE}
        return replace(observation, **{field: kept})

    return change


def put(**changes: Any) -> Callable[[Observation], Observation]:
    return lambda observation: replace(observation, **changes)


def add_camera(observation: Observation) -> Observation:
    return replace(observation, images={**observation.images, "top": observation.images[BASE]})


def add_mask(observation: Observation) -> Observation:
    return replace(observation, image_masks={**observation.image_masks, "top": observation.image_masks[BASE]})


LONG, BOOL = torch.zeros(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.bool)
WRONG: list[tuple[Callable[[Observation], Observation], str]] = [
    (add_camera, "images: unknown camera top; this model has base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb"),
    (add_mask, "images: unknown camera top; this model has base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb"),
    (leave_out("image_masks"), "image_masks['base_0_rgb'] is missing; for an absent camera give a mask that is false"),
    (with_mask(torch.ones(3, dtype=torch.bool)), "image_masks['base_0_rgb']: got torch.bool (3,), expected bool (2,)"),
    (with_mask(torch.ones(2)), "image_masks['base_0_rgb']: got torch.float32 (2,), expected bool (2,)"),
    (leave_out("images"), "images['base_0_rgb'] is missing, but its mask says that some samples have it"),
    (
        with_image(torch.zeros(2, 28, 28, 3, dtype=torch.uint8)),
        "images['base_0_rgb']: got torch.uint8 (2, 28, 28, 3), expected float (2, h, w, 3)",
    ),
    (
        with_image(torch.zeros(2, 3, 28, 28)),
        "images['base_0_rgb']: got torch.float32 (2, 3, 28, 28), expected float (2, h, w, 3)",
    ),
    (
        with_image(torch.zeros(1, 28, 28, 3)),
        "images['base_0_rgb']: got torch.float32 (1, 28, 28, 3), expected float (2, h, w, 3)",
    ),
    (
        with_image(torch.zeros(28, 28, 3)),
        "images['base_0_rgb']: got torch.float32 (28, 28, 3), expected float (2, h, w, 3)",
    ),
    (with_image(torch.zeros(2, 30, 28, 3)), "images['base_0_rgb']: 30 x 28 is not divisible by the patch size 14"),
    (with_image(torch.zeros(2, 28, 0, 3)), "images['base_0_rgb']: 28 x 0 is not divisible by the patch size 14"),
    (put(prompt_tokens=LONG[0]), "prompt_tokens: got shape (8,), expected (B, L), tokens and mask alike"),
    (put(prompt_tokens=LONG[0, 0]), "prompt_tokens: got shape (), expected (B, L), tokens and mask alike"),
    (put(prompt_mask=BOOL[:, :7]), "prompt_mask: got shape (2, 7), expected (B, L), tokens and mask alike"),
    (put(prompt_mask=BOOL[:1]), "prompt_mask: got shape (1, 8), expected (B, L), tokens and mask alike"),
    (
        put(prompt_tokens=LONG.float()),
        "prompt: got tokens torch.float32 and mask torch.bool, expected integer and bool",
    ),
    (put(prompt_mask=LONG), "prompt: got tokens torch.int64 and mask torch.int64, expected integer and bool"),
    (put(state=None), "state: got None, expected (2, 5)"),
    (put(state=torch.zeros(2, 6)), "state: got (2, 6), expected (2, 5)"),
    (put(state=torch.zeros(1, 5)), "state: got (1, 5), expected (2, 5)"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_one_clear_line(change: Callable[[Observation], Observation], message: str) -> None:
    """From every public entry that takes an observation."""
    observation = change(make_observation(MODEL.config))
    actions, noise, time = make_actions(MODEL.config)
    entries: list[Callable[[], Any]] = [
        lambda: MODEL.embed_prefix(observation),
        lambda: MODEL.prefill(observation),
        lambda: MODEL.velocity(observation, actions, time),
    ]
    if observation.prompt_tokens.ndim == 2:  # else there is no batch size to compare the actions with
        entries += [
            lambda: MODEL.loss(observation, actions, noise=noise, time=time),
            lambda: MODEL.sample_actions(observation, noise=noise),
        ]
    for entry in entries:
        with pytest.raises(ValueError) as error:
            entry()
        assert str(error.value) == message


def test_what_is_fine() -> None:
    observation = make_observation(MODEL.config)
    expected = MODEL.prefill(observation).keys[-1]
    narrow = replace(observation, prompt_tokens=observation.prompt_tokens.int())
    assert torch.equal(MODEL.prefill(narrow).keys[-1], expected)
    longer = torch.cat([observation.prompt_tokens] * 3, dim=1), torch.cat([observation.prompt_mask] * 3, dim=1)
    assert MODEL.embed_prefix(replace(observation, prompt_tokens=longer[0], prompt_mask=longer[1]))[0].shape[1] == 36
    absent = {name: torch.zeros(2, dtype=torch.bool) for name in MODEL.config.cameras}
    assert MODEL.embed_prefix(replace(observation, images={}, image_masks=absent))[0].shape[1] == 8


@pytest.mark.parametrize("state_input", ["prompt", "none"])
def test_a_model_without_a_state_token_reads_no_state(state_input: str) -> None:
    model = random_model(state_input=state_input)
    observation = make_observation(model.config)
    actions, _, time = make_actions(model.config)
    expected = model.velocity(observation, actions, time)
    given = replace(observation, state=torch.full((2, 9), torch.nan))
    assert torch.equal(model.velocity(given, actions, time), expected)
    assert torch.equal(model.decode(model.prefill(given), given.state, actions, time)[0], expected[0])
