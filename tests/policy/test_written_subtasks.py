"""A policy that writes what it is about to do: learnt, written on either path, and overruled by a person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pizero.data.embodiments import generic
from pizero.data.norm_stats import FieldStats, NormStats
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.engine.fast_sampler import FastSampler
from pizero.engine.text_writer import write_text
from pizero.export.export import Settings, export_network
from pizero.exported.policy import ExportedPolicy, load_exported
from pizero.exported.sessions import OnnxSession
from pizero.model.config import LanguageConfig, small_config
from pizero.model.pi0 import Pi0
from pizero.policy.policy import ModelPolicy
from pizero.types import LayoutName, RobotDict, UserError

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
TEXTS = {"pick 0": "reach it", "pick 1": "lift"}
LANGUAGE = LanguageConfig(text_length=24, fast_weight=0)
CONFIG = small_config("nano", pi05=True, vocab_size=259, prompt_length=90, cameras=CAMERAS, language=LANGUAGE)


def make_pipeline(layout: LayoutName | None = "openpi") -> Pipeline:
    stats = FieldStats(np.zeros(2), np.ones(2), q01=-np.ones(2), q99=np.ones(2))
    return Pipeline(
        generic({"base_0_rgb": "top", "left_wrist_0_rgb": "hand"}), NormStats("quantile", stats, stats),
        PaligemmaTokenizer.bytes(), cameras=CAMERAS, prompt_format="pi05", prompt_length=CONFIG.prompt_length,
        image_size=(28, 28), state_dim=CONFIG.state_dim, action_dim=CONFIG.action_dim, layout=layout,
        text_length=0 if layout is None else 24,
    )  # fmt: skip


def observation(number: int) -> RobotDict:
    rng = np.random.default_rng(number)
    return {
        "state": np.full(2, 0.3 * number, np.float32),
        "images": {name: rng.integers(0, 256, (28, 28, 3), dtype=np.uint8) for name in ("top", "hand")},
        "prompt": f"pick {number}", "noise": np.zeros((CONFIG.action_horizon, CONFIG.action_dim), np.float32),
    }  # fmt: skip


@pytest.fixture(scope="module", params=["openpi", "opentau", "lerobot"])
def learnt(request: pytest.FixtureRequest) -> tuple[Pi0, Pipeline]:
    """Two tasks with a text each, until the model writes them."""
    torch.manual_seed(0)
    config = replace(CONFIG, language=replace(LANGUAGE, tied_head=request.param != "lerobot"))
    model, pipeline = Pi0(config), make_pipeline(request.param)
    seen = [observation(number) for number in range(2)]
    inputs = pipeline.robot_inputs([{**raw, "subtask": TEXTS[raw["prompt"]]} for raw in seen])
    batch = pipeline.observation(inputs, "cpu")
    actions = torch.zeros(2, CONFIG.action_horizon, CONFIG.action_dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        loss = model.losses(batch, actions).text.mean()
        if loss < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    with torch.no_grad():  # open gates: actions then depend on the prefix
        for name, parameter in model.named_parameters():
            if "modulation" in name:
                parameter.normal_(std=0.5)
    return model.eval(), pipeline


@pytest.mark.parametrize("fast", [True, False])
def test_it_writes_what_it_learnt(learnt: tuple[Pi0, Pipeline], fast: bool) -> None:
    policy = ModelPolicy(*learnt, fast=fast, num_steps=2)
    assert policy.takes_subtask
    seen = [observation(number) for number in range(2)]
    answers = policy.infer_batch(seen)
    assert [answer["subtask"] for answer in answers] == list(TEXTS.values())
    assert answers[0]["policy_timing"]["text_ms"] > 0
    for raw, answer in zip(seen, answers, strict=True):  # the text is what the actions are for
        alone = policy.infer(raw)
        assert alone["subtask"] == answer["subtask"]
        np.testing.assert_allclose(alone["actions"], answer["actions"], atol=1e-4, rtol=1e-4)
        given = policy.infer({**raw, "subtask": answer["subtask"]})
        np.testing.assert_allclose(given["actions"], answer["actions"], atol=1e-4, rtol=1e-4)
        assert "text_ms" not in given["policy_timing"]


def test_a_persons_words_take_precedence(learnt: tuple[Pi0, Pipeline]) -> None:
    policy = ModelPolicy(*learnt, num_steps=2)
    own, told, without = policy.infer_batch(
        [observation(0), {**observation(0), "subtask": "lift"}, {**observation(0), "subtask": ""}]
    )
    assert [answer["subtask"] for answer in (own, told, without)] == ["reach it", "lift", ""]
    for one, other in ((own, told), (told, without), (own, without)):
        assert not np.allclose(one["actions"], other["actions"], atol=1e-6)
    with pytest.raises(UserError, match="subtask: got int, expected text"):
        policy.infer({**observation(0), "subtask": 3})
    assert policy.infer(observation(0))["subtask"] == "reach it"


def test_both_paths_write_the_same(learnt: tuple[Pi0, Pipeline]) -> None:
    """Token by token, in rows that end apart, and where nothing ends before the last one."""
    model, pipeline = learnt
    seen = [observation(number) for number in (0, 1, 5)]
    asked = pipeline.observation(pipeline.robot_inputs(seen, question=True), "cpu")
    closing = torch.tensor([1]), torch.tensor([True])
    for length in (24, 3):
        expected = model.write(asked, length, closing).tokens
        found = write_text(FastSampler(model), asked, length, closing).tokens
        assert torch.equal(found, expected)


def unshared(policy: ModelPolicy, seen: list[RobotDict], answers: list[dict[str, Any]]) -> list[np.ndarray]:
    """What the same texts give when they are said, and run with the images anew."""
    told = [{**raw, "subtask": answer["subtask"]} for raw, answer in zip(seen, answers, strict=True)]
    return [answer["actions"] for answer in policy.infer_batch(told)]


@pytest.mark.parametrize("numbers", [(0,), (0, 1), (1, 0, 0)])
def test_actions_on_the_cache_of_the_text_are_those_of_the_text(
    learnt: tuple[Pi0, Pipeline], numbers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of several lengths, a chunk that goes on, a lost camera. The images are seen once."""
    model, pipeline = learnt
    policy = ModelPolicy(model, pipeline, num_steps=2)
    calls = list[int]()
    real = FastSampler.embed_prefix

    def counted(sampler: FastSampler, inputs: Any) -> torch.Tensor:
        calls.append(len(inputs.prompt))
        return real(sampler, inputs)

    monkeypatch.setattr(FastSampler, "embed_prefix", counted)
    seen = [observation(number) for number in numbers]
    going_on = [{**raw, "previous_actions": np.zeros((2, 2), np.float32), "inference_delay": 1} for raw in seen]
    blind = [*seen[:-1], {**seen[-1], "images": {**seen[-1]["images"], "hand": None}}]
    for asked in (seen, going_on, blind):
        calls.clear()
        answers = policy.infer_batch(asked)
        if asked is not blind:  # what is written there was not learnt
            assert [answer["subtask"] for answer in answers] == [TEXTS[f"pick {number}"] for number in numbers]
            assert calls == [len(asked)]
        for answer, expected in zip(answers, unshared(policy, asked, answers), strict=True):
            largest = max(1.0, np.abs(expected).max())  # guided random weights go far
            np.testing.assert_allclose(answer["actions"], expected, atol=1e-5 * largest, rtol=0)


