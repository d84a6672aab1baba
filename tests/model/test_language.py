"""π0.5 with text and FAST tokens: what gradients reach, what the losses are, what is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from model_helpers import gradients, make_actions, make_observation, random_model
from torch import Tensor
from torch.nn import functional as F

from pizero import load_model, save_model
from pizero.engine.fast_sampler import FastSampler
from pizero.model import language as language_module
from pizero.model.config import LanguageConfig, Pi0Config
from pizero.model.language import END_ID, Losses, target_errors
from pizero.model.pi0 import Pi0
from pizero.types import Observation, UserError

BATCH, LENGTH, SLOTS = 3, 8, 7
PI05: dict[str, Any] = {"state_input": "prompt", "time_conditioning": "adarms"}
KINDS = [PI05, {"state_input": "token", "time_conditioning": "concat_mlp"}]


def make_model(kind: dict[str, Any] = PI05, seed: int = 0, **changes: Any) -> Pi0:
    return random_model(seed, language=LanguageConfig(**changes), **kind)


def with_insulation(model: Pi0, insulation: bool) -> Pi0:
    assert model.config.language is not None
    model.config = replace(model.config, language=replace(model.config.language, insulation=insulation))
    return model


def teaching(config: Pi0Config, seed: int = 0) -> Observation:
    """Prompts of 4, 6 and 8 tokens whose last 0, 2 and 3 are the text that is learnt, and FAST tokens beside them."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor([[4], [6], [8]])
    written = torch.tensor([[0], [2], [3]])
    place = torch.arange(LENGTH)[None]
    marked = (place < length) & (place >= length - written)
    fast = torch.arange(SLOTS)[None] < torch.tensor([[7], [4], [5]])
    return make_observation(
        config, BATCH, seed, prompt_mask=place < length, prompt_causal=marked, prompt_target=marked,
        fast_tokens=torch.randint(0, config.vocab_size, (BATCH, SLOTS), generator=generator), fast_mask=fast,
        fast_target=fast & (torch.arange(SLOTS) > 1) & torch.tensor([[True], [False], [True]]),
    )  # fmt: skip


def losses(model: Pi0, observation: Observation, **options: Any) -> Losses:
    actions, noise, time = make_actions(model.config, BATCH)
    return model.losses(observation, actions, **{"noise": noise, "time": time, **options})


def flow_alone(observation: Observation) -> Observation:
    return replace(observation, prompt_target=None, fast_tokens=None, fast_mask=None, fast_target=None)


def is_of_expert(name: str) -> bool:
    return ".expert" in name or name.startswith(("action_", "time_", "state_"))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_under_insulation(kind: dict[str, Any]) -> None:
    model = make_model(kind)
    reached = {"flow": set[bool](), "text": set[bool](), "fast": set[bool]()}
    for loss in reached:
        found = losses(model, teaching(model.config))
        for name, gradient in gradients(model, getattr(found, loss).mean()).items():
            if gradient is not None and gradient.any():
                reached[loss].add(is_of_expert(name))
    assert reached == {"flow": {True}, "text": {False}, "fast": {False}}


