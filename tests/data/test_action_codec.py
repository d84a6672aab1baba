from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pizero.data.fast.codec import FastCodec
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "fast_codec" / "t10_d7_v256" / "tokenizer"


def chunks(count: int, horizon: int = 8, dims: int = 3, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    phase, rate = draw.uniform(0, 6, (count, 1, dims)), draw.uniform(0.1, 0.6, (count, 1, dims))
    return np.sin(phase + rate * np.arange(horizon)[None, :, None]).astype(np.float32)


@pytest.fixture(scope="module")
def codec() -> FastCodec:
    return FastCodec.fit([chunks(60)], vocab_size=400)


OUTLIER = np.zeros((2, 8, 3))
OUTLIER[1, 4, 1] = -300  # all other coefficients would have characters of three bytes, which nothing could write


def test_a_codec_with_all_bytes_encodes_chunks_unlike_those_it_saw(codec: FastCodec) -> None:
    """The reference's alphabet lacks characters that the chunks do not have."""
    draw = np.random.default_rng(1)
    unlike = draw.uniform(-1.2, 1.2, (100, 8, 3))
    tokens = codec.encode_batch(unlike, repair=False)
    error = [np.abs(codec.decode(row, 8, 3) - chunk).max() for row, chunk in zip(tokens, unlike, strict=True)]
    below = codec.characters(unlike).min(axis=(1, 2)) == 0  # clipped, as the reference does
    assert (~below).sum() > 10
    assert max(np.array(error)[~below]) < 0.3
    reference = FastCodec.fit([chunks(3)], vocab_size=400, all_bytes=False)
    lost = [len(row) for row in reference.encode_batch(unlike, repair=False)]
    assert not np.array_equal(lost, [len(row) for row in reference.encode_batch(unlike)])
    for row in reference.encode_batch(unlike):
        reference.decode(row, 8, 3)


def test_a_chunk_on_the_edge_between_two_integers_is_rounded_as_scipy_does(codec: FastCodec) -> None:
    impulse = np.zeros((16, 1))
    impulse[0] = 1  # its first coefficient is 2.5 but for the last bit
    assert (codec.characters(impulse) + codec.min_token)[0, 0] == 3


def test_saved_and_read_again(codec: FastCodec, tmp_path: Path) -> None:
    codec.save(tmp_path / "codec")
    again = FastCodec.load(tmp_path / "codec")
    assert again.encode_batch(chunks(5, seed=3)) == codec.encode_batch(chunks(5, seed=3))
    assert (again.scale, again.min_token, again.horizon, again.action_dim) == (10, codec.min_token, 8, 3)
    theirs, ours = (json.loads((f / "processor_config.json").read_text()) for f in (GOLDEN, tmp_path / "codec"))
    assert theirs.keys() == ours.keys()
    assert theirs["auto_map"] == ours["auto_map"]
    with pytest.raises(UserError, match="exists already"):
        codec.save(tmp_path / "codec")


def test_chunks_of_several_lengths_share_a_codec() -> None:
    codec = FastCodec.fit([chunks(20), chunks(20, horizon=12)], vocab_size=400)
    assert (codec.horizon, codec.action_dim) == (None, None)
    for horizon in (8, 12):
        chunk = chunks(1, horizon, seed=5)[0]
        np.testing.assert_allclose(codec.decode(codec.encode(chunk), horizon, 3), chunk, atol=0.15)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9, 2e3])
def test_actions_without_a_character(codec: FastCodec, value: float) -> None:
    chunk = np.full((8, 3), value)
    with pytest.raises(UserError, match=r"FAST codec: .*(NaN|no character|halves)"):
        codec.encode(chunk)
    assert codec.encode(chunks(1)[0])  # the next chunk is encoded


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "no action chunks"),
        ([np.zeros((0, 8, 3))], "no action chunks"),
        ([np.full((2, 8, 3), np.nan)], "NaN"),
        ([chunks(2), np.full((2, 8, 3), np.nan), chunks(2)], "NaN"),
        ([chunks(3), OUTLIER], "action dimension 1 reaches 300, far from"),
    ],
)
def test_nothing_to_fit_on(data: list[np.ndarray], text: str) -> None:
    with pytest.raises(UserError, match=text):
        FastCodec.fit(data)


def test_a_vocabulary_without_room() -> None:
    with pytest.raises(UserError, match="256 has no room for 256 characters"):
        FastCodec.fit([chunks(3)], vocab_size=256)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("processor_config.json", None, "holds no FAST codec"),
        ("processor_config.json", "{", "cannot be read as JSON"),
        ("processor_config.json", '{"min_token": 0}', "scale"),
        ("processor_config.json", '{"min_token": 0, "scale": 0}', "scale is 0"),
        ("processor_config.json", '{"min_token": 0.5, "scale": 10}', "min_token is 0.5"),
        ("processor_config.json", '{"min_token": 0, "scale": 10, "time_horizon": "x"}', "time_horizon is 'x'"),
        ("tokenizer.json", None, "cannot be read"),
        ("tokenizer.json", "[]", "no tokenizer"),
        ("tokenizer.json", '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}', "tokenizer"),
    ],
)
def test_a_damaged_folder(codec: FastCodec, tmp_path: Path, name: str, content: str | None, text: str) -> None:
    folder = tmp_path / "codec"
    codec.save(folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=text) as caught:
        FastCodec.load(folder)
    assert "\n" not in str(caught.value)
