"""What a log line tells beside the loss: gradient norm, memory, the share of a known GPU; and a run too short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import nano_model, nano_preset

from pizero.train import utilization
from pizero.train.distributed import ALONE
from pizero.train.metrics import read_metrics
from pizero.train.plan import Layout, plan_step
from pizero.train.utilization import peak_operations, share_of_peak
from pizero.workflows.train import train_policy


def logged(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def test_gradient_norm_and_memory_are_logged(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    original = torch.nn.utils.get_total_norm

    def noted(*arguments: Any) -> torch.Tensor:
        norm = original(*arguments)
        norms.append(float(norm))
        return norm

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", noted)
    train_policy(dataset, tmp_path / "run", nano_preset(log_every=4, clip_norm=1e-6))
    lines = logged(tmp_path / "run")
    assert [line["gradient_norm"] for line in lines] == pytest.approx([sum(norms[:4]) / 4, sum(norms[4:]) / 4])
    assert all(0.05 < line["memory_gib"] < 50 for line in lines)
    assert not any("mfu" in line for line in lines)


def test_the_share_of_a_known_gpu(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090", "Another"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: next(names))
    assert [peak_operations(torch.device("cuda:0")) for _ in range(3)] == [989e12, 165e12, None]
    assert peak_operations(torch.device("cpu")) is None
    monkeypatch.setattr(utilization, "peak_operations", lambda device: 1e9)
    preset = nano_preset(steps=2)
    flops = plan_step(nano_model(), preset.train, Layout()).flops
    assert share_of_peak(nano_model(), preset.train, ALONE, torch.device("cpu")) == flops / 1e9
    train_policy(dataset, tmp_path / "run", preset)
    for line in logged(tmp_path / "run"):
        assert line["mfu"] == pytest.approx(flops / 1e9 * line["samples_per_second"] / 8, rel=0.2)


@pytest.mark.parametrize(("steps", "warmup", "told"), [(20, 100, True), (20, 20, True), (21, 20, False), (1, 0, False)])
def test_a_run_that_ends_in_its_warm_up_is_told(
    steps: int, warmup: int, told: bool, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pizero.workflows.train._run", lambda trainer, bars: trainer.save())
    train_policy(dataset, tmp_path / "run", nano_preset(steps=steps, warmup_steps=warmup))
    shown = " ".join(capsys.readouterr().err.split())
    assert (f"{steps} steps end within the warm-up of {warmup}: the learning rate reaches" in shown) == told
    assert ("give --warmup-steps 2" in shown) == told


def test_batches_that_the_data_cannot_fill_are_told(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pizero.workflows.train._run", lambda trainer, bars: trainer.save())
    for size, told in ((8, False), (100_000, True)):
        train_policy(dataset, tmp_path / str(size), nano_preset(batch_size=size))
        shown = " ".join(capsys.readouterr().err.split())
        assert ("and not of 100000: the data has no more frames to train on" in shown) == told
