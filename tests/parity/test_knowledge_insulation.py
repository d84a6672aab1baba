"""π0.5 with text, FAST tokens and insulation beside LeRobot's, on every set in a folder.

A set is a folder with model.safetensors, golden.npz, grad_norms.json and a tiny_config.json of "pi05 with text, FAST
and flow", in the folder that PIZERO_GOLDEN names or in its knowledge_insulation/ (default: tests/golden).
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_folders import find_sets
from safetensors.torch import load_file
from torch import Tensor

from pizero.checkpoints.files.keymap import Entry
from pizero.checkpoints.lerobot.policy import EMBEDDED
from pizero.checkpoints.openpi.torch import key_table
from pizero.data.fast.codec import FastCodec
from pizero.data.fast.tokens import FastTokenizer
from pizero.data.layouts import Layout, Texts
from pizero.data.tokenizer import PaligemmaTokenizer, state_bins
from pizero.model.config import GemmaConfig, LanguageConfig, Pi0Config, SiglipConfig
from pizero.model.language import END_ID, Losses
from pizero.model.pi0 import Pi0
from pizero.model.two_expert import Tokens
from pizero.types import Observation

PARTS = ("model.safetensors", "golden.npz", "grad_norms.json", "tiny_config.json")
VARIANTS = ("ki", "no_ki", "ki_repeats3")
TOLERANCE = 2e-4


def is_one(folder: Path) -> bool:
    return json.loads((folder / "tiny_config.json").read_text()).get("model") == "pi05 with text, FAST and flow"


class Golden:
    def __init__(self, folder: Path) -> None:
        self.folder, sizes = folder, json.loads((folder / "tiny_config.json").read_text())
        with np.load(folder / "golden.npz") as file:
            self.arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        self.weights = sizes["weights"]
        vision = sizes["vision"]
        self.config = Pi0Config.pi05(
            vision=SiglipConfig(
                vision["hidden_size"], vision["num_hidden_layers"], vision["intermediate_size"],
                vision["num_attention_heads"], vision["patch_size"],
            ),
            prefix=GemmaConfig(**sizes["vlm"]), expert=GemmaConfig(**sizes["action_expert"]),
            vocab_size=sizes["vocab_size"], cameras=tuple(sizes["cameras"]), image_size=vision["image_size"],
            prompt_length=sizes["text_slots"], action_dim=sizes["max_action_dim"],
            action_horizon=sizes["action_horizon"],
            language=LanguageConfig(
                flow_weight=self.weights["flow"], text_weight=self.weights["text"],
                fast_weight=self.weights["fast"], z_weight=self.weights["z"],
                tied_head=sizes["lm_head_tied_to_embed_tokens"],
            ),
        )  # fmt: skip
        self.action_dim, self.absent = sizes["action_dim"], sizes["absent_camera"]
        self.places = [(folder / sizes[name]).resolve() for name in ("sentencepiece", "codec")]
        self.skip = sizes["fast_skip_tokens"]

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    @cached_property
    def rows(self) -> list[Entry]:
        head = [] if self.config.language.tied_head else [
            Entry("text_head.weight", "paligemma_with_expert.paligemma.lm_head.weight")
        ]  # fmt: skip
        rows = [*key_table(replace(self.config, language=None), EMBEDDED), *head]
        return [replace(row, theirs="model." + row.theirs) for row in rows]

    @cached_property
    def model(self) -> Pi0:
        stored = load_file(self.folder / "model.safetensors")
        model = Pi0(self.config)
        model.load_state_dict(
            {row.ours: row.to_ours(stored[row.theirs]) if row.to_ours else stored[row.theirs] for row in self.rows}
        )
        return model

    def with_language(self, **changes: object) -> Pi0:
        self.model.config = replace(self.config, language=replace(self.config.language, **changes))
        return self.model

    @cached_property
    def observation(self) -> Observation:
        size, batch = self.config.image_size, len(self["in/actions"])
        images = {
            name: self[f"in/image/{name}"].float() / 255 * 2 - 1
            for name in self.config.cameras if name != self.absent
        }  # fmt: skip
        marked = self["in/text_labels"] >= 0
        return Observation(
            images=images | {self.absent: torch.zeros(batch, size, size, 3)},
            image_masks={name: torch.full((batch,), name != self.absent) for name in self.config.cameras},
            state=None,
            prompt_tokens=self["in/text_tokens"].long(),
            prompt_mask=self["in/text_mask"],
            prompt_causal=marked,
            prompt_target=marked,
            fast_tokens=self["in/fast_tokens"].long(),
            fast_mask=self["in/fast_mask"],
            fast_target=self["in/fast_code_mask"] & self["in/predict_actions"][:, None],
        )

    @cached_property
    def actions(self) -> Tensor:
        actions = self["in/actions"]
        return torch.nn.functional.pad(actions, (0, self.config.action_dim - actions.shape[2]))

    @property
    def action_mask(self) -> Tensor:
        real = torch.arange(self.config.action_dim) < self.action_dim
        return self["in/predict_actions"][:, None] & real

    def noise_and_time(self, variant: str) -> tuple[Tensor, Tensor]:
        """[N, B, H, D] and [N, B]."""
        end = "_repeats3" if variant == "ki_repeats3" else ""
        batch = len(self.actions)
        return self["in/noise" + end].unflatten(0, (-1, batch)), self["in/time" + end].unflatten(0, (-1, batch))

    def losses(self, variant: str, observation: Observation | None = None, **changes: object) -> Losses:
        noise, time = self.noise_and_time(variant)
        return self.with_language(insulation=variant != "no_ki", **changes).losses(
            observation or self.observation, self.actions, noise=noise, time=time, draws=len(noise),
            action_mask=self.action_mask,
        )  # fmt: skip

    @cached_property
    def without_fast(self) -> Observation:
        return replace(self.observation, fast_tokens=None, fast_mask=None, fast_target=None)


@pytest.fixture(scope="module", params=find_sets("knowledge_insulation", PARTS, is_one), ids=lambda folder: folder.name)
def recorded(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_tokens(recorded: Golden) -> None:
    """The rendered examples of the layout "lerobot", their labels, and the FAST block."""
    if not all(place.exists() for place in recorded.places):
        pytest.skip(f"{recorded.folder} names a tokenizer or a codec that is not there")
    tokenizer = PaligemmaTokenizer(recorded.places[0])
    layout = Layout("lerobot", tokenizer)
    bins = state_bins(recorded["in/state"].numpy()).tolist()
    rows = []
    examples = json.loads((recorded.folder / "examples.json").read_text())["examples"]
    for example, own in zip(examples, bins, strict=True):
        user, *answer = (message["content"] for message in example["messages"])
        in_prompt = own if "low_level" in example["streams"] else None
        rows.append(layout.encode(user, in_prompt, "".join(answer)))
        question = layout.question(user, in_prompt).tokens[:-1]  # a word may take the last space along
        assert rows[-1].tokens[: len(question)] == question or not answer
        assert tokenizer.decode(rows[-1].tokens) == example["text"].replace("<eos>", "")
        assert layout.read([token for token, own in zip(rows[-1].tokens, rows[-1].target, strict=True) if own]) == (
            answer[0] if answer else ""
        )
    asked = layout.question(examples[0]["messages"][0]["content"], None).tokens
    assert asked == recorded["in/text_prompt_tokens"].tolist()
    texts = Texts.of(rows, recorded.config.prompt_length)
    labels = recorded["in/text_labels"].numpy()
    assert np.array_equal(texts.tokens, recorded["in/text_tokens"])
    assert np.array_equal(texts.mask, recorded["in/text_mask"])
    assert np.array_equal(texts.target, labels >= 0)
    assert np.array_equal(texts.causal, labels >= 0)

    fast = FastTokenizer(tokenizer, FastCodec.load(recorded.places[1]), recorded.skip, recorded.config.vocab_size)
    codes = fast.codec.encode_batch(recorded["in/actions"].numpy())
    blocks = Texts.of([layout.fast(fast.to_text(row)) for row in codes], recorded["in/fast_tokens"].shape[1])
    assert np.array_equal(blocks.tokens, recorded["in/fast_tokens"])
    assert np.array_equal(blocks.mask, recorded["in/fast_mask"])
    assert np.array_equal(blocks.target, recorded["in/fast_code_mask"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_and_positions(recorded: Golden, variant: str) -> None:
    """Of every row of the reference's one mask: [images and text | FAST | actions of each draw]."""
    model, observation = recorded.model, recorded.observation
    noise, _ = recorded.noise_and_time(variant)
    batch, actions = len(noise[0]), noise.shape[0] * noise.shape[2]
    stream = model.transformer
    prefix = model.prefix_tokens(observation)
    fast = Tokens(torch.empty(0), observation.fast_mask, torch.ones_like(observation.fast_mask))
    suffix = torch.empty(batch * len(noise), noise.shape[2], 1)
    own = stream._prefix_stream(prefix.mask, prefix.starts).mask
    beside = stream._later(prefix.mask, fast).mask
    after = stream._suffix_stream(prefix.mask, suffix, model.suffix_block_starts(), None).mask
    size = own.shape[1] + beside.shape[1] + actions
    mask = torch.zeros(batch, size, size, dtype=torch.bool)
    before, end = own.shape[1], size - actions
    mask[:, :before, :before], mask[:, before:end, :end] = own, beside
    for draw, rows in enumerate(after.chunk(len(noise))):
        place = slice(end + draw * noise.shape[2], end + (draw + 1) * noise.shape[2])
        mask[:, place, :before], mask[:, place, place] = rows[:, :, :before], rows[:, :, before:]
    bits = np.unpackbits(recorded[f"out/{variant}/attention_bits"].numpy(), axis=-1)
    expected = bits[..., : recorded[f"out/{variant}/attention_shape"][-1]].astype(bool)
    assert np.array_equal(mask.numpy(), expected)

    valid = prefix.mask.long()
    positions = [
        valid.cumsum(1) - 1, valid.sum(1, keepdim=True) + observation.fast_mask.long().cumsum(1) - 1,
        *[valid.sum(1, keepdim=True) + torch.arange(noise.shape[2])] * len(noise),
    ]  # fmt: skip
    assert torch.equal(torch.cat(positions, 1).int(), recorded[f"out/{variant}/position_ids"])
    del positions[1]
    assert torch.equal(torch.cat(positions, 1).int(), recorded[f"out/{variant}/position_ids_without_fast"])
    turns = stream._later(prefix.mask, fast).rotary[0], stream._suffix_stream(
        prefix.mask, suffix, model.suffix_block_starts(), None
    ).rotary[0]  # fmt: skip
    places = recorded[f"out/{variant}/position_ids"]
    assert torch.equal(turns[0][..., 0, 0], places[:, before:end].float().cos())
    assert torch.equal(turns[1][:batch, :, 0, 0], places[:, end : end + noise.shape[2]].float().cos())


