"""Collect, evaluate and the whole demo at the smallest size."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pizero.baseline.config import BaselineConfig, small_baseline
from pizero.checkpoints.load import load_policy
from pizero.cli.main import run
from pizero.configs.finetune import with_lora
from pizero.configs.presets import PRESETS, ModelName, Preset, get_preset
from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.norm_stats import NormStats, compute_norm_stats
from pizero.envs.env import make_env
from pizero.evaluation.rollout import EpisodeSpec
from pizero.model.config import Pi0Config, small_config
from pizero.report.architecture import Architecture
from pizero.train.config import LoraConfig, TrainConfig
from pizero.train.run_folder import list_checkpoints
from pizero.types import UserError
from pizero.workflows.collect import CollectConfig, collect
from pizero.workflows.demo import RECORDED, DemoConfig, print_results, run_demo
from pizero.workflows.evaluate import (
    EvaluateConfig,
    blank_images,
    evaluate_checkpoint,
    swap_instructions,
)
from pizero.workflows.inspect import inspect, model_config
from pizero.workflows.norm_stats import norm_stats
from pizero.workflows.start import Initialization
from pizero.workflows.train import train_policy


def small_collect(**changes: object) -> CollectConfig:
    return CollectConfig(**{"env": "tabletop", "episodes": 6, "image_size": 28, "image_format": "png", **changes})  # type: ignore[arg-type]


def test_collect_is_the_same_with_one_and_with_two_processes(tmp_path: Path) -> None:
    one = collect(small_collect(), tmp_path / "one")
    two = collect(small_collect(workers=2), tmp_path / "two")
    assert (one.episodes, one.frames) == (two.episodes, two.frames) == (6, LeRobotDataset(tmp_path / "one").num_frames)
    first, second = LeRobotDataset(tmp_path / "one"), LeRobotDataset(tmp_path / "two")
    frames = np.arange(first.num_frames)
    for key in ("observation.state", "action"):
        np.testing.assert_array_equal(first.column(key), second.column(key))
    np.testing.assert_array_equal(first.images("top", frames), second.images("top", frames))
    assert first.prompts(frames) == second.prompts(frames)
    assert len(set(first.prompts(frames))) >= 4  # the tasks take turns


@pytest.mark.parametrize("workers", [1, 2])
def test_collect_records_each_task_as_often_though_one_fails_at_times(tmp_path: Path, workers: int) -> None:
    tasks = ("reach", "push_right")
    result = collect(small_collect(episodes=6, noise=0.1, tasks=tasks, workers=workers), tmp_path / "data")
    dataset = LeRobotDataset(tmp_path / "data")
    prompts = dataset.prompts(dataset.episode_starts)
    assert sum("push" in prompt for prompt in prompts) == 3, prompts
    assert result.attempts > result.episodes == 6


def test_large_simulators_are_recorded_task_by_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pizero.envs.tabletop.env import TabletopEnv

    monkeypatch.setattr(TabletopEnv, "most_at_once", 1, raising=False)
    monkeypatch.setattr(TabletopEnv, "demonstrated_tasks", ("lift", "reach"), raising=False)
    collect(small_collect(episodes=4), tmp_path / "data")
    dataset = LeRobotDataset(tmp_path / "data")
    prompts = dataset.prompts(dataset.episode_starts)
    assert ["lift" in prompt for prompt in prompts] == [True, True, False, False], prompts


def test_large_simulators_are_the_same_with_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is tried beyond what one process tries."""
    from pizero.envs.tabletop.env import TabletopEnv

    monkeypatch.setattr(TabletopEnv, "most_at_once", 1, raising=False)
    settings = small_collect(episodes=4, noise=0.1, tasks=("push_right", "reach"))
    one, two = (collect(dataclasses.replace(settings, workers=workers), tmp_path / str(workers)) for workers in (1, 2))
    assert one.attempts == two.attempts > 4
    first, second = LeRobotDataset(tmp_path / "1"), LeRobotDataset(tmp_path / "2")
    np.testing.assert_array_equal(first.column("action"), second.column("action"))


