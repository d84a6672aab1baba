"""What depends on the flow time alone, for all times of an integration: made once per number of steps and kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pizero.engine.packed import Modulation, modulations
from pizero.model.config import Pi0Config
from pizero.model.flow_matching import CLEAN, Sampling, Solver, integrate
from pizero.model.pi0 import Pi0
from pizero.model.two_expert import TwoExpertLayer


@dataclass(frozen=True)
class TimeTables:
    """times: the T of them. biases [T + 1, E]: of the action embedding at each, so that `time_mlp_in` needs no time.

    targets: where the step from each of the times ends, of a one-step model that takes it whole; None: instants.
    norms [T + 1][i]: of the expert, the attention's and the MLP's of each layer, then the final one; for one time alone
    if they do not depend on it. The last row is a clean action's.
    """

    times: list[float]
    biases: Tensor
    norms: list[list[Modulation]]
    targets: Tensor | None = None

    def row(self, time: Tensor) -> int | None:
        """Of a flow time [B] that all samples share; None where they do not, or where the tables lack it.

        Reads the time on the host.
        """
        first, *others = set(time.tolist())
        return None if others or first not in self.times else self.times.index(first)

    def at(self, call: int, settled: Tensor | None = None) -> tuple[Tensor, list[Modulation]]:
        """Bias and norms of the time in row `call`, the one at which `integrate` asks as number `call`: [E] each.

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


def targets_of(config: Pi0Config, times: Tensor, num_steps: int, solver: Solver) -> Tensor | None:
    """[T]: where steps from these times end, for the single one of a one-step model, as `Pi0.generate` has it."""
    return torch.full_like(times, CLEAN) if config.one_step and Sampling(num_steps, solver).is_one_step else None


def make_tables(model: Pi0, times: Tensor, folded: bool, targets: Tensor | None = None) -> TimeTables:
    """For integration times and maybe targets [T]. folded: scales of norms that do not depend on the time are in the
    weights.
    """
    width, device = model.config.expert.width, model.action_in_proj.weight.device
    known = times.tolist() if times.device.type == "cpu" else []
    times = model.embed_times(_and_clean(times, device), None if targets is None else _and_clean(targets, device))
    bias = model.action_in_proj.bias.float()
    if model.config.adaptive:
        times = F.silu(model.time_mlp_out(F.silu(model.time_mlp_in(times))))
        biases = bias.expand(len(times), -1)
    else:
        action, time = model.time_mlp_in.weight.float().split(width, dim=1)
        biases = times @ time.T + (model.time_mlp_in.bias.float() + action @ bias)
    experts = [layer.expert for layer in model.transformer.layers if isinstance(layer, TwoExpertLayer)]
    norms = [norm for block in experts for norm in (block.attention_norm, block.mlp_norm)]
    dtype = model.transformer.dtype
    rows = [modulations(norm, times, folded, dtype) for norm in norms]
    rows.append(modulations(model.transformer.expert_norm, times, False, dtype))
    return TimeTables(known, biases, [list(row) for row in zip(*rows, strict=True)], targets)


@torch.no_grad()
def of_any_time(model: Pi0, time: Tensor, folded: bool, whole: bool = False) -> tuple[Tensor, list[Modulation]]:
    """As `TimeTables.at`, for a time [B] or [B, H] of which no table is kept: [B, 1 or H, E] each.

    whole: of a step that leads to the actions.
    """
    values, where = time.unique(return_inverse=True)
    tables = make_tables(model, values, folded, torch.full_like(values, CLEAN) if whole else None)
    where = where[:, None] if where.ndim == 1 else where
    if len(tables.norms) == 1:
        return tables.biases[where], tables.norms[0]
    norms: list[Modulation] = []
    for rows in zip(*tables.norms, strict=True):  # one norm at every time
        scale, shift, gate = (
            None if part[0] is None else torch.stack([row for row in part if row is not None])[where]
            for part in zip(*rows, strict=True)
        )
        norms.append((scale, shift, gate))
    return tables.biases[where], norms


def with_token(norms: list[Modulation]) -> list[Modulation]:
    """Of a state token that runs before the actions: where each of those has a time of its own, the last one's."""

    def widened(part: Tensor | None) -> Tensor | None:
        return part if part is None or part.ndim == 1 or part.shape[1] == 1 else torch.cat([part[:, -1:], part], dim=1)

    return [(widened(scale), widened(shift), widened(gate)) for scale, shift, gate in norms]


def action_weight(model: Pi0) -> Tensor:
    """[E, D]: from noisy actions to what the bias of a time is added to."""
    weight = model.action_in_proj.weight.float()
    if model.config.adaptive:
        return weight
    return model.time_mlp_in.weight.float()[:, : weight.shape[0]] @ weight


def _and_clean(times: Tensor, device: torch.device) -> Tensor:
    """[T] -> [T + 1]."""
    return torch.cat([times, torch.full_like(times[:1], CLEAN)]).to(device)


def _chosen(where: Tensor, clean: Modulation, noisy: Modulation) -> Modulation:
    """where [B, H, 1]; each part [E] -> [B, H, E]."""
    scale, shift, gate = (
        None if a is None or b is None else torch.where(where, a, b) for a, b in zip(clean, noisy, strict=True)
    )
    return scale, shift, gate
