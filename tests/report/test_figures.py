"""Figures of the documentation: tables of docs/results against their JSON, README's against the pages that it names."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pizero.checkpoints.models import empty_model
from pizero.configs.presets import metaworld, tabletop
from pizero.evaluation.benchmark import wilson_interval

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


def rows(page: Path) -> set[tuple[str, ...]]:
    """The cells of every row of every table, without bold."""
    lines = page.read_text().replace("**", "").splitlines()
    return {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("|")}


def is_in(row: Sequence[str], page: set[tuple[str, ...]]) -> bool:
    """Numbers may differ by one in the last digit: the JSON's are rounded, too."""
    return any(len(row) == len(other) and all(map(alike, row, other)) for other in page)


def alike(cell: str, other: str) -> bool:
    if cell == other or not re.fullmatch(r"\d+\.\d+", cell) or not re.fullmatch(r"\d+\.\d+", other):
        return cell == other
    return abs(float(cell) - float(other)) < 1.5 * 10.0 ** -len(cell.split(".")[1])


def success(results: Sequence[dict[str, Any]]) -> str:
    hits, episodes = (sum(one[key] for one in results) for key in ("successes", "episodes"))
    low, high = wilson_interval(hits, episodes)
    return f"{100 * hits / episodes:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def percents(results: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{100 * one['successes'] / one['episodes']:.0f}" for one in results)


