"""Training resumes to the same losses, is never half-written, and says what is wrong."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from train_helpers import losses, nano_baseline, nano_fast_preset, nano_model, nano_preset

from pizero.baseline.lerobot_style import LerobotStyle
from pizero.checkpoints.format import Facts
from pizero.checkpoints.models import NetworkConfig, make_model
from pizero.checkpoints.native.checkpoint import load_checkpoint, save_checkpoint, verify_example
from pizero.checkpoints.transformers.paligemma import start_from_paligemma
from pizero.configs.presets import Preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.loader import Batch, Loader, Member
from pizero.data.tokenizer import PaligemmaTokenizer, train_tokenizer
from pizero.model.config import GemmaConfig, Pi0Config, SiglipConfig
from pizero.model.pi0 import Pi0
from pizero.train.activations import BLOCKS, checkpoint_activations
from pizero.train.metrics import MetricsFile, read_metrics
from pizero.train.optim import WeightAverage
from pizero.train.run_folder import list_checkpoints
from pizero.train.trainer import Trainer
from pizero.types import UserError
from pizero.workflows.start import Initialization
from pizero.workflows.train import Runtime, train_policy
from pizero.workflows.training_data import DataOptions, build_pipelines, make_tokenizer, open_sources

RESUMED: list[tuple[NetworkConfig, dict[str, Any]]] = [
    (nano_model(), {}),
    (nano_model(), {"optimizer": "muon", "early_frames": 1.5, "max_delay": 3}),
    (nano_baseline(), {"ema_power": 0.75, "ema_decay": 0.9999, "threads": 1}),
    (nano_baseline(num_history=3, state_input=True, objective="flow"), {"augmentation": "shift", "threads": 1}),
]


def test_a_chunk_that_starts_in_the_past_is_not_trained(dataset: Path, tmp_path: Path) -> None:
    """The windows of the data start at the newest observation."""
    style = LerobotStyle((16, 16), ((0.0, 0.0, 0.0),) * 2, ((1.0, 1.0, 1.0),) * 2)
    model = nano_baseline(num_history=3, state_input=True, image_fusion="shared", lerobot=style)
    with pytest.raises(UserError, match="starts before the newest observation runs, but is not trained further"):
        train_policy(dataset, tmp_path / "run", dataclasses.replace(nano_preset(), model=model))


@pytest.mark.parametrize(("model", "changes"), RESUMED, ids=["pi0", "muon", "diffusion", "flow"])
def test_resumed_run_equals_the_uninterrupted_one(
    dataset: Path, tmp_path: Path, model: NetworkConfig, changes: dict[str, Any]
) -> None:
    def preset(**more: Any) -> Preset:
        return dataclasses.replace(nano_preset(**changes, **more), model=model)

    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train_policy(dataset, whole, preset())
    original = Trainer.train_step

    def stop_after_six(self: Trainer, batch: object) -> torch.Tensor:
        if self.step == 6:
            raise KeyboardInterrupt
        return original(self, batch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop_after_six)
        with pytest.raises(KeyboardInterrupt):
            train_policy(dataset, parted, preset())
    assert [path.name for path in list_checkpoints(parted)] == ["0000004"]
    train_policy(dataset, parted, preset(), resume=True)
    assert losses(parted) == losses(whole)
    assert sorted(losses(whole)) == list(range(1, 9))
    one, other = (load_file(folder / "checkpoints" / "0000008" / "model.safetensors") for folder in (whole, parted))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(UserError, match="holds checkpoints up to step 8; give --resume or another folder"):
        train_policy(dataset, parted, preset())


def test_checkpoint_is_the_average_and_reproduces_its_example(dataset: Path, tmp_path: Path) -> None:
    result = train_policy(dataset, tmp_path / "run", nano_preset())
    checkpoint = load_checkpoint(result.checkpoint)
    verify_example(checkpoint)
    state = torch.load(result.checkpoint / "training_state" / "state.pt", weights_only=True)
    average = checkpoint.model.state_dict()
    assert any(not torch.equal(average[name], state["weights"][name]) for name in average)
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "validation_loss" in line] == [
        4,
        8,
    ]


def test_the_average_is_told_the_step_after_a_resume_too(dataset: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightAverage, "update", lambda self, step: steps.append(step))
        train_policy(dataset, tmp_path / "run", nano_preset(ema_power=0.75))
        shutil.rmtree(list_checkpoints(tmp_path / "run")[-1])
        train_policy(dataset, tmp_path / "run", nano_preset(ema_power=0.75), resume=True)
    assert steps == [*range(8), *range(4, 8)]


def test_a_device_that_is_not_here(dataset: Path, tmp_path: Path) -> None:
    for device, text in (("gpu", "unknown device 'gpu'"), ("cuda:63", "device 'cuda:63' cannot be used here")):
        with pytest.raises(UserError, match=text):
            train_policy(dataset, tmp_path / "run", nano_preset(), runtime=Runtime(device))
    assert not (tmp_path / "run").exists()


def test_early_frames_are_drawn_more_often(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = LeRobotDataset(dataset)
    frames = np.flatnonzero(np.arange(data.num_frames) != data.episode_starts[1])  # positions need not be contiguous
    drawn: list[int] = []

    class Recorder(Loader):
        def read(self, frames: NDArray[np.int64]) -> Batch:
            drawn.extend(frames.tolist())
            return Batch({}, np.zeros((1, 1, 1), np.float32))  # type: ignore[typeddict-item]

    monkeypatch.setattr(Member, "tell_cut_prompts", lambda self: None)  # which needs a pipeline
    member = Member(data, None, None, frames)  # type: ignore[arg-type]
    loader = Recorder([member], horizon=1, batch_size=10, seed=0, early_frames=2.0)
    for step in range(2_000):
        loader.batch(step)
    index = np.arange(data.num_frames) - np.repeat(data.episode_starts, data.episode_lengths)
    expected = np.bincount(index[frames], weights=(1.0 + index[frames]) ** -2.0)
    share = np.bincount(index[drawn], minlength=len(expected)) / len(drawn)
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.015)
    assert data.episode_starts[1] not in drawn


def test_tasks_are_drawn_by_their_weights(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Member, "tell_cut_prompts", lambda self: None)  # which needs a pipeline
    monkeypatch.setattr(Member, "prompts", lambda self, frames: [("push", "reach")[frame % 2] for frame in frames])
    data = LeRobotDataset(dataset)
    member = Member(data, None, None, np.arange(data.num_frames), task_weights={"reach": 3.0})  # type: ignore[arg-type]
    loader = Loader([member], horizon=1, batch_size=10, seed=0)
    frames = [
        place.frame + data.episode_starts[place.episode] for step in range(1_000) for place in loader.places(step)
    ]
    assert np.mean(np.array(frames) % 2) == pytest.approx(0.75, abs=0.015)  # reach has half the frames


def test_a_run_keeps_the_weights_of_its_tasks(dataset: Path, tmp_path: Path) -> None:
    data = LeRobotDataset(dataset)
    task = data.prompts(data.episode_starts)[0]
    weighted = dataclasses.replace(nano_preset(steps=2), task_weights={task: 3.0})
    train_policy(dataset, tmp_path / "run", weighted)
    more = nano_preset(steps=4)
    with pytest.raises(UserError, match=r"task_weights was .*3\.0.*, now None"):
        train_policy(dataset, tmp_path / "run", more, resume=True)
    train_policy(dataset, tmp_path / "run", dataclasses.replace(more, task_weights={task: 3.0}), resume=True)
    wrong = dataclasses.replace(more, task_weights={task[:-1]: 3.0})
    with pytest.raises(UserError, match=f"which no frame to train on has; did you mean '{task}'"):
        train_policy(dataset, tmp_path / "wrong", wrong)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({"reach": 0}, "task_weights of 'reach' must be a number above 0, got 0"),
        ({"reach": "three"}, "'reach' must be a number above 0, got three"),
        ({"reach": float("nan")}, "got nan"),
        (3.0, "task_weights must be a table of instructions and numbers, got 3.0"),
    ],
)
def test_weights_of_tasks_that_cannot_be(weights: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        dataclasses.replace(nano_preset(), task_weights=weights)


def test_training_learns(dataset: Path, tmp_path: Path) -> None:
    train_policy(
        dataset, tmp_path / "run", nano_preset(steps=60, augmentation="none", save_every=60, validate_every=60)
    )
    curve = losses(tmp_path / "run")
    first, last = (sum(curve[step] for step in steps) / 5 for steps in (range(1, 6), range(56, 61)))
    assert last < 0.8 * first


def test_killed_process_leaves_only_whole_checkpoints(dataset: Path, tmp_path: Path) -> None:
    """kill -9 during a run that saves after every step: what is left loads, and the run goes on from it."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from pathlib import Path\n"
        "from train_helpers import nano_preset; from pizero.workflows.train import train_policy\n"
        "preset = nano_preset(steps=400, save_every=1, validate_every=400)\n"
        "train_policy(Path(sys.argv[1]), Path(sys.argv[2]), preset)\n"
    )
    run = tmp_path / "run"
    arguments = [sys.executable, "-c", code, str(dataset), str(run), str(Path(__file__).parent)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list_checkpoints(run)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    last = list_checkpoints(run)[-1]
    verify_example(load_checkpoint(last))
    step = int(last.name)
    trainer_steps = []

    def stop(self: Trainer, batch: object) -> torch.Tensor:
        trainer_steps.append(self.step)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train_policy(dataset, run, nano_preset(steps=400, save_every=1, validate_every=400), resume=True)
    assert trainer_steps == [step]


def test_not_a_number_stops_with_one_line(dataset: Path, tmp_path: Path) -> None:
    wild = nano_preset(learning_rate=1e30, final_learning_rate=1e30, clip_norm=1e30, warmup_steps=0)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step"):
        train_policy(dataset, tmp_path / "run", wild)


def test_activation_checkpointing_gives_the_same_losses(dataset: Path, tmp_path: Path) -> None:
    original = Pi0.__init__
    train_policy(dataset, tmp_path / "plain", nano_preset())

    def checkpointed(self: Pi0, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        checkpoint_activations(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pi0, "__init__", checkpointed)
        train_policy(dataset, tmp_path / "checkpointed", nano_preset())
    assert losses(tmp_path / "checkpointed") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


@pytest.mark.parametrize("make", [nano_preset, nano_fast_preset])
def test_compiling_reaches_every_block(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Preset]
) -> None:
    """Every weight of every block is an input of a compiled graph, and the loss stays what it is."""
    seen: dict[int, torch.nn.Parameter] = {}

    def watching(graph: Any, _: object) -> Any:
        """A compiler that leaves a graph as it is."""

        def call(*inputs: Any) -> Any:
            seen.update((id(value), value) for value in inputs if isinstance(value, torch.nn.Parameter))
            return graph(*inputs)

        return call

    preset = make(steps=1, precision="float32")
    train_policy(dataset, tmp_path / "plain", preset)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=watching))
    train_policy(dataset, tmp_path / "run", preset, runtime=Runtime(compiled=True))
    blocks = [module for module in make_model(preset.model).modules() if isinstance(module, BLOCKS)]
    assert len(seen) == sum(1 for block in blocks for _ in block.parameters())
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(dataset: Path, tmp_path: Path) -> None:
    preset = nano_preset(precision="float32", steps=4)
    train_policy(dataset, tmp_path / "plain", preset)
    train_policy(dataset, tmp_path / "compiled", preset, runtime=Runtime(recompute=True, compiled=True))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_compiling_that_cannot_be_is_an_error(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = dataclasses.replace(nano_preset(), model=nano_baseline())
    with pytest.raises(UserError, match="not for several ranks or the baseline"):
        train_policy(dataset, tmp_path / "baseline", baseline, runtime=Runtime(compiled=True))

    def no_compiler(*_: object) -> None:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(UserError, match=r"train without --compile: no C\+\+ compiler$"):
        train_policy(dataset, tmp_path / "run", nano_preset(), runtime=Runtime(compiled=True))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_metrics_survive_a_cut_off_line_and_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    metrics = MetricsFile(path, resume_step=1)
    metrics.write(2, loss=0.25)
    metrics.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.25},
    ]  # fmt: skip


