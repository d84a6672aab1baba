"""What depends on the flow time alone, for all times of an integration: made once per number of steps and kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pizero.engine.packed import Modulation, modulations
from pizero.model.flow_matching import CLEAN, Solver, integrate
from pizero.model.layers import embed_time
from pizero.model.pi0 import Pi0
from pizero.model.two_expert import TwoExpertLayer


@dataclass(frozen=True)
class TimeTables:
    """biases [T + 1, E]: of the action embedding at each time, so that `time_mlp_in` needs no time any more.

    norms [T + 1][i]: of the expert, the attention's and the MLP's of each layer, then the final one; for one time alone
    if they do not depend on it. The last row is a clean action's.
    """

    biases: Tensor
    norms: list[list[Modulation]]

    def at(self, call: int, settled: Tensor | None = None) -> tuple[Tensor, list[Modulation]]:
        """Bias and norms for the velocity that is asked for as number `call`: [E] each.

        Where settled [B, H] is true those of a clean action: the bias is then [B, H, E], and so are the norms that
        depend on the time.
        """
        row = call if len(self.norms) > 1 else 0
        if settled is None:
            return self.biases[call], self.norms[row]
        where = settled[..., None]
        bias = torch.where(where, self.biases[-1], self.biases[call])
        if row == 0 and len(self.norms) == 1:
            return bias, self.norms[0]
        pairs = zip(self.norms[-1], self.norms[row], strict=True)
        return bias, [_chosen(where, clean, noisy) for clean, noisy in pairs]


def integration_times(num_steps: int, solver: Solver) -> Tensor:
    """[T] float32: the times at which `integrate` asks for a velocity, in its order."""
    times: list[Tensor] = []

    def record(x: Tensor, time: Tensor) -> Tensor:
        times.append(time)
        return torch.zeros_like(x)

    integrate(record, torch.zeros(1, 1, 1), num_steps, solver)
    return torch.cat(times)


def make_tables(model: Pi0, times: Tensor, folded: bool = True) -> TimeTables:
    """For integration times [T]. folded: scales of norms that do not depend on the time are in the weights."""
    width = model.config.expert.width
    times = torch.cat([times, torch.full_like(times[:1], CLEAN)]).to(model.action_in_proj.weight.device)
    times = embed_time(times, width)  # [T + 1, E]
    bias = model.action_in_proj.bias.float()
    if model.config.adaptive:
        times = F.silu(model.time_mlp_out(F.silu(model.time_mlp_in(times))))
        biases = bias.expand(len(times), -1)
    else:
        action, time = model.time_mlp_in.weight.float().split(width, dim=1)
        biases = times @ time.T + (model.time_mlp_in.bias.float() + action @ bias)
    experts = [layer.expert for layer in model.transformer.layers if isinstance(layer, TwoExpertLayer)]
    norms = [norm for block in experts for norm in (block.attention_norm, block.mlp_norm)]
    rows = [modulations(norm, times, folded) for norm in norms]
    rows.append(modulations(model.transformer.expert_norm, times, folded=False))
    return TimeTables(biases, [list(row) for row in zip(*rows, strict=True)])


def action_weight(model: Pi0) -> Tensor:
    """[E, D]: from noisy actions to what the bias of a time is added to."""
    weight = model.action_in_proj.weight.float()
    if model.config.adaptive:
        return weight
    return model.time_mlp_in.weight.float()[:, : weight.shape[0]] @ weight


def _chosen(where: Tensor, clean: Modulation, noisy: Modulation) -> Modulation:
    """where [B, H, 1]; each part [E] -> [B, H, E]."""
    scale, shift, gate = (
        None if a is None or b is None else torch.where(where, a, b) for a, b in zip(clean, noisy, strict=True)
    )
    return scale, shift, gate
