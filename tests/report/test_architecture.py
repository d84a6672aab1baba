"""The table of measured figures, against figures counted by hand (docs/architecture.md)."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from pizero.model.config import Pi0Config, small_config
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.report.architecture import Architecture, Row, caption, describe, print_architecture
from pizero.report.fast_architecture import describe_fast
from pizero.types import UserError


@pytest.fixture(scope="module")
def pi0() -> Architecture:
    return describe(Pi0Config.pi0())


@pytest.fixture(scope="module")
def pi05() -> Architecture:
    return describe(Pi0Config.pi05())


def gigaflops(architecture: Architecture, *boxes: str) -> float:
    return sum(row.total_flops for name in boxes for row in architecture.box(name)) / 1e9


def part(architecture: Architecture, name: str) -> Row:
    (row,) = (row for row in architecture.rows if row.part == name)
    return row


def test_full_pi0_has_the_parameters_and_flops_counted_by_hand(pi0: Architecture) -> None:
    assert pi0.parameters == 3_238_048_528
    assert pi0.flops / 1e9 == pytest.approx(4_379.1, abs=0.1)
    assert gigaflops(pi0, "VISION TOWER") == pytest.approx(660.5, abs=0.1)
    assert gigaflops(pi0, "PREFIX EXPERT") == pytest.approx(3_332.5, abs=0.1)
    assert gigaflops(pi0, "SUFFIX EMBEDDING", "ACTION EXPERT", "VELOCITY") == pytest.approx(386.1, abs=0.1)
    assert pi0.box("VISION TOWER")[0].parameters == 412_442_352
    assert pi0.box("TOKEN TABLE")[0].parameters == 257_152 * 2048


def test_full_pi05_has_the_parameters_and_flops_counted_by_hand(pi05: Architecture) -> None:
    assert pi05.parameters == 3_353_433_872
    assert pi05.flops / 1e9 == pytest.approx(5_024.4, abs=0.1)
    assert gigaflops(pi05, "PREFIX EXPERT") == pytest.approx(3_975.0, abs=0.1)
    assert pi05.box("INPUT")[1].part == "prompt tokens"  # no state: it is in the prompt
    assert all(row.part != "state_proj" for row in pi05.rows)


@pytest.mark.parametrize("pi05", [False, True])
def test_the_input_of_a_one_step_model_is_a_row(pi05: bool) -> None:
    config = small_config("nano", pi05=pi05, one_step=True)
    found = describe(config, num_steps=1)
    width = config.expert.width
    row = part(found, "target_time")
    assert (row.box, row.parameters, row.output) == ("SUFFIX EMBEDDING", 2 * (width**2 + width), (1, width))
    assert found.parameters == sum(parameter.numel() for parameter in Pi0(config).parameters())
    assert "1 integration step" in caption(found)
    assert "1 integration steps" not in caption(found)


def test_boxes_follow_the_data_flow_with_measured_shapes(pi0: Architecture) -> None:
    boxes = list(dict.fromkeys(row.box for row in pi0.rows))
    assert boxes == [
        "INPUT", "VISION TOWER", "TOKEN TABLE", "PREFIX EXPERT", "SUFFIX EMBEDDING", "ACTION EXPERT", "VELOCITY",
        "FLOW MATCHING", "OUTPUT",
    ]  # fmt: skip
    assert [row.output for row in pi0.box("INPUT")] == [(3, 224, 224, 3), (1, 48), (1, 32), (1, 50, 32)]
    assert part(pi0, "SigLIP, 27 layers").output == part(pi0, "projection").input == (3, 256, 1152)
    assert part(pi0, "projection").output == (3, 256, 2048)
    assert pi0.box("PREFIX EXPERT")[0].output == (1, 3 * 256 + 48, 2048)
    cache = part(pi0, "KV cache")
    assert (cache.tensors, cache.output) == (2 * 18, (1, 816, 1, 256))
    assert pi0.box("ACTION EXPERT")[0].output == (1, 51, 1024)
    assert pi0.box("VELOCITY")[0].output == pi0.box("OUTPUT")[0].output == (1, 50, 32)


@pytest.mark.parametrize("pi05", [False, True])
def test_parts_sum_to_the_parameters_of_the_model(pi05: bool) -> None:
    config = small_config("nano", pi05=pi05)
    expected = sum(parameter.numel() for parameter in Pi0(config).parameters())
    assert describe(config).parameters == expected


def test_cameras_prompt_and_steps_change_what_they_should() -> None:
    config = small_config("nano")
    base, one = describe(config), describe(config, num_cameras=1)
    assert 3 * part(one, "SigLIP, 1 layer").flops == part(base, "SigLIP, 1 layer").flops
    assert part(one, "KV cache").output == (1, 4 + config.prompt_length, 1, 8)
    assert part(describe(config, prompt_tokens=5), "prompt tokens").output == (1, 5)
    once, twice = describe(config, num_steps=1), describe(config, num_steps=2)
    assert twice.flops - once.flops == sum(row.flops for row in once.rows if row.box in STEP_BOXES)


STEP_BOXES = ("SUFFIX EMBEDDING", "ACTION EXPERT", "VELOCITY")


def test_json_round_trip() -> None:
    architecture = describe(small_config("nano"))
    values = json.loads(json.dumps(architecture.to_json()))
    assert Architecture.from_json(values) == architecture
    assert sum(row["share"] for row in values["rows"]) == pytest.approx(1.0)
    assert values["flops"] == architecture.flops


def test_table_fits_120_columns(pi0: Architecture, pi05: Architecture) -> None:
    for architecture in (pi0, pi05, describe(small_config("tiny"))):
        out = io.StringIO()
        print_architecture(architecture, Console(file=out, width=120))
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= 120
        assert f"{architecture.parameters:,}" in out.getvalue()
        shapes = sum(line.count("[") == line.count("]") for line in lines)
        assert shapes == len(lines), "a shape is broken into two lines"


@pytest.mark.parametrize("wrong", [{"num_cameras": 0}, {"num_cameras": 4}, {"prompt_tokens": 0}, {"num_steps": 0}])
def test_impossible_requests_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        describe(small_config("nano"), **wrong)


def test_full_pi0_fast_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters of PaliGemma, the prefix's operations by formula, and a head for every token written."""
    fast = describe_fast(Pi0FastConfig(), num_cameras=2, prompt_tokens=60, tokens=30)
    assert fast.parameters == 412_442_352 + 2_361_344 + 2_508_531_712
    rows = {row.part: row for row in fast.rows}
    head = rows["head: the token table"]
    assert (head.runs, head.flops) == (30, 2 * 2048 * 257_152)
    step = rows["one more token"]
    per_layer = 2 * (2048 * 2048 * 2 + 2 * 2048 * 256 + 3 * 2048 * 16_384)
    assert step.runs == 29
    assert 18 * per_layer < step.flops < 1.03 * 18 * per_layer  # and attention
    assert rows["Gemma, 18 layers"].output == (1, 2 * 256 + 60, 2048)
    assert Architecture.from_json(json.loads(json.dumps(fast.to_json()))) == fast
    print_architecture(fast, Console(width=120))
    assert "30 tokens written" in capsys.readouterr().out
