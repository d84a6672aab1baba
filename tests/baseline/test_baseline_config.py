"""Sizes and switches: what is refused, JSON in both directions, the rungs of the ladder."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest

from pizero.baseline.config import (
    LADDER,
    SMALL_SIZES,
    BaselineConfig,
    ladder_config,
    small_baseline,
    wide_enough,
)
from pizero.baseline.lerobot_style import LerobotStyle
from pizero.baseline.policy import DiffusionPolicy
from pizero.types import UserError

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"image_fusion": "late"}, "image_fusion is 'late'; expected one of stacked, separate, shared"),
    ({"step_embedding": "mlp"}, "step_embedding is 'mlp'; expected one of table, sincos"),
    ({"objective": "vae"}, "objective is 'vae'; expected one of diffusion, flow"),
    ({"step_spacing": "even"}, "step_spacing is 'even'; expected one of leading, trailing"),
    ({"cameras": ()}, "cameras must be named and distinct, 1 to 100 of them, got ()"),
    ({"cameras": ("top", "top")}, "cameras must be named and distinct"),
    ({"cameras": ("top.rgb",)}, "without dots"),
    ({"num_history": 0}, "BaselineConfig.num_history must be positive, got 0"),
    ({"clip_range": -1.0}, "clip_range must not be negative nor infinite, got -1.0"),
    ({"down_dims": ()}, "down_dims must be positive numbers, at least one and at most 16, got ()"),
    ({"down_dims": (64, 100)}, "down_dims (64, 100): 100 is not divisible by the 8 groups"),
    ({"encoder_widths": (64, 0)}, "encoder_widths must be positive, got 0"),
    ({"encoder_widths": (40, 64)}, "encoder_widths (40, 64): 40 is above 16 and no multiple of 16"),
    ({"kernel_size": 4}, "kernel_size 4 is even"),
    ({"step_width": 7}, "step_width 7 is odd"),
    ({"stem_stride": 3}, "stem_stride is 3; expected 1, 2 or 4"),
    ({"image_size": 32}, "image_size 32: the encoder shrinks it 32 times"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        BaselineConfig(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rung", range(len(LADDER)))
def test_json_round_trip(rung: int) -> None:
    config = ladder_config(rung, small_baseline("tiny"))
    assert BaselineConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def lerobot_style(**changes: Any) -> LerobotStyle:
    values = {"image_shape": (96, 128), "image_mean": ((0.5, 0.4, 0.3),) * 2, "image_std": ((0.2, 0.3, 0.1),) * 2}
    return LerobotStyle(**{**values, **changes})


def test_a_policy_of_lerobot() -> None:
    style = lerobot_style(resize=(92, 120), crop=(90, 100), num_steps=25)
    config = BaselineConfig(image_fusion="shared", num_history=3, lerobot=style)
    assert BaselineConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert (config.image_shape, BaselineConfig(image_size=64).image_shape) == ((96, 128), (64, 64))
    assert (config.past_actions, BaselineConfig(num_history=3).past_actions) == (2, 0)
    assert config.default_num_steps == 25
    assert style.encoded_shape == (90, 100)
    assert lerobot_style(resize=(92, 120)).encoded_shape == (92, 120)
    assert lerobot_style().encoded_shape == (96, 128)


@pytest.mark.parametrize(
    ("style", "changes", "message"),
    [
        ({}, {"cameras": ("top",)}, "expected image means and deviations for each of top"),
        ({}, {"image_fusion": "stacked"}, "image_fusion 'separate' or 'shared'"),
        ({}, {"objective": "flow"}, "expected the objective 'diffusion'"),
        ({"crop": (97, 90)}, {}, "lerobot.crop (97, 90) is larger than the images, (96, 128)"),
        ({"resize": (64, 64), "crop": (64, 65)}, {}, "larger than the images, (64, 64)"),
        ({"image_std": ((0.2, 0.0, 0.1),) * 2}, {}, "lerobot.image_std must be positive"),
        ({"image_std": ((0.2, float("nan"), 0.1),) * 2}, {}, "lerobot.image_std must be positive"),
    ],
)
def test_a_policy_of_lerobot_that_is_refused(style: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        BaselineConfig(**{"image_fusion": "shared", **changes}, lerobot=lerobot_style(**style))
    assert message in str(error.value)


def test_json_of_another_style_is_refused() -> None:
    values = BaselineConfig(image_fusion="shared", lerobot=lerobot_style()).to_json()
    values["lerobot"]["colour"] = 1
    with pytest.raises(UserError, match=r"unknown keys in config.lerobot: colour; known: batch_norm"):
        BaselineConfig.from_json(values)


def test_the_default_number_of_steps_divides_the_training_steps() -> None:
    assert [BaselineConfig(diffusion_steps=n).default_num_steps for n in (100, 50, 60, 7, 1)] == [20, 10, 20, 7, 1]


def test_json_keeps_defaults_and_refuses_unknown_keys() -> None:
    assert BaselineConfig.from_json({"action_dim": 7}) == BaselineConfig(action_dim=7)
    with pytest.raises(UserError, match=r"unknown keys in config: history; known: .*num_history"):
        BaselineConfig.from_json({"history": 5})


def test_rung_0_is_the_paper_and_the_table_of_the_baseline() -> None:
    config = BaselineConfig()
    assert (config.objective, config.diffusion_steps, config.default_num_steps) == ("diffusion", 100, 20)
    assert (config.action_horizon, config.num_history, config.state_input, config.instruction) == (16, 5, False, False)
    assert (config.image_fusion, config.step_embedding) == ("stacked", "table")
    assert (config.down_dims, config.kernel_size, config.groups) == ((512, 1024, 2048), 5, 8)


def test_each_rung_changes_one_field() -> None:
    configs = [ladder_config(rung, BaselineConfig()) for rung in range(len(LADDER))]
    assert configs[0] == BaselineConfig()
    changed = [
        [f.name for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name)]
        for a, b in itertools.pairwise(configs)
    ]
    fields = ["state_input", "action_horizon", "step_embedding", "objective", "image_fusion", "instruction"]
    assert changed == [[name] for name in fields]
    assert configs[4].default_num_steps == 10
    with pytest.raises(UserError, match="rung 7: the baseline has the rungs 0 to 6"):
        ladder_config(7, BaselineConfig())


def test_small_sizes() -> None:
    models = {name: DiffusionPolicy(small_baseline(name)) for name in SMALL_SIZES}
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert parameters["nano"] < 100_000
    assert 1.5e6 < parameters["tiny"] < 2e6
    with pytest.raises(UserError, match="unknown size 'huge'; expected one of nano, tiny"):
        small_baseline("huge")


@pytest.mark.parametrize(
    ("dims", "widths"),
    [(7, (32, 64, 128)), (16, (32, 64, 128)), (17, (40, 80, 160)), (26, (56, 112, 224)), (34, (72, 144, 288))],
)
def test_a_robot_of_many_dimensions_gets_a_wider_unet(dims: int, widths: tuple[int, ...]) -> None:
    """The noise of every dimension passes through the first level: two channels for each."""
    config = small_baseline("tiny", action_dim=dims)
    assert wide_enough(config).down_dims == widths
    assert wide_enough(config) == dataclasses.replace(config, down_dims=widths)
