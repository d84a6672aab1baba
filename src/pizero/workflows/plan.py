"""`pizero train --plan`: what a training will need, whether that fits, what to change if not, and about how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.table import Table

from pizero.baseline.config import BaselineConfig
from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.load import read_checkpoint
from pizero.checkpoints.models import known_device
from pizero.checkpoints.transformers import paligemma
from pizero.configs.finetune import with_lora
from pizero.configs.one_step import WITHOUT_BASE, takes_one_step, with_one_step_of
from pizero.configs.presets import Preset
from pizero.data.embodiments import get_embodiment
from pizero.model.config import Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.train.distributed import Sharding
from pizero.train.optim import multiplies_in_bfloat16
from pizero.train.plan import Layout, StepPlan, plan_step
from pizero.types import UserError
from pizero.workflows.memory import free_memory
from pizero.workflows.progress import console
from pizero.workflows.sizes import sized
from pizero.workflows.start import check_kind
from pizero.workflows.training_data import Source

EFFICIENCY = 0.4
"""Share of the speed of one large product that a step reaches; docs/training.md has what was measured."""

H100 = 989e12
"""bfloat16 operations a second by its data sheet; for a GPU that is not here."""
SLOW_PRODUCT = 0.01
"""Seconds of a product above which no larger one is timed."""


@dataclass(frozen=True)
class Resources:
    """Where a training is to run. memory: bytes for each rank; None takes what is free here, if the device is here."""

    device: str = "cpu"
    machines: int = 1
    local_ranks: int = 1
    sharding: Sharding = "ddp"
    recompute: bool = False
    memory: int | None = None

    def __post_init__(self) -> None:
        if min(self.machines, self.local_ranks) < 1 or (self.memory is not None and self.memory <= 0):
            raise UserError(f"machines, ranks and memory must be positive, got {self}")
        known_device(self.device)

    @property
    def layout(self) -> Layout:
        ranks = self.machines * self.local_ranks
        shards = {"ddp": 1, "fsdp": ranks, "hsdp": self.local_ranks}[self.sharding]
        return Layout(ranks, shards, self.recompute)


@dataclass(frozen=True)
class Advice:
    """A training that fits better: the options, on top of those before, that make it so."""

    options: str
    preset: Preset
    resources: Resources
    step: StepPlan


@dataclass(frozen=True)
class TrainingPlan:
    """memory: bytes that a rank may take, None where that is not known. seconds: of a step, about.

    advice: changes one on top of the other, until it fits; empty where it does.
    """

    step: StepPlan
    memory: int | None
    seconds: float
    measured_speed: bool
    advice: tuple[Advice, ...]

    @property
    def fits(self) -> bool | None:
        return None if self.memory is None else self.step.total <= self.memory


def plan_training(
    preset: Preset, resources: Resources, start: str | None = None, sources: Sequence[Source] | None = None
) -> TrainingPlan:
    """Loads nothing: of a checkpoint in a folder the sizes are read, of one elsewhere those of the preset are taken.

    sources: of a preset whose robot or sizes are the data's.
    """
    if sources is not None:
        preset = sized(preset, sources)
    robots = [get_embodiment(preset.embodiment)] if sources is None else [source.embodiment for source in sources]
    sizes = _sizes(preset, start, [name for robot in robots for name in robot.cameras])
    preset = with_one_step_of(preset, sizes)
    one_step = {"one_step": True} if takes_one_step(preset.model) else {}
    preset = replace(preset, model=replace(sizes, **one_step))
    robot_actions = max((robot.action_dim or 0 for robot in robots), default=0) or None
    plan = partial(_plan, robot_actions=robot_actions)
    step, memory = plan(preset, resources), _memory(resources)
    changes = (*_CHANGES, *(_FEWER_WEIGHTS if start is not None else ()))
    advice = tuple(_advice(plan, changes, preset, resources, step, memory) if memory is not None else ())
    speed, measured = _speed(
        resources.device, multiplies_in_bfloat16(preset.train.precision, torch.device(resources.device))
    )
    return TrainingPlan(step, memory, step.flops / (EFFICIENCY * speed), measured, advice)


def print_plan(plan: TrainingPlan, preset: Preset, resources: Resources) -> None:
    ranks = resources.layout.ranks
    shared = f" on each of {ranks} ranks ({resources.sharding})" if ranks > 1 else ""
    table = Table(title=f"batch of {preset.train.batch_size}, {preset.train.precision}{shared}")
    table.add_column("memory")
    table.add_column("GiB", justify="right")
    for kind in ("weights", "gradients", "optimizer", "average", "activations"):
        table.add_row(kind, _gib(getattr(plan.step, kind)))
    table.add_row("in all", _gib(plan.step.total), style="bold")
    console.print(table)
    if plan.memory is None:
        console.print(
            f"{resources.device} is not here; --plan-memory GIB shows whether it fits there, and what to change"
        )
    elif plan.fits:
        console.print(f"fits into the {_gib(plan.memory)} GiB that a rank may take")
    else:
        console.print(f"does not fit into the {_gib(plan.memory)} GiB that a rank may take. One on top of the other:")
        for advice in plan.advice:
            console.print(f"  {advice.options:<28} {_gib(advice.step.total):>7} GiB")
        if not plan.advice or plan.advice[-1].step.total > plan.memory:
            console.print("  then it still does not; it needs a larger device, or more ranks with --sharding fsdp")
    source = "as fast as a product here" if plan.measured_speed else "at 40 % of an H100"
    hours = plan.seconds * preset.train.steps / 3600
    console.print(
        f"a step is {plan.step.flops / 1e12:.3g} TFLOP{' a rank' if ranks > 1 else ''}: {source}, about "
        f"{plan.seconds:.2g} s; {preset.train.steps:,} steps in {hours:.1f} hours, if the data keeps up"
    )


# -------------------------------------------------------------------- inside


def _sizes(preset: Preset, start: str | None, present: Sequence[str]) -> Pi0Config | Pi0FastConfig:
    """With the cameras that the robots have, `present`: a batch lacks the model's others."""
    model = preset.model
    if isinstance(model, BaselineConfig):
        raise UserError("a plan is for π0, π0.5 and π0-FAST, not for the diffusion baseline")
    if start is not None and Path(start).is_dir() and not paligemma.detect(folder := local_folder(start)):
        known = read_checkpoint(folder).config
        check_kind(start, known, preset)
        if isinstance(known, Pi0Config | Pi0FastConfig):
            model = replace(known, action_horizon=model.action_horizon)
    elif takes_one_step(model) and (start is None or Path(start).is_dir()):
        raise UserError(WITHOUT_BASE)
    return replace(model, cameras=tuple(dict.fromkeys(present)))


