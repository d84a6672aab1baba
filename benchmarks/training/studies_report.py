"""Tables and pictures of the training studies (docs/results/training_ablation.md, flow_draws.md).

python benchmarks/training/studies_report.py FOLDER [--to docs/results]
    FOLDER: what studies.py filled; prints the tables, writes training_ablation, flow_draws and flow_draws_larger,
    .json and .svg; takes seconds
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from studies import QUARTERS, WEIGHTS, Run, read_results, runs_of

from pizero.evaluation.benchmark import wilson_interval
from pizero.train.metrics import read_metrics


@dataclass(frozen=True)
class Found:
    """A finished run. steps, seconds [N]: of its log's lines, CPU time, or on a GPU time; loss [N]. Validation loss of
    the averaged weights [M] at its steps [M].
    """

    run: Run
    results: dict[str, Any]
    steps: NDArray[np.float64]
    seconds: NDArray[np.float64]
    loss: NDArray[np.float64]
    validated: NDArray[np.float64]
    validation: NDArray[np.float64]

    @staticmethod
    def read(run: Run, folder: Path) -> Found:
        lines = read_metrics(folder / "metrics.jsonl")
        log = [line for line in lines if "loss" in line]
        validation = [line for line in lines if "validation_loss" in line]
        steps = np.array([line["step"] for line in log], np.float64)
        per_step = [run.preset(1).train.batch_size / line["samples_per_second"] for line in log]
        taken = np.array(per_step) * np.diff(steps, prepend=0) if run.on_gpu else [line["cpu_seconds"] for line in log]
        return Found(
            run, read_results(folder), steps, np.cumsum(taken), np.array([line["loss"] for line in log]),
            np.array([line["step"] for line in validation], np.float64),
            np.array([line["validation_loss"] for line in validation]),
        )  # fmt: skip

    def at(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds after these steps."""
        return np.interp(steps, [0, *self.steps], [0, *self.seconds])

    def to_json(self) -> dict[str, Any]:
        def rounded(values: NDArray[np.float64]) -> list[float]:
            return [round(float(value), 4) for value in values]

        return {
            "study": self.run.study, "run": self.run.label, "seed": self.run.seed, "results": self.results,
            "steps": rounded(self.steps), "seconds": rounded(self.seconds), "loss": rounded(self.loss),
            "validated": rounded(self.validated), "validation_loss": rounded(self.validation),
        }  # fmt: skip


def find(root: Path, study: str) -> dict[str, list[Found]]:
    """The finished runs by label, in the order of the study."""
    found: dict[str, list[Found]] = {run.label: [] for run in runs_of(study, [0])}
    for run in runs_of(study, range(10)):
        folder = root / study / run.name
        if f"{QUARTERS[study][-1]}/4 {WEIGHTS[run.of_precision]}" in read_results(folder):
            found[run.label].append(Found.read(run, folder))
    return {label: runs for label, runs in found.items() if runs}


def show(root: Path, to: Path) -> None:
    for path, names, draw in (
        ("training_ablation", ("precision", "finetune"), _show_precision),
        ("flow_draws", ("draws",), _show_draws),
        ("flow_draws_larger", ("draws-larger", "draws-middle"), _show_draws),
    ):
        groups = [found for name in names if (found := find(root, name))]
        if groups:
            _, axes = plt.subplots(len(groups), 3, figsize=(11, 3.2 * len(groups)), squeeze=False)
            for row, found in zip(axes, groups, strict=True):
                draw(row, found)
            _write(to / path, groups)


def _write(path: Path, groups: Sequence[dict[str, list[Found]]]) -> None:
    found = [one.to_json() for group in groups for runs in group.values() for one in runs]
    path.with_suffix(".json").write_text(json.dumps(found, separators=(",", ":")).replace("},{", "},\n{") + "\n")
    plt.tight_layout()
    plt.savefig(path.with_suffix(".svg"))


def _show_precision(axes: Any, found: dict[str, list[Found]]) -> None:
    run = next(iter(found.values()))[0].run
    from_scratch = run.study == "precision"
    points = [(quarter, weights) for quarter in reversed(QUARTERS[run.study]) for weights in WEIGHTS]
    _print_precision(found, from_scratch)
    for number, (label, runs) in enumerate(found.items()):
        _curve(axes[0], [(one.steps, one.loss) for one in runs], number, label)
        _curve(axes[1], [(one.validated, one.validation) for one in runs], number)
        for place, (quarter, weights) in enumerate(points):
            low, rate, high = _rates([one.results[f"{quarter}/4 {weights}"] for one in runs])
            at = place + 0.15 * (number - 1.5)
            axes[2].errorbar([at], [rate], [[rate - low], [high - rate]], fmt="o", color=f"C{number}", markersize=4)
    start = "from scratch" if from_scratch else "fine-tuned"
    for axis, title in zip(axes, ("loss", "validation loss, averaged weights", "success, %"), strict=True):
        axis.set_title(f"{start}: {title}", fontsize=10)
    for axis in axes[:2]:
        axis.set_xlabel("step")
        if from_scratch:
            _log_scale(axis)
    axes[0].legend(fontsize=8)
    when = {2: "half-way", 4: "end"}
    axes[2].set_xticks(range(len(points)), [f"{weights}\n{when[quarter]}" for quarter, weights in points])