def test_vocabulary_larger_than_the_table(dataset: Path, tmp_path: Path) -> None:
    small = dataclasses.replace(nano_preset(), model=nano_model(vocab_size=64))
    sources = open_sources(dataset, "tabletop")
    with pytest.raises(UserError, match="the model's table 64; choose a smaller tokenizer"):
        build_pipelines(sources, small, Facts(tokenizer=make_tokenizer(sources, small)))


@pytest.mark.parametrize("pi05", [False, True])
def test_both_models_train_through_one_path(dataset: Path, tmp_path: Path, pi05: bool) -> None:
    preset = dataclasses.replace(
        nano_preset(steps=2, save_every=2, validate_every=2),
        model=nano_model(pi05, prompt_length=64),
        norm_mode="quantile" if pi05 else "zscore",
    )
    verify_example(load_checkpoint(train_policy(dataset, tmp_path, preset).checkpoint))


def test_a_diffusion_policy_is_fine_tuned(dataset: Path, tmp_path: Path) -> None:
    preset = dataclasses.replace(nano_preset(steps=2, save_every=2, validate_every=2, threads=1), model=nano_baseline())
    first = train_policy(dataset, tmp_path / "first", preset)
    verify_example(load_checkpoint(first.checkpoint))
    still = dataclasses.replace(
        preset, train=dataclasses.replace(preset.train, steps=1, learning_rate=1e-12, ema_decay=0.0)
    )
    second = train_policy(dataset, tmp_path / "second", still, initial=Initialization(first.checkpoint))
    before, after = (load_checkpoint(result.checkpoint).model.state_dict() for result in (first, second))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=0)
    with pytest.raises(
        UserError, match="holds a model 'diffusion', but 'pi0' is to be trained; give --model diffusion"
    ):
        train_policy(dataset, tmp_path / "third", nano_preset(), initial=Initialization(first.checkpoint))


