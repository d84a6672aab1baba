"""A policy server under load: what it adds to `infer`, and how many robots it answers, beside openpi's server.

python benchmarks/server.py                     pizero alone
python benchmarks/server.py --openpi CHECKOUT   beside openpi's own WebsocketPolicyServer, around the same policy

Each server is a process of its own, all robots are threads of another, over loopback. A robot asks again as soon as it
has its answer. The policy is the quick start's π0, untrained (1.2 M parameters, two cameras of 32 pixels, 10 steps);
what the server adds is measured with a model that computes nothing, at three cameras of 224 pixels.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pizero.configs.presets import tabletop as preset
from pizero.data.embodiments import generic, tabletop
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.model.config import CAMERAS, Pi0Config
from pizero.model.pi0 import Pi0
from pizero.policy.policy import ModelPolicy
from pizero.serving.client import PolicyClient
from pizero.serving.config import ServeConfig
from pizero.serving.hosted import blank_observation
from pizero.serving.running import run
from pizero.serving.server import PolicyServer

KINDS = ("pizero", "pizero, no batches", "openpi")


class NoModel:
    """Gives the noise back."""

    def __init__(self, config: Pi0Config) -> None:
        self.config = config

    def sample_actions(self, observation: Any, *, num_steps: int, noise: torch.Tensor) -> torch.Tensor:
        return noise


def make_policy(computes: bool) -> ModelPolicy:
    torch.manual_seed(0)
    config = preset().model
    assert isinstance(config, Pi0Config)
    robot = tabletop()
    if not computes:
        config = dataclasses.replace(config, image_size=224, cameras=CAMERAS, action_horizon=50)
        robot = generic(dict(zip(CAMERAS, ("top", "left", "right"), strict=True)))
    stats = NormStats("zscore", FieldStats(np.zeros(7), np.ones(7)), FieldStats(np.zeros(5), np.ones(5)))
    pipeline = Pipeline(
        robot, stats, PaligemmaTokenizer.bytes(), config.cameras, "pi0", config.prompt_length,
        (config.image_size, config.image_size), config.state_dim, config.action_dim,
    )  # fmt: skip
    return ModelPolicy(Pi0(config).eval() if computes else NoModel(config), pipeline)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the servers' process


class ForOpenpi:
    """The policy as openpi's server asks it."""

    def __init__(self, policy: ModelPolicy) -> None:
        self._policy = policy

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        return self._policy.infer(observation)


def serve(kind: str, computes: bool, port: int, threads: int) -> None:
    torch.set_num_threads(threads)
    policy = make_policy(computes)
    policy.infer_batch([blank_observation(policy)] * 2)
    if kind == "openpi":
        from openpi.serving.websocket_policy_server import WebsocketPolicyServer  # pyright: ignore

        logging.disable()
        WebsocketPolicyServer(ForOpenpi(policy), host="127.0.0.1", port=port).serve_forever()
        return
    config = ServeConfig(port=port, max_rate=1e9, max_batch=16 if kind == "pizero" else 1)

    async def work() -> None:
        await run(PolicyServer({"policy": lambda: policy}, config))

    asyncio.run(work())


@contextmanager
def server(kind: str, computes: bool, options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Its address and its process."""
    port = options.port
    command = [sys.executable, __file__, "--serve", kind, "--port", str(port), "--threads", str(options.threads)]
    path = [*sys.path, *((f"{options.openpi}/{part}") for part in ("src", "packages/openpi-client/src"))]
    environment = {"PYTHONPATH": ":".join(map(str, filter(None, path))), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen([*command, *([] if computes else ["--nothing"])], env=environment)
    try:
        yield f"ws://127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait()


# ---------------------------------------------------------------- the robots' process


def added(uri: str, seconds: float) -> list[float]:
    """Milliseconds of round trip and of in-process `infer`, medians, in turns."""
    policy = make_policy(computes=False)
    rng = np.random.default_rng(0)
    observation = blank_observation(policy)
    observation["images"] = {name: rng.integers(0, 256, (224, 224, 3), np.uint8) for name in observation["images"]}
    found: list[list[float]] = [[], []]
    with PolicyClient(uri) as client:
        ended = time.perf_counter() + seconds
        while time.perf_counter() < ended:
            for index, ask in enumerate((client.infer, policy.infer)):
                started = time.perf_counter()
                ask(observation)
                found[index].append(1000 * (time.perf_counter() - started))
    return [statistics.median(values[len(values) // 10 :]) for values in found]


def load(uri: str, robots: int, seconds: float) -> tuple[float, list[float]]:
    """Requests per second, and the milliseconds of each."""
    policy = make_policy(computes=True)
    observation = {**blank_observation(policy), "prompt": "lift the block"}
    clients = [PolicyClient(uri) for _ in range(robots)]
    latencies: list[list[float]] = [[] for _ in clients]
    start, ended = threading.Event(), threading.Event()

    def robot(index: int) -> None:
        start.wait()
        while not ended.is_set():
            began = time.perf_counter()
            clients[index].infer(observation)
            latencies[index].append(1000 * (time.perf_counter() - began))

    threads = [threading.Thread(target=robot, args=(index,)) for index in range(robots)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    start.set()
    time.sleep(seconds)
    ended.set()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    for client in clients:
        client.close()
    values = [value for one in latencies for value in one]
    return len(values) / wall, values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openpi", type=Path, help="a checkout of openpi")
    parser.add_argument("--robots", type=int, nargs="+", default=(1, 2, 4, 8, 16))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1, help="of the servers' torch")
    parser.add_argument("--port", type=int, default=18_080)
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--nothing", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, not options.nothing, options.port, options.threads)
        return
    kinds = KINDS if options.openpi else KINDS[:2]
    for kind in kinds:
        if kind != "pizero, no batches":
            with server(kind, False, options) as (uri, _):
                trip, inside = added(uri, options.seconds)
            print(f"{kind}: round trip {trip:.2f} ms, infer in process {inside:.2f} ms, added {trip - inside:.2f} ms")
    rates: dict[tuple[str, int], float] = {}
    print(f"\n{'server':20} robots  requests/s  p50 ms  p95 ms  p99 ms")
    for kind in kinds:
        with server(kind, True, options) as (uri, _):
            load(uri, 1, 1.0)  # what is made once is made
            for robots in options.robots:
                rates[kind, robots], values = load(uri, robots, options.seconds)
                shares = np.percentile(values, (50, 95, 99))
                print(f"{kind:20} {robots:6} {rates[kind, robots]:11.1f} " + " ".join(f"{ms:7.1f}" for ms in shares))
    for other in kinds[1:]:
        ratios = (f"{robots}: {rates['pizero', robots] / rates[other, robots]:.2f}x" for robots in options.robots)
        print(f"requests/s of pizero beside {other}, by robots   {'  '.join(ratios)}")


if __name__ == "__main__":
    main()
