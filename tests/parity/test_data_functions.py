"""The data side against recorded functions of openpi: normalisation, relative actions, padding, resizing, prompts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from pizero.data.images import resize_with_pad, to_float
from pizero.data.norm_stats import FieldStats, field_stats
from pizero.data.relative_actions import RelativeActions
from pizero.data.tokenizer import ByteEncoder, PaligemmaTokenizer, state_bins
from pizero.data.transforms import Normalize, pad_to

FUNCTIONS = Path(os.environ.get("PIZERO_GOLDEN") or Path(__file__).parents[1] / "golden" / "openpi") / "functions"


def read_arrays(name: str) -> dict[str, NDArray[Any]]:
    """All arrays of a file; none when a golden set was recorded without it."""
    path = FUNCTIONS / name
    if not path.is_file():
        return {}
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def read_prompts() -> dict[str, Any]:
    path = FUNCTIONS / "prompts.json"
    return json.loads(path.read_text()) if path.is_file() else {"cases": [], "bins_of_edge_values": {}}


def heads(arrays: dict[str, Any], first: str) -> list[str]:
    return sorted({key.split("/")[1] for key in arrays if key.startswith(first + "/") and key.split("/")[1] != "stats"})


def test_default_set_is_complete() -> None:
    """Guards the other tests of this file: they pass over what a set lacks."""
    default = Path(__file__).parents[1] / "golden" / "openpi" / "functions"
    assert {"transforms.npz", "resize.npz", "prompts.json"} <= {path.name for path in default.iterdir()}


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_normalize(mode: Any) -> None:
    arrays = read_arrays("transforms.npz")
    for case in heads(arrays, "norm"):
        stats = FieldStats(**{name: arrays[f"norm/stats/{name}"] for name in ("mean", "std", "q01", "q99")})
        normalize, x = Normalize(stats, mode), arrays[f"norm/{case}/x"]
        # The reference does a part of the way back in the type of x, float32; here all of it is float64.
        for name, function, tolerance in ((mode, normalize, 1e-12), (f"un_{mode}", normalize.inverse, 1e-6)):
            if f"norm/{case}/{name}" in arrays:
                expected, label = arrays[f"norm/{case}/{name}"], f"{case} {name}"
                np.testing.assert_allclose(function(x), expected, tolerance, tolerance, err_msg=label)


def test_exact_statistics_agree_with_running_ones() -> None:
    arrays = read_arrays("transforms.npz")
    if "running_stats/mean" not in arrays:
        return
    batches = sorted(key for key in arrays if key.startswith("running_stats/batch_"))
    stats = field_stats(np.concatenate([arrays[key] for key in batches]))
    np.testing.assert_allclose(stats.mean, arrays["running_stats/mean"], rtol=1e-9)
    np.testing.assert_allclose(stats.std, arrays["running_stats/std"], rtol=1e-9)
    assert stats.min is not None
    assert stats.max is not None
    coarse = 0.05 * (stats.max - stats.min)  # the reference takes quantiles from a histogram, ours are exact
    assert (np.abs(stats.to_json()["q01"] - arrays["running_stats/q01"]) < coarse).all()
    assert (np.abs(stats.to_json()["q99"] - arrays["running_stats/q99"]) < coarse).all()


def test_relative_actions() -> None:
    arrays = read_arrays("transforms.npz")
    for case in heads(arrays, "delta"):
        mask, state, actions = (arrays[f"delta/{case}/{name}"] for name in ("mask", "state", "actions"))
        transform = RelativeActions(tuple(mask.tolist()))
        assert_array_equal(transform(actions, state), arrays[f"delta/{case}/delta"], case)
        assert_array_equal(transform.inverse(actions, state), arrays[f"delta/{case}/absolute"], case)


def test_padding() -> None:
    arrays = read_arrays("transforms.npz")
    for case in heads(arrays, "pad"):
        assert_array_equal(pad_to(arrays[f"pad/{case}/x"], 32), arrays[f"pad/{case}/out_dim32"], case)


def test_resize() -> None:
    arrays = read_arrays("resize.npz")
    for size in sorted({key.split("/")[0] for key in arrays}):
        image = arrays[f"{size}/in_uint8"]
        out = resize_with_pad(image, 224, 224)
        if f"{size}/pil_uint8" in arrays:
            assert_array_equal(out, arrays[f"{size}/pil_uint8"], size)
        if f"{size}/jax_float32" in arrays:
            np.testing.assert_allclose(to_float(out), arrays[f"{size}/jax_float32"], atol=2.5 / 255, err_msg=size)


class Recorder:
    """The stand-in encoder, with a note of every call."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def encode(self, text: str, add_bos: bool) -> list[int]:
        self.calls.append({"text": text, "add_bos": add_bos})
        return ByteEncoder().encode(text, add_bos)


@pytest.mark.filterwarnings("ignore:prompt")
def test_prompts() -> None:
    for case in read_prompts()["cases"]:
        recorder = Recorder()
        tokenizer = PaligemmaTokenizer.with_encoder(recorder, ByteEncoder.vocab_size)
        state = None if case["state"] is None else np.array(case["state"], dtype=case["state_dtype"])
        tokens, mask = tokenizer.encode(case["prompt"], state, case["max_len"])
        assert recorder.calls == case["encode_calls"]
        assert_array_equal(tokens, case["byte_tokens"])
        assert_array_equal(mask, case["mask"])


def test_state_bins_at_the_edges() -> None:
    for value, expected in read_prompts()["bins_of_edge_values"].items():
        assert state_bins(np.array([float(value)])).tolist() == [expected]
