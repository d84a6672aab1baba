"""The ladder measured: every variant trained on the same demonstrations and evaluated on the same episodes.

Each run is a process of its own with one thread, so that its memory and its time are its own, and leaves its result at
once; what is there already is not run again, and the results of all studies in a folder make one compare.json.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table

from pizero.configs.ladder import CHANGES, STEP_COUNTS, STEP_RUNGS, STUDIES, variant_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.robot_columns import action_names
from pizero.envs.env import make_env
from pizero.evaluation.benchmark import wilson_interval
from pizero.files import read_json
from pizero.processes import Workers
from pizero.report.compare import compare_report
from pizero.types import UserError, check_least
from pizero.workflows.collect import CollectConfig, collect_once
from pizero.workflows.compare_recording import recorded_source, sized_by, trivial_rows
from pizero.workflows.compare_runs import RECORDED_FRAMES, RunConfig, evaluate_steps, train_and_measure
from pizero.workflows.evaluate import write_json
from pizero.workflows.progress import console, progress_bar
from pizero.workflows.run_settings import changed_settings, changed_text

STUDY_NAMES = (*STUDIES, "steps")
RECORDED_STUDIES = ("ladder", "single", "rates")
"""Those that need no simulator."""
Job = tuple[str, Path, Callable[..., None], tuple[Any, ...]]
"""What it is called, the file that it leaves, the function and its arguments."""

SETTINGS = "settings.json"
"""In the folder: what its comparison was started with."""


@dataclass(frozen=True)
class CompareConfig(RunConfig):
    """rungs: restricts the studies that have several. seeds: one run each. workers: runs at a time."""

    study: str = "ladder"
    rungs: tuple[int, ...] = tuple(range(len(CHANGES)))
    seeds: tuple[int, ...] = (0,)
    workers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(1, workers=self.workers)
        check_least(0, seeds=min(self.seeds, default=0))
        if self.study not in STUDY_NAMES:
            raise UserError(f"unknown study {self.study!r}; expected one of {', '.join(STUDY_NAMES)}")
        if not self.rungs or not self.seeds:
            raise UserError("nothing to compare: give at least one rung and one seed")
        if self.dataset and self.study not in RECORDED_STUDIES:
            raise UserError(f"study {self.study}: on a recording there are {', '.join(RECORDED_STUDIES)}")
        unknown = [rung for rung in self.rungs if not 0 <= rung < len(CHANGES)]
        if unknown:
            raise UserError(f"rung {unknown[0]} does not exist; the ladder has 0 to {len(CHANGES) - 1}")


def compare(config: CompareConfig, folder: Path) -> dict[str, Any]:
    """Runs what is missing and writes compare.json and report.html; returns what compare.json holds.

    Its "rows", one per rung, hold rung, change, success (over all seeds), interval, episodes, success_by_seed,
    parameters, latency (milliseconds a call on one core), seconds (of training, CPU time of one core), samples,
    samples_per_second, peak_mib (memory of the whole process), open_loop_error (mean absolute error per action
    dimension, robot units), relative_error (its mean over the dimensions, in standard deviations). "single",
    "demonstrations", "rates" and "steps" hold rows of the same kind for those studies. On a recording no row has a
    success; "trivial" has the errors of guesses that need no policy, "actions" the dimensions' names.
    """
    if config.dataset:
        recorded_source(config.dataset, config.skip_bad_episodes)  # refused now, and not in every run
    _check_settings(config, folder)
    num_tasks = 1 if config.dataset else _num_tasks(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, _settings(config))
    if not config.dataset:
        wanted = _collect_config(config, num_tasks)
        collect_once(wanted, folder / "dataset")
        recorded = LeRobotDataset(folder / "dataset").num_episodes
        if recorded < wanted.episodes:
            raise UserError(
                f"{folder / 'dataset'} has {recorded} demonstrations, the study {config.study} takes "
                f"{wanted.episodes}; give it a folder of its own"
            )
    started = time.perf_counter()
    jobs = [job for job in _jobs(config, num_tasks, folder) if not job[1].is_file()]
    try:
        _run(jobs, config.workers)
    finally:
        results = summarize_runs(config, folder) | {"seconds": round(time.perf_counter() - started, 1)}
        write_json(folder / "compare.json", results)
    compare_report(folder / "report.html", results)
    return results


def _jobs(config: CompareConfig, num_tasks: int, folder: Path) -> Iterator[Job]:
    """Seed by seed, so that an interrupted comparison has whole ladders."""
    shared = RunConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(RunConfig)})
    for seed in config.seeds:
        for variant in STUDIES.get(config.study, ()):
            if variant.rung in config.rungs:
                run = folder / f"{variant.name}_seed{seed}"
                count = num_tasks * (variant.demonstrations or config.demonstrations)
                arguments = shared, variant, seed, folder / "dataset", count, run
                yield run.name, run / "result.json", train_and_measure, arguments
        for rung in STEP_RUNGS if config.study == "steps" else ():
            run = folder / f"rung{rung}_seed{seed}"
            if rung in config.rungs and not (run / "result.json").is_file():
                raise UserError(f"{run.name} is not trained yet; run the study ladder first")
            for count in STEP_COUNTS if rung in config.rungs else ():
                path = folder / "steps" / f"{run.name}_steps{count}.json"
                yield path.stem, path, evaluate_steps, (shared, run, count, path)


def _begin_run() -> None:
    """In the process that a run has for itself: one thread, and silence, for several runs share one terminal."""
    torch.set_num_threads(1)
    console.quiet = True


def _run(jobs: Sequence[Job], workers: int) -> None:
    with progress_bar() as bars, Workers(workers, _begin_run, tasks_each=1) as pool:
        bar = bars.add_task("runs", total=len(jobs), note="")
        waiting = {pool.submit(function, *arguments): (name, path) for name, path, function, arguments in jobs}
        left = set(waiting)
        while left:
            done, left = wait(left, timeout=1, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                name, path = waiting[future]
                result = json.loads(path.read_text())
                measured = (
                    f"{result['successes']} of {result['episodes']}"
                    if "successes" in result
                    else f"error {result['relative_error']:.3f}"
                )
                bars.console.print(f"{name}: {measured} · {result['change']}")
            bars.update(bar, completed=len(waiting) - len(left))


def summarize_runs(config: CompareConfig, folder: Path) -> dict[str, Any]:
    """Settings and the rows of all studies, from the results that are in the folder."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*_seed*/result.json"))]
    rows: dict[str, list[dict[str, Any]]] = {}
    for study, variants in STUDIES.items():
        runs = [[run for run in found if run["variant"] == variant.name] for variant in variants]
        rows[study] = [_row(sorted(done, key=lambda run: run["seed"])) for done in runs if done]
    stepped = [json.loads(path.read_text()) for path in sorted((folder / "steps").glob("*.json"))]
    keys = sorted({(run["rung"], run["num_steps"]) for run in stepped})
    by_steps = [_row([run for run in stepped if (run["rung"], run["num_steps"]) == key]) for key in keys]
    results = {"settings": dataclasses.asdict(config), "rows": rows.pop("ladder"), **rows, "steps": by_steps}
    return results | (_trivial(config) if config.dataset else {})


