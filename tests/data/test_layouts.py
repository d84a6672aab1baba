"""The three layouts of π0.5's text, token by token, with an encoder whose tokens are bytes or words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pizero.data.layouts import Ids, Layout
from pizero.data.tokenizer import BEGIN_ID, END_ID, PaligemmaTokenizer
from pizero.types import LayoutName, UserError

NAMES: tuple[LayoutName, ...] = ("openpi", "opentau", "lerobot")
BYTES = PaligemmaTokenizer.bytes()
BEGIN, END = "\x02", "\x01"


class Words:
    """Words with the space before them, as PaliGemma's vocabulary has them; punctuation apart."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def encode(self, text: str, add_bos: bool) -> list[int]:
        parts, ids = list[str](), [BEGIN_ID] * add_bos
        for character in text:
            inside = bool(parts) and parts[-1][-1].isalnum() == character.isalnum() and character.isalnum()
            if parts and (inside or (parts[-1] == " " and character.isalnum())):
                parts[-1] += character
            else:
                parts.append(character)
        for part in parts:
            if part not in self.known:
                self.known.append(part)
            ids.append(4 + self.known.index(part))
        return ids

    def decode(self, input: list[int]) -> str:
        return "".join(self.known[token - 4] for token in input if token >= 4)


def shown(tokens: Sequence[int]) -> str:
    return "".join({BEGIN_ID: BEGIN, END_ID: END}.get(token) or chr(token - 3) for token in tokens)


def parts(ids: Ids) -> list[tuple[str, bool, bool]]:
    """Runs of tokens with the same flags, as text."""
    runs: list[tuple[str, bool, bool]] = []
    for token, causal, target in zip(ids.tokens, ids.causal, ids.target, strict=True):
        if not runs or runs[-1][1:] != (causal, target):
            runs.append(("", causal, target))
        runs[-1] = (runs[-1][0] + shown([token]), causal, target)
    return runs


@pytest.mark.parametrize(
    ("name", "bins", "expected"),
    [
        ("openpi", [3, 255], [
            (f"{BEGIN}Task: open the box.; State: 3 255; Subtask: ", False, False),
            (f"lift the lid.;\nAction: {END}", True, True),
        ]),
        ("openpi", None, [
            (f"{BEGIN}Task: open the box.; Subtask: ", False, False), (f"lift the lid.;\nAction: {END}", True, True),
        ]),
        ("opentau", [3, 255], [
            (f"{BEGIN}Task: open_the box, State: 3 255;\n", False, False), (f"Response: {BEGIN}", True, False),
            (f"lift_the lid{END};\n", True, True),
        ]),
        ("opentau", None, [
            (f"{BEGIN}Task: open_the box, ", False, False), (f"Response: {BEGIN}", True, False),
            (f"lift_the lid{END};\n", True, True),
        ]),
        ("lerobot", [3, 255], [
            (f"{BEGIN}User: open_the box, State: 3 255;\nAssistant: ", False, False),
            (f"lift_the lid{END}", True, True), ("\n", False, False),
        ]),
        ("lerobot", None, [
            (f"{BEGIN}User: open_the box\nAssistant: ", False, False), (f"lift_the lid{END}", True, True),
            ("\n", False, False),
        ]),
    ],
)  # fmt: skip
def test_with_a_text(name: LayoutName, bins: list[int] | None, expected: list[tuple[str, bool, bool]]) -> None:
    layout = Layout(name, BYTES)
    ids = layout.encode("open_the box", bins, "lift_the lid")
    assert parts(ids) == expected
    question, (closing, starts) = layout.question("open_the box", bins), layout.closing
    size = len(question.tokens)
    assert (ids.tokens[:size], ids.causal[:size]) == (question.tokens, question.causal)
    assert (ids.tokens[-len(closing) :], ids.causal[-len(closing) :]) == (closing, starts)
    assert closing[0] == END_ID
    assert layout.read(ids.tokens[size : -len(closing)]) == ("lift the lid" if name == "openpi" else "lift_the lid")


