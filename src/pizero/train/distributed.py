"""Training by several processes that torchrun starts: who they are, and how a finished model is spread over them.

Every rank reads its part of each batch and draws the random numbers of the whole of it, so losses and weights are those
of one process, up to floating-point summation order.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from pizero.model.pi0_fast import Pi0Fast
from pizero.processes import end_with_launcher
from pizero.train.activations import BLOCKS
from pizero.train.parts import language_of
from pizero.types import UserError

Sharding = Literal["ddp", "fsdp", "hsdp"]
"""ddp: every rank has all weights. fsdp: weights, gradients, optimizer and average are divided among all ranks. hsdp:
divided among the ranks of a machine, the same on every machine.
"""


LONGEST_WAIT = timedelta(hours=12)
"""For the first rank's preparations, such as decoding a large dataset, and for the end of a save."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """The processes of a training; this one is number `index` of `count`, `local_count` of them on this machine.

    control: the group for what is not part of a step.
    """

    index: int = 0
    count: int = 1
    local_count: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def from_first(self, make: Callable[[], Result]) -> Result:
        """What `make` returns on the first rank, the only one that calls it."""
        if self.count == 1:
            return make()
        results = [make() if self.is_first else None]
        dist.broadcast_object_list(results, src=0, group=self.control)
        return cast(Result, results[0])

    def after_first(self, make: Callable[[], Result]) -> Result:
        """`make` by every rank: by the first one alone, then by the first of every other machine, then by the others.
        What it leaves on a disk, shared by machines or not, is there for those that follow.
        """
        turn = 0 if self.is_first else 1 if self.index % self.local_count == 0 else 2
        made: list[Result] = []
        for number in range(3):
            if number == turn:
                made.append(make())
            if self.count > 1 and number < 2:
                dist.barrier(group=self.control)
        return made[0]

    def by_first(self, act: Callable[[], None]) -> None:
        """`act` by the first rank; when it fails, no rank continues."""
        error: Exception | None = None
        if self.is_first:
            try:
                act()
            except (UserError, OSError) as found:
                error = found
        self.raise_together(error)

    def rows(self, size: int) -> tuple[slice, float]:
        """This rank's rows of a batch that every rank has, and their share of it. A rank without any, where there are
        fewer rows than ranks, takes the first at a share of 0.
        """
        first, last = (size * index // self.count for index in (self.index, self.index + 1))
        return slice(first, last) if first < last else slice(0, 1), (last - first) / size

    def mean(self, value: Tensor) -> Tensor:
        """The mean of the ranks' values."""
        return self.sum(value) / self.count

    def sum(self, value: Tensor) -> Tensor:
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def raise_together(self, error: BaseException | None) -> None:
        """Every rank raises when one has an error, so that none continues alone."""
        if self.count == 1:
            if error is not None:
                raise error
            return
        errors: list[str | None] = [None] * self.count
        dist.all_gather_object(errors, None if error is None else str(error), group=self.control)
        if error is not None:
            raise error
        failed = next((rank for rank, text in enumerate(errors) if text is not None), None)
        if failed is not None:
            raise UserError(f"rank {failed} reports: {errors[failed]}")


ALONE = Ranks()


@dataclass(frozen=True)
class Placement:
    """Where a training runs: this rank's device, its ranks, and how they share the work."""

    device: torch.device
    ranks: Ranks = ALONE
    sharding: Sharding = "ddp"

    @property
    def in_shards(self) -> bool:
        """Whether the ranks divide weights, gradients, optimizer and average among them."""
        return self.ranks.count > 1 and self.sharding != "ddp"


ON_CPU = Placement(torch.device("cpu"))


