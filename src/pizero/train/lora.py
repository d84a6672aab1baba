"""LoRA: low-rank adapters on attention and MLP of the experts, added to a finished model. A π0-FAST has one expert.

As in openpi (src/openpi/models/lora.py), scale alpha / rank, every head of a projection has factors of its own; in the
output projection all heads share one first factor, and their second factors are summed. Unlike there the second factor
starts at zero, so that training starts from the checkpoint itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pizero.model.gemma import GemmaBlock
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast
from pizero.train.config import LoraConfig
from pizero.types import UserError

_Model = TypeVar("_Model", bound=Pi0 | Pi0Fast)

FACTORS = ("lora_a", "lora_b")
START = 0.01
"""Standard deviation of fresh first factors, openpi's."""


class LoraLinear(nn.Linear):
    """weight @ x + scale * lora_b @ lora_a @ x. The layer's own weight keeps its name.

    lora_a [groups, rank, in], lora_b [groups, out / groups, rank]: each group of outputs has its own pair. With one
    lora_a and several lora_b, these are [heads, out, rank] and summed.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float, groups: int, summed: int = 1) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = layer.weight
        self.scale = scale
        options = {"device": layer.weight.device, "dtype": torch.float32}
        self.lora_a = nn.Parameter(torch.zeros(groups, rank, layer.in_features, **options))
        self.lora_b = nn.Parameter(torch.zeros(groups * summed, layer.out_features // groups, rank, **options))

    def forward(self, input: Tensor) -> Tensor:
        low = F.linear(input, self.lora_a.flatten(0, 1).to(input.dtype)).unflatten(-1, self.lora_a.shape[:2])
        b = self.lora_b.to(low.dtype)
        if len(self.lora_a) == 1:
            added = F.linear(low.squeeze(-2), b.sum(0))
        else:
            added = torch.einsum("...gr,gor->...go", low, b).flatten(-2)
        return super().forward(input) + self.scale * added


def add_lora(model: _Model, config: LoraConfig, seed: int = 0) -> _Model:
    """Replaces the linear layers of the experts' attention and MLP, in place; what it computes stays the same."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, Pi0Fast):
        for block in model.blocks:
            _add_to_block(block, config.prefix_rank, config.prefix_alpha / config.prefix_rank, generator)
        return model
    for module in model.transformer.layers:
        for expert, rank, alpha in (
            ("prefix", config.prefix_rank, config.prefix_alpha),
            ("expert", config.expert_rank, config.expert_alpha),
        ):
            if rank:
                _add_to_block(cast("GemmaBlock", module.get_submodule(expert)), rank, alpha / rank, generator)
    return model


def _add_to_block(block: GemmaBlock, rank: int, scale: float, generator: Generator) -> None:
    heads, kv_heads = (layer.out_features // block.head_dim for layer in (block.query, block.key))
    block.query = LoraLinear(block.query, rank, scale, heads)
    block.key = LoraLinear(block.key, rank, scale, kv_heads)
    block.value = LoraLinear(block.value, rank, scale, kv_heads)
    block.output = LoraLinear(block.output, rank, scale, 1, summed=heads)
    block.mlp.gate = LoraLinear(block.mlp.gate, rank, scale, 1)
    block.mlp.up = LoraLinear(block.mlp.up, rank, scale, 1)
    block.mlp.down = LoraLinear(block.mlp.down, rank, scale, 1)
    for layer in block.modules():
        if isinstance(layer, LoraLinear):
            layer.lora_a.data.copy_(torch.randn(layer.lora_a.shape, generator=generator) * START)


def is_adapter(name: str) -> bool:
    return name.rpartition(".")[2] in FACTORS


def load_adapters(model: nn.Module, adapters: Mapping[str, Tensor]) -> None:
    """The factors of another training, strictly: names and shapes must be the model's."""
    own = {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}
    wrong = sorted(set(own) ^ set(adapters)) or [name for name in own if own[name].shape != adapters[name].shape]
    if wrong:
        raise UserError(f"the checkpoint's adapters are of other layers or ranks than this training's ({wrong[0]})")
    for name, parameter in own.items():
        parameter.data.copy_(adapters[name])