@pytest.mark.parametrize(
    ("name", "bins", "expected"),
    [
        ("openpi", [7], "Task: open the box, State: 7;\nAction: "), ("openpi", None, "open the box\n"),
        ("opentau", [7], "Task: open_the box, State: 7;\n"), ("opentau", None, "Task: open_the box, "),
        ("lerobot", [7], "User: open_the box, State: 7;\n"), ("lerobot", None, "User: open_the box\n"),
    ],
)  # fmt: skip
def test_without_a_text(name: LayoutName, bins: list[int] | None, expected: str) -> None:
    assert parts(Layout(name, BYTES).encode("open_the box", bins)) == [(BEGIN + expected, False, False)]
    if name == "openpi" and bins is not None:  # the form of the released weights
        own, mask = BYTES.encode("open_the box", np.array([-0.94]), 100)
        assert own[mask].tolist() == Layout(name, BYTES).encode("open_the box", bins).tokens


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [("openpi", "Action: ", f"|{END}"), ("opentau", "Action: ", ""), ("lerobot", f"{BEGIN}Action: ", f"|{END}")],
)
def test_fast_block(name: LayoutName, before: str, after: str) -> None:
    ids = Layout(name, BYTES).fast([70, 71])
    runs = parts(ids)
    expected = [(before, True, False), (shown([70, 71]), True, True), (after, True, False)]
    assert runs == [run for run in expected if run[0]]


def test_a_space_that_belongs_to_the_next_word() -> None:
    """In "Assistant: lift" the space is part of "lift": the question ends before it, and the text has it."""
    layout = Layout("lerobot", PaligemmaTokenizer.with_encoder(Words(), 100))
    ids, question = layout.encode("open", [1], "lift it"), layout.question("open", [1])
    assert ids.tokens[: len(question.tokens)] == question.tokens
    first = ids.target.index(True)
    assert first == len(question.tokens)
    assert layout.text.decode(ids.tokens[first : first + 1]) == " lift"
    assert layout.read(ids.tokens[first:-2]) == "lift it"


@pytest.mark.parametrize("name", NAMES)
def test_a_long_task_gives_way(name: LayoutName) -> None:
    layout, states = Layout(name, PaligemmaTokenizer.bytes()), np.zeros((2, 3))
    task = "put all the blocks into the box, the red ones first"
    least = len(layout.encode("", [128] * 3, "lift").tokens)
    with pytest.warns(UserWarning, match="the model takes"):
        texts = layout.encode_batch([task, "go"], states, ["lift", ""], least + 10)
    assert texts.tokens.shape == (2, least + 10)
    kept = layout.encode("put all", [128] * 3, "lift")
    assert texts.tokens[0, : len(kept.tokens)].tolist() == kept.tokens
    assert texts.target[0].sum() == sum(kept.target)
    assert not texts.target[1].any()
    assert not texts.causal[1].any()
    with pytest.raises(UserError, match="no room for an instruction"):
        layout.encode_batch([task], states[:1], ["lift"], least - 1)
    asked = layout.question_batch(["go", "go on"], states, 200, 20)
    assert asked.mask.sum(axis=1).tolist() == [len(layout.question(task, [128] * 3).tokens) for task in ("go", "go on")]
    assert asked.tokens.shape[1] == asked.mask.sum(axis=1).max()


def test_what_is_no_layout_and_no_text() -> None:
    with pytest.raises(UserError, match="layout 'other': expected one of openpi, opentau, lerobot"):
        Layout("other", BYTES)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="halves of characters"):
        Layout("openpi", BYTES).encode_batch(["a"], None, ["\ud800"], 60)
    assert BYTES.decode([0, 1, 2, *BYTES.encoder.encode("übung", False), 9999]) == "übung"
