"""How fast a π0 acts on this machine: plain and fast paths in turns, their stages, and the machine's own limit."""

from __future__ import annotations

import dataclasses
import gc
import os
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pizero.checkpoints.models import usable_device
from pizero.engine import tuning
from pizero.engine.ablation import Ablated, Optimization
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.floor import floor_calls
from pizero.engine.products import Kernels, check_kernels
from pizero.model.config import Pi0Config, small_config
from pizero.model.pi0 import Pi0
from pizero.model.precision import float32_names
from pizero.types import Observation, UserError, check_least
from pizero.workflows.memory import free_memory, proc_bytes
from pizero.workflows.threads import torch_threads

PathName: TypeAlias = Literal["plain", "fast", "int8", "float8"]
ModelName: TypeAlias = Literal["pi0", "pi05", "tiny", "tiny-pi05", "small"]


@dataclass(frozen=True)
class BenchConfig:
    """What is timed: a model with random weights, and an observation with random content."""

    model: ModelName = "pi0"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    cameras: int = 3
    """Cameras with an image; the model's others are absent."""
    prompt: int = 48
    """Tokens of the instruction, in the model's own number of slots."""
    num_steps: int = 10
    batch: int = 1
    horizon: int | None = None
    """Actions of a chunk; the model's own if not given."""
    threads: int = 0
    """0: what PyTorch takes by default."""
    rounds: int = 5
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_least(1, batch=self.batch, num_steps=self.num_steps)
        check_least(0, threads=self.threads)


def random_model(config: Pi0Config, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Pi0:
    """Weights of the usual size, drawn in place: a full-size model needs no more memory than it has."""
    with torch.device("meta"):
        model = Pi0(config)
    generator = torch.Generator(device).manual_seed(seed)
    kept = float32_names(model)
    for name, old in list(model.named_parameters()):
        new = torch.empty(old.shape, dtype=torch.float32 if name in kept else dtype, device=device)
        if old.ndim > 1:
            new.normal_(std=old.shape[-1] ** -0.5, generator=generator)
        elif "norm" in name and name.endswith("weight"):  # of a layer norm
            new.fill_(1.0)
        else:
            new.normal_(std=0.02, generator=generator)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(new, requires_grad=False))
    return model.eval()


def random_observation(config: Pi0Config, settings: BenchConfig, seed: int = 0) -> Observation:
    """Present cameras first, the instruction in the first slots."""
    generator, batch = torch.Generator().manual_seed(seed), settings.batch
    if not 0 < settings.cameras <= len(config.cameras) or not 0 <= settings.prompt <= config.prompt_length:
        raise UserError(
            f"{settings.cameras} cameras and {settings.prompt} prompt tokens; "
            f"the model has {len(config.cameras)} and {config.prompt_length}"
        )
    names, side = config.cameras, config.image_size
    images = {name: torch.rand(batch, side, side, 3, generator=generator) * 2 - 1 for name in names}
    masks = {name: torch.full((batch,), index < settings.cameras) for index, name in enumerate(names)}
    used = torch.arange(config.prompt_length) < settings.prompt
    tokens = torch.randint(1, config.vocab_size, (batch, config.prompt_length), generator=generator) * used
    observation = Observation(
        images, masks, torch.randn(batch, config.state_dim, generator=generator), tokens, used.expand(batch, -1).clone()
    )
    return observation.to(settings.device)


Call: TypeAlias = Callable[[], object]


