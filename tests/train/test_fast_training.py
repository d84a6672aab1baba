"""π0-FAST through the same training as π0: batches with action tokens, a codec in the checkpoint, an exact resume."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from every_command import use_with_every_command
from openpi_adapters import with_openpi_adapters
from train_helpers import losses, nano_fast_preset, nano_preset

from pizero.checkpoints.convert import convert
from pizero.checkpoints.load import load_network, load_policy
from pizero.checkpoints.native.adapters import PlainState
from pizero.checkpoints.native.checkpoint import load_checkpoint
from pizero.checkpoints.openpi import jax as openpi_jax
from pizero.configs.presets import PRESETS, get_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.fast.codec import FastCodec
from pizero.data.pipeline import Pipeline
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.train.config import LoraConfig, PartsConfig
from pizero.train.distributed import Placement
from pizero.train.inputs import trimmed
from pizero.train.lora import add_lora, load_adapters
from pizero.types import UserError
from pizero.workflows.bench_tokens import TokensConfig, bench_tokens
from pizero.workflows.fit_codec import CodecConfig, fit_codec
from pizero.workflows.measures import MeasureConfig
from pizero.workflows.replay import recorded_observation
from pizero.workflows.start import Initialization
from pizero.workflows.train import Runtime, train_policy
from pizero.workflows.training_data import DataOptions, make_loaders, open_sources


class NoBars:
    def add_task(self, *_: object, **__: object) -> int:
        return 0

    def update(self, *_: object, **__: object) -> None: ...


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fast") / "run"
    train_policy(dataset, folder, nano_fast_preset(), measure=MeasureConfig(open_loop_chunks=2))
    return folder


def test_a_checkpoint_is_complete(run: Path, dataset: Path, tmp_path: Path) -> None:
    """Alone in another place it gives whole chunks; its stored example holds."""
    alone = Path(shutil.copytree(run / "checkpoints" / "0000008", tmp_path / "alone"))
    policy = load_policy(alone, verify=True)
    config = policy.model.config
    assert isinstance(config, Pi0FastConfig)
    observations = [recorded_observation(LeRobotDataset(dataset), policy.pipeline, frame) for frame in (0, 9, 30)]
    together = [answer["actions"] for answer in policy.infer_batch(observations)]
    assert together[0].shape == (6, 5)
    for observation, actions in zip(observations, together, strict=True):
        np.testing.assert_allclose(policy.infer(observation)["actions"], actions, atol=1e-6)
    shutil.rmtree(alone / "fast_codec")
    with pytest.raises(UserError, match="holds no FAST codec"):
        load_policy(alone)


def test_what_is_measured(run: Path) -> None:
    text = (run / "metrics.jsonl").read_text()
    assert "validation_loss" in text
    assert "open_loop_error" in text
    assert losses(run)[8] < losses(run)[1]


def test_an_exact_resume(run: Path, dataset: Path, tmp_path: Path) -> None:
    """From the middle: the codec, the tokenizer and the sizes are those of the checkpoint."""
    half = tmp_path / "half"
    shutil.copytree(run, half)
    shutil.rmtree(half / "checkpoints" / "0000008")
    train_policy(dataset, half, nano_fast_preset(), resume=True, measure=MeasureConfig(open_loop_chunks=2))
    assert losses(half) == losses(run)
    first, second = (load_checkpoint(folder / "checkpoints" / "0000008").model.state_dict() for folder in (run, half))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_batch_goes_on_with_the_actions(run: Path, dataset: Path) -> None:
    """Tokens after the prompt decode to the chunk; the loss is on them alone, and nothing but padding is cut."""
    pipeline = Pipeline.load(run / "checkpoints" / "0000008")
    sources = open_sources(dataset, "tabletop")
    preset = dataclasses.replace(
        nano_fast_preset(), model=load_checkpoint(run / "checkpoints" / "0000008").model.config
    )
    loader, _ = make_loaders(
        sources, {"tabletop": pipeline}, preset, NoBars(), DataOptions(), Placement(torch.device("cpu"))
    )
    batch = loader.batch(0)
    observation = pipeline.observation(trimmed(batch.inputs), "cpu")
    causal, target = observation.prompt_causal, observation.prompt_target
    assert causal is not None
    assert target is not None
    assert observation.prompt_mask.sum(dim=1).max() == observation.prompt_tokens.shape[1]
    assert pipeline.fast is not None
    for row in range(len(batch.actions)):
        written = observation.prompt_tokens[row][target[row]].tolist()
        decoded = pipeline.fast.decode(written, 6, 5)
        assert np.abs(decoded - batch.actions[row]).max() < 0.2  # the codec's rounding
        assert torch.equal(causal[row], target[row])
        assert written == observation.prompt_tokens[row][observation.prompt_mask[row]][-len(written) :].tolist()
    model = load_checkpoint(run / "checkpoints" / "0000008").model
    assert isinstance(model, Pi0Fast)
    with torch.no_grad():
        whole = model.loss(observation, torch.from_numpy(batch.actions))
        again = model.loss(pipeline.observation(batch.inputs, "cpu"), torch.from_numpy(batch.actions))
        part = model.loss(observation[2:4], torch.from_numpy(batch.actions[2:4]))
    torch.testing.assert_close(again, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(part, whole[2:4], atol=1e-5, rtol=1e-5)


def test_a_codec_that_is_given(run: Path, dataset: Path, tmp_path: Path) -> None:
    codec, _, _ = fit_codec(dataset, tmp_path / "codec", CodecConfig("tabletop", horizon=6, vocab_size=280))
    preset = nano_fast_preset(steps=1, save_every=1)
    result = train_policy(dataset, tmp_path / "given", preset, initial=Initialization(codec=tmp_path / "codec"))
    stored = FastCodec.load(result.checkpoint / "fast_codec")
    assert stored.size == codec.size
    assert stored.tokenizer.to_str() == codec.tokenizer.to_str()
    # a start brings its own, with sizes of its own
    start = Initialization(run / "checkpoints" / "0000008")
    started = train_policy(dataset, tmp_path / "started", preset, initial=start)
    first, own = (FastCodec.load(folder / "fast_codec") for folder in (start.checkpoint, started.checkpoint))  # type: ignore[operator]
    assert own.tokenizer.to_str() == first.tokenizer.to_str()


def test_what_does_not_fit_is_one_line(run: Path, dataset: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "0000008"
    for preset, initial, message in (
        (nano_fast_preset(draws=2), Initialization(), "draws 2: a π0-FAST learns without noise"),
        (nano_fast_preset(max_delay=2), Initialization(), "max_delay is for π0 and π0.5, not for π0-FAST"),
        (nano_preset(), Initialization(codec="x"), "a codec is for --model pi0-fast"),
        (nano_fast_preset(), Initialization(codec=tmp_path / "no"), "no dataset|nothing|no FAST codec|not a"),
        (
            nano_fast_preset(parts=PartsConfig(freeze=("expert",))),
            Initialization(),
            "freeze expert: a π0-FAST has vision",
        ),
        (
            nano_fast_preset(parts=PartsConfig(lora=LoraConfig(prefix_rank=0)), ema_decay=0.0),
            Initialization(checkpoint),
            "prefix_rank must be above 0",
        ),
        (
            nano_fast_preset(parts=PartsConfig(embedding_steps="stateless")),
            Initialization(),
            "stateless moves the rows",
        ),
        (nano_preset(), Initialization(checkpoint), "holds a model 'pi0-fast', but 'pi0' is to be trained"),
    ):
        with pytest.raises(UserError, match=message) as error:
            train_policy(dataset, tmp_path / "run", preset, initial=initial)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="num_steps 5: a π0-FAST writes tokens"):
        load_policy(checkpoint, num_steps=5)


def test_parts_and_precisions_of_it(dataset: Path, tmp_path: Path) -> None:
    """Frozen weights stay to the bit, bfloat16 weights train; recomputed layers change no loss."""
    plain = nano_fast_preset(steps=3, precision="float32")
    train_policy(dataset, tmp_path / "plain", plain)
    train_policy(dataset, tmp_path / "recomputed", plain, runtime=Runtime(recompute=True))
    assert losses(tmp_path / "recomputed") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    parts = PartsConfig(freeze=("prefix",))
    frozen = nano_fast_preset(steps=3, precision="float32", parts=parts, ema_decay=0.0)
    train_policy(dataset, tmp_path / "frozen", frozen, initial=Initialization(tmp_path / "plain"))
    before, after = (
        dict(load_checkpoint(tmp_path / name / "checkpoints" / "0000003").model.named_parameters())
        for name in ("plain", "frozen")
    )
    for name, weight in after.items():
        assert torch.equal(weight, before[name]) != name.startswith("vision_tower."), name
    train_policy(dataset, tmp_path / "half", nano_fast_preset(steps=3, precision="bfloat16"))
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "plain"), rel=0.02)


def test_adapters_of_it(run: Path, dataset: Path, tmp_path: Path) -> None:
    """They and the vision tower move; merged they are the checkpoint; a resume is exact; a π0 does not take them."""
    base = run / "checkpoints" / "0000008"
    preset = nano_fast_preset(
        steps=4, save_every=2, precision="float32", learning_rate=0.01, ema_decay=0.0,
        parts=PartsConfig(lora=LoraConfig(prefix_rank=4, prefix_alpha=8.0)),
    )  # fmt: skip
    trained = train_policy(dataset, tmp_path / "run", preset, initial=Initialization(base)).checkpoint
    before, after = (load_network(folder).state_dict() for folder in (base, trained))
    adapted = {name for name in after if name.startswith("layers.") and "norm" not in name}
    assert len(adapted) == 7 * len({name.split(".")[1] for name in adapted})
    for name, weight in after.items():
        assert torch.equal(weight, before[name]) != (name in adapted or name.startswith("vision_tower.")), name
    convert(base, tmp_path / "merged", "native", merge_lora=trained / "adapters")
    torch.testing.assert_close(load_network(tmp_path / "merged").state_dict(), after, atol=1e-6, rtol=1e-6)

    half = tmp_path / "half"
    shutil.copytree(tmp_path / "run", half)
    shutil.rmtree(half / "checkpoints" / "0000004")
    train_policy(dataset, half, preset, initial=Initialization(base), resume=True)
    assert losses(half) == losses(tmp_path / "run")

    other = train_policy(dataset, tmp_path / "pi0", nano_preset(steps=1, save_every=1)).checkpoint
    with pytest.raises(UserError, match=r"are of a model 'pi0-fast', the checkpoint is 'pi0'$"):
        load_policy(other, adapters=trained / "adapters")


def test_openpi_adapters_of_it(run: Path, tmp_path: Path) -> None:
    """Merged when they are read, and apart for a training that continues them."""
    base = run / "checkpoints" / "0000008"
    start = with_openpi_adapters(tmp_path / "openpi", base)
    model = load_network(base)
    factors = openpi_jax.read_unmerged(start)[1]
    load_adapters(add_lora(model, LoraConfig()), factors)
    merged = load_network(start).state_dict()
    for name, tensor in PlainState(model).items():
        torch.testing.assert_close(merged[name], tensor, atol=2e-5, rtol=1e-5)
    before = load_network(base).state_dict()["layers.0.query.weight"]
    assert (merged["layers.0.query.weight"] - before).abs().max() > 0.01


def test_every_command_takes_it(run: Path, dataset: Path, tmp_path: Path) -> None:
    answer, refused = use_with_every_command(run, dataset, "pi0-fast", tmp_path)
    assert answer["actions"].shape == (6, 5)
    assert "subtask" not in answer
    assert refused.endswith("only π0 and π0.5 can continue a chunk; play whole chunks of this model")


def test_plain_and_fast_path_are_timed(run: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench_tokens(run, dataset, TokensConfig(observations=2, rounds=1, threads=1))
    paths = result["paths"]
    assert paths["plain"]["malformed"] == paths["fast"]["malformed"] == 0
    assert paths["plain"]["tokens"] == paths["fast"]["tokens"] > 10
    assert min(row["median_ms"] for row in paths.values()) > 0
    assert result["apart"] < 1e-5


def test_presets_of_it() -> None:
    for name in PRESETS:
        preset = get_preset(name, "pi0-fast")
        assert isinstance(preset.model, Pi0FastConfig)
        assert (preset.norm_mode, preset.train.draws) == ("quantile", 1)