def test_a_start_of_the_other_pi_is_refused(dataset: Path, tmp_path: Path) -> None:
    """Once --model pi05 with the checkpoint of a π0 trained the π0 without a word."""
    preset = nano_preset(steps=1, save_every=1, validate_every=1)
    first = train_policy(dataset, tmp_path / "first", preset)
    other = dataclasses.replace(preset, model=dataclasses.replace(nano_model(), time_conditioning="adarms"))
    with pytest.raises(UserError, match="holds a model 'pi0', but 'pi05' is to be trained; give --model pi0"):
        train_policy(dataset, tmp_path / "second", other, initial=Initialization(first.checkpoint))


def test_a_start_keeps_its_tokenizer_and_its_convention(dataset: Path, tmp_path: Path) -> None:
    """Other token ids, or images resized otherwise, would undo what the weights have learned."""
    model = nano_model(vocab_size=259)
    pipelines = build_pipelines(
        open_sources(dataset, "tabletop"), dataclasses.replace(nano_preset(), model=model),
        Facts(tokenizer=PaligemmaTokenizer.bytes()),
    )  # fmt: skip
    pipeline = dataclasses.replace(pipelines["tabletop"], convention="lerobot")
    save_checkpoint(tmp_path / "start", Pi0(model), pipeline)
    preset = nano_preset(steps=1, save_every=1, validate_every=1)
    result = train_policy(dataset, tmp_path / "run", preset, initial=Initialization(tmp_path / "start"))
    found = load_checkpoint(result.checkpoint)
    assert found.pipeline is not None
    assert (found.pipeline.tokenizer.vocab_size, found.pipeline.convention) == (259, "lerobot")
    save_checkpoint(tmp_path / "alone", Pi0(model))
    with pytest.raises(UserError, match=r"does not record tokenizer.*give --tokenizer"):
        train_policy(dataset, tmp_path / "other", preset, initial=Initialization(tmp_path / "alone"))


