"""What one training step needs, found out before anything is loaded: its operations run on tensors without content."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pizero.checkpoints.models import Network, NetworkConfig, make_model
from pizero.model.attention import attend_fused
from pizero.model.config import Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.train.activations import BLOCKS, checkpoint_activations
from pizero.train.config import TrainConfig
from pizero.train.distributed import shard_units
from pizero.train.low_memory import RowSteps
from pizero.train.optim import make_optimizers, multiplies_in_bfloat16
from pizero.train.parts import choose_parts, keep_in_precision
from pizero.types import Observation

COEFFICIENTS = 3
"""Of a chunk for one of its FAST tokens: a cautious guess, a codec fits about as many or more into one."""
FAST_MARKS = 8
"""Tokens around those of a chunk."""


@dataclass(frozen=True)
class Layout:
    """ranks: processes in all, of which `shards` divide the state among them; 1: each has all of it."""

    ranks: int = 1
    shards: int = 1
    recompute: bool = False


@dataclass(frozen=True)
class StepPlan:
    """Bytes on one rank, by kind, and the floating-point operations of its part of a step.

    activations: beyond the room of the gradients, where these are not there yet when the activations are largest. With
    shards they include the units that are gathered at a time. Not included: Python and PyTorch themselves, and what a
    CPU's allocator keeps of memory that was freed.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    flops: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def plan_step(
    network: NetworkConfig, config: TrainConfig, layout: Layout, device: str = "cpu", robot_actions: int | None = None
) -> StepPlan:
    """Takes seconds for a small model and about 20 for a full π0, whatever the memory here.

    robot_actions: action dimensions of the robot, whose FAST tokens a π0.5 learns; None: as many as the model's. Half
    of a prompt's slots are taken for text.
    """
    mixed = multiplies_in_bfloat16(config.precision, torch.device(device))
    with FakeTensorMode():
        model = make_model(network)
        _attend_as_on(torch.device(device), model)
        choose_parts(model, config.parts)
        keep_in_precision(model, config.precision, mixed)
        if layout.recompute:
            checkpoint_activations(model)
        sharded = layout.shards > 1
        weights, gathered = _bytes(model.parameters()), _gathered_bytes(model, mixed) if sharded else 0
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        average = 4 * sum(parameter.numel() for parameter in trained) if config.ema_decay > 0 else 0
        live = _trace(model, config, layout, mixed and config.precision != "bfloat16", robot_actions)
        gradients = sum(_bytes([parameter]) for parameter in trained if parameter.grad is not None)
        optimizer = _optimizer_bytes(model, config)
        if not sharded and layout.ranks == 1 and config.gradient.accumulate == 1:
            activations = max(live.peak - gradients, 0)
        else:
            activations = live.peak_without_gradients + gathered
    parts = layout.shards
    return StepPlan(weights // parts, gradients // parts, optimizer // parts, average // parts, activations, live.flops)


# -------------------------------------------------------------------- inside


class _Live(TorchDispatchMode):
    """Follows how many bytes of tensors are alive, with the gradients and without them, and counts operations.

    PyTorch's own counter would keep what a recomputed block computes alive.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = self.peak_without_gradients = self.flops = 0
        self._gradients: dict[Tensor, int] = {}
        self._seen = {_key(tensor) for tensor in model.state_dict().values()}
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._note_gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _key(tensor) not in self._seen:
                self._add(tensor.untyped_storage(), _key(tensor))
        return result

    def _add(self, storage: Any, key: int) -> None:
        size = storage.nbytes()
        self._seen.add(key)
        weakref.finalize(storage, self._drop, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)
        self.peak_without_gradients = max(self.peak_without_gradients, self.now - sum(self._gradients.values()))

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def _note_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._gradients[parameter] = _bytes([parameter.grad])


class _AllPresent(TorchFunctionMode):
    """What masks without content cannot say: no sample lacks a camera, and half of a text's slots are targets."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.all:
            return True
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            whole = args[0].flatten(0, args[1].ndim - 1)
            return whole[: (len(whole) + 1) // 2]
        return func(*args, **(kwargs or {}))


def _trace(model: Network, config: TrainConfig, layout: Layout, autocast: bool, robot_actions: int | None) -> _Live:
    """Loss and gradient of one part of this rank's batch."""
    batch = max(config.batch_size // layout.ranks // config.gradient.accumulate, 1)
    observation, actions = _inputs(model.config, batch, robot_actions)
    noise, flow_time = torch.empty(config.draws, *actions.shape), torch.empty(config.draws, batch)
    if layout.shards > 1 and autocast:  # the blocks are gathered in bfloat16, so nothing is cast and kept
        for parameter in (p for module in model.modules() if isinstance(module, BLOCKS) for p in module.parameters()):
            parameter.data = parameter.data.bfloat16()
    live = _Live(model)
    with live, _AllPresent():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model.loss(observation, actions, noise=noise, time=flow_time, draws=config.draws).mean()
        loss.backward()
    live.flops *= config.gradient.accumulate
    return live


def _inputs(network: Any, batch: int, robot_actions: int | None) -> tuple[Observation, Tensor]:
    history = () if network.num_history == 1 else (network.num_history,)
    height, width = network.image_shape
    observation = Observation(
        {name: torch.empty(batch, *history, height, width, 3) for name in network.cameras},
        {name: torch.ones(batch, dtype=torch.bool) for name in network.cameras},
        torch.empty(batch, *history, network.state_dim),
        torch.zeros(batch, network.prompt_length, dtype=torch.long),
        torch.ones(batch, network.prompt_length, dtype=torch.bool),
    )
    language = network.language if isinstance(network, Pi0Config) else None
    if isinstance(network, Pi0FastConfig) or (language is not None and language.writes_text):
        masks = [torch.ones_like(observation.prompt_mask) for _ in range(2)]
        observation = replace(observation, prompt_causal=masks[0], prompt_target=masks[1])
    if isinstance(network, Pi0FastConfig):
        observation = replace(observation, state=None)
    if language is not None and language.writes_fast:
        count = network.action_horizon * (robot_actions or network.action_dim) // COEFFICIENTS + FAST_MARKS
        tokens = torch.zeros(batch, -(-count // 16) * 16, dtype=torch.long)
        masks = [torch.ones_like(tokens, dtype=torch.bool) for _ in range(2)]
        observation = replace(observation, fast_tokens=tokens, fast_mask=masks[0], fast_target=masks[1])
    return observation, torch.empty(batch, network.action_horizon, network.action_dim)


def _optimizer_bytes(model: nn.Module, config: TrainConfig) -> int:
    """After a step of each optimizer; 8-bit AdamW, which compiles its step, by its formula."""
    if config.optimizer == "adamw8bit":  # two averages of a byte, and a float32 scale for each 256 of both
        return int(sum(p.numel() for p in model.parameters() if p.grad is not None) * (2 + 8 / 256))
    size = 0
    for optimizer in make_optimizers(model, config):
        if not isinstance(optimizer, RowSteps):  # keeps nothing
            optimizer.step()
            size += _bytes(value for state in optimizer.state.values() for value in state.values())
    return size


def _gathered_bytes(model: nn.Module, mixed: bool) -> int:
    """The largest unit twice, in use and fetched ahead, and its gradient in float32; what is in no unit once, and its
    gradient, all the time.
    """
    sizes = [sum(parameter.numel() for parameter in unit.parameters()) for unit in shard_units(model)]
    rest = sum(parameter.numel() for parameter in model.parameters()) - sum(sizes)
    return max([*sizes, 0]) * (2 * (2 if mixed else 4) + 4) + rest * (4 + 4)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _attend_as_on(device: torch.device, model: nn.Module) -> None:
    """Attention as it is computed on this kind of device, for tensors that seem to be on the CPU."""
    if device.type != "cpu":
        for module in model.modules():
            if isinstance(module, BLOCKS):
                module.attend = attend_fused