def test_a_named_task_without_a_demonstrator_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pizero.envs.tabletop.env import TabletopEnv

    scripted = TabletopEnv.demonstrator

    def demonstrator(env: TabletopEnv) -> object:
        if "push" in env.observe()["prompt"]:
            raise UserError("push has no demonstrator")
        return scripted(env)

    monkeypatch.setattr(TabletopEnv, "demonstrated_tasks", ("lift",), raising=False)
    monkeypatch.setattr(TabletopEnv, "demonstrator", demonstrator)
    monkeypatch.setattr("pizero.workflows.collect.record_episode", None)
    with pytest.raises(UserError, match="push has no demonstrator"):
        collect(small_collect(tasks=("lift", "push_left")), tmp_path / "data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_that_cannot_be(noise: float) -> None:
    with pytest.raises(UserError, match="noise must be a number of at least 0, got "):
        CollectConfig(noise=noise)


def test_an_evaluation_shows_its_own_films_and_says_of_whom(tmp_path: Path) -> None:
    old = tmp_path / "videos" / "reach_3.mp4"
    old.parent.mkdir()
    old.write_bytes(b"of another evaluation")
    results = evaluate_checkpoint("random", EvaluateConfig("tabletop", episodes=1, tasks=("lift",)), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<video" not in page
    assert "<td>policy</td><td>random</td>" in page
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert "num_videos" not in results["settings"]
    assert old.is_file()


def test_a_folder_that_cannot_be_written_is_known_before_the_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pizero.workflows.evaluate.evaluate_actor", None)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file cannot be written .* choose another folder"):
        evaluate_checkpoint("random", EvaluateConfig("tabletop", episodes=1), tmp_path / "file")


def test_collect_executes_noise_and_records_clean_actions(tmp_path: Path) -> None:
    collect(small_collect(noise=0.0), tmp_path / "clean")
    collect(small_collect(noise=0.02), tmp_path / "noisy")
    clean, noisy = (LeRobotDataset(tmp_path / name) for name in ("clean", "noisy"))
    starts = [0] * 2
    np.testing.assert_array_equal(  # the first action is the demonstrator's for the same scene
        clean.column("action")[starts], noisy.column("action")[starts]
    )
    assert not np.array_equal(clean.column("observation.state")[:10], noisy.column("observation.state")[:10])


def test_interrupted_collect_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(small_collect(), tmp_path / "d", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_norm_stats_without_and_with_an_embodiment(tmp_path: Path) -> None:
    collect(small_collect(), tmp_path / "d")
    stats, path, frames, _ = norm_stats(tmp_path / "d", None, "quantile", 10, None)
    other, *_ = norm_stats(tmp_path / "d", "tabletop", "quantile", 10, tmp_path / "stats.json")
    values = LeRobotDataset(tmp_path / "d").column("action")
    assert frames == len(values)
    assert json.loads(path.read_text())["mode"] == "quantile"
    np.testing.assert_allclose(stats.actions.mean, values.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(other.actions.q99, np.quantile(values, 0.99, axis=0), atol=1e-6)


def test_norm_stats_in_the_files_of_openpi_and_lerobot(tmp_path: Path) -> None:
    """LeRobot's: what it had itself of the same data, but for the quantiles, which are exact here."""
    root = Path(__file__).parents[1] / "golden" / "lerobot" / "datasets" / "v30_png"
    ours, *_ = norm_stats(root, None, "quantile", 10, tmp_path / "ours.json")
    norm_stats(root, None, "zscore", 10, tmp_path / "openpi.json", format="openpi")
    written = json.loads((tmp_path / "openpi.json").read_text())
    expected = {"state": ours.state.to_json(), "actions": ours.actions.to_json()}
    names = ("mean", "std", "q01", "q99")
    assert written == {"norm_stats": {key: {name: field[name] for name in names} for key, field in expected.items()}}

    norm_stats(root, None, "zscore", 10, tmp_path / "stats.json", format="lerobot")
    written, stored = (json.loads((path / "stats.json").read_text()) for path in (tmp_path, root / "meta"))
    assert list(written) == list(stored)
    column = LeRobotDataset(root).column("action")
    for key, field in stored.items():
        if key not in ("action", "observation.state"):
            assert written[key] == field
            continue
        assert written[key].keys() == field.keys()
        for name in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(written[key][name], field[name], rtol=1e-5, atol=1e-8)
    for name, q in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
        np.testing.assert_allclose(written["action"][name], np.quantile(column.astype(np.float64), q, axis=0))
    again = NormStats.load(tmp_path / "stats.json", "quantile").actions.to_json()
    for name, values in ours.actions.to_json().items():
        np.testing.assert_allclose(again[name], values, rtol=1e-12, atol=1e-15)


def test_norm_stats_formats_that_need_more(tmp_path: Path) -> None:
    root = Path(__file__).parents[1] / "golden" / "lerobot" / "datasets" / "v30_png"
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match=r"give --output, the assets/<asset id>/norm_stats\.json to write"):
        norm_stats(root, None, "zscore", 10, None, format="openpi")
    (tmp_path / "arm.toml").write_text('[cameras]\nbase_0_rgb = "top"\n[robot]\nrelative_mask = [true]\n')
    with pytest.raises(UserError, match="actions of the arm embodiment are relative"):
        norm_stats(root, str(tmp_path / "arm.toml"), "zscore", 10, tmp_path / "s.json", format="lerobot")
    assert sorted(root.rglob("*")) == before
    assert not (tmp_path / "s.json").exists()


def test_swapped_and_blank_observations() -> None:
    observation = {"state": np.zeros(2), "images": {"top": np.zeros((2, 2, 3), np.uint8)}, "prompt": "a"}
    alter = swap_instructions(["a", "b", "c"])
    swapped = [alter(observation, EpisodeSpec("t", seed))["prompt"] for seed in range(20)]
    assert set(swapped) == {"b", "c"}
    assert swapped == [alter(observation, EpisodeSpec("t", seed))["prompt"] for seed in range(20)]
    assert (blank_images(observation, EpisodeSpec("t", 0))["images"]["top"] == 128).all()
    assert (observation["images"]["top"] == 0).all()
    with pytest.raises(UserError, match="at least two"):
        swap_instructions(["a", "a"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], DemoConfig, Preset]:
    """A policy that learns nothing in 4 steps: the whole path all the same."""
    folder = tmp_path_factory.mktemp("demo")
    sizes = {"vocab_size": 384, "prompt_length": 16, "state_dim": 8, "action_dim": 5}
    model = small_config("nano", cameras=("base_0_rgb", "left_wrist_0_rgb"), **sizes)
    train = TrainConfig(
        steps=4, batch_size=8, save_every=4, validate_every=4, log_every=1, augmentation="shift", threads=2
    )
    preset = Preset("tabletop", model, train, "zscore", 384, execution_horizon=4)
    config = DemoConfig(
        "pizero quickstart",
        small_collect(),
        EvaluateConfig(
            "tabletop", episodes=1, execution_horizon=4, num_envs=5, image_size=28, num_videos=1, num_steps=2
        ),
        baseline_episodes=1,
    )
    return folder, run_demo(config, preset, folder), config, preset


def test_demo_leaves_everything(
    demo: tuple[Path, dict, DemoConfig, Preset], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results, config, preset = demo
    stored = json.loads((folder / "results.json").read_text())
    assert stored["episodes"] == 5
    assert stored["errors"] == 0
    assert stored["baselines"]["demonstrator"]["success_rate"] == 1.0
    assert set(stored["baselines"]) == {"demonstrator", "random", "swapped instructions", "blank images"}
    assert not re.search(r"https?://", (folder / "report.html").read_text())
    assert len(list((folder / "videos").glob("*.mp4"))) == 1
    print_results(results, folder)
    shown = capsys.readouterr().err
    assert "demonstrator" in shown
    assert "report.html" in shown
    again = run_demo(config, preset, folder)  # nothing is collected or trained twice
    assert again["success_rate"] == results["success_rate"]
    count = config.collect.episodes
    more = dataclasses.replace(config, collect=dataclasses.replace(config.collect, episodes=count + 5, seed=9))
    for told in (
        f"episodes was {count}, now {count + 5}; seed was 0, now 9",
        f"episodes was {count}, now {count + 5};",
    ):
        with pytest.raises(UserError, match=f"recorded with other settings: {told}"):
            run_demo(more, preset, folder)
        (folder / RECORDED).unlink(missing_ok=True)  # as in folders of before there was this file


def test_evaluate_checkpoint_of_a_run(demo: tuple[Path, dict, DemoConfig, Preset], tmp_path: Path) -> None:
    folder, results, config, _ = demo
    other = evaluate_checkpoint(folder / "train", config.evaluate, tmp_path)
    assert other["per_task"].keys() == results["per_task"].keys()
    assert (tmp_path / "results.json").is_file()
    with pytest.raises(UserError, match="there is nothing at this path"):
        evaluate_checkpoint(tmp_path / "nothing", config.evaluate, tmp_path)


@pytest.mark.int8
def test_int8_of_a_checkpoint(
    demo: tuple[Path, dict, DemoConfig, Preset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _, preset = demo
    arguments = [str(folder / "train"), str(folder / "dataset"), "--observations", "3", "--worst", "1"]
    assert run("bench", ["int8", *arguments, "--json", str(tmp_path / "errors.json")]) == 0
    printed = capsys.readouterr().out
    assert "all but the 1 worst" in printed
    found = json.loads((tmp_path / "errors.json").read_text())
    assert f"weights of {found['weight_bits']} bits" in printed
    assert isinstance(preset.model, Pi0Config)
    assert len(found["layers"]) == preset.model.vision.depth + 2 * preset.model.prefix.depth
    assert 0 < found["without_kept"]["actions"] < 0.05
    policy = load_policy(folder / "train", kernels="int8", keep=found["kept"])
    plain = load_policy(folder / "train")
    env = make_env("tabletop", image_size=28)
    env.reset(seed=0)
    robot = env.observe()
    robot["noise"] = np.random.default_rng(0).standard_normal(plain.noise_shape).astype(np.float32)
    error = np.abs(policy.infer(robot)["actions"] - plain.infer(robot)["actions"]).max()
    assert 0 < error < 0.1


def test_inspect_a_checkpoint(demo: tuple[Path, dict, DemoConfig, Preset], tmp_path: Path) -> None:
    from rich.console import Console

    folder, *_ = demo
    with (tmp_path / "out.txt").open("w") as out:
        inspect(
            str(folder / "train"), Console(file=out, width=110),
            cameras=1, prompt_tokens=5, num_steps=3, json=tmp_path / "a.json", mask=tmp_path / "m.png",
        )  # fmt: skip
    architecture = Architecture.from_json(json.loads((tmp_path / "a.json").read_text()))
    assert f"{architecture.parameters:,}" in (tmp_path / "out.txt").read_text()
    assert (tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG"


def test_presets() -> None:
    for name in PRESETS:
        pi0, pi05 = get_preset(name), get_preset(name, "pi05")
        assert (pi0.model.state_input, pi05.model.state_input) == ("token", "none" if name == "libero" else "prompt")
        assert (pi0.norm_mode, pi05.norm_mode) == ("zscore", "quantile")
        assert pi0.execution_horizon <= pi0.model.action_horizon
    for name, size, positions in (("tabletop", 32, 4), ("metaworld", 64, 4), ("pusht", 96, 6)):
        pi0, diffusion = get_preset(name), get_preset(name, "diffusion")
        model = diffusion.model
        assert isinstance(model, BaselineConfig)
        assert (model.image_size, model.num_history, model.action_horizon, model.state_input) == (size, 5, 16, False)
        assert model.image_size // model.encoder_stride == positions
        assert (diffusion.norm_mode, diffusion.train.ema_power) == ("quantile", 0.75)
        assert (diffusion.train.steps, diffusion.train.batch_size) == (pi0.train.steps, pi0.train.batch_size)
    with pytest.raises(UserError, match="unknown preset 'kitchen'"):
        get_preset("kitchen")


def test_presets_of_the_full_sizes_have_the_numbers_of_the_reference() -> None:
    """openpi src/openpi/training/config.py: pi0_libero, pi05_libero, the aloha_pen_uncap pair, pi05_droid_finetune."""

    def numbers(name: str, model: ModelName) -> tuple[object, ...]:
        preset = get_preset(name, model)
        train, config = preset.train, preset.model
        return (
            train.batch_size, train.steps, train.warmup_steps, train.learning_rate, train.final_learning_rate,
            train.ema_decay, config.action_horizon, config.state_input,
        )  # fmt: skip

    default = (1_000, 2.5e-5, 2.5e-6, 0.99)
    assert numbers("libero", "pi0") == (32, 30_000, *default, 50, "token")
    assert numbers("libero", "pi05") == (256, 30_000, 10_000, 5e-5, 5e-5, 0.999, 10, "none")
    assert numbers("aloha", "pi0") == (32, 20_000, *default, 50, "token")
    assert numbers("aloha", "pi05") == (64, 20_000, *default, 50, "prompt")
    assert numbers("droid", "pi05") == (32, 20_000, *default, 16, "prompt")
    for name in ("aloha", "droid", "libero", "metaworld-full", "tabletop-full"):
        preset = with_lora(get_preset(name))
        assert preset.model.prefix.width == 2048
        assert (preset.train.ema_decay, preset.train.parts.lora) == (0.0, LoraConfig(16, 16.0, 32, 32.0))
        with pytest.raises(UserError, match="for pi0, pi05 and pi0-fast"):
            get_preset(name, "diffusion")


def test_training_with_the_statistics_of_a_checkpoint(
    demo: tuple[Path, dict, DemoConfig, Preset], tmp_path: Path
) -> None:
    """Those of the checkpoint that it starts from; the mode that the weights know stays with other numbers too."""
    folder, _, _, preset = demo
    start = list_checkpoints(folder / "train")[-1]
    known = NormStats.load(start / "norm_stats.json")
    changed = dataclasses.replace(
        known, mode="quantile", state=dataclasses.replace(known.state, mean=known.state.mean + 1)
    )
    shutil.copytree(start, tmp_path / "start")
    changed.save(tmp_path / "start" / "norm_stats.json")
    once = dataclasses.replace(preset, train=dataclasses.replace(preset.train, steps=1, save_every=1, validate_every=1))

    def trained(name: str, stats: object) -> NormStats:
        initial = Initialization(tmp_path / "start", norm_stats=stats)  # type: ignore[arg-type]
        result = train_policy(folder / "dataset", tmp_path / name, once, initial=initial)
        return NormStats.load(result.checkpoint / "norm_stats.json")

    kept = trained("kept", str(tmp_path / "start"))
    assert kept.mode == "quantile"
    assert kept.state.to_json() == changed.state.to_json()
    own = trained("own", None)
    assert own.mode == "quantile"
    np.testing.assert_allclose(own.state.mean, known.state.mean)
    small = compute_norm_stats(np.random.rand(9, 6), np.random.rand(9, 5), "quantile")
    small.save(tmp_path / "small.json")
    with pytest.raises(UserError, match="have 6 state dimensions, the robot 7"):
        trained("small", tmp_path / "small.json")


def test_a_diffusion_policy_from_training_to_evaluation(
    demo: tuple[Path, dict, DemoConfig, Preset], tmp_path: Path
) -> None:
    """Two steps on the demonstrations of the demo, then rollouts with a horizon below and above its history."""
    folder, _, config, preset = demo
    sizes = {"vocab_size": 384, "prompt_length": 16, "state_dim": 8, "action_dim": 5, "num_history": 3}
    train = dataclasses.replace(preset.train, steps=2, save_every=2, validate_every=2, ema_power=0.75, threads=1)
    preset = dataclasses.replace(preset, model=small_baseline("nano", **sizes), train=train)
    train_policy(folder / "dataset", tmp_path / "run", preset)
    for horizon in (2, 8):
        evaluate = dataclasses.replace(
            config.evaluate, episodes=1, execution_horizon=horizon, num_videos=0, tasks=("reach", "lift")
        )
        results = evaluate_checkpoint(tmp_path / "run", evaluate, tmp_path / f"evaluation{horizon}")
        assert (results["episodes"], results["errors"]) == (2, 0)
    default = dataclasses.replace(evaluate, num_steps=None, tasks=("reach",))
    assert evaluate_checkpoint(tmp_path / "run", default, tmp_path / "default")["settings"]["num_steps"] == 20
    with pytest.raises(UserError, match="num_steps: got 7, expected a divisor of the 100 training steps"):
        evaluate_checkpoint(tmp_path / "run", dataclasses.replace(default, num_steps=7), tmp_path / "seven")
    with pytest.raises(UserError, match="holds a diffusion policy; inspect shows π0"):
        model_config(str(tmp_path / "run"))