@contextmanager
def torchrun_ranks(device: str) -> Iterator[tuple[Ranks, str]]:
    """The ranks that torchrun has started, and this rank's device; one process where it has not.

    When another rank dies, what this one waits for fails: UserError, within seconds of the next exchange.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE, device
        return
    backend = "gloo"
    if torch.device(device).type == "cuda":
        device, backend = f"cuda:{os.environ['LOCAL_RANK']}", "cpu:gloo,cuda:nccl"
    index = int(os.environ["RANK"])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_launcher()
    on_device = torch.cuda.device(device) if backend != "gloo" else nullcontext()
    try:
        with on_device, warnings.catch_warnings():
            # a layer returns keys and values that are views; nothing writes into them
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            if not dist.is_initialized():  # once: a process cannot leave and come back under the same address
                dist.init_process_group(backend)
                atexit.register(dist.destroy_process_group)
            control = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=LONGEST_WAIT))
            yield Ranks(index, count, int(os.environ["LOCAL_WORLD_SIZE"]), control), device
            dist.barrier(group=control)  # a rank that is done must not look like one that died
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"rank {index} of {count} stops: another rank has ended or cannot be reached ({reason}); "
            "see that one's message, then continue with --resume"
        ) from error


# -------------------------------------------------------------------- spreading a model


def spread_model(model: Any, placement: Placement, bfloat16: bool) -> Callable[..., Any]:
    """Puts `model` onto the ranks' devices, in place, and returns its `loss`, of a π0 that writes its `losses`, whose
    gradients are the ranks' mean.

    bfloat16: with shards, the blocks' weights are gathered in bfloat16; gradients are added up in float32.
    """
    ranks, device = placement.ranks, placement.device
    if not placement.in_shards:
        model.to(device)
        return getattr(model, training_method(model)) if ranks.count == 1 else _data_parallel(model, device)
    language = language_of(model)
    if language is not None and language.insulation and not language.writes_fast:
        raise UserError(
            f"--sharding {placement.sharding}: with insulation and no FAST tokens, a rank whose samples hold no text "
            "has no gradient for the prefix, and the others wait for it; add --fast or --no-insulation, or take ddp"
        )
    shards = ranks.count if placement.sharding == "fsdp" else ranks.local_count
    fully_shard_model(model, make_mesh(ranks.count, shards, device.type), bfloat16)
    return getattr(model, training_method(model))


def training_method(model: nn.Module) -> str:
    """The name of what is trained: `losses` of a π0 that writes, `loss` of the others."""
    return "loss" if language_of(model) is None else "losses"


def make_mesh(count: int, shards: int, device_type: str) -> DeviceMesh:
    """[shards] for FSDP, [replicas, shards] for HSDP. UserError where the machines have unlike numbers of ranks."""
    if count % shards:
        raise UserError(f"hsdp needs the same number of ranks on every machine, got {count} in all and {shards} here")
    if shards == count:
        return init_device_mesh(device_type, (shards,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (count // shards, shards), mesh_dim_names=("replicate", "shard"))


def shard_units(model: nn.Module) -> list[nn.Module]:
    """What FSDP gathers, uses and frees as a whole: the blocks and the token table. What is left, the heads and small
    projections, is one more unit, and so is the table where it is also the head, which is read after its own forward.
    """
    writes = isinstance(model, Pi0Fast) or language_of(model) is not None
    kinds = BLOCKS if writes else (*BLOCKS, nn.Embedding)
    return [module for module in model.modules() if isinstance(module, kinds)]


def fully_shard_model(model: nn.Module, mesh: DeviceMesh, bfloat16: bool) -> None:
    """FSDP2, a unit each for `shard_units` and one for the rest. After it the method that is trained gathers what it
    needs. The weights that stay in float32 outside the blocks are gathered in float32.
    """
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bfloat16 else MixedPrecisionPolicy()
    for module in shard_units(model):
        kept = MixedPrecisionPolicy() if isinstance(module, nn.Embedding) else policy
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=kept)
    # the root is freed after a forward too: a validation without backward must not leave the average in its place
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, training_method(model))


def without_exchange(loss: Callable[..., Any]) -> AbstractContextManager[None]:
    """Within it the backward of a part of a batch, not the last, keeps its gradients to itself. With shards they are
    exchanged all the same: whole gradients would not fit.
    """
    return loss.no_sync() if isinstance(loss, DistributedDataParallel) else nullcontext()


class _Loss(nn.Module):
    """`model.loss`, or `model.losses`, as the forward that DistributedDataParallel hooks into."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.model, training_method(self.model))(*args, **kwargs)


def _data_parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    # unused: the last layer's prefix output is not part of the loss
    return DistributedDataParallel(
        _Loss(model), device_ids=None if device.type == "cpu" else [device], gradient_as_bucket_view=True,
        find_unused_parameters=True,
    )  # fmt: skip


# -------------------------------------------------------------------- tensors in parts


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; another tensor as it is."""
    return cast(DTensor, tensor.detach()).to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together on every rank; another tensor as it is."""
    return cast(DTensor, tensor.detach()).full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def spread_like(full: Tensor, like: Tensor) -> Tensor:
    """The whole tensor `full`, which every rank has, in the parts and on the device of `like`."""
    full = full.to(like.device)
    return distribute_tensor(full, like.device_mesh, like.placements) if isinstance(like, DTensor) else full