def test_without_insulation_the_flow_trains_the_prefix_too() -> None:
    model = make_model(insulation=False)
    found = gradients(model, losses(model, teaching(model.config)).flow.mean())
    dead = [name for name, gradient in found.items() if gradient is None or not gradient.any()]
    last = "transformer.layers.1.prefix."
    expected = {
        "query.weight",
        "output.weight",
        "mlp_norm.scale",
        "mlp.gate.weight",
        "mlp.up.weight",
        "mlp.down.weight",
    }
    assert set(dead) == {last + name for name in expected} | {"transformer.prefix_norm.scale"}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_forward_is_the_same_bit_by_bit(kind: dict[str, Any]) -> None:
    """With insulation and without, whatever the FAST tokens are, with and without them, with targets and without."""
    model = make_model(kind)
    observation = teaching(model.config)
    expected = losses(model, observation)
    free = losses(with_insulation(model, False), observation)
    for one, other in zip(expected, free, strict=True):
        assert torch.equal(one, other)
    with_insulation(model, True)
    assert observation.fast_tokens is not None
    changed = losses(model, replace(observation, fast_tokens=observation.fast_tokens.flip(1)))
    assert not torch.equal(changed.fast, expected.fast)
    absent = losses(model, replace(observation, fast_tokens=None, fast_mask=None, fast_target=None))
    assert not absent.fast.any()
    for found in (changed, absent):
        assert torch.equal(found.flow, expected.flow)
        assert torch.equal(found.text, expected.text)
    assert torch.equal(losses(model, flow_alone(observation)).flow, expected.flow)
    assert torch.equal(losses(with_insulation(model, False), flow_alone(observation)).flow, expected.flow)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_language_and_one_with_its_flow_alone(kind: dict[str, Any]) -> None:
    model, plain = make_model(kind, insulation=False, flow_weight=1.0), random_model(**kind)
    plain.load_state_dict(model.state_dict())
    observation = replace(flow_alone(teaching(model.config)), prompt_causal=None)
    actions, noise, time = make_actions(model.config, BATCH)
    found, expected = (each.loss(observation, actions, noise=noise, time=time) for each in (model, plain))
    assert torch.equal(found, expected)
    one, other = gradients(model, found.mean()), gradients(plain, expected.mean())
    assert all(a is b or torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_flow_alone_under_insulation_keeps_no_graph_of_the_prefix() -> None:
    model = make_model()
    observation = teaching(model.config)
    actions, noise, time = make_actions(model.config, BATCH)
    seen = list[bool]()
    hook = model.vision_tower.register_forward_hook(lambda *call: seen.append(call[2].requires_grad))
    alone = model.losses(flow_alone(observation), actions, noise=noise, time=time).flow
    both = model.losses(observation, actions, noise=noise, time=time).flow
    hook.remove()
    assert seen == [False, True]
    found, expected = gradients(model, alone.mean()), gradients(model, both.mean())
    for name, gradient in found.items():
        if is_of_expert(name):
            assert gradient is not None
            assert torch.equal(gradient, expected[name])
        else:
            assert gradient is None


def test_several_draws_over_one_prefix() -> None:
    model = make_model()
    observation = teaching(model.config)
    draws = [make_actions(model.config, BATCH, seed)[1:] for seed in (3, 4)]
    noise, time = (torch.stack(parts) for parts in zip(*draws, strict=True))
    together = losses(model, observation, noise=noise, time=time, draws=2)
    apart = [losses(model, observation, noise=n, time=t) for n, t in draws]
    torch.testing.assert_close(together.flow, torch.stack([each.flow for each in apart]).mean(0))
    assert torch.equal(together.text, apart[0].text)
    assert torch.equal(together.fast, apart[0].fast)


@torch.no_grad()
def test_means_are_over_the_samples_that_have_something() -> None:
    """A sample without text, one without FAST targets, one without actions; each loss is the mean of the others."""
    model = make_model()
    observation = teaching(model.config)
    actions, noise, time = make_actions(model.config, BATCH)
    mask = torch.ones(BATCH, model.config.action_dim, dtype=torch.bool)
    mask[2] = False
    found = losses(model, observation, action_mask=mask)
    rows = [
        model.losses(observation[i : i + 1], actions[i : i + 1], noise=noise[i : i + 1], time=time[i : i + 1])
        for i in range(BATCH)
    ]
    torch.testing.assert_close(found.flow.mean(), (rows[0].flow.mean() + rows[1].flow.mean()) / 2)
    torch.testing.assert_close(found.text.mean(), (2 * rows[1].text.mean() + 3 * rows[2].text.mean()) / 5)
    torch.testing.assert_close(found.fast.mean(), (rows[0].fast.mean() + rows[2].fast.mean()) / 2)
    total = 10 * found.flow.mean() + found.text.mean() + found.fast.mean()
    torch.testing.assert_close(model.loss(observation, actions, noise=noise, time=time, action_mask=mask).mean(), total)
    none = losses(model, observation, action_mask=torch.zeros_like(mask))
    assert not none.flow.any()


@pytest.mark.parametrize("z_weight", [0.0, 0.01])
def test_cross_entropy_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, z_weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 5, generator=generator, requires_grad=True)
    table = torch.randn(11, 5, generator=generator, requires_grad=True)
    ids = torch.randint(0, 11, (2, 9), generator=generator)
    target = torch.rand(2, 9, generator=generator) < 0.7
    scores = F.linear(hidden[:, :-1], table)
    whole = F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(2, 8)
    whole = F.pad((whole + z_weight * scores.logsumexp(-1).square()) * target[:, 1:], (1, 0))
    weights = torch.randn(2, 9, generator=generator)
    expected = torch.autograd.grad((whole * weights).sum(), [hidden, table])
    rows = list[int]()
    plain = language_module.logits
    monkeypatch.setattr(language_module, "_ROWS", 3)
    monkeypatch.setattr(language_module, "logits", lambda x, table: rows.append(len(x)) or plain(x, table))
    found = target_errors(hidden, table, ids, target, z_weight)
    torch.testing.assert_close(found, whole)
    for one, other in zip(torch.autograd.grad((found * weights).sum(), [hidden, table]), expected, strict=True):
        torch.testing.assert_close(one, other)
    count = int(target[:, 1:].sum())
    assert max(rows) == 3
    assert sum(rows) == 2 * count  # forward, and backward again


def without_targets(observation: Observation) -> Observation:
    return replace(flow_alone(observation), prompt_causal=None)


def closing(*ids: int, together: bool = False) -> tuple[Tensor, Tensor]:
    starts = torch.ones(len(ids), dtype=torch.bool)
    starts[1:] = not together
    return torch.tensor(ids), starts


