"""The folder of a training run stands for its newest checkpoint wherever a checkpoint is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pizero import load_model, load_policy
from pizero.checkpoints.convert import convert
from pizero.checkpoints.native.adapters import save_adapters
from pizero.checkpoints.native.checkpoint import save_checkpoint
from pizero.checkpoints.stats import read_norm_stats
from pizero.configs.presets import get_preset
from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import small_config
from pizero.model.pi0 import Pi0
from pizero.train.config import LoraConfig, PartsConfig
from pizero.train.parts import choose_parts
from pizero.workflows.inspect import model_config
from pizero.workflows.serve import loaders, named
from pizero.workflows.start import open_start

CONFIG = small_config("nano", vocab_size=259, prompt_length=14)
NEWEST = 3.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints; the mean of the newest's actions is NEWEST. It has adapters beside its weights."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    torch.manual_seed(0)
    model = Pi0(CONFIG)
    for step, mean in ((10, 1.0), (20, NEWEST)):
        stats = NormStats("zscore", FieldStats(np.zeros(2), np.ones(2)), FieldStats(np.full(2, mean), np.ones(2)))
        pipeline = Pipeline(
            generic({"base_0_rgb": "top"}), stats, PaligemmaTokenizer.bytes(), cameras=CONFIG.cameras,
            prompt_format="pi0", prompt_length=CONFIG.prompt_length, image_size=CONFIG.image_shape,
            state_dim=CONFIG.state_dim, action_dim=CONFIG.action_dim,
        )  # fmt: skip
        save_checkpoint(folder / "checkpoints" / f"{step:07d}", model, pipeline)
    adapted = Pi0(CONFIG)
    adapted.load_state_dict(model.state_dict())
    choose_parts(adapted, PartsConfig(freeze=("vision", "heads"), lora=LoraConfig(prefix_rank=2, expert_rank=2)))
    save_adapters(folder / "checkpoints" / "0000020" / "adapters", adapted, pipeline)
    return folder


def means(pipeline: Pipeline) -> list[float]:
    return pipeline.norm_stats.actions.mean.tolist()


def test_models_and_policies(run: Path) -> None:
    assert load_model(run).config == CONFIG
    assert means(load_policy(run).pipeline) == [NEWEST] * 2
    assert means(load_policy(str(run)).pipeline) == [NEWEST] * 2
    assert means(load_policy(run / "checkpoints" / "0000010", adapters=run).pipeline) == [NEWEST] * 2


def test_a_server_takes_the_newest_of_each_load(run: Path) -> None:
    paths = named([f"one={run}", f"adapted={run / 'checkpoints' / '0000010'}+{run}"])
    for load in loaders(paths).values():
        assert means(load().pipeline) == [NEWEST] * 2


def test_commands_that_only_read_sizes_and_numbers(run: Path) -> None:
    assert model_config(str(run)) == CONFIG
    assert read_norm_stats(run, "zscore", generic({})).actions.mean.tolist() == [NEWEST] * 2


def test_a_training_begins_with_it(run: Path) -> None:
    preset = get_preset("tabletop")
    start = open_start(run, replace(preset, model=CONFIG))
    assert start.folder == run / "checkpoints" / "0000020"
    assert start.source is not None
    assert start.source.config == CONFIG


def test_a_conversion_takes_it_and_its_adapters(run: Path, tmp_path: Path) -> None:
    convert(run, tmp_path / "openpi", "openpi-torch")
    convert(run / "checkpoints" / "0000010", tmp_path / "merged", "native", merge_lora=run)
    assert means(load_policy(tmp_path / "merged").pipeline) == [NEWEST] * 2
