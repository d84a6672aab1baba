"""Noise to an action chunk: the graphs of one model, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pizero.data.images import to_float
from pizero.data.pipeline import ModelInputs
from pizero.exported.manifest import SUFFIX, Manifest
from pizero.exported.sessions import SESSIONS, Ports, Session, as_array
from pizero.exported.words import WordTable


class Pi0Sampler:
    """Of a π0 or π0.5: vision tower and prefix once, then its steps."""

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None) -> None:
        assert manifest.words is not None  # the manifest saw to it
        self._manifest, self._words = manifest, WordTable(folder, manifest.words)
        cache = [f"{what}.{index}" for index in range(manifest.layers) for what in ("key", "value")]
        state = ["state"] if manifest.reads_state else []
        self._vision = open_graph(folder, manifest, "vision", threads, ["images"], ["tokens"])
        state += ["settled"] if manifest.max_delay else []
        starts = ["starts"] if manifest.reads_starts else []
        self._prefix = open_graph(folder, manifest, "prefix", threads, ["tokens", *starts], cache)
        self._step = open_graph(folder, manifest, "step", threads, ["x", "step", *state, *cache], ["next"])

    def __call__(
        self, inputs: ModelInputs, noise: NDArray[np.float32], settled: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """One observation and noise [H, D] -> [H, D], which begins with the settled actions [n, D]."""
        manifest = self._manifest
        present = [camera for camera in manifest.cameras if camera in inputs["images"]]
        images = np.stack([to_float(inputs["images"][camera][0]) for camera in present])
        seen = as_array(self._vision({"images": images})["tokens"])
        used = inputs["prompt_mask"][0]
        words = self._words(inputs["prompt_tokens"][0][used])
        tokens = np.concatenate([seen.reshape(-1, seen.shape[-1]), words])
        given: dict[str, Any] = {"tokens": tokens}
        if manifest.reads_starts:
            given["starts"] = np.zeros(len(tokens), np.bool_)
            if "prompt_causal" in inputs:
                given["starts"][len(tokens) - len(words) :] = inputs["prompt_causal"][0][used]
        known = self._prefix(given)
        if manifest.reads_state:
            known["state"] = cast("Mapping[str, Any]", inputs)["state"]
        if manifest.max_delay:
            count = 0 if settled is None else len(settled)
            known["settled"] = np.arange(len(noise))[:, None] < count
        if settled is not None:
            noise = np.concatenate([settled, noise[len(settled) :]])
        return integrated(self._step, known, noise, manifest.num_steps)


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
