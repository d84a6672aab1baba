"""Every recorded array of LeRobot's tiny policies against ours, on LeRobot's own checkpoints in both key styles."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pizero.checkpoints.files.keymap import fill
from pizero.checkpoints.lerobot import policy as lerobot
from pizero.checkpoints.lerobot.policy import WrittenTensors
from pizero.checkpoints.load import load_model, load_policy
from pizero.checkpoints.openpi.torch import key_table
from pizero.data.pipeline import Pipeline
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.engine.fast_sampler import FastSampler
from pizero.model.attention import token_positions
from pizero.model.flow_matching import interpolate, velocity_target
from pizero.model.layers import embed_time
from pizero.model.pi0 import Pi0
from pizero.model.two_expert import KVCache
from pizero.policy.policy import ModelPolicy
from pizero.policy.real_time import Guidance, Schedule, soft_mask
from pizero.types import Observation

GOLDEN = Path(__file__).parents[1] / "golden" / "lerobot" / "checkpoints"
NAMES = ("pi0", "pi05")
EXACT, ROUNDING, PREFIX, FLOW, BFLOAT16 = 0.0, 1e-6, 2e-5, 2e-4, 0.05
HEAD, EMBEDDED = "paligemma.lm_head.weight", "language_model.embed_tokens.weight"


class CutAtTheEnd(PaligemmaTokenizer):
    """The bytes that stood in for the vocabulary when the arrays were recorded, cut as LeRobot cuts a long prompt of
    π0.5: with the loss of the state. Ours cuts the instruction.
    """

    def encode_batch(self, prompts: Any, states: Any, length: int, convention: Any = "lerobot") -> tuple[Any, Any]:
        tokens, mask = super().encode_batch(prompts, states, 400, convention)
        return tokens[:, :length], mask[:, :length]


class Recorded:
    """One policy in one key style; whatever several arrays need is computed once."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        with np.load(GOLDEN / f"{name}_tiny" / "golden.npz") as file:
            self.arrays = {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind != "U"}
            self.texts = {key: file[key].tolist() for key in file.files if file[key].dtype.kind == "U"}

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    @cached_property
    def model(self) -> Pi0:
        return load_model(self.folder, arch=self.folder / "tiny_arch.json")

    @cached_property
    def observation(self) -> Observation:
        images, masks = self["in.images_uint8_ncam_b_h_w_c"], self["in.image_masks_ncam_b"]
        cameras = self.model.config.cameras
        return Observation(
            images={name: image.float() / 255 * 2 - 1 for name, image in zip(cameras, images, strict=True)},
            image_masks=dict(zip(cameras, masks, strict=True)),
            state=self["in.state"] if self.model.config.has_state_token else None,
            prompt_tokens=self["in.tokens"],
            prompt_mask=self["in.token_mask"],
        )

    @cached_property
    def prefix(self) -> tuple[Tensor, Tensor]:
        return self.model.embed_prefix(self.observation)

    @cached_property
    def suffix(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.model.embed_suffix(self.observation.state, self["in.noise"], torch.full((3,), 0.3))

    @cached_property
    def prefilled(self) -> tuple[Tensor, KVCache]:
        return self.model.transformer.prefill(*self.prefix)

    def velocity(self, time: float, model: Pi0 | None = None) -> Tensor:
        return (model or self.model).velocity(self.observation, self["in.noise"], torch.full((3,), time))

    def sample(self, steps: int, model: Pi0 | None = None) -> Tensor:
        return (model or self.model).sample_actions(self.observation, num_steps=steps, noise=self["in.noise"])

    def squared_error(self, model: Pi0 | None = None) -> Tensor:
        actions, noise, time = self["in.actions"], self["in.noise"], self["in.time"]
        velocity = (model or self.model).velocity(self.observation, interpolate(actions, noise, time), time)
        return (velocity.float() - velocity_target(actions, noise)) ** 2

    @cached_property
    def half(self) -> Pi0:
        """In the dtypes of LeRobot's bfloat16 mode: what it writes then, read as it is stored."""
        stored = {name: tensor.bfloat16() for name, tensor in self.model.state_dict().items()}
        table = {row.ours: row.theirs for row in key_table(self.model.config)}
        kept = {ours for ours, theirs in table.items() if lerobot.kept_in_float32(theirs)}
        with torch.device("meta"):
            model = Pi0(self.model.config)
        full = self.model.state_dict()
        fill(model, ((name, full[name] if name in kept else tensor) for name, tensor in stored.items()))
        return model.eval()

    @cached_property
    def policy(self) -> ModelPolicy:
        return load_policy(self.folder, arch=self.folder / "tiny_arch.json", tokenizer=CutAtTheEnd.bytes())

    @property
    def pipeline(self) -> Pipeline:
        return self.policy.pipeline

    @cached_property
    def raw(self) -> list[dict]:
        """Robot dictionaries of the end-to-end items."""
        top, wrist = (self[f"e2e.raw_{name}_uint8_bchw"].permute(0, 2, 3, 1).numpy() for name in ("top", "wrist"))
        return [
            {
                "state": self["e2e.raw_state"][item].numpy(),
                "images": {"top": top[item], "wrist": wrist[item]},
                "prompt": self.texts["e2e.task"][item],
                "noise": self["e2e.noise"][item].numpy(),
            }
            for item in range(2)
        ]

    @cached_property
    def inputs(self):
        return self.pipeline.robot_inputs(self.raw)

    @cached_property
    def targets(self) -> Tensor:
        return torch.from_numpy(
            self.pipeline.model_actions(self["e2e.raw_action"].numpy(), self["e2e.raw_state"].numpy())
        )

    def normalised_chunk(self) -> Tensor:
        observation = self.pipeline.observation(self.inputs, "cpu")
        return self.model.sample_actions(observation, num_steps=10, noise=self["e2e.noise"])[..., :3]

    def final_chunk(self) -> Tensor:
        return torch.from_numpy(np.stack([out["actions"] for out in self.policy.infer_batch(self.raw)]))

    def policy_losses(self) -> Tensor:
        """[3]: mean squared error by action dimension of the end-to-end items."""
        observation = self.pipeline.observation(self.inputs, "cpu")
        x_t = interpolate(self.targets, self["e2e.noise"], self["e2e.time"])
        velocity = self.model.velocity(observation, x_t, self["e2e.time"])
        return ((velocity - velocity_target(self.targets, self["e2e.noise"])) ** 2)[..., :3].mean((0, 1))

    def normalised_state(self) -> Tensor:
        stats = self.pipeline._normaliser(self.pipeline.norm_stats.state)
        return torch.from_numpy(stats(self["e2e.raw_state"].numpy())).float()

    def images(self) -> Tensor:
        """Of the present cameras, [camera, B, C, H, W]."""
        images = self.pipeline.observation(self.inputs, "cpu").images
        assert set(images) == set(self.pipeline.cameras[:2])
        return torch.stack([images[name] for name in self.pipeline.cameras[:2]]).permute(0, 1, 4, 2, 3)


def cached(layer: int, what: str) -> Callable[[Recorded], Tensor]:
    return lambda r: getattr(r.prefilled[1], what)[layer]


CHECKS: dict[str, tuple[Callable[[Recorded], Tensor | None], float]] = {
    "out.loss_b_h_d": (lambda r: r.squared_error(), FLOW),
    "out.sampled_actions_10": (lambda r: r.sample(10), FLOW),
    "out.sampled_actions_3": (lambda r: r.sample(3), FLOW),
    "out.velocity_t1.0": (lambda r: r.velocity(1.0), FLOW),
    "out.velocity_t0.3": (lambda r: r.velocity(0.3), FLOW),
    "out.prefix_embs": (lambda r: r.prefix[0], PREFIX),
    "out.prefix_pad": (lambda r: r.prefix[1], EXACT),
    "out.prefix_pos": (lambda r: token_positions(r.prefix[1]), EXACT),
    "out.prefix_out": (lambda r: r.prefilled[0], PREFIX),
    "out.k_layer0": (cached(0, "keys"), FLOW),
    "out.v_layer0": (cached(0, "values"), PREFIX),
    "out.k_layer3": (cached(3, "keys"), FLOW),
    "out.v_layer3": (cached(3, "values"), PREFIX),
    "out.suffix_embs_t0.3": (lambda r: r.suffix[0], FLOW),
    "out.suffix_att": (lambda r: r.suffix[1].expand(3, -1), EXACT),
    "out.adarms_cond_t0.3": (lambda r: r.suffix[2], FLOW),
    "out.time_emb": (lambda r: embed_time(r["in.time"], 32), FLOW),
    "train.loss_mean_first3": (lambda r: r.squared_error()[..., :3].mean(), FLOW),
    "e2e.norm_state": (lambda r: r.normalised_state(), ROUNDING),
    "e2e.norm_action": (lambda r: r.targets[..., :3], ROUNDING),
    "e2e.tokens": (lambda r: torch.from_numpy(r.inputs["prompt_tokens"]), EXACT),
    "e2e.token_mask": (lambda r: torch.from_numpy(r.inputs["prompt_mask"]), EXACT),
    "e2e.model_images_ncam_b_c_h_w": (lambda r: r.images(), ROUNDING),
    "e2e.model_image_masks": (
        lambda r: torch.stack([torch.from_numpy(r.inputs["image_masks"][name]) for name in r.pipeline.cameras]),
        EXACT,
    ),
    "e2e.pred_norm_action_chunk": (lambda r: r.normalised_chunk(), FLOW),
    "e2e.pred_action_chunk": (lambda r: r.final_chunk(), FLOW),
    "e2e.policy_loss": (lambda r: r.policy_losses().mean(), FLOW),
    "e2e.policy_loss_per_dim": (lambda r: r.policy_losses(), FLOW),
    "bf16.loss_b_h_d": (lambda r: r.squared_error(r.half), BFLOAT16),
    "bf16.sampled_actions_10": (lambda r: r.sample(10, r.half), BFLOAT16),
    "bf16.sampled_actions_3": (lambda r: r.sample(3, r.half), BFLOAT16),
    "bf16.velocity_t1.0": (lambda r: r.velocity(1.0, r.half), BFLOAT16),
    "bf16.velocity_t0.3": (lambda r: r.velocity(0.3, r.half), BFLOAT16),
}
ELSEWHERE = re.compile(r"in\.|e2e\.(raw_|dataset_index|noise|time)|train\.grad\.|alt_base_style\.")
"""Inputs, and arrays that have a test of their own below."""
VALID_ROWS_ONLY = re.compile(r"out\.(prefix_(embs|pos|out)|[kv]_layer.)")
"""Masked rows carry no meaning."""


def write_style(name: str, style: str, folder: Path) -> Path:
    """A copy of the golden checkpoint: "model." names, bare names, or the base style (bare, no embed_tokens)."""
    source = GOLDEN / f"{name}_tiny"
    for path in source.iterdir():
        if path.name not in ("model.safetensors", "golden.npz", "golden_rtc.npz"):
            (folder / path.name).symlink_to(path)
    tensors = load_file(source / "model.safetensors")
    if style != "model.":
        tensors = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    if style == "base":
        del tensors[next(key for key in tensors if key.endswith(EMBEDDED))]
    save_file(tensors, folder / "model.safetensors")
    return folder


@cache
def recorded(name: str, style: str, root: Path) -> Recorded:
    folder = root / f"{name}-{style.strip('.')}"
    folder.mkdir()
    return Recorded(name, write_style(name, style, folder))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lerobot")


def names_of(name: str) -> list[str]:
    with np.load(GOLDEN / f"{name}_tiny" / "golden.npz") as file:
        return [key for key in file.files if file[key].dtype.kind != "U"]


CASES = [(name, key) for name in NAMES for key in names_of(name) if not ELSEWHERE.match(key)]


@pytest.mark.filterwarnings("ignore:model.paligemma_with_expert.paligemma.lm_head:UserWarning")
@pytest.mark.filterwarnings("ignore:paligemma_with_expert.paligemma.lm_head:UserWarning")
@pytest.mark.parametrize("style", ["model.", "bare"])
@pytest.mark.parametrize(("name", "key"), CASES)
@torch.no_grad()
def test_recorded_array(name: str, key: str, style: str, root: Path) -> None:
    this = recorded(name, style, root)
    compute, tolerance = CHECKS[key]
    actual, expected = compute(this), this[key]
    assert actual is not None
    if key.startswith("e2e.model_images"):
        expected = expected[:2]
    if re.match(r"out\.[kv]_layer", key):  # [B, 1, L, 16]
        actual, expected = (x.reshape(3, -1, 16) for x in (actual, expected))
    assert actual.shape == expected.shape
    if VALID_ROWS_ONLY.match(key):
        valid = this["out.prefix_pad"]
        actual, expected = actual[valid], expected[valid]
    if tolerance == EXACT:
        assert torch.equal(actual.long(), expected.long())
    else:
        torch.testing.assert_close(actual.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_base_style(name: str, root: Path) -> None:
    """Without embed_tokens LeRobot copies lm_head there."""
    this = recorded(name, "base", root)
    torch.testing.assert_close(this.sample(10), this["alt_base_style.sampled_actions_10"], atol=FLOW, rtol=FLOW)
    assert (this["alt_base_style.sampled_actions_10"] - this["out.sampled_actions_10"]).abs().max() > 100 * FLOW


@pytest.mark.filterwarnings("ignore:model.paligemma_with_expert.paligemma.lm_head:UserWarning")
@pytest.mark.parametrize("schedule", ["zeros", "ones", "linear", "exp"])
@pytest.mark.parametrize("name", NAMES)
def test_real_time_chunking(name: str, schedule: Schedule, root: Path) -> None:
    """LeRobot's guidance is ours without the Jacobian, on the plain and the fast path; with it the chunk is another."""
    this = recorded(name, "model.", root)
    with np.load(GOLDEN / f"{name}_tiny" / "golden_rtc.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    old, delay, left = (arrays[f"in.{key}"] for key in ("prev_chunk_left_over", "inference_delay", "execution_horizon"))
    weights = soft_mask(delay.expand(3), left.expand(3), 10, schedule)
    recorded_weights = arrays[f"out.prefix_weights_{schedule.upper()}"].expand(3, -1)
    torch.testing.assert_close(weights, recorded_weights, atol=ROUNDING, rtol=0)
    old = torch.nn.functional.pad(old, (0, 0, 0, 10 - old.shape[1]))
    expected, chunks = arrays[f"out.actions_{schedule.upper()}"], {}
    for jacobian in ("identity", "paper"):
        guide = Guidance(old, weights, max_weight=10.0, jacobian=jacobian)
        for path in (this.model, FastSampler(this.model)):
            chunks[jacobian] = path.sample_actions(this.observation, num_steps=10, noise=this["in.noise"], guide=guide)
            if jacobian == "identity":
                torch.testing.assert_close(chunks[jacobian], expected, atol=FLOW, rtol=FLOW)
    assert (chunks["paper"] - expected).abs().max() > 100 * FLOW


@pytest.mark.filterwarnings("ignore:model.paligemma_with_expert.paligemma.lm_head:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, root: Path) -> None:
    """Norms of all gradients of the mean loss over the robot's three dimensions, and a few of them in full."""
    this = recorded(name, "model.", root)
    norms = json.loads((GOLDEN / f"{name}_tiny" / "grad_norms.json").read_text())
    with torch.enable_grad():
        this.model.zero_grad()
        this.squared_error()[..., :3].mean().backward()
    gradients = {key: parameter.grad for key, parameter in this.model.named_parameters()}
    rows = {f"model.{row.theirs}": row for row in key_table(this.model.config, lerobot.EMBEDDED)}
    assert set(rows) <= set(norms)
    full = 0
    for key, row in rows.items():
        gradient = gradients[row.ours]
        norm = 0.0 if gradient is None else float(gradient.norm())
        assert norm == pytest.approx(norms[key] or 0.0, rel=1e-3, abs=1e-6), key
        if f"train.grad.{key}" in this.arrays:
            full += 1
            theirs = row.to_theirs(gradient) if row.to_theirs else gradient
            torch.testing.assert_close(theirs, this[f"train.grad.{key}"], atol=1e-5, rtol=1e-3)
    assert full == sum(key.startswith("train.grad.") for key in this.arrays)
    this.model.zero_grad()


@pytest.mark.filterwarnings("ignore:model.paligemma_with_expert.paligemma.lm_head:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_of_the_bfloat16_mode(name: str, root: Path) -> None:
    """What we write of a bfloat16 model has the dtypes that LeRobot's own bfloat16 policy has."""
    this = recorded(name, "model.", root)
    expected = json.loads((GOLDEN / f"{name}_tiny" / "bf16_mode_dtypes.json").read_text())
    written = WrittenTensors(this.half)
    assert written.dtype == "bfloat16"
    assert {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in written.items()} == {
        key: dtype.removeprefix("torch.") for key, dtype in expected.items()
    }
