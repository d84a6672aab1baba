"""Who sees whom, measured by exact zeros of gradients through the whole network, not read off the mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_helpers import VARIANTS, make_actions, make_observation, random_model, variant_name
from torch import Tensor

from pizero.model.pi0 import Pi0
from pizero.model.two_expert import LayerOutput

WITH_STATE = [variant for variant in VARIANTS if variant["state_input"] == "token"]


def reaches(output: Tensor, source: Tensor) -> bool:
    """Whether any gradient at all flows from the output to the source."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad((output * weights).sum(), source, allow_unused=True, retain_graph=True)
    return found is not None and bool(found.any())


class Pass:
    """A joint pass from leaf tensors, with what each layer gave."""

    def __init__(self, model: Pi0) -> None:
        self.layers: list[LayerOutput] = []
        hooks = [layer.register_forward_hook(self._keep) for layer in model.transformer.layers]
        observation = make_observation(model.config)
        actions, _, time = make_actions(model.config)
        prefix, mask = model.embed_prefix(observation)
        self.prefix, self.mask = prefix.detach().requires_grad_(), mask
        self.x_t, self.time = actions.requires_grad_(), time.requires_grad_()
        self.state = observation.state if observation.state is None else observation.state.requires_grad_()
        suffix = model.embed_suffix(self.state, self.x_t, self.time)
        self.hidden = model.transformer.joint(self.prefix, mask, *suffix)
        self.velocity = model.action_out_proj(self.hidden[:, -model.config.action_horizon :])
        for hook in hooks:
            hook.remove()

    def _keep(self, module: Any, args: Any, output: Any) -> None:
        self.layers.append(output)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_the_prefix_cannot_see_the_suffix(variant: dict[str, str]) -> None:
    run = Pass(random_model(**variant))
    assert len(run.layers) == 2
    sources = [run.x_t, run.time] + ([] if run.state is None else [run.state])
    for hidden, _, (key, value), _ in run.layers:
        for output in (key, value) if hidden is None else (hidden, key, value):
            assert not any(reaches(output, source) for source in sources)
            assert reaches(output, run.prefix)
    assert run.layers[-1][0] is None  # of the last layer only keys and values are wanted
    assert all(reaches(run.velocity, source) for source in [run.prefix, *sources])


@pytest.mark.parametrize("variant", WITH_STATE, ids=variant_name)
def test_the_state_cannot_see_the_actions(variant: dict[str, str]) -> None:
    """So its keys and values are the same at every integration step (but for the time, where that modulates norms)."""
    run = Pass(random_model(**variant))
    assert run.state is not None
    for outputs in (*(suffix for _, suffix, *_ in run.layers), run.hidden):
        state_token = outputs[:, 0]
        assert not reaches(state_token, run.x_t)
        assert reaches(state_token, run.time) == (variant["time_conditioning"] == "adarms")
        assert reaches(state_token, run.prefix)
    assert reaches(run.velocity, run.state)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_an_action_and_the_later_ones(variant: dict[str, str]) -> None:
    run = Pass(random_model(**variant))
    causal = variant["action_attention"] == "causal"
    for i in range(6):
        weights = torch.randn(2, 4, generator=torch.Generator().manual_seed(i))
        (found,) = torch.autograd.grad((run.velocity[:, i] * weights).sum(), run.x_t, retain_graph=True)
        sees = found.flatten(2).abs().amax(dim=(0, 2)) > 0
        assert sees.tolist() == [j <= i or not causal for j in range(6)]


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_changing_later_actions(attention: str) -> None:
    """The same by values, in the cached pass."""
    model = random_model(action_attention=attention)
    observation = make_observation(model.config)
    actions, noise, time = make_actions(model.config)
    cache = model.prefill(observation)
    changed = actions.clone()
    changed[:, 3:] = noise[:, 3:]
    before, after = (model.decode(cache, observation.state, x, time)[:, :3] for x in (actions, changed))
    assert torch.allclose(before, after, atol=1e-6) == (attention == "causal")


def test_images_and_prompt_see_each_other_fully() -> None:
    model = random_model()
    tokens, mask = model.embed_prefix(make_observation(model.config))
    tokens = tokens.detach().requires_grad_()
    hidden, _ = model.transformer.prefill(tokens, mask)
    for row in range(2):
        for query in mask[row].nonzero().flatten().tolist():
            (found,) = torch.autograd.grad(hidden[row, query].square().sum(), tokens, retain_graph=True)
            assert torch.equal(found[row].abs().amax(dim=-1) > 0, mask[row])
            assert not found[1 - row].any()


def test_a_padded_token_is_seen_by_no_valid_one() -> None:
    run = Pass(random_model())
    (found,) = torch.autograd.grad(run.velocity.square().sum(), run.prefix)
    assert not run.mask.all()
    assert torch.equal(found.abs().amax(dim=-1) > 0, run.mask)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"state_input": "token"}, [True, True, False, False, False, False, False]),
        ({"state_input": "prompt"}, [True, False, False, False, False, False]),
        ({"state_input": "none", "action_attention": "causal"}, [True] * 6),
        ({"state_input": "token", "action_attention": "causal"}, [True] * 7),
    ],
)
def test_blocks_of_the_suffix(changes: dict[str, str], expected: list[bool]) -> None:
    assert random_model(**changes).suffix_block_starts().tolist() == expected
