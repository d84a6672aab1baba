"""Sizes and switches: what is refused, and JSON in both directions."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pizero.model.config import (
    CAMERAS,
    GEMMA_2B,
    GEMMA_300M,
    SMALL_SIZES,
    GemmaConfig,
    Pi0Config,
    SiglipConfig,
    small_config,
)
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import UserError

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"expert": dataclasses.replace(GEMMA_300M, depth=17)}, "depth must agree: prefix 18, expert 17"),
    ({"expert": dataclasses.replace(GEMMA_300M, num_heads=4)}, "num_heads must agree: prefix 8, expert 4"),
    ({"expert": dataclasses.replace(GEMMA_300M, num_kv_heads=2)}, "num_kv_heads must agree: prefix 1, expert 2"),
    ({"expert": dataclasses.replace(GEMMA_300M, head_dim=128)}, "head_dim must agree: prefix 256, expert 128"),
    ({"expert": dataclasses.replace(GEMMA_300M, width=1023)}, "expert width 1023 is odd"),
    ({"image_size": 225}, "image_size 225 is not divisible by the patch size 14"),
    ({"state_input": "text"}, "state_input is 'text'; expected one of token, prompt, none"),
    ({"time_conditioning": "film"}, "time_conditioning is 'film'; expected one of concat_mlp, adarms"),
    ({"action_attention": "full"}, "action_attention is 'full'; expected one of bidirectional, causal"),
    ({"cameras": ()}, "cameras must be named and distinct"),
    ({"cameras": ("top", "top")}, "cameras must be named and distinct"),
    ({"action_horizon": 0}, "Pi0Config.action_horizon must be positive, got 0"),
    ({"action_horizon": 4096}, "Pi0Config.action_horizon must be at most 512"),
    ({"action_dim": -1}, "Pi0Config.action_dim must be positive, got -1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Pi0Config(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_refused_parts() -> None:
    with pytest.raises(UserError, match="vision width 100 is not divisible by its 16 heads"):
        SiglipConfig(width=100)
    with pytest.raises(UserError, match="8 query heads cannot share 3 key/value heads"):
        GemmaConfig(num_kv_heads=3)
    with pytest.raises(UserError, match="head_dim 15 is odd"):
        GemmaConfig(head_dim=15)
    with pytest.raises(UserError, match=r"GemmaConfig\.depth must be positive, got 0"):
        GemmaConfig(depth=0)
    for size in (14, 1):
        with pytest.raises(UserError, match=rf"stem_width needs a patch_size of 2, 4, 8, 16 \.\.\. pixels, got {size}"):
            SiglipConfig(patch_size=size, stem_width=16)
    with pytest.raises(UserError, match=r"SiglipConfig\.stem_width must be positive, got -1"):
        SiglipConfig(stem_width=-1)


def test_a_stem_is_written_where_there_is_one() -> None:
    """Configs without one are as they were before there was any: older versions read them."""
    vision = SiglipConfig(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4)
    for config in (small_config("nano", vision=vision), Pi0FastConfig(vision=vision)):
        assert "stem_width" not in config.to_json()["vision"]
        stem = dataclasses.replace(config, vision=dataclasses.replace(vision, stem_width=8))
        assert stem.to_json()["vision"]["stem_width"] == 8
        assert type(stem).from_json(json.loads(json.dumps(stem.to_json()))) == stem


@given(
    size=st.sampled_from(sorted(SMALL_SIZES)),
    pi05=st.booleans(),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "state_input": st.sampled_from(["token", "prompt", "none"]),
            "time_conditioning": st.sampled_from(["concat_mlp", "adarms"]),
            "action_attention": st.sampled_from(["bidirectional", "causal"]),
            "action_dim": st.integers(1, 64),
            "action_horizon": st.integers(1, 64),
            "cameras": st.lists(st.text(min_size=1), min_size=1, unique=True).map(tuple),
        },
    ),
)
def test_json_in_both_directions(size: str, pi05: bool, changes: dict[str, Any]) -> None:
    config = small_config(size, pi05=pi05, **changes)
    assert Pi0Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_missing_keys_keep_their_defaults() -> None:
    assert Pi0Config.from_json({}) == Pi0Config.pi0()
    assert Pi0Config.from_json({"action_dim": 7, "expert": {"width": 512}}) == Pi0Config(
        action_dim=7, expert=GemmaConfig(width=512)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"action_dims": 7}, "unknown keys in config: action_dims; known: .*action_dim"),
        ({"vision": {"widht": 1}}, "unknown keys in vision: widht; known: .*width"),
        ({"prefix": {"layers": 1, "a": 1}}, "unknown keys in prefix: a, layers"),
        ({"expert": {"lora": 1}}, "unknown keys in expert: lora"),
    ],
)
def test_unknown_keys_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pi0Config.from_json(values)


def test_presets_differ_in_three_facts() -> None:
    pi0, pi05 = Pi0Config.pi0(), Pi0Config.pi05()
    differing = {f.name for f in dataclasses.fields(pi0) if getattr(pi0, f.name) != getattr(pi05, f.name)}
    assert differing == {"state_input", "time_conditioning", "prompt_length"}
    assert (pi0.has_state_token, pi0.adaptive, pi0.suffix_length) == (True, False, 51)
    assert (pi05.has_state_token, pi05.adaptive, pi05.suffix_length) == (False, True, 50)
    assert (pi0.prefix, pi0.expert.width, pi0.cameras) == (GEMMA_2B, 1024, CAMERAS)
    assert Pi0Config.pi05(state_input="none").state_input == "none"


def test_small_sizes() -> None:
    parameters = {name: sum(p.numel() for p in Pi0(small_config(name)).parameters()) for name in SMALL_SIZES}
    assert parameters["nano"] < 50_000
    assert 0.5e6 < parameters["tiny"] < 2e6
    assert 1e6 < parameters["small"] < 3e6
    with pytest.raises(UserError, match=r"unknown size 'huge'; expected one of nano, tiny, small"):
        small_config("huge")