def listed(values: Sequence[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def studies(name: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The runs of a file by study and label, a run for each seed."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in json.loads((RESULTS / f"{name}.json").read_text()):
        found.setdefault((run["study"], run["run"]), []).append(run)
    return found


def costs(runs: Sequence[dict[str, Any]]) -> tuple[float, float, list[float]]:
    """CPU milliseconds a step, loss at the end, validation loss of each seed."""
    per_step = 1_000 * np.mean([run["seconds"][-1] / run["steps"][-1] for run in runs])
    return float(per_step), float(np.mean([run["loss"][-5:] for run in runs])), [r["validation_loss"][-1] for r in runs]


def test_tables_of_precision_and_averaging() -> None:
    page = rows(RESULTS / "training_ablation.md")
    for (study, label), runs in studies("training_ablation").items():
        for weights in ("averaged", "last"):
            end = [run["results"][f"4/4 {weights}"] for run in runs]
            half = [success([run["results"][f"2/4 {weights}"] for run in runs])] if study == "precision" else []
            error = np.mean([one["open_loop_error"] for one in end])
            row = [label, weights, *half, success(end), percents(end), f"{error:.3f}"]
            assert is_in(row, page), (study, row)


def test_what_precision_costs() -> None:
    """The first table: success of the last weights, validation loss; below it the losses of each seed."""
    page, found = rows(RESULTS / "training_ablation.md"), studies("training_ablation")
    for label in {label for _, label in found}:
        first: list[str] = []
        by_seed = [label]
        for study in ("finetune", "precision"):
            per_step, _, validation = costs(found[study, label])
            last = success([run["results"]["4/4 last"] for run in found[study, label]])
            first += [last, f"{np.mean(validation):.4f}"]
            by_seed += [listed(validation, 4), f"{per_step:.0f}"]
        assert is_in(first, {row[1:] for row in page}), (label, first)
        assert is_in(by_seed, page), (label, by_seed)


@pytest.mark.parametrize("name", ["flow_draws", "flow_draws_larger"])
def test_tables_of_draws(name: str) -> None:
    page = {row[:7] + row[-2:] for row in rows(RESULTS / "flow_draws.md")} | rows(RESULTS / "flow_draws.md")
    for (_, label), runs in studies(name).items():
        per_step, loss, validation = costs(runs)
        end = [run["results"]["4/4 averaged"] for run in runs]
        seconds = np.mean([run["seconds"][-1] for run in runs])
        row = [
            label.removesuffix(" draws"), f"{per_step:.0f}", f"{runs[0]['steps'][-1]:,.0f}", f"{seconds:.0f}",
            f"{loss:.3f}", f"{np.mean(validation):.3f}",
        ]  # fmt: skip
        half = percents([run["results"]["2/4 averaged"] for run in runs])
        row += [f"{half} %", success(end)] if len(runs) == 1 else [listed(validation, 3), success(end), percents(end)]
        assert is_in(row, page), row


def test_tables_of_late_policies() -> None:
    page = rows(RESULTS / "real_time.md")
    for cells in json.loads((RESULTS / "real_time.json").read_text()).values():
        by_way: dict[str, list[str]] = {}
        for name, cell in sorted(cells.items(), key=lambda item: int(item[0].split(" | ")[1])):
            low, high = wilson_interval(cell["successes"], cell["episodes"])
            by_way.setdefault(name.split(" | ")[0], []).append(
                f"{100 * cell['successes'] / cell['episodes']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
            )
        for way, row in by_way.items():
            assert (way, *row) in page


def test_late_policies_in_short() -> None:
    """The page's first table: successes over the late delays, and the mean jerk where chunks meet."""
    page = {(row[0].split(" (")[0], *row[1:]) for row in rows(RESULTS / "real_time.md")}
    ways: dict[str, list[str]] = {}
    for simulator, cells in json.loads((RESULTS / "real_time.json").read_text()).items():
        digits = 1 if simulator == "tabletop" else 2
        for way in sorted({name.split(" | ")[0] for name in cells}):
            late = [cells[f"{way} | {delay}"] for delay in (4, 7, 10)]
            jerk = np.mean([cell["jerk_at_boundaries"] for cell in late])
            ways.setdefault(way, []).extend([str(sum(c["successes"] for c in late)), f"{jerk:.{digits}f}"])
    for way, row in ways.items():
        assert is_in((way, *row), page), (way, row)


def test_tables_of_the_server() -> None:
    runs, page = json.loads((RESULTS / "server.json").read_text())["runs"], rows(RESULTS / "server.md")
    for server in ("pizero", "openpi"):
        added = [f"{run['round_trip_ms'][server] - run['round_trip_ms']['infer']:.2f} ms" for run in runs]
        assert (server, *added) in {row[:3] for row in page}
    for robots in {load["robots"] for load in runs[0]["load"]}:
        row = [str(robots)]
        for server in ("pizero", "pizero, no batches", "openpi"):
            loads = [x for run in runs for x in run["load"] if (x["server"], x["robots"]) == (server, robots)]
            row.append("<br>".join(
                f"{x['requests_per_s']:.0f} · {x['p50_ms']:.0f} / {x['p95_ms']:.0f} / {x['p99_ms']:.0f}" for x in loads
            ))  # fmt: skip
        assert is_in(row, page), row


def test_the_table_of_a_call_on_a_cpu() -> None:
    page, paths = rows(RESULTS / "inference.md"), json.loads((RESULTS / "inference.json").read_text())["bench_bfloat16"]
    for name, path in paths["paths"].items():
        median, best = path["median_s"], path["best_s"]
        assert (name, f"{median:.2f} s", f"{best:.2f} s") in {row[:3] for row in page}


def numbers(text: str) -> list[str]:
    return re.findall(r"\d[\d.,]*\d|\d", re.sub(r"π0\.?5?|H100|int8|bfloat16", "", text))


def test_figures_of_the_readme_are_those_of_the_pages() -> None:
    """Of a row of README's results each number is in the page that the row links to; memory in one of two pages."""
    found, memory = 0, numbers((RESULTS / "training.md").read_text() + (RESULTS / "inference.md").read_text())
    for row in rows(ROOT / "README.md"):
        if link := re.fullmatch(r"\[.*\]\((docs/results/\w+\.md).*\)", row[-1]):
            page = numbers((ROOT / link[1]).read_text())
            missing = [number for number in numbers(row[1]) if number not in page]
            assert not missing, (row, missing)
            found += 1
        elif row[0].startswith(("inference on", "LoRA", "full fine-tuning")):
            assert set(numbers(row[1])) <= set(memory), row
            found += 1
    assert found >= 8


def test_every_extra_is_in_the_readme() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[(\w+)\]'", (ROOT / "README.md").read_text())) == set(extras)


def test_sizes_of_the_small_models() -> None:
    models = [empty_model(make().model) for make in (tabletop, metaworld)]
    tiny, small = (sum(weight.numel() for weight in model.parameters()) / 1e6 for model in models)
    for page in ("docs/results/quickstart.md", "docs/results/server.md", "docs/results/inference.md"):
        assert f"{tiny:.2f} M parameters" in (ROOT / page).read_text()
    assert f"{small:.1f} M parameters" in (RESULTS / "metaworld.md").read_text()