def test_training_starts_from_paligemma(dataset: Path, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "transformers" / "paligemma"
    model = Pi0Config(
        vision=SiglipConfig(48, 2, 80, 4, 14), prefix=GemmaConfig(64, 3, 96, 4, 1, 16),
        expert=GemmaConfig(32, 3, 64, 4, 1, 16), vocab_size=384, cameras=nano_model().cameras, image_size=28,
        prompt_length=24, state_dim=8, action_dim=8, action_horizon=6,
    )  # fmt: skip
    preset = dataclasses.replace(nano_preset(steps=1, save_every=1, validate_every=1, learning_rate=1e-12), model=model)
    tokenizer = train_tokenizer(["lift the red block"], tmp_path / "t.model", 384)
    result = train_policy(dataset, tmp_path / "run", preset, initial=Initialization(golden, tmp_path / "t.model"))
    started = Pi0(model)
    start_from_paligemma(golden, started)
    found = load_checkpoint(result.checkpoint)
    for name in ("transformer.layers.2.prefix.mlp.up.weight", "vision_tower.position_embedding"):
        torch.testing.assert_close(found.model.state_dict()[name], started.state_dict()[name], atol=1e-6, rtol=0)
    assert found.pipeline is not None
    assert found.pipeline.tokenizer.vocab_size == tokenizer.vocab_size
    baseline = dataclasses.replace(preset, model=nano_baseline())
    with pytest.raises(UserError, match=r"from which only π0, π0\.5 and π0-FAST can start"):
        train_policy(dataset, tmp_path / "no", baseline, initial=Initialization(golden))


def test_an_episode_that_cannot_be_decoded_is_left_out(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "data")
    path = next((copy / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    key = next(name for name in table.column_names if name.startswith("observation.images."))
    rows = table.column(key).to_pylist()
    wrong = next(i for i, episode in enumerate(table.column("episode_index").to_pylist()) if episode == 1)
    rows[wrong]["bytes"] = b"no picture"
    index = table.column_names.index(key)
    field = table.schema.field(index)
    pq.write_table(table.set_column(index, field, pa.array(rows, type=field.type)), path)
    preset = nano_preset(steps=1, save_every=1, validate_every=1)
    with pytest.raises(UserError, match=r"episode 1: frame 0 of .* cannot be decoded"):
        train_policy(copy, tmp_path / "strict", preset)
    train_policy(copy, tmp_path / "run", preset, data=DataOptions(skip_bad_episodes=True))


def test_muon_and_a_diffusion_policy_are_one_clear_line(dataset: Path, tmp_path: Path) -> None:
    preset = dataclasses.replace(nano_preset(optimizer="muon"), model=nano_baseline())
    with pytest.raises(UserError, match="DiffusionPolicy has none to train; use adamw"):
        train_policy(dataset, tmp_path / "run", preset)


def test_delays_are_drawn_and_the_checkpoint_tells_their_limit(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    loss = Pi0.loss

    def watched(model: Pi0, *inputs: Any, **options: Any) -> torch.Tensor:
        seen.append(options["delay"])
        return loss(model, *inputs, **options)

    monkeypatch.setattr(Pi0, "loss", watched)
    result = train_policy(dataset, tmp_path / "run", nano_preset(max_delay=3))
    assert all(delay.shape == (2, 8) for delay in seen[:4])
    assert set(torch.cat([delay.flatten() for delay in seen]).tolist()) == {0, 1, 2, 3}
    config = load_checkpoint(result.checkpoint).model.config
    assert isinstance(config, Pi0Config)
    assert config.max_delay == 3
    with pytest.raises(UserError, match="max_delay 6 leaves nothing of a chunk of 6 actions"):
        train_policy(dataset, tmp_path / "long", nano_preset(max_delay=6))
    baseline = dataclasses.replace(nano_preset(max_delay=3), model=nano_baseline())
    with pytest.raises(UserError, match=r"max_delay is for π0 and π0\.5"):
        train_policy(dataset, tmp_path / "baseline", baseline)