def bench(settings: BenchConfig, paths: Sequence[PathName], without: Sequence[Optimization] = ()) -> dict[str, Any]:
    """Times the paths in turns, then stages and floor of the last of them that is fast.

    without: optimisations disabled in turn, for the ablation. A path whose weights do not fit beside the others' in
    memory is timed before them, on its own: "apart" in the result records it.
    """
    with torch_threads(settings.threads):
        config = model_config(settings.model, settings.horizon)
        dtype = getattr(torch, settings.dtype)
        for name in paths:  # before minutes are spent
            check_kernels(KERNELS.get(name, "auto"), usable_device(settings.device), dtype)
        observation = random_observation(config, settings)
        model = random_model(config, dtype, settings.device)
        shape = (settings.batch, config.action_horizon, config.action_dim)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(settings.device)
        run = _Run(settings, observation, noise)
        size = sum(parameter.nbytes for parameter in model.parameters())
        result: dict[str, Any] = {
            "settings": dataclasses.asdict(settings), "torch": torch.__version__, "threads": torch.get_num_threads(),
            "parameters": sum(parameter.numel() for parameter in model.parameters()), "weights_bytes": size,
        }  # fmt: skip
        apart = "plain" in paths and _free_memory() < size * (len(paths) - 1 + bool(without)) + 2**30
        if apart:
            run.time({"plain": model})
        samplers: dict[str, Any] = {"plain": model} if "plain" in paths and not apart else {}
        fast: list[PathName] = [name for name in paths if name != "plain"]
        for name in fast:
            consume = name == fast[-1] and "plain" not in samplers and not without
            run.make(name, model, consume)
        samplers |= run.made
        run.time(samplers)
        sampler = run.made.get("fast") or next(iter(run.made.values()), None)
        if sampler is not None:
            result["stages"] = _stages(sampler, observation, noise, settings)
        result |= {"paths": {name: run.rows[name] for name in paths}, "apart": apart}
        result["kernels"] = {name: dataclasses.asdict(choice) for name, choice in tuning.used.items()}
        if without and sampler is not None:
            result["ablation"] = _ablation(run, model, sampler, without)
    return result


KERNELS: Mapping[str, Kernels] = {"fast": "auto", "int8": "int8", "float8": "float8"}


class _Run:
    """Samplers of one observation, timed in turns; rows[path] says what was found."""

    def __init__(self, settings: BenchConfig, observation: Observation, noise: Tensor) -> None:
        self.settings, self.observation, self.noise = settings, observation, noise
        self.rows: dict[str, dict[str, float]] = {}
        self.made: dict[str, FastSampler] = {}
        self._first: Tensor | None = None

    def make(self, name: PathName, model: Pi0, consume: bool) -> None:
        started = time.perf_counter()
        self.made[name] = FastSampler(model, kernels=KERNELS[name], consume=consume)
        self.rows[name] = {"packing_s": time.perf_counter() - started}

    def time(self, samplers: Mapping[str, Any]) -> None:
        seconds: dict[str, list[float]] = {name: [] for name in samplers}
        peaks: dict[str, int] = {}
        for name, sampler in samplers.items():
            with _peak_memory(self.settings.device) as peak:
                first, actions = self._call(sampler)
            peaks[name] = peak[0]
            self._first = actions if self._first is None else self._first
            self.rows.setdefault(name, {})
            self.rows[name] |= {"first_call_s": first, "rms_from_first_path": _rms(actions, self._first)}
        for _ in range(self.settings.rounds):
            for name, sampler in samplers.items():
                seconds[name].append(self._call(sampler)[0])
        for name, values in seconds.items():
            self.rows[name] |= {
                "median_s": statistics.median(values), "best_s": min(values), "worst_s": max(values),
                "working_memory_bytes": peaks[name],
            }  # fmt: skip

    def _call(self, sampler: Any) -> tuple[float, Tensor]:
        _wait(self.settings.device)
        started = time.perf_counter()
        actions = sampler.sample_actions(self.observation, num_steps=self.settings.num_steps, noise=self.noise)
        _wait(self.settings.device)
        return time.perf_counter() - started, actions


@torch.no_grad()
def _stages(sampler: FastSampler, observation: Observation, noise: Tensor, settings: BenchConfig) -> dict[str, Any]:
    """Seconds of vision, prefix (without vision) and one integration step, and of their products alone, in turns."""
    inputs, tables = sampler.inputs(observation), sampler.tables(settings.num_steps)
    cache, last = sampler.prefill(inputs, tables), settings.num_steps - 1
    calls: dict[str, Call] = {
        "vision": lambda: [sampler.see(torch.cat(inputs.images))] if inputs.images else None,
        "prefill": lambda: sampler.prefill(inputs, tables),
        "step": lambda: sampler.velocity(cache, *tables.at(last), noise, last),
    }
    floor = floor_calls(sampler, observation)
    calls |= {f"{name} floor": call for name, call in floor.items()}
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(settings.rounds):
        for name, call in calls.items():
            repeats = settings.num_steps if name.startswith("step") else 1
            _wait(settings.device)
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            _wait(settings.device)
            best[name] = min(best[name], (time.perf_counter() - started) / repeats)
    whole = best["vision floor"] + best["prefix floor"] + settings.num_steps * best["step floor"]
    return {
        "vision_s": best["vision"], "prefix_s": best["prefill"] - best["vision"], "step_s": best["step"],
        "vision_floor_s": best["vision floor"], "prefix_floor_s": best["prefix floor"],
        "step_floor_s": best["step floor"], "floor_s": whole,
    }  # fmt: skip


