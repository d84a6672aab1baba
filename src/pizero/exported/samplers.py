"""Noise to an action chunk: the graphs of one model, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pizero.data.images import to_float
from pizero.data.pipeline import ModelInputs
from pizero.data.tokenizer import END_ID
from pizero.exported.manifest import SUFFIX, Manifest
from pizero.exported.sessions import SESSIONS, Ports, Session, as_array
from pizero.exported.words import WordTable


@dataclass(frozen=True)
class Prefix:
    """What images and prompt came to. seen [S_img, W]: of the images. ids, starts [L]: of the prompt, and where its
    blocks start. cache: keys and values of all. last [W]: what the head reads of the last token, where a model writes.
    """

    seen: NDArray[np.float32]
    ids: NDArray[np.int64]
    starts: NDArray[np.bool_]
    cache: Mapping[str, Any]
    last: NDArray[np.float32] | None = None

    @property
    def length(self) -> int:
        return len(self.seen) + len(self.ids)


class Pi0Sampler:
    """Of a π0 or π0.5: vision tower and prefix once, then its steps; before them the text of a model that writes."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None) -> None:
        assert manifest.words is not None  # the manifest saw to it
        self._manifest, self._words = manifest, WordTable(folder, manifest.words)
        self._cache = cache = [f"{what}.{index}" for index in range(manifest.layers) for what in ("key", "value")]
        state = ["state"] if manifest.reads_state else []
        self._vision = open_graph(folder, manifest, "vision", threads, ["images"], ["tokens"])
        state += ["settled"] if manifest.max_delay else []
        reads, gives = ["tokens"], cache
        if manifest.writes_text:
            reads, gives = ["tokens", "place", "sees", *cache], ["last", *(f"longer_{name}" for name in cache)]
        self._prefix = open_graph(folder, manifest, "prefix", threads, reads, gives)
        self._step = open_graph(folder, manifest, "step", threads, ["x", "step", *state, *cache], ["next"])
        self._head = self._words if manifest.head is None else WordTable(folder, manifest.head)

    def __call__(
        self,
        inputs: ModelInputs,
        noise: NDArray[np.float32],
        settled: NDArray[np.float32] | None = None,
        written: Prefix | None = None,
    ) -> NDArray[np.float32]:
        """One observation and noise [H, D] -> [H, D], which begins with the settled actions [n, D]. written: what
        `write` left of the same images; where the prompt is another one after all, in tokens, it runs again.
        """
        manifest = self._manifest
        known: dict[str, Any] = {**self._run(inputs, written).cache}
        if manifest.reads_state:
            known["state"] = cast("Mapping[str, Any]", inputs)["state"]
        if manifest.max_delay:
            count = 0 if settled is None else len(settled)
            known["settled"] = np.arange(len(noise))[:, None] < count
        if settled is not None:
            noise = np.concatenate([settled, noise[len(settled) :]])
        return integrated(self._step, known, noise, manifest.num_steps)

    def write(
        self, question: ModelInputs, max_tokens: int, closing: tuple[list[int], list[bool]], prompt_length: int
    ) -> tuple[list[int], Prefix]:
        """The likeliest token after the prompt, and again, up to the end mark or `max_tokens`: the text without its
        end, and the prefix with it, or that of the question where nothing ended the text or prompt_length has no room
        for its end. closing: ids that follow each text, the end mark first, and which start a block.
        """
        prefix = self._run(question)
        last, cache, first = prefix.last, prefix.cache, prefix.length
        assert last is not None  # of a model that writes
        text: list[int] = []
        while len(text) < max_tokens and (token := self._head.likeliest(last)) != END_ID:
            text.append(token)
            last, cache = self._after(
                cache, self._words(np.array([token])), first + len(text) - 1, np.ones(1, np.bool_)
            )
        if len(text) == max_tokens or len(prefix.ids) + len(text) + len(closing[0]) > prompt_length:
            return text, prefix
        end, begins = np.array(closing[0]), np.array(closing[1])
        _, cache = self._after(cache, self._words(end), first + len(text), begins)
        ids = np.concatenate([prefix.ids, np.array(text, np.int64), end])
        starts = np.concatenate([prefix.starts, np.ones(len(text), np.bool_), begins])
        return text, Prefix(prefix.seen, ids, starts, cache)

    def _run(self, inputs: ModelInputs, before: Prefix | None = None) -> Prefix:
        """Images and prompt; only what is new in them after `before`, which has the same images."""
        manifest, used = self._manifest, inputs["prompt_mask"][0]
        ids = inputs["prompt_tokens"][0][used]
        starts = inputs["prompt_causal"][0][used] if "prompt_causal" in inputs else np.zeros(len(ids), np.bool_)
        if before is not None:
            if np.array_equal(ids, before.ids) and np.array_equal(starts, before.starts):
                return before
            seen = before.seen
        else:
            present = [camera for camera in manifest.cameras if camera in inputs["images"]]
            images = np.stack([to_float(inputs["images"][camera][0]) for camera in present])
            seen = as_array(self._vision({"images": images})["tokens"])
            seen = seen.reshape(-1, seen.shape[-1])
        tokens = np.concatenate([seen, self._words(ids)])
        if not manifest.writes_text:
            return Prefix(seen, ids, starts, self._prefix({"tokens": tokens}))
        heads, dim = manifest.kv_heads, manifest.head_dim
        empty = {"key": np.zeros((heads, dim, 0), np.float32), "value": np.zeros((heads, 0, dim), np.float32)}
        nothing = {name: empty[name.partition(".")[0]] for name in self._cache}
        last, cache = self._after(nothing, tokens, 0, np.concatenate([np.zeros(len(seen), np.bool_), starts]))
        return Prefix(seen, ids, starts, cache, last)

    def _after(
        self, cache: Mapping[str, Any], tokens: NDArray[np.float32], place: int, starts: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Runs tokens [T, W] from a place on, which see what is known, their own block and those before it; starts [T]:
        of blocks. What the head reads of the last one [W], and the cache of all.
        """
        block = np.cumsum(starts)
        known = np.ones((len(block), place), np.bool_)
        sees = np.concatenate([known, block[None] <= block[:, None]], axis=1)
        found = self._prefix({"tokens": tokens, "place": np.array([place]), "sees": sees, **cache})
        return as_array(found["last"])[0], {name: found[f"longer_{name}"] for name in self._cache}


class DiffusionSampler:
    """Of a diffusion policy: the observation once, then its steps."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None) -> None:
        self._manifest = manifest
        state, words = ["state"] * manifest.reads_state, ["words"] * manifest.reads_words
        given = ["images", "present", *state, *words]
        self._encode = open_graph(folder, manifest, "encode", threads, given, ["encoded"])
        self._step = open_graph(folder, manifest, "step", threads, ["x", "step", "encoded"], ["next"])

    def __call__(self, inputs: ModelInputs, noise: NDArray[np.float32], settled: None = None) -> NDArray[np.float32]:
        """One observation and noise [H, D] -> [H, D]."""
        manifest, images = self._manifest, inputs["images"]
        shape = next(iter(images.values()))[0].shape
        black = np.zeros(shape, np.float32)
        seen = [to_float(images[name][0]) if name in images else black for name in manifest.cameras]
        present = [float(name in images) for name in manifest.cameras]
        given: dict[str, Any] = {
            "images": np.stack(seen).reshape(len(seen), manifest.num_history, *shape[-3:]),
            "present": np.array(present, np.float32),
        }
        if manifest.reads_state:
            state = cast("Mapping[str, Any]", inputs)["state"]
            given["state"] = state.reshape(manifest.num_history, -1)
        if manifest.reads_words:
            given["words"] = inputs["prompt_tokens"][0][inputs["prompt_mask"][0]]
        return integrated(self._step, self._encode(given), noise, manifest.num_steps)


def integrated(step: Session, known: dict[str, Any], noise: NDArray[np.float32], num_steps: int) -> NDArray[np.float32]:
    """known: what the step's graph reads beside `x` and its number."""
    x: Any = noise
    for number in range(num_steps):
        x = step({**known, "x": x, "step": np.array([number], np.int64)})["next"]
    return as_array(x)


def open_graph(
    folder: Path, manifest: Manifest, name: str, threads: int | None, inputs: list[str], outputs: list[str]
) -> Session:
    """UserError for a graph that the runtime cannot open, or that reads or gives something else."""
    path = folder / f"{name}{SUFFIX[manifest.runtime]}"
    return SESSIONS[manifest.runtime](path, Ports(inputs, outputs), manifest.dtype, threads)


SAMPLERS = {"pi0": Pi0Sampler, "diffusion": DiffusionSampler}
