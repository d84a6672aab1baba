from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pizero.cli.main import run
from pizero.data.fast.codec import FastCodec
from pizero.data.fast.fidelity import measure_fidelity
from pizero.types import UserError
from pizero.workflows.check import CheckConfig, check
from pizero.workflows.fit_codec import CodecConfig, action_chunks, fit_codec

DATA = Path(__file__).parents[1] / "golden" / "lerobot" / "datasets" / "v30_png"
CONFIG = CodecConfig(horizon=10, vocab_size=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec") / "codec"
    fit_codec(DATA, folder, CONFIG)
    return folder


def test_the_error_is_that_of_the_robots_actions(folder: Path) -> None:
    chunks, codec = action_chunks(DATA, CONFIG), FastCodec.load(folder)
    frames = np.arange(0, chunks.dataset.num_frames, 7)
    found = measure_fidelity(codec, chunks, frames)
    decoded = np.stack([codec.decode(codec.encode(chunk), 10, 3) for chunk in chunks.normalised(frames)])
    error = np.abs(chunks.to_robot(decoded, frames) - chunks.recorded(frames)).reshape(-1, 3)
    np.testing.assert_allclose(found.worst, error.max(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.median, np.median(error, axis=0), rtol=1e-5, atol=1e-7)
    assert found.names == ("dx", "dy", "gripper")
    assert 0 < found.relative.max() < 0.1
    assert max(found.grippers.values()) < 0.05
    np.testing.assert_allclose(chunks.to_robot(chunks.normalised(frames), frames), chunks.recorded(frames), atol=1e-5)


def test_a_finer_scale_loses_less_and_costs_tokens(folder: Path) -> None:
    chunks = action_chunks(DATA, CONFIG)
    frames = np.arange(chunks.dataset.num_frames)
    coarse = measure_fidelity(FastCodec.load(folder), chunks, frames)
    finer = measure_fidelity(FastCodec.fit([chunks.normalised(frames)], 400, 50), chunks, frames)
    assert finer.relative.max() < coarse.relative.max() / 3
    assert finer.tokens.mean() > coarse.tokens.mean()


def test_the_share_of_chunks_without_tokens(folder: Path) -> None:
    """Of a codec with the reference's alphabet, fitted on one chunk; none of a codec that has every byte."""
    chunks = action_chunks(DATA, CONFIG)
    frames = np.arange(0, chunks.dataset.num_frames, 5)
    normalised = chunks.normalised(frames)
    reference = FastCodec.fit([normalised[:1]], 400, 10, all_bytes=False)
    pairs = zip(reference.encode_batch(normalised), reference.encode_batch(normalised, repair=False), strict=True)
    found = measure_fidelity(reference, chunks, frames)
    assert found.repaired == np.mean([repaired != plain for repaired, plain in pairs]) > 0
    assert measure_fidelity(FastCodec.load(folder), chunks, frames).repaired == 0


def test_check_finds_a_codec_that_loses_too_much(folder: Path, tmp_path: Path) -> None:
    good = check(DATA, CheckConfig(codec=str(folder)))
    assert not [finding for finding in good["findings"] if finding["check"].startswith("codec")]
    chunks = action_chunks(DATA, CONFIG)
    FastCodec.fit([chunks.normalised(np.arange(100))], 400, 0.1).save(tmp_path / "coarse")
    findings = check(DATA, CheckConfig(codec=str(tmp_path / "coarse")))["findings"]
    assert any(finding["check"] == "codec" and finding["severity"] == "error" for finding in findings)
    assert any(finding["check"] == "codec and gripper" and "gripper" in finding["where"] for finding in findings)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(DATA), "--output", str(tmp_path / "codec"), "--horizon", "10", "--vocab-size", "400"]
    assert run("fit-codec", given) == 0
    shown = capsys.readouterr().err
    assert "tokens a chunk" in shown
    assert "gripper" in shown
    before = (tmp_path / "codec" / "tokenizer.json").read_bytes()
    assert run("fit-codec", given) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "codec" / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize("vocab_size", [10, 256])
def test_nothing_is_left_of_a_fit_that_failed(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(UserError, match="has no room"):
        fit_codec(DATA, tmp_path / "codec", CodecConfig(horizon=10, vocab_size=vocab_size))
    assert not list(tmp_path.iterdir())