@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_states(recorded: Golden, variant: str) -> None:
    noise, time = recorded.noise_and_time(variant)
    x_t = time[..., None, None] * noise + (1 - time[..., None, None]) * recorded.actions
    model, observation = recorded.with_language(insulation=variant != "no_ki"), recorded.observation
    with torch.no_grad():
        hidden = model.joint(observation, x_t.flatten(0, 1), time.flatten())[1]
        valid = model.prefix_tokens(observation).mask
    expected, batch = recorded[f"out/{variant}/prefix_hidden"], len(valid)
    length = valid.shape[1]
    torch.testing.assert_close(hidden.prefix[valid], expected[:, :length][valid], atol=TOLERANCE, rtol=TOLERANCE)
    real = observation.fast_mask
    torch.testing.assert_close(hidden.fast[real], expected[:, length:][real], atol=TOLERANCE, rtol=TOLERANCE)
    suffix = hidden.suffix.unflatten(0, (-1, batch)).transpose(0, 1).flatten(1, 2)
    torch.testing.assert_close(suffix, recorded[f"out/{variant}/suffix_hidden"], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses(recorded: Golden, variant: str) -> None:
    def close(value: Tensor, name: str) -> None:
        torch.testing.assert_close(value, recorded[f"out/{variant}/{name}"], atol=TOLERANCE, rtol=TOLERANCE)

    with torch.no_grad():
        losses = recorded.losses(variant)
        language = recorded.with_language().config.language
        close(losses.flow.mean(), "flow_loss")
        close(losses.text.mean(), "text_loss")
        close(losses.fast.mean(), "fast_loss")
        close(losses.total(language).mean(), "total_loss")
        close(recorded.losses(variant, z_weight=0.0).text.mean(), "text_loss_without_z")
        counts = recorded.observation.prompt_target.sum(1)
        share = counts.sum() / (counts.clamp(min=1) * len(counts))
        with_actions = recorded["in/predict_actions"].float()
        close(losses.text * share, "text_loss_per_sample")
        close(losses.fast * (recorded.observation.fast_target.any(1).float().mean()), "fast_loss_per_sample")
        each = losses.flow.mean(1) * with_actions.mean()
        real = recorded["in/predict_actions"]  # the reference reports samples without actions too
        close_rows = recorded[f"out/{variant}/flow_loss_per_sample"][real]
        torch.testing.assert_close(each[real], close_rows, atol=TOLERANCE, rtol=TOLERANCE)

        other = replace(
            recorded.observation,
            fast_tokens=torch.where(recorded["in/fast_code_mask"], 300, recorded.observation.fast_tokens),
        )
        changed = recorded.losses(variant, other)
        close(changed.fast.mean(), "fast_loss_other_fast")
        absent = recorded.losses(variant, recorded.without_fast)
        for found, name in ((changed, "other_fast"), (absent, "without_fast")):
            close(found.flow.mean(), "flow_loss_" + name)
            close(found.text.mean(), "text_loss_" + name)
            assert torch.equal(found.flow, losses.flow)
            assert torch.equal(found.text, losses.text)


@pytest.mark.parametrize("loss", ["flow", "text", "fast", "total"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_norms(recorded: Golden, variant: str, loss: str) -> None:
    norms = json.loads((recorded.folder / "grad_norms.json").read_text())[variant][loss]
    losses, model = recorded.losses(variant), recorded.model
    value = losses.total(model.config.language) if loss == "total" else getattr(losses, loss)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(value.mean(), list(parameters.values()), allow_unused=True)
    gradients = dict(zip(parameters, found, strict=True))
    for row in recorded.rows:
        gradient, expected = gradients[row.ours], norms[row.theirs]
        if not expected:
            assert gradient is None or not gradient.any(), row.ours
        else:
            assert gradient.norm().item() == pytest.approx(expected, rel=1e-3, abs=1e-7), row.ours


@pytest.mark.parametrize("kind", ["marked", "unmarked"])
def test_sampled_actions(recorded: Golden, kind: str) -> None:
    observation = recorded.without_fast
    if kind == "unmarked":
        observation = replace(observation, prompt_causal=None)
    actions = recorded.model.sample_actions(observation, noise=recorded["in/noise"], num_steps=10)
    expected = recorded[f"out/sample/actions_10_{kind}"]
    torch.testing.assert_close(actions, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_written_text(recorded: Golden) -> None:
    """Alone, and in a batch beside shorter and longer prompts."""
    ids, expected = recorded["in/text_prompt_tokens"].long(), recorded["out/text/greedy_ids_cache_1"].tolist()
    length = len(ids) + 5
    tokens = torch.zeros(3, length, dtype=torch.long)
    tokens[0, : len(ids)], tokens[1], tokens[2, :4] = ids, 7, ids[:4]
    mask = torch.arange(length) < torch.tensor([[len(ids)], [length], [4]])
    first = recorded.without_fast[torch.tensor([0, 0, 0])]
    observation = replace(first, prompt_tokens=tokens, prompt_mask=mask, prompt_causal=None, prompt_target=None)
    closing = torch.tensor([END_ID]), torch.tensor([True])
    for rows in (slice(0, 1), slice(0, 3)):
        written = recorded.model.write(observation[rows], len(expected), closing).tokens[0].tolist()
        assert written[: len(expected)] == expected