def _plan(preset: Preset, resources: Resources, robot_actions: int | None) -> StepPlan:
    ranks, accumulate = resources.layout.ranks, preset.train.gradient.accumulate
    if preset.train.batch_size % (ranks * accumulate):
        raise UserError(
            f"a batch of {preset.train.batch_size} cannot be divided among {ranks} ranks and {accumulate} parts"
        )
    return plan_step(preset.model, preset.train, resources.layout, resources.device, robot_actions)


_Change = tuple[str, Preset, Resources] | None


def _advice(
    plan: Callable[[Preset, Resources], StepPlan], changes: Iterable[Callable[..., _Change]], preset: Preset,
    resources: Resources, step: StepPlan, memory: int,
) -> Iterator[Advice]:  # fmt: skip
    for change in changes:
        if step.total <= memory:
            return
        changed = change(preset, resources, step, memory)
        if changed is not None:
            options, preset, resources = changed
            step = plan(preset, resources)
            yield Advice(options, preset, resources, step)


def _recompute(preset: Preset, resources: Resources, step: StepPlan, memory: int) -> _Change:
    return None if resources.recompute else ("--recompute", preset, replace(resources, recompute=True))


def _shard(preset: Preset, resources: Resources, step: StepPlan, memory: int) -> _Change:
    train = preset.train
    plain = (train.optimizer, train.parts.embedding_steps) == ("adamw", "optimizer") and train.precision != "bfloat16"
    if resources.layout.ranks == 1 or resources.sharding == "fsdp" or not plain:
        return None
    return "--sharding fsdp", preset, replace(resources, sharding="fsdp")