def rewritten(observation: Observation, texts: list[list[int]], end: list[int], together: bool = False) -> Observation:
    """The prompts with these texts and the end after them, marked as what the model wrote."""
    rows = [
        (tokens[mask].tolist(), text + end)
        for tokens, mask, text in zip(observation.prompt_tokens, observation.prompt_mask, texts, strict=True)
    ]
    length = max(len(before) + len(after) for before, after in rows)
    tokens, mask, causal = torch.zeros(3, len(rows), length, dtype=torch.long)
    for row, (before, after) in enumerate(rows):
        size = len(before) + len(after)
        tokens[row, :size], mask[row, :size] = torch.tensor(before + after), 1
        causal[row, len(before) : size - (len(end) - 1 if together else 0)] = 1
    return replace(observation, prompt_tokens=tokens, prompt_mask=mask.bool(), prompt_causal=causal.bool())


@torch.no_grad()
def greedy(model: Pi0, observation: Observation, row: int, steps: int) -> list[int]:
    """One row, without a cache: the whole pass again for each token."""
    text = list[int]()
    while len(text) < steps:
        now = rewritten(observation[row : row + 1], [text], [])
        prefix = model.prefix_tokens(now)
        hidden, _ = model.transformer.prefill(prefix.values, prefix.mask, prefix.starts)
        token = int((hidden[0, -1] @ model.head.T).argmax())
        if token == END_ID:
            break
        text.append(token)
    return text


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("together", [False, True])
@torch.no_grad()
def test_text_and_actions_from_one_cache(tied: bool, together: bool) -> None:
    """What is written is what the whole pass would write; actions on its cache are those of the prompt with the text.

    Rows of different lengths, of which one ends early: its end mark is made the likeliest token after its second one.
    """
    model = make_model(tied_head=tied, seed=2)
    observation = without_targets(teaching(model.config))
    texts = [greedy(model, observation, row, 6) for row in range(BATCH)]
    now = rewritten(observation[0:1], [texts[0][:2]], [])
    prefix = model.prefix_tokens(now)
    hidden, _ = model.transformer.prefill(prefix.values, prefix.mask, prefix.starts)
    newest = hidden[0, -1]
    model.head[END_ID] = newest * (1.001 * (newest @ model.head.T).max() / newest.square().sum())
    texts = [greedy(model, observation, row, 6) for row in range(BATCH)]
    assert len(texts[0]) <= 2 < max(map(len, texts))

    written = model.write(observation, 6, closing(END_ID, 5, together=together))
    assert written.tokens.tolist() == [text + [0] * (written.tokens.shape[1] - len(text)) for text in texts]
    alone = model.write(observation[2:3], 6, closing(END_ID))
    assert alone.tokens[0].tolist()[: len(texts[2])] == texts[2]

    whole = rewritten(observation, texts, [END_ID, 5], together)
    _, noise, time = make_actions(model.config, BATCH)
    found = model.decode(written.cache, None, noise, time)
    expected = model.decode(model.prefill(whole), None, noise, time)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    unmarked = model.decode(model.prefill(replace(whole, prompt_causal=None)), None, noise, time)
    assert not torch.allclose(unmarked, expected, atol=1e-3)


@torch.no_grad()
def test_the_fast_path_sees_the_same_blocks() -> None:
    model = make_model()
    observation = rewritten(without_targets(teaching(model.config)), [[9, 8], [7], [6, 5, 4]], [END_ID])
    noise = make_actions(model.config, BATCH)[1]
    expected = model.sample_actions(observation, noise=noise)
    found = FastSampler(model).sample_actions(observation, noise=noise)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    unmarked = FastSampler(model).sample_actions(replace(observation, prompt_causal=None), noise=noise)
    assert not torch.allclose(unmarked, expected, atol=1e-3)


def test_the_config_is_stored_and_checked(tmp_path: Any) -> None:
    model = make_model(tied_head=False, z_weight=1e-4)
    assert Pi0Config.from_json(model.config.to_json()) == model.config
    assert "language" not in random_model().config.to_json()
    save_model(model, tmp_path / "native")
    again = load_model(tmp_path / "native")
    assert again.config == model.config
    assert again.text_head is not None
    assert model.text_head is not None
    assert torch.equal(again.text_head.weight, model.text_head.weight)
    with pytest.raises(UserError, match="head of its own"):
        save_model(model, tmp_path / "openpi", "openpi-torch")
    with pytest.raises(UserError, match="text_weight must be a number"):
        LanguageConfig(text_weight=-1.0)
    with pytest.raises(UserError, match="unknown keys in language: z"):
        Pi0Config.from_json({"language": {"z": 1}})


@pytest.mark.parametrize("name", ["prompt_causal", "prompt_target", "fast_mask", "fast_target"])
def test_flags_of_another_shape(name: str) -> None:
    model = make_model()
    observation = teaching(model.config)
    with pytest.raises(ValueError, match=f"{name}: got torch.bool \\(3, 2\\), expected bool"):
        losses(model, replace(observation, **{name: torch.ones(3, 2, dtype=torch.bool)}))
