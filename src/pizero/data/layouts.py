"""How π0.5's prompt, the text that it writes and its FAST tokens stand in one sequence: three layouts, by name.

    openpi    Task: {task}.; State: {bins}; Subtask: | {text}.;\\nAction: <end>
    opentau   Task: {task}, State: {bins};\\n | Response: <begin>{text}<end>;\\n
    lerobot   User: {task}, State: {bins};\\nAssistant: | {text}<end> + \\n

Before the bar all is one block with the images, after it each token is a block of its own; the line break after `+` is
in its predecessor's block. The loss is on the text with its end: of `openpi` all after the bar, of `opentau` what
follows the second begin mark, of `lerobot` up to the end mark. `lerobot` encodes question and text in one; so in a
small vocabulary, where only some words take the space before them along, a question may end in another token than in
training (the reference's do): take `openpi` there. Without a text the sequence ends earlier:

    openpi    Task: {task}, State: {bins};\\nAction:        (the released π0.5)
    opentau   Task: {task}, State: {bins};\\n
    lerobot   User: {task}, State: {bins};\\n

FAST tokens: `Action: ` codes `|` <end>, in `lerobot` with a begin mark before it, in `opentau` without what follows the
codes; the loss is on the codes. Sources: openpi's pull request 942 and its community's checkpoints, OpenTau 0.14
(policies/pi05), LeRobot's pull request 4184 (policies/pi052).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pizero.data.tokenizer import (
    BEGIN_ID,
    END_ID,
    PADDING_ID,
    PaligemmaTokenizer,
    check_text,
    clean,
    longest_start,
    state_bins,
)  # fmt: skip
from pizero.types import LayoutName, UserError

FAST_SKIP: dict[LayoutName, int] = {"openpi": 128, "opentau": 128, "lerobot": 1152}
"""Tokens at the end of PaliGemma's vocabulary without a FAST id. LeRobot leaves `<loc>` free too; OpenTau has a table
of its own for the codes, which is not read here.
"""
ACTION, BAR = "Action: ", "|"
_END_OF_OPENPI = ".;\n" + ACTION


@dataclass(frozen=True)
class Ids:
    """Tokens of one sequence: which of them start a block of their own, and which the loss is on."""

    tokens: list[int]
    causal: list[bool]
    target: list[bool]

    @classmethod
    def of(cls, *parts: tuple[Sequence[int], bool, bool]) -> Ids:
        """parts: tokens, whether they are causal, whether they are targets."""
        causal = [part[1] for part in parts for _ in part[0]]
        target = [part[2] for part in parts for _ in part[0]]
        return cls([token for part in parts for token in part[0]], causal, target)


@dataclass(frozen=True)
class Texts:
    """B sequences of length L, padded at the end: tokens [B, L] int64, the others [B, L] bool."""

    tokens: NDArray[np.int64]
    mask: NDArray[np.bool_]
    causal: NDArray[np.bool_]
    target: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Sequence[Ids], length: int) -> Texts:
        tokens = np.full((len(rows), length), PADDING_ID, dtype=np.int64)
        mask, causal, target = np.zeros((3, len(rows), length), dtype=np.bool_)
        for row, ids in enumerate(rows):
            size = len(ids.tokens)
            tokens[row, :size], mask[row, :size] = ids.tokens, True
            causal[row, :size], target[row, :size] = ids.causal, ids.target
        return cls(tokens, mask, causal, target)


@dataclass(frozen=True)
class Layout:
    """name: of the three. text: the vocabulary."""

    name: LayoutName
    text: PaligemmaTokenizer

    def __post_init__(self) -> None:
        if self.name not in get_args(LayoutName):
            raise UserError(f"layout {self.name!r}: expected one of {', '.join(get_args(LayoutName))}")

    # ---------------------------------------------------------------- one sequence

    def encode(self, task: str, bins: Sequence[int] | None, text: str = "") -> Ids:
        """A task, the state's bins where it is in the prompt, and the text that the model is to write; "" for none."""
        if not text.strip():
            return Ids.of((self._without_text(task, bins), False, False))
        before, end = self._question(task, bins), [END_ID]
        if self.name == "openpi":
            written = [*self._ids(clean(text) + _END_OF_OPENPI), *end]
            return Ids.of((self._ids(before, True), False, False), (written, True, True))
        if self.name == "opentau":
            answer = [*self._ids(text), *end, *self._ids(";\n")]
            return Ids.of(
                (self._ids(before, True), False, False),
                ([*self._response, BEGIN_ID], True, False),
                (answer, True, True),
            )
        asked, written = self._divided(before, text)
        return Ids.of((asked, False, False), ([*written, *end], True, True), (self._ids("\n"), False, False))

    def question(self, task: str, bins: Sequence[int] | None) -> Ids:
        """What `encode` has before the text: after it the model writes."""
        before = self._question(task, bins)
        if self.name == "lerobot":
            return Ids.of((self._divided(before, "a")[0], False, False))
        asked = [*self._response, BEGIN_ID] if self.name == "opentau" else []
        return Ids.of((self._ids(before, True), False, False), (asked, True, False))

    @cached_property
    def closing(self) -> tuple[list[int], list[bool]]:
        """What `encode` has from the end mark on, and which of it starts a block."""
        after = {"openpi": "", "opentau": ";\n", "lerobot": "\n"}[self.name]
        ids = self._ids(after) if after else []
        return [END_ID, *ids], [True, *[self.name == "opentau"] * len(ids)]

    def read(self, tokens: Sequence[int]) -> str:
        """Text that the model wrote, without what ends it."""
        written = self.text.decode(tokens)
        return (written.partition(".;")[0] if self.name == "openpi" else written).strip()

    def fast(self, codes: Sequence[int]) -> Ids:
        """The FAST block; codes: ids of the vocabulary (`FastTokenizer.to_text`)."""
        action = self._ids(ACTION)
        begin = [BEGIN_ID] if self.name == "lerobot" else []
        end = [] if self.name == "opentau" else [*self._ids(BAR), END_ID]
        return Ids.of(([*begin, *action], True, False), (codes, True, True), (end, True, False))

    @property
    def words(self) -> list[str]:
        """What a small vocabulary should have words for."""
        return {
            "openpi": ["Task: .; State: ; Subtask: ", _END_OF_OPENPI],
            "opentau": ["Task: , State: ;\n", "Response: ", ";\n", ACTION],
            "lerobot": ["User: , State: ;\nAssistant: ", ACTION],
        }[self.name]

    # ---------------------------------------------------------------- a batch

    def encode_batch(
        self, tasks: Sequence[str], states: NDArray[np.floating[Any]] | None, texts: Sequence[str], length: int
    ) -> Texts:
        """B tasks, normalised unpadded states [B, d] or None, and B texts. Where a sequence is longer than `length` the
        task gives way, with one warning for each. UserError where state and text alone are too long.
        """
        check_text([*tasks, *texts])
        rows = [
            self._fitted(lambda task, row=row: self.encode(task, self._bins(states, row), texts[row]), task, length)
            for row, task in enumerate(tasks)
        ]
        return Texts.of(rows, length)

    def question_batch(
        self, tasks: Sequence[str], states: NDArray[np.floating[Any]] | None, length: int, room: int
    ) -> Texts:
        """The same of questions, each with `room` for a text after it."""
        check_text(tasks)
        rows = [
            self._fitted(lambda task, row=row: self.question(task, self._bins(states, row)), task, length - room)
            for row, task in enumerate(tasks)
        ]
        return Texts.of(rows, max(len(row.tokens) for row in rows))

    @staticmethod
    def _bins(states: NDArray[np.floating[Any]] | None, row: int) -> list[int] | None:
        return None if states is None else cast("list[int]", state_bins(states[row]).tolist())

    def _fitted(self, encoded: Callable[[str], Ids], task: str, length: int) -> Ids:
        whole = encoded(task)
        if len(whole.tokens) <= length:
            return whole
        if (least := len(encoded("").tokens)) > length:
            raise UserError(
                f"prompt: state and text take {least} tokens and the model's prompt has {length}: no room for an "
                "instruction; take a longer prompt_length"
            )
        kept = longest_start(task, lambda start: len(encoded(start).tokens) <= length)
        cut = f"cut after {kept[-40:].strip()!r}" if kept else "dropped"
        self.text.warn_cut(
            task,
            f"{len(whole.tokens)} tokens with state and text, the model takes {length}: the instruction is {cut}",
        )
        return encoded(kept)

    # ---------------------------------------------------------------- texts

    def _question(self, task: str, bins: Sequence[int] | None) -> str:
        state = None if bins is None else " ".join(map(str, bins))
        if self.name == "openpi":
            return f"Task: {clean(task)}.; " + ("" if state is None else f"State: {state}; ") + "Subtask: "
        if self.name == "opentau":
            return f"Task: {task}, " + ("" if state is None else f"State: {state};\n")
        return f"User: {task}" + ("" if state is None else f", State: {state};") + "\nAssistant: "

    def _without_text(self, task: str, bins: Sequence[int] | None) -> list[int]:
        if self.name == "opentau":
            return self._ids(self._question(task, bins), True)
        if self.name == "lerobot":
            return self._ids(self._question(task, bins).removesuffix("Assistant: "), True)
        if bins is None:
            return [*self._ids(clean(task), True), *self._ids("\n")]
        return self._ids(f"Task: {clean(task)}, State: {' '.join(map(str, bins))};\n{ACTION}", True)

    @cached_property
    def _response(self) -> list[int]:
        return self._ids("Response: ")

    def _divided(self, before: str, text: str) -> tuple[list[int], list[int]]:
        """Both encoded in one: the tokens that end before the text, and those that reach into it. In PaliGemma's
        vocabulary a word has its space in front of it, so the first of them takes the space.
        """
        alone, whole = self._ids(before, True), self._ids(before + text, True)
        same = next((n for n, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))
        return whole[:same], whole[same:]

    def _ids(self, text: str, begin: bool = False) -> list[int]:
        return self.text.encoder.encode(text, add_bos=begin)
