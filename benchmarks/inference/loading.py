"""Loading a full-size π0 from one safetensors file: time beside safetensors alone, and memory.

    python benchmarks/inference/loading.py [--dtype bfloat16] [--stored bfloat16] [--rounds 3]

Feeds docs/checkpoints.md. Takes some minutes on 2 cores and writes 6.5 GB (13 GB for float32) of random weights
into a temporary folder first. Each load is a process of its own, interleaved; "safetensors alone" maps the file,
converts where the dtypes differ, and reads every tensor once. Peak memory is the anonymous part (RssAnon): what a file
maps can be dropped and read again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from pizero.checkpoints.files.safetensors_file import WEIGHTS, write_safetensors
from pizero.checkpoints.native.checkpoint import CONFIG, FORMAT, VERSION
from pizero.model.config import Pi0Config
from pizero.model.pi0 import Pi0


class RandomWeights(Mapping[str, Tensor]):
    """Made when they are asked for, so that writing them needs the memory of one."""

    def __init__(self, config: Pi0Config, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            self.shapes = {name: tensor.to(dtype) for name, tensor in Pi0(config).state_dict().items()}

    def __getitem__(self, name: str) -> Tensor:
        return torch.empty_like(self.shapes[name], device="cpu").uniform_(-0.02, 0.02)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def anonymous_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def load(how: str, folder: Path, dtype: str) -> None:
    """Prints seconds and peak anonymous bytes above those before the load."""
    from safetensors import safe_open

    from pizero import load_model

    torch.set_num_threads(1)
    before, peak, done = anonymous_bytes(), 0, False

    def watch() -> None:
        nonlocal peak
        while not done:
            peak = max(peak, anonymous_bytes())
            time.sleep(0.01)

    watcher = Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    if how == "pizero":
        model = load_model(folder, dtype=dtype)
        assert next(model.parameters()).device.type == "cpu"
    else:
        with safe_open(folder / WEIGHTS, "pt") as file:
            tensors = {name: file.get_tensor(name).to(getattr(torch, dtype)) for name in file.keys()}  # noqa: SIM118
            for tensor in tensors.values():
                torch.aminmax(tensor)
    seconds = time.perf_counter() - started
    done = True
    watcher.join()
    print(json.dumps({"seconds": seconds, "peak": max(peak, anonymous_bytes()) - before}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--stored", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load[0], Path(arguments.load[1]), arguments.dtype)
        return
    config = Pi0Config.pi0()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = {"format": FORMAT, "version": VERSION, "model": "pi0", "config": config.to_json()}
        (folder / CONFIG).write_text(json.dumps(values))
        write_safetensors(folder / WEIGHTS, RandomWeights(config, getattr(torch, arguments.stored)))
        size = (folder / WEIGHTS).stat().st_size
        print(f"{size / 1e9:.2f} GB stored as {arguments.stored}, loaded as {arguments.dtype}, one thread")
        times: dict[str, list[float]] = {"safetensors": [], "pizero": []}
        for _ in range(arguments.rounds):
            for how, found in times.items():
                command = [sys.executable, __file__, "--dtype", arguments.dtype, "--load", how, name]
                result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                found.append(result["seconds"])
                print(f"{how:<12} {result['seconds']:6.1f} s, peak {result['peak'] / 1e9:.2f} GB anonymous")
        ratio = min(times["pizero"]) / min(times["safetensors"])
        print(f"time, best of {arguments.rounds}: {ratio:.2f} x safetensors alone")


if __name__ == "__main__":
    main()