def _print_precision(found: dict[str, list[Found]], from_scratch: bool) -> None:
    half_way = "success half-way | " if from_scratch else ""
    print(f"\n| | weights | {half_way}success at the end | by seed | open-loop error |")
    print("|---" * (6 if from_scratch else 5) + "|")
    for label, runs in found.items():
        for weights in WEIGHTS:
            end = [run.results[f"4/4 {weights}"] for run in runs]
            before = f"{_success([run.results[f'2/4 {weights}'] for run in runs])} | " if from_scratch else ""
            print(f"| {label} | {weights} | {before}{_success(end)} | {_by_seed(end)} | {_error(end):.3f} |")
    print("\n| | loss at the end | validation loss, averaged weights | by seed | CPU ms a step |")
    print("|---|---|---|---|---|")
    for label, runs in found.items():
        last, loss = [run.validation[-1] for run in runs], np.mean([run.loss[-5:].mean() for run in runs])
        per_step = 1_000 * np.mean([run.seconds[-1] / run.steps[-1] for run in runs])
        print(f"| {label} | {loss:.4f} | {np.mean(last):.4f} | {_listed(last, 4)} | {per_step:.0f} |")


def _show_draws(axes: Any, found: dict[str, list[Found]]) -> None:
    run = next(iter(found.values()))[0].run
    size = {"draws": "tiny", "draws-larger": "larger", "draws-middle": "middle"}[run.study]
    print("\n| | ms a step | steps | s | loss | validation loss | by seed | success after 1/4, 2/4, 3/4, % |"
          " at the end | by seed |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for number, (label, runs) in enumerate(found.items()):
        _draws_row(size, label, runs)
        _curve(axes[0], [(run.at(run.steps), run.loss) for run in runs], number, label)
        _curve(axes[1], [(run.at(run.validated), run.validation) for run in runs], number)
        quarters = sorted(QUARTERS[runs[0].run.study])
        rates = [_rates([run.results[f"{quarter}/4 averaged"] for run in runs]) for quarter in quarters]
        at = [np.mean([run.seconds[-1] for run in runs]) * quarter / 4 for quarter in quarters]
        spread = [[rate - low for low, rate, _ in rates], [high - rate for _, rate, high in rates]]
        axes[2].errorbar(at, [rate for _, rate, _ in rates], spread, fmt="o-", color=f"C{number}", markersize=4)
    titles = ("loss", "validation loss, averaged weights", "success, %")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(f"{size}: {title}", fontsize=10)
        axis.set_xlabel("seconds of the GPU" if run.on_gpu else "CPU seconds of one core")
    _log_scale(axes[0])
    _log_scale(axes[1])
    axes[0].legend(fontsize=8)


def _draws_row(size: str, label: str, runs: Sequence[Found]) -> None:
    end = [run.results["4/4 averaged"] for run in runs]
    early = [[run.results[f"{n}/4 averaged"] for run in runs if f"{n}/4 averaged" in run.results] for n in (1, 2, 3)]
    last, seconds = [run.validation[-1] for run in runs], float(np.mean([run.seconds[-1] for run in runs]))
    print(f"| {size}, {label} | {1e3 * seconds / runs[0].steps[-1]:.0f} | {runs[0].steps[-1]:.0f} | {seconds:.0f} | "
          f"{np.mean([run.loss[-5:].mean() for run in runs]):.4f} | {np.mean(last):.4f} | "
          f"{_listed(last, 4)} | "
          f"{_listed((_rates(results)[1] for results in early if results), 0)} | {_success(end)} | "
          f"{_by_seed(end)} |")  # fmt: skip


Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def _curve(axis: Any, curves: Sequence[Curve], number: int, label: str = "") -> None:
    """Each seed thin, their mean thick; a long curve over a sliding window of five."""
    at = curves[0][0]
    values = np.array([np.interp(at, own, value) for own, value in curves])
    if len(at) > 30:
        values, at = np.array([np.convolve(row, np.ones(5) / 5, "valid") for row in values]), at[2:-2]
    axis.plot(at, values.mean(axis=0), color=f"C{number}", label=label, linewidth=1.5)
    if len(values) > 1:
        axis.plot(at, values.T, color=f"C{number}", alpha=0.4, linewidth=0.5)


def _log_scale(axis: Any) -> None:
    axis.set_yscale("log")
    axis.set_yticks([0.15, 0.2, 0.3, 0.5, 1, 2], ["0.15", "0.2", "0.3", "0.5", "1", "2"])
    axis.minorticks_off()


def _rates(results: Sequence[Any]) -> tuple[float, float, float]:
    """Lower end, rate, upper end in percent, of all seeds together."""
    successes, episodes = (sum(result[key] for result in results) for key in ("successes", "episodes"))
    low, high = wilson_interval(successes, episodes)
    return 100 * low, 100 * successes / episodes, 100 * high


def _success(results: Sequence[Any]) -> str:
    low, rate, high = _rates(results)
    return f"{rate:.1f} % ({low:.0f} to {high:.0f})"


def _by_seed(results: Sequence[Any]) -> str:
    return ", ".join(f"{100 * result['successes'] / result['episodes']:.0f}" for result in results)


def _listed(values: Iterable[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def _error(results: Sequence[Any]) -> float:
    return float(np.mean([result["open_loop_error"] for result in results]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    show(args.folder, args.to)


if __name__ == "__main__":
    main()
