"""Pictures: what they draw is checked on the data behind them, and that a whole PNG comes out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pizero.model.config import ActionAttention, LanguageConfig, small_config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.report import mask as mask_module
from pizero.report import pictures
from pizero.types import UserError

RATE = {"success_rate": 0.5, "interval": [0.3, 0.7], "successes": 5, "episodes": 10}


def size(png: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image.size


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_mask_shows_the_rule_of_the_model(attention: ActionAttention) -> None:
    config = small_config("nano", action_attention=attention)
    mask, groups = mask_module._small_mask(config, prompt_tokens=6)
    assert groups == {"images": 12, "prompt": 6, "state": 1, "actions": 8}
    images, state, actions = slice(0, 12), 18, slice(19, 27)
    assert mask[images, :17].all()
    assert not mask[images, 18:].any()
    assert not mask[17].any()
    assert not mask[:, 17].any()
    assert mask[state, :17].all()
    assert mask[state, state]
    assert not mask[state, actions].any()
    expected = np.ones((8, 8), bool) if attention == "bidirectional" else np.tri(8, dtype=bool)
    assert (mask[actions, actions] == expected).all()


def test_mask_without_a_state_token_has_no_state_group() -> None:
    mask, groups = mask_module._small_mask(small_config("nano", pi05=True), prompt_tokens=3)
    assert list(groups) == ["images", "prompt", "actions"]
    assert len(mask) == sum(groups.values())
    with pytest.raises(UserError, match="prompt_tokens"):
        mask_module.mask_picture(small_config("nano"), prompt_tokens=1)


def test_mask_with_text_and_fast_tokens() -> None:
    config = small_config("nano", pi05=True, language=LanguageConfig())
    mask, groups = mask_module._small_mask(config, prompt_tokens=6)
    assert groups == {"images": 12, "prompt": 6, "text": 4, "FAST": 4, "actions": 8}
    prompt, text, fast, actions = slice(0, 17), slice(18, 22), slice(22, 26), slice(26, 34)
    assert mask[prompt, prompt].all()
    assert not mask[prompt, 18:].any()
    for block in (text, fast):
        assert (mask[block, block] == np.tri(4, dtype=bool)).all()
        assert mask[block, prompt].all()
    assert mask[fast, text].all()
    assert not mask[text, fast].any()
    assert not mask[actions, fast].any()
    for seen in (prompt, text, actions):
        assert mask[actions, seen].all()
    assert min(size(mask_module.mask_picture(config))) > 800


def test_mask_of_a_model_that_writes() -> None:
    """Images and prompt see each other and none of the FAST tokens, each of which sees the ones before."""
    mask, groups = mask_module._small_mask(Pi0FastConfig(cameras=("a",)), 6)
    assert groups == {"images": 4, "prompt": 6, "FAST": 8}
    assert not mask[:9, 10:].any()
    assert np.array_equal(mask[10:, 10:], np.tri(8, dtype=bool))
    assert mask[10:, :9].all()
    assert min(size(mask_module.mask_picture(Pi0FastConfig()))) > 800


def test_mask_picture_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mask.png"
    png = mask_module.mask_picture(small_config("nano"), path)
    assert path.read_bytes() == png
    assert min(size(png)) > 800
    assert [file.name for file in path.parent.iterdir()] == ["mask.png"]


def test_flow_picture_grows_with_the_dimensions() -> None:
    trajectory = np.random.default_rng(0).standard_normal((3, 6, 8))
    one_row = size(pictures.flow_picture(trajectory, ["a", "b", "c", "d"]))
    assert size(pictures.flow_picture(trajectory))[1] > one_row[1]
    with pytest.raises(UserError, match="trajectory"):
        pictures.flow_picture(trajectory[0])


def test_colours_run_from_noise_to_actions() -> None:
    colours = pictures._noise_to_action(11)
    assert colours[-1] == pytest.approx(pictures.rgb(pictures.GROUP_COLOURS["actions"]))
    assert (np.diff(colours[:, 1]) < 0).all()


def test_loss_picture_takes_the_lines_of_a_metrics_file() -> None:
    lines = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5}, {"step": 20, "validation_loss": 0.6}]
    assert size(pictures.loss_picture(lines)) > (0, 0)
    assert pictures.loss_picture(lines) != pictures.loss_picture(lines[:2])
    with pytest.raises(UserError, match="no training loss"):
        pictures.loss_picture(lines[2:])


def test_running_mean() -> None:
    values = np.array([1.0, 2.0, 3.0, 6.0])
    assert pictures._running_mean(values, 1) == pytest.approx([1.5, 2.0, 11 / 3, 4.5])
    assert pictures._running_mean(values, 0) == pytest.approx(values)


def test_success_picture_has_a_line_per_rate() -> None:
    few = size(pictures.success_picture({"one": RATE}))
    more = size(pictures.success_picture({"one": RATE, "two": RATE}, {"random": RATE}, RATE))
    assert more[1] > few[1]
    assert more[0] == few[0]
    with pytest.raises(UserError, match="success rates"):
        pictures.success_picture({})


def test_film_strip_takes_first_and_last_frame() -> None:
    frames = np.zeros((20, 8, 8, 3), np.uint8)
    frames[0], frames[-1] = (255, 0, 0), (0, 0, 255)
    strip = np.asarray(Image.open(io.BytesIO(pictures.film_strip(frames, fps=10))).convert("RGB"))
    middle = strip[strip.shape[0] // 3]
    assert tuple(middle[60]) == (255, 0, 0)
    assert tuple(middle[-60]) == (0, 0, 255)
    with pytest.raises(UserError, match="frames"):
        pictures.film_strip(frames[..., 0])


def test_drawing_leaves_no_pyplot_figure_behind() -> None:
    import sys

    pictures.loss_picture([{"step": 1, "loss": 1.0}])
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    pictures.write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        pictures.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
