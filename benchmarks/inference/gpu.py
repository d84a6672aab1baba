"""FastSampler on an NVIDIA GPU beside the plain path: exactness, time by cameras, floor, kernels of one call.

    python benchmarks/inference/gpu.py --json figures.jsonl        full-size π0, random weights; 4 minutes on an H100
    python benchmarks/inference/gpu.py --model tiny --device cpu   the script without a GPU; a minute of a core

Feeds docs/results/inference.md. Each item is printed as it is found; one that fails says so and the next goes on.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from pizero.engine.ablation import Ablated
from pizero.engine.attention_kernels import SPLITS_KEYS
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.floor import floor_calls
from pizero.model.attention import attend_folded, attend_fused
from pizero.model.precision import cast_weights
from pizero.types import Observation
from pizero.workflows.bench_inference import BenchConfig, model_config, random_model, random_observation


def _flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(SPLITS_KEYS):
        return attend_fused(query, key, value, None)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "default": lambda q, k, v: attend_fused(q, k, v, None),
    "flash": _flash,
    "products, compiled": torch.compile(lambda q, k, v: attend_folded(q, k, v, None), dynamic=False),
}

ITEMS = (
    "float32",
    "bfloat16",
    "compiled",
    "eager",
    "plain",
    "floor",
    "attention",
    "kernels",
    "ablation",
    "float8",
    "pi05",
    "masked",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="pi0")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--items", nargs="*", default=ITEMS, choices=ITEMS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    Bench(parser.parse_args()).run()


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.started = arguments, time.perf_counter()
        self.device, self.cuda = arguments.device, arguments.device != "cpu"
        self.config = model_config(arguments.model)
        self.model = random_model(self.config, torch.bfloat16, self.device)
        self.noise = torch.randn(1, self.config.action_horizon, self.config.action_dim).to(self.device)
        self.made: dict[str, FastSampler] = {}
        card = torch.cuda.get_device_name() if self.cuda else "cpu"
        self.say("machine", card=card, torch=torch.__version__, model=arguments.model)

    def run(self) -> None:
        for item in self.arguments.items:
            try:
                with torch.no_grad():
                    getattr(self, item)()
            except Exception:
                self.say(item, failed=traceback.format_exc(limit=-6))
            gc.collect()

    def say(self, what: str, **figures: Any) -> None:
        row = {"item": what, "at_s": round(time.perf_counter() - self.started, 1)} | figures
        print(json.dumps(row) if "failed" not in figures else f"{what} FAILED\n{figures['failed']}", flush=True)
        if self.arguments.json is not None:
            with self.arguments.json.open("a") as file:
                file.write(json.dumps(row) + "\n")

    # ---------------------------------------------------------------- items

    def float32(self) -> None:
        """Full size in float32 without TF32: fast against plain, and the yardstick of bfloat16."""
        torch.backends.cuda.matmul.allow_tf32 = False
        observations = [self.observation(seed=seed) for seed in range(20)]
        exact_model = random_model(self.config, torch.float32, self.device)
        exact = [self.call(exact_model, observation) for observation in observations]
        graphs = FastSampler(exact_model, compile=False)
        distance = max(float((self.call(graphs, o) - e).abs().max()) for o, e in zip(observations, exact, strict=True))
        self.say("float32", largest_difference=distance, largest_action=max(float(e.abs().max()) for e in exact))
        del graphs
        cast_weights(exact_model, torch.bfloat16)
        plain = [self.call(exact_model, observation) for observation in observations]
        squares = {"plain": sum(float((p - e).square().mean()) for p, e in zip(plain, exact, strict=True))}
        for name, settings in {"graphs": {"compile": False}, "compiled": {}}.items():
            sampler = FastSampler(exact_model, **settings)
            found = [self.call(sampler, observation) for observation in observations]
            squares[name] = sum(float((f - e).square().mean()) for f, e in zip(found, exact, strict=True))
        self.say("bfloat16 rms from float32", **{name: (value / 20) ** 0.5 for name, value in squares.items()})

    def bfloat16(self) -> None:
        """Repeated calls with other inputs: a graph must not hold on to old ones."""
        sampler = self.sampler("compiled")
        first = self.call(sampler, self.observation())
        other = self.call(sampler, self.observation(seed=1))
        again = self.call(sampler, self.observation())
        self.say("repeated", same=bool(torch.equal(first, again)), others=bool(torch.equal(first, other)))

    def compiled(self) -> None:
        sampler = self.sampler("compiled")
        for cameras in range(len(self.config.cameras), 0, -1):
            self.timed("compiled and graph", sampler, cameras=cameras)
        self.timed("compiled and graph", sampler, cameras=max(1, len(self.config.cameras) - 1), prompt=16)

    def eager(self) -> None:
        sampler = self.sampler("graphs", compile=False)
        for cameras in range(len(self.config.cameras), 0, -1):
            self.timed("graph", sampler, cameras=cameras)
        self.timed("neither", FastSampler(self.model, compile=False, graphs=False))

    def plain(self) -> None:
        for cameras in range(len(self.config.cameras), 0, -1):
            self.timed("plain", self.model, cameras=cameras)
        for layer in self.model.transformer.layers:
            layer.compile(dynamic=False)
        for block in self.model.vision_tower.blocks:
            block.compile(dynamic=False)
        self.timed("plain, layers compiled", self.model)

    def floor(self) -> None:
        sampler, observation = self.sampler("graphs", compile=False), self.observation()
        seconds = {name: self.graphed(call) for name, call in floor_calls(sampler, observation).items()}
        whole = seconds["vision"] + seconds["prefix"] + 10 * seconds["step"]
        side = torch.randn(8192, 8192, device=self.device, dtype=torch.bfloat16) if self.cuda else self.noise[0]
        rate = 2 * len(side) ** 3 / self.graphed(lambda: side @ side.T) / 1e12 if self.cuda else 0.0
        copy = self.graphed(lambda: side.clone()) if self.cuda else 1.0
        self.say(
            "floor ms", whole=1e3 * whole, **{name: 1e3 * value for name, value in seconds.items()},
            product_tflops=rate, copy_tb_per_s=2 * side.nbytes / copy / 1e12,
        )  # fmt: skip

    def attention(self) -> None:
        """Microseconds of one layer's attention, by shape and kernel."""
        heads, dim = self.config.prefix.num_heads, self.config.prefix.head_dim
        shapes = {
            "steps": (1, 50, 867, heads, 1, dim),
            "prefix": (1, 816, 816, heads, 1, dim),
            "vision": (3, 256, 256, 16, 16, 72),
        }
        for name, (batch, asks, seen, count, kv, size) in shapes.items():
            q, k, v = (
                torch.randn(batch, n, h, size, device=self.device, dtype=torch.bfloat16)
                for n, h in ((asks, count), (seen, kv), (seen, kv))
            )
            found: dict[str, Any] = {}
            for way, attend in WAYS.items():
                try:
                    found[way] = 1e6 / 20 * self.graphed(lambda a=attend, x=(q, k, v): [a(*x) for _ in range(20)])
                except Exception as error:
                    found[way] = str(error)[:120]
            self.say(f"attention {name}", **found)

    def masked(self) -> None:
        sampler = self.sampler("compiled")
        self.timed("compiled and graph", sampler, prompt=40)
        settings = BenchConfig(self.arguments.model, prompt=self.config.prompt_length, batch=4, device=self.device)
        self.timed("compiled and graph, 4 robots", sampler, random_observation(self.config, settings))

    def kernels(self) -> None:
        """Where the time of one call goes, kernel by kernel."""
        for name, sampler in self.made.items():
            observation = self.observation()
            self.call(sampler, observation)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                self.call(sampler, observation)
            events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
            total = sum(event.self_device_time_total for event in events)
            self.say(f"kernels of {name}", busy_ms=total / 1e3, launches=sum(event.count for event in events))
            for event in events[:28]:
                each = event.self_device_time_total / event.count
                print(f"  {each * event.count / 1e3:7.3f} ms {event.count:5d} x {each:7.1f} us  {event.key[:100]}")

    def ablation(self) -> None:
        self.timed("compiled and graph, without cached_state", Ablated(self.model, ("cached_state",)))

    def float8(self) -> None:
        sampler = FastSampler(self.model, kernels="float8")
        self.timed("float8, compiled and graph", sampler)
        pair = (
            self.call(sampler, self.observation()),
            self.call(self.sampler("compiled"), self.observation()),
        )
        self.say(
            "float8 rms from bfloat16",
            rms=float((pair[0] - pair[1]).square().mean().sqrt()),
            rms_actions=float(pair[1].square().mean().sqrt()),
        )

    def pi05(self) -> None:
        name = "pi05" if self.arguments.model == "pi0" else "tiny-pi05"
        config = model_config(name)
        model = random_model(config, torch.bfloat16, self.device)
        sampler = FastSampler(model)
        for cameras, prompt in ((len(config.cameras), config.prompt_length), (max(1, len(config.cameras) - 1), 16)):
            observation = random_observation(
                config, BenchConfig(name, cameras=cameras, prompt=prompt, device=self.device)
            )
            self.timed("pi05, compiled and graph", sampler, observation)
            if prompt == 16:
                self.timed("pi05, plain", model, observation)

    # ---------------------------------------------------------------- helpers

    def sampler(self, name: str, **settings: Any) -> FastSampler:
        if name not in self.made:
            sampler = FastSampler(self.model, **settings)
            self.call(sampler, self.observation())
            self.made[name] = sampler
        return self.made[name]

    def observation(self, cameras: int | None = None, prompt: int | None = None, seed: int = 0) -> Observation:
        cameras = len(self.config.cameras) if cameras is None else cameras
        prompt = self.config.prompt_length if prompt is None else prompt
        settings = BenchConfig(self.arguments.model, cameras=cameras, prompt=prompt, device=self.device)
        return random_observation(self.config, settings, seed)

    def call(self, sampler: Any, observation: Observation) -> Tensor:
        return sampler.sample_actions(observation, noise=self.noise)

    def timed(self, name: str, sampler: Any, observation: Observation | None = None, **what: int) -> None:
        """Whole calls from inputs on the card to actions on the card, each waited for."""
        given = self.observation(**what) if observation is None else observation
        noise = self.noise if observation is None else None

        def call() -> float:
            started = time.perf_counter()
            sampler.sample_actions(given, noise=noise)
            self.wait()
            return time.perf_counter() - started

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        first = call()
        call()
        seconds = [call() for _ in range(self.arguments.rounds)]
        self.say(
            name, **what, first_s=round(first, 2), median_ms=round(1e3 * statistics.median(seconds), 3),
            best_ms=round(1e3 * min(seconds), 3), worst_ms=round(1e3 * max(seconds), 3),
            peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else None,
        )  # fmt: skip

    def graphed(self, call: Callable[[], object]) -> float:
        """Seconds of a replay of its graph, of which nothing but the card's work is left."""
        if not self.cuda:
            call()
            return 0.0
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        times = []
        for _ in range(20):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            graph.replay()
            last.record()
            torch.cuda.synchronize()
            times.append(first.elapsed_time(last) / 1e3)
        return statistics.median(times)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