def test_a_text_in_other_tokens_runs_anew(learnt: tuple[Pi0, Pipeline]) -> None:
    """Cut off after three tokens: in `openpi` another end is encoded after it than was written."""
    model, pipeline = learnt
    policy = ModelPolicy(model, replace(pipeline, text_length=3), num_steps=2)
    answers = policy.infer_batch(seen := [observation(0), observation(1)])
    assert all(0 < len(answer["subtask"]) <= 3 for answer in answers)
    for answer, expected in zip(answers, unshared(policy, seen, answers), strict=True):
        if pipeline.layout == "openpi":
            np.testing.assert_array_equal(answer["actions"], expected)
        np.testing.assert_allclose(answer["actions"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("to", "dtype"), [("onnx", "float32"), ("openvino", "float32"), ("onnx", "bfloat16")])
def test_an_export_writes_the_same(learnt: tuple[Pi0, Pipeline], to: Any, dtype: Any, tmp_path: Path) -> None:
    """And acts on it, on the cache that it wrote in or on a new one; a person's words and silence as before."""
    pytest.importorskip("onnx")
    pytest.importorskip("openvino" if to == "openvino" else "onnxruntime")
    model, pipeline = learnt
    ours = ModelPolicy(model, pipeline, num_steps=2)
    settings = Settings(to, dtype, num_steps=2, threads=1)
    export_network(lambda: model, pipeline, tmp_path / "export", settings)
    theirs, precision = load_exported(tmp_path / "export", threads=1), 1e-4 if dtype == "float32" else 5e-2
    assert isinstance(theirs, ExportedPolicy)
    seen = [observation(number) for number in (0, 1, 5)]
    for robot in (*seen, {**seen[0], "subtask": "lift"}, {**seen[0], "subtask": ""}):
        expected, answer = ours.infer(robot), theirs.infer(robot)
        if robot is not seen[2] or dtype == "float32":  # which it has not learnt
            assert answer["subtask"] == expected["subtask"]
        told = ours.infer({**robot, "subtask": answer["subtask"]})["actions"]
        np.testing.assert_allclose(answer["actions"], told, rtol=precision, atol=precision * np.abs(told).max())
        assert ("text_ms" in answer["policy_timing"]) == ("subtask" not in robot)
    assert theirs.infer(seen[1])["subtask"] == "lift"
    blind = {**seen[1], "images": {**seen[1]["images"], "hand": None}}
    np.testing.assert_allclose(
        theirs.infer(blind)["actions"], ours.infer({**blind, "subtask": theirs.infer(blind)["subtask"]})["actions"],
        rtol=precision, atol=precision,
    )  # fmt: skip


def test_an_export_runs_images_once_for_text_and_actions(
    learnt: tuple[Pi0, Pipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, pipeline = learnt
    export_network(lambda: model, pipeline, tmp_path / "export", Settings("onnx", num_steps=2, threads=1))
    policy, calls = load_exported(tmp_path / "export", threads=1), list[set[str]]()
    real = OnnxSession.__call__
    monkeypatch.setattr(OnnxSession, "__call__", lambda self, given: calls.append(set(given)) or real(self, given))
    assert policy.infer(observation(1))["subtask"] == "lift"
    assert sum("images" in given for given in calls) == 1
    assert sum("step" in given for given in calls) == 2
    assert sum("place" in given for given in calls) > 4


def test_a_policy_without_text(learnt: tuple[Pi0, Pipeline]) -> None:
    model = Pi0(replace(CONFIG, language=None))
    policy = ModelPolicy(model, make_pipeline(None), num_steps=2)
    assert not policy.takes_subtask
    answer: dict[str, Any] = policy.infer({**observation(0), "subtask": "lift"})
    assert "subtask" not in answer
    np.testing.assert_array_equal(answer["actions"], policy.infer(observation(0))["actions"])
    with pytest.raises(ValueError, match="writes no text"):
        write_text(
            FastSampler(model), policy.pipeline.observation(policy.pipeline.robot_inputs([observation(0)]), "cpu"), 4,
            (torch.tensor([1]), torch.tensor([True])),
        )  # fmt: skip