def _accumulate(preset: Preset, resources: Resources, step: StepPlan, memory: int) -> _Change:
    """As few parts as it takes, as far as activations shrink with them."""
    train, share = preset.train, preset.train.batch_size // resources.layout.ranks
    state = step.total - step.activations
    counts = [n for n in range(train.gradient.accumulate + 1, share + 1) if share % n == 0]
    enough = [n for n in counts if state + step.activations * train.gradient.accumulate / n <= memory]
    if not counts:
        return None
    count = (enough or counts[-1:])[0]
    gradient = replace(train.gradient, accumulate=count)
    return f"--accumulate {count}", replace(preset, train=replace(train, gradient=gradient)), resources


def _eight_bit(preset: Preset, resources: Resources, step: StepPlan, memory: int) -> _Change:
    if preset.train.optimizer != "adamw" or resources.layout.shards > 1:
        return None
    return "--optimizer adamw8bit", replace(preset, train=replace(preset.train, optimizer="adamw8bit")), resources


def _no_average(preset: Preset, resources: Resources, step: StepPlan, memory: int) -> _Change:
    if preset.train.ema_decay == 0:
        return None
    return "--ema-decay 0", replace(preset, train=replace(preset.train, ema_decay=0.0)), resources


def _adapters(preset: Preset, resources: Resources, step: StepPlan, memory: int) -> _Change:
    train = preset.train
    if train.parts.lora is not None or train.optimizer == "muon" or takes_one_step(preset.model):
        return None
    if not isinstance(preset.model, Pi0Config | Pi0FastConfig):
        return None
    return "--lora", with_lora(preset), resources


def _freeze_vision(preset: Preset, resources: Resources, step: StepPlan, memory: int) -> _Change:
    parts = preset.train.parts
    if "vision" in parts.freeze:
        return None
    freeze = replace(parts, freeze=(*parts.freeze, "vision"))
    return "--freeze vision", replace(preset, train=replace(preset.train, parts=freeze)), resources


def _memory(resources: Resources) -> int | None:
    """Of each rank: given, or free on the device that is here; ranks on one machine share its memory."""
    if resources.memory is not None:
        return resources.memory
    if torch.device(resources.device).type == "cuda":
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    free = free_memory()
    return None if free is None else free // resources.local_ranks


_CHANGES = (_recompute, _shard, _accumulate, _eight_bit, _no_average)
"""First what changes no number, then what changes the optimizer."""
_FEWER_WEIGHTS = (_adapters, _freeze_vision)
"""Advised last, and to a training that starts from a checkpoint: fresh weights must all be trained."""


def _speed(device: str, bfloat16: bool) -> tuple[float, bool]:
    """Operations a second of a product on the device, and whether they were measured; else an H100's. The product grows
    as far as it takes milliseconds: without bfloat16 in the processor a large one takes seconds.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return H100, False
    speed = 0.0
    for size in (256, 1024, 4096) if torch.device(device).type == "cuda" else (256, 512, 1024):
        matrix = torch.ones(size, size, dtype=torch.bfloat16 if bfloat16 else torch.float32, device=device)
        wait: Callable[[], None] = torch.cuda.synchronize if matrix.is_cuda else lambda: None
        times: list[float] = []
        for _ in range(8):
            started = time.perf_counter()
            _ = matrix @ matrix
            wait()
            times.append(time.perf_counter() - started)
        speed = 2 * size**3 / min(times)
        if min(times) > SLOW_PRODUCT:
            break
    return speed, True


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}" if size >= 2**30 else f"{size / 2**30:.3f}"