def _trivial(config: CompareConfig) -> dict[str, Any]:
    """What any policy must be better than, on the held-out episodes of the seeds, and the names of the actions."""
    source = recorded_source(config.dataset, config.skip_bad_episodes)
    found = [
        trivial_rows(source, sized_by(source, variant_preset(STUDIES["ladder"][0], config.ladder, seed)),
                     RECORDED_FRAMES)
        for seed in config.seeds
    ]  # fmt: skip
    rows = [{"change": runs[0]["change"], **_mean_errors(runs)} for runs in zip(*found, strict=True)]
    names = action_names(source.dataset, source.embodiment)
    return {"trivial": rows, "actions": list(names or map(str, range(len(rows[0]["open_loop_error"]))))}


_KEPT = ("variant", "rung", "change", "demonstrations", "learning_rate", "parameters", "samples", "num_steps")
_AVERAGED = {"latency": "latency", "train_seconds": "seconds", "samples_per_second": "samples_per_second",
             "peak_mib": "peak_mib"}  # fmt: skip


def _row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The runs of one variant, one per seed."""
    row = {key: runs[0][key] for key in _KEPT if key in runs[0]} | {"seeds": [run["seed"] for run in runs]}
    row |= {ours: round(float(np.mean([run[key] for run in runs])), 3) for key, ours in _AVERAGED.items()
            if key in runs[0]}  # fmt: skip
    if "open_loop_error" in runs[0]:
        row |= _mean_errors(runs)
    if "successes" not in runs[0]:
        return row
    successes, episodes = sum(run["successes"] for run in runs), sum(run["episodes"] for run in runs)
    return row | {
        "success": successes / episodes, "interval": list(wilson_interval(successes, episodes)), "episodes": episodes,
        "success_by_seed": [run["successes"] / run["episodes"] for run in runs],
        "success_by_task": {
            task: sum(run["successes_by_task"][task] for run in runs) / (episodes / len(runs[0]["successes_by_task"]))
            for task in runs[0]["successes_by_task"]
        },
    }  # fmt: skip


def _mean_errors(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "open_loop_error": np.mean([run["open_loop_error"] for run in runs], axis=0).round(4).tolist(),
        "relative_error": round(float(np.mean([run["relative_error"] for run in runs])), 3),
    }


def _num_tasks(config: CompareConfig) -> int:
    world = make_env(config.ladder.env, tasks=config.tasks or None, render_in_step=False)
    try:
        return len(world.task_names)
    finally:
        world.close()


def _collect_config(config: CompareConfig, num_tasks: int) -> CollectConfig:
    env = config.ladder.env
    each = [variant.demonstrations or config.demonstrations for variant in STUDIES.get(config.study, ())]
    return CollectConfig(
        env, episodes=num_tasks * max(each, default=config.demonstrations), tasks=config.tasks, workers=config.workers,
        image_size=variant_preset(STUDIES["ladder"][0], config.ladder, 0).model.image_size,
        image_format="png" if env == "tabletop" else "h264",
    )  # fmt: skip


def _check_settings(config: CompareConfig, folder: Path) -> None:
    """A folder holds one comparison: only studies, rungs and seeds may be added."""
    path = folder / SETTINGS
    changed = changed_settings(read_json(path), _settings(config)) if path.is_file() else {}
    if changed:
        raise UserError(
            f"{folder} holds a comparison with other settings: {changed_text(changed)}; give the old ones to continue, "
            "or choose another folder"
        )


def _settings(config: CompareConfig) -> dict[str, Any]:
    """What may not change, as JSON has it."""
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    for name in ("study", "rungs", "seeds", "workers", "num_envs"):
        settings.pop(name)
    return settings


def print_comparison(results: dict[str, Any], folder: Path) -> None:
    """Every study that has results, as a table."""
    for key, (title, columns) in _TABLES.items():
        if results[key]:
            console.print(_table([*results.get("trivial", []), *results[key]], title, columns))
    console.print(f"{results['seconds']:.0f} s · {folder}: compare.json, report.html")


_COSTS = {"size": lambda row: f"{row['parameters'] / 1e6:.2f}M", "train s": lambda row: f"{row['seconds']:.0f}",
          "MiB": lambda row: f"{row['peak_mib']:.0f}"}  # fmt: skip
_TABLES: dict[str, tuple[str, dict[str, Callable[[dict[str, Any]], str]]]] = {
    "rows": ("from the diffusion policy to π0", _COSTS),
    "single": ("one change to one rung", _COSTS),
    "demonstrations": ("fewer and more demonstrations", {"demos": lambda row: str(row["demonstrations"])}),
    "rates": ("learning rates", {"rate": lambda row: f"{row['learning_rate']:.1e}"}),
    "steps": ("inference steps", {"steps": lambda row: str(row["num_steps"])}),
}
"""Title and own columns of each study's table."""


def _table(rows: list[dict[str, Any]], title: str, columns: dict[str, Callable[[dict[str, Any]], str]]) -> Table:
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    played = any("success" in row for row in rows)
    for heading in ("", "change", *(("success", "95 %") if played else ()), "error", "ms", *columns):
        table.add_column(heading, justify="left" if heading == "change" else "right", no_wrap=heading != "change")
    for row in rows:
        cells = [str(row.get("rung", "")), row["change"]]
        if played:
            cells += [f"{row['success']:.1%}", "{:.0%}-{:.0%}".format(*row["interval"])]
        cells += [f"{row['relative_error']:.3f}" if "relative_error" in row else ""]
        if "rung" in row:
            cells += [f"{row['latency']:.0f}", *(column(row) for column in columns.values())]
        table.add_row(*cells)
    return table
