"""A policy server under load: what it adds to `infer`, and how many robots it answers, beside openpi's server.

python benchmarks/serving/load.py                     pizero alone
python benchmarks/serving/load.py --openpi CHECKOUT   beside openpi's own WebsocketPolicyServer, around the same policy

Feeds docs/results/server.md; some minutes on 2 cores. Each server is a process of its own, all robots are
threads of another, over loopback. A robot asks again as soon as it has its answer. The policy is the quick start's π0,
untrained (0.86 M parameters, two cameras of 32 pixels, 10 steps); what the server adds is measured with a model that
computes nothing, at three cameras of 224 pixels.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from pizero.serving.running import SWITCH_S, run
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

    sys.setswitchinterval(SWITCH_S)
    asyncio.run(work())


@contextmanager
def server(
    kind: str, computes: bool, options: argparse.Namespace, port: int | None = None
) -> Iterator[tuple[str, int]]:
    """Its address and its process."""
    port = port or options.port
    command = [sys.executable, __file__, "--serve", kind, "--port", str(port), "--threads", str(options.threads)]
    path = [*sys.path, *((f"{options.openpi}/{part}") for part in ("src", "packages/openpi-client/src"))]
    environment = {"PYTHONPATH": ":".join(map(str, filter(None, path))), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen([*command, *([] if computes else ["--nothing"])], env=environment)
    try:
        yield f"ws://127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def servers(kinds: Sequence[str], computes: bool, options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Their addresses, by kind; all run at once, and those that are not asked wait."""
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(server(kind, computes, options, options.port + number))[0]
            for number, kind in enumerate(kinds)
        }


# ---------------------------------------------------------------- the robots' process


def added(uris: dict[str, str], seconds: float) -> dict[str, float]:
    """Milliseconds of each server's round trip and, named "infer", of `infer` in this process: medians, in turns."""
    policy = make_policy(computes=False)
    rng = np.random.default_rng(0)
    observation = blank_observation(policy)
    observation["images"] = {name: rng.integers(0, 256, (224, 224, 3), np.uint8) for name in observation["images"]}
    with ExitStack() as stack:
        asks = {kind: stack.enter_context(PolicyClient(uri)).infer for kind, uri in uris.items()}
        asks["infer"] = policy.infer
        found: dict[str, list[float]] = {kind: [] for kind in asks}
        ended = time.perf_counter() + seconds
        while time.perf_counter() < ended:
            for kind, ask in asks.items():
                started = time.perf_counter()
                ask(observation)
                found[kind].append(1000 * (time.perf_counter() - started))
    return {kind: statistics.median(values[len(values) // 10 :]) for kind, values in found.items()}


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


def compare(kinds: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Prints and returns what each kind does for each number of robots, in turns: the median of the rounds."""
    rates: dict[tuple[str, int], float] = {}
    found: list[dict[str, Any]] = []
    print(f"\n{'server':20} robots  requests/s  p50 ms  p95 ms  p99 ms")
    with servers(kinds, True, options) as uris:
        for uri in uris.values():
            load(uri, max(options.robots), 0.5)  # what is made once is made
        for robots in options.robots:
            rounds = [
                {kind: load(uri, robots, options.seconds) for kind, uri in uris.items()} for _ in range(options.rounds)
            ]
            for kind in kinds:
                rates[kind, robots] = statistics.median(one[kind][0] for one in rounds)
                shares = np.percentile([value for one in rounds for value in one[kind][1]], (50, 95, 99))
                print(f"{kind:20} {robots:6} {rates[kind, robots]:11.1f} " + " ".join(f"{ms:7.1f}" for ms in shares))
                values = dict(zip(("p50_ms", "p95_ms", "p99_ms"), (round(float(ms), 2) for ms in shares), strict=True))
                found.append(
                    {"server": kind, "robots": robots, "requests_per_s": round(rates[kind, robots], 1), **values}
                )
    for other in kinds[1:]:
        ratios = (f"{robots}: {rates[kinds[0], robots] / rates[other, robots]:.2f}x" for robots in options.robots)
        print(f"requests/s of {kinds[0]} beside {other}, by robots   {'  '.join(ratios)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openpi", type=Path, help="a checkout of openpi")
    parser.add_argument("--robots", type=int, nargs="*", default=(1, 2, 4, 8, 16))
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of all servers, for each number of robots")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--port", type=int, default=18_080, help="and the two after it")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--nothing", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, not options.nothing, options.port, options.threads)
        return
    torch.set_num_threads(options.threads)
    kinds = KINDS if options.openpi else KINDS[:2]
    with servers([kind for kind in kinds if kind != "pizero, no batches"], False, options) as uris:
        trips = added(uris, options.rounds * options.seconds)
    for kind in uris:
        print(
            f"{kind}: round trip {trips[kind]:.2f} ms, {trips[kind] - trips['infer']:.2f} ms more than infer in process"
        )
    found: dict[str, Any] = {"round_trip_ms": trips, "load": compare(kinds, options) if options.robots else []}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