SWEEP: Mapping[str, tuple[int, ...]] = {
    "cameras": (3, 2, 1), "prompt": (48, 16, 1), "horizon": (50, 25, 10), "num_steps": (10, 5, 1), "batch": (1, 2, 4),
}  # fmt: skip


def sweep(settings: BenchConfig) -> list[dict[str, Any]]:
    """The fast path's best time, first as `settings` say, then with one of `SWEEP`'s values in place of theirs."""
    with torch_threads(settings.threads):
        config = model_config(settings.model, settings.horizon)
        model = random_model(config, getattr(torch, settings.dtype), settings.device)
        sampler = FastSampler(model, consume=True)
        rows = [{"what": "as given", "value": "", "best_s": _best(sampler, settings)}]
        for what, values in SWEEP.items():
            for value in values:
                changed = dataclasses.replace(settings, **{what: value})
                if changed != settings and value <= _most(config, what):
                    rows.append({"what": what, "value": value, "best_s": _best(sampler, changed)})
    return rows


def _most(config: Pi0Config, what: str) -> float:
    limits = {"cameras": len(config.cameras), "prompt": config.prompt_length, "horizon": config.action_horizon - 1}
    return limits.get(what, float("inf"))


def _best(sampler: FastSampler, settings: BenchConfig) -> float:
    before = sampler.config
    config = dataclasses.replace(before, action_horizon=settings.horizon or before.action_horizon)
    sampler.config = sampler.model.config = config  # the horizon is in no weight
    noise = torch.randn(settings.batch, config.action_horizon, config.action_dim).to(settings.device)
    run = _Run(settings, random_observation(config, settings), noise)
    run.time({"fast": sampler})
    sampler.config = sampler.model.config = before
    return run.rows["fast"]["best_s"]


def _ablation(run: _Run, model: Pi0, sampler: FastSampler, without: Sequence[Optimization]) -> dict[str, float]:
    """Time without an optimization over time with all of them, each pair in turns."""
    ratios: dict[str, float] = {}
    for optimization in without:
        pair = _Run(run.settings, run.observation, run.noise)
        other = Ablated(model, (optimization,))
        pair.time({"all": sampler, "without": other})
        ratios[optimization] = pair.rows["without"]["best_s"] / pair.rows["all"]["best_s"]
        del other
        gc.collect()
    return ratios


def model_config(name: ModelName, horizon: int | None = None) -> Pi0Config:
    makers: dict[ModelName, Callable[[], Pi0Config]] = {
        "pi0": Pi0Config.pi0, "pi05": Pi0Config.pi05, "tiny": lambda: small_config("tiny"),
        "tiny-pi05": lambda: small_config("tiny", pi05=True), "small": lambda: small_config("small"),
    }  # fmt: skip
    config = makers[name]()
    return config if horizon is None else dataclasses.replace(config, action_horizon=horizon)


def _rms(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _free_memory() -> int:
    """Bytes that a process can still take; what the machine has where the system does not report it."""
    free = free_memory()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if free is None else free


@contextmanager
def _peak_memory(device: str) -> Generator[list[int]]:
    """One number afterwards: bytes that were taken at most, above what was taken before; -1 where it is unknown."""
    found = [-1]
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found[0] = torch.cuda.max_memory_allocated(device) - before
        return
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux)
    except OSError:
        yield found
        return
    before = proc_bytes(status, "VmRSS")
    yield found
    found[0] = max(proc_bytes(status, "VmHWM") - before, 0)
