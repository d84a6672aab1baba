"""π0.5 that learns text and FAST tokens, through the same training: batches, checkpoint, resume, a new start."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from every_command import command, use_with_every_command
from train_helpers import losses, nano_fast_preset, nano_model, nano_preset

from pizero.checkpoints.load import load_policy
from pizero.checkpoints.native.checkpoint import load_checkpoint
from pizero.configs.language import with_language
from pizero.configs.preset import Preset
from pizero.configs.presets import get_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.layouts import Layout
from pizero.data.pipeline import Pipeline
from pizero.model.config import LanguageConfig
from pizero.train.config import GradientConfig
from pizero.train.distributed import Placement
from pizero.train.inputs import trimmed
from pizero.train.metrics import read_metrics
from pizero.types import LayoutName, UserError
from pizero.workflows.start import Initialization
from pizero.workflows.train import train_policy
from pizero.workflows.training_data import DataOptions, make_loaders, open_sources

TEXTS = ("reach the block", "lift it up")


class NoBars:
    def add_task(self, *_: object, **__: object) -> int:
        return 0

    def update(self, *_: object, **__: object) -> None: ...


def preset_with(text: LayoutName | None, fast: bool, insulation: bool = True, **changes: int) -> Preset:
    preset = dataclasses.replace(nano_preset(**changes), model=nano_model(pi05=True), norm_mode="quantile")
    return with_language(dataclasses.replace(preset, codec_size=300), text, fast, insulation)


@pytest.fixture(scope="module")
def subtasks(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> DataOptions:
    """Two texts in each episode but the last three, which have none; of eight, two are held out."""
    episodes = LeRobotDataset(dataset).num_episodes - 3
    pieces = tuple(zip((0, 2), TEXTS, strict=True))
    lines = [f"{episode},{start},,{text}" for episode in range(episodes) for start, text in pieces]
    path = tmp_path_factory.mktemp("subtasks") / "subtasks.csv"
    path.write_text("\n".join(["episode,from_frame,to_frame,text", *lines]) + "\n")
    return DataOptions(subtasks=path)


@pytest.fixture(scope="module")
def run(dataset: Path, subtasks: DataOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language") / "run"
    train_policy(dataset, folder, preset_with("openpi", True), data=subtasks)
    return folder


def test_the_checkpoint_has_layout_and_codec(run: Path, dataset: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(run / "checkpoints" / "0000008", tmp_path / "alone"))
    policy = load_policy(alone, verify=True)
    language = policy.model.config.language
    assert language == LanguageConfig(text_length=language.text_length)
    pipeline = policy.pipeline
    assert (pipeline.layout, pipeline.text_length) == ("openpi", language.text_length)
    assert pipeline.fast is not None
    longest = max(len(Layout("openpi", pipeline.tokenizer).encode("", None, text).target) for text in TEXTS)
    assert longest - 20 < pipeline.text_length <= longest
    again = Pipeline.load(alone)
    assert (again.layout, again.text_length, again.prompt_length) == (
        "openpi", pipeline.text_length, pipeline.prompt_length
    )  # fmt: skip


def test_a_batch_has_text_and_fast_tokens(run: Path, dataset: Path, subtasks: DataOptions) -> None:
    model, checkpoint = load_checkpoint(run / "checkpoints" / "0000008").model, run / "checkpoints" / "0000008"
    pipeline = Pipeline.load(checkpoint)
    preset = dataclasses.replace(preset_with("openpi", True), model=model.config)
    loader, _ = make_loaders(
        open_sources(dataset, "tabletop", subtasks=subtasks.subtasks), {"tabletop": pipeline}, preset, NoBars(),
        subtasks, Placement(torch.device("cpu")),
    )  # fmt: skip
    batches = [loader.batch(step) for step in range(4)]
    texts = {text for batch in batches for text in batch.subtasks or ()}
    assert texts == {"", *TEXTS}
    layout = Layout("openpi", pipeline.tokenizer)
    for batch in batches:
        observation = pipeline.observation(trimmed(batch.inputs), "cpu")
        assert observation.prompt_target is not None
        assert observation.fast_tokens is not None
        assert observation.fast_target is not None
        for row, text in enumerate(batch.subtasks or ()):
            written = observation.prompt_tokens[row][observation.prompt_target[row]].tolist()
            assert layout.read(written) == text
            codes = pipeline.fast.to_text(observation.fast_tokens[row][observation.fast_target[row]].tolist())
            assert np.abs(pipeline.fast.codec.decode(codes, 6, 5) - batch.actions[row]).max() < 0.2
    both = model.losses(observation, torch.from_numpy(batches[-1].actions), draws=2)
    assert both.text.mean() > 0
    assert both.fast.mean() > 0


def test_every_command_takes_it(run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer, refused = use_with_every_command(run, dataset, "pi05", tmp_path)
    assert answer["actions"].shape == (6, 5)
    assert isinstance(answer["subtask"], str)
    assert "previous_actions: got shape (99, 5)" in refused
    capsys.readouterr()
    assert command("bench", ["tokens", str(run), str(dataset)]) == 2
    assert "holds no π0-FAST: only that writes tokens" in capsys.readouterr().err


def test_parts_of_a_batch_weigh_as_the_whole(dataset: Path, subtasks: DataOptions, tmp_path: Path) -> None:
    """Texts and tokens are means over all parts, though some samples have no text."""
    found = list[list[float]]()
    for parts in (1, 4):
        preset = preset_with("openpi", True, steps=3, validate_every=3, save_every=3)
        train = dataclasses.replace(preset.train, gradient=GradientConfig(accumulate=parts))
        train_policy(dataset, tmp_path / str(parts), dataclasses.replace(preset, train=train), data=subtasks)
        found.append(list(losses(tmp_path / str(parts)).values()))
    assert len(found[0]) == 3
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


def test_an_exact_resume(run: Path, dataset: Path, subtasks: DataOptions, tmp_path: Path) -> None:
    """From the middle, whether the options are given again or not; other ones are refused."""
    half = tmp_path / "half"
    shutil.copytree(run, half)
    shutil.rmtree(half / "checkpoints" / "0000008")
    with pytest.raises(UserError, match=r"language\.insulation was True, now False"):
        train_policy(dataset, half, preset_with("openpi", True, False), resume=True, data=subtasks)
    plain = dataclasses.replace(preset_with("openpi", True), model=nano_model(pi05=True))
    train_policy(dataset, half, plain, resume=True, data=subtasks)
    assert losses(half) == losses(run)
    first, second = (load_checkpoint(folder / "checkpoints" / "0000008").model.state_dict() for folder in (run, half))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_starts_from_it(run: Path, dataset: Path, subtasks: DataOptions, tmp_path: Path) -> None:
    """Goes on with text and FAST tokens by itself; with options it learns what they say."""
    plain = dataclasses.replace(nano_preset(steps=1, save_every=1), model=nano_model(pi05=True), norm_mode="quantile")
    initial = Initialization(run)
    found = train_policy(dataset, tmp_path / "same", plain, initial=initial, data=subtasks).checkpoint
    assert load_checkpoint(found).model.config.language == load_policy(run).model.config.language
    assert (Pipeline.load(found).layout, Pipeline.load(found).fast is None) == ("openpi", False)
    alone = with_language(plain, "lerobot", False, True)
    found = train_policy(dataset, tmp_path / "text", alone, initial=initial, data=subtasks).checkpoint
    assert (Pipeline.load(found).layout, Pipeline.load(found).fast) == ("lerobot", None)


def test_fast_tokens_alone(dataset: Path, tmp_path: Path) -> None:
    """Without subtasks the prompts are those of the released π0.5, and the flow leaves the prefix alone."""
    result = train_policy(dataset, tmp_path / "run", preset_with(None, True, steps=4, validate_every=2))
    pipeline = Pipeline.load(result.checkpoint)
    assert pipeline.text_length == 0
    tokens, _ = pipeline.encode_prompts(["lift it"], np.zeros((1, 7), np.float32))
    expected, _ = dataclasses.replace(pipeline, layout=None).encode_prompts(["lift it"], np.zeros((1, 7), np.float32))
    assert np.array_equal(tokens, expected)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "validation_fast" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        total = 10 * line["validation_flow"] + line["validation_fast"]
        assert line["validation_loss"] == pytest.approx(total, rel=1e-5)
        assert "validation_text" not in line


def test_what_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give them with --subtasks"):
        train_policy(dataset, tmp_path / "run", preset_with("openpi", False))
    with pytest.raises(UserError, match="give --model pi05"):
        with_language(nano_fast_preset(), "openpi", False, True)
    with pytest.raises(UserError, match="insulation is for a model"):
        with_language(nano_preset(), None, False, False)


def test_in_a_preset_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "tabletop"\n[model.language]\ntext_weight = 0\nlayout = "opentau"\n')
    language = get_preset(str(path), "pi05").model.language
    assert language == LanguageConfig(text_weight=0, layout="opentau")
    path.write_text('like = "tabletop"\n[model.language]\nlayuot = "opentau"\n')
    with pytest.raises(UserError, match="unknown keys in language: layuot"):
        get_preset(str(path), "pi05")
