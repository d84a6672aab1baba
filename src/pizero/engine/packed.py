"""The network's weights as the fast path reads them: products that share an input are one matrix.

Nothing is copied for good: the modules' own parameters become views of the joined matrices, and the model stays what it
is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pizero.model.gemma import GemmaBlock
from pizero.model.layers import EPSILON, AdaptiveRMSNorm, RMSNorm, gelu
from pizero.model.siglip import VisionBlock

Modulation = tuple[Tensor, Tensor | None, Tensor | None]
"""Of a norm: 1 + scale [E], and of an adaptive one shift and gate, all for one flow time; or [B, H, E] where settled
actions have another one than the rest.
"""


@dataclass(frozen=True)
class PackedBlock:
    """One Gemma block.

    qkv [(heads + 2 * kv_heads) * head_dim, W], output [W, heads * head_dim], gate_up [2 * mlp_dim, W], down [W,
    mlp_dim].
    norms: of attention and MLP, where they are not adaptive.
    """

    qkv: Tensor
    output: Tensor
    gate_up: Tensor
    down: Tensor
    heads: int
    kv_heads: int
    head_dim: int
    norms: tuple[Modulation, Modulation] | None

    @staticmethod
    def of(block: GemmaBlock) -> PackedBlock:
        dim, mlp = block.head_dim, block.mlp
        if any(name.endswith("lora_a") for name, _ in block.named_parameters()):
            raise ValueError("the fast path reads plain weights; merge the LoRA adapters first")
        norms = None
        if isinstance(block.attention_norm, RMSNorm) and isinstance(block.mlp_norm, RMSNorm):
            norms = plain(block.attention_norm), plain(block.mlp_norm)
        return PackedBlock(
            _joined("weight", block.query, block.key, block.value), block.output.weight.detach(),
            _joined("weight", mlp.gate, mlp.up), mlp.down.weight.detach(),
            block.query.out_features // dim, block.key.out_features // dim, dim, norms,
        )  # fmt: skip

    @property
    def key_value(self) -> Tensor:
        """The rows of `qkv` that make keys and values."""
        return self.qkv[self.heads * self.head_dim :]

    def mlp(self, y: Tensor) -> Tensor:
        gate, up = F.linear(y, self.gate_up).chunk(2, dim=-1)
        return F.linear(gelu(gate) * up, self.down)


@dataclass(frozen=True)
class PackedVisionBlock:
    """One vision block with query, key and value joined."""

    block: VisionBlock
    weight: Tensor
    bias: Tensor

    @staticmethod
    def of(block: VisionBlock) -> PackedVisionBlock:
        layers = block.query, block.key, block.value
        return PackedVisionBlock(block, _joined("weight", *layers), _joined("bias", *layers))


def plain(norm: RMSNorm) -> Modulation:
    return 1 + norm.scale.detach().float(), None, None


def normalized(x: Tensor, norm: Modulation) -> Tensor:
    """x / rms(x) * (1 + scale) + shift, in float32 and cast back."""
    scale = norm[0]
    if scale.ndim > 1:
        y = F.rms_norm(x.float(), x.shape[-1:], eps=EPSILON) * scale
    else:
        y = F.rms_norm(x.float(), x.shape[-1:], scale, EPSILON)
    return (y if norm[1] is None else y + norm[1]).to(x.dtype)


def gated(x: Tensor, y: Tensor, norm: Modulation) -> Tensor:
    """x + y * gate; the gate of the norm that y came through."""
    return x + y if norm[2] is None else torch.addcmul(x, y, norm[2])


def modulations(norm: nn.Module, conditioning: Tensor) -> list[Modulation]:
    """Of a norm for each row of the conditioning [T, E], or for one row where it does not depend on the time."""
    if isinstance(norm, RMSNorm):
        return [plain(norm)]
    assert isinstance(norm, AdaptiveRMSNorm)
    dtype = norm.modulation.weight.dtype
    scale, shift, gate = norm.modulation(conditioning.to(dtype)).chunk(3, dim=-1)
    return list(zip((1 + scale.float()).unbind(), shift.float().unbind(), gate.unbind(), strict=True))


def _joined(name: str, *layers: nn.Linear) -> Tensor:
    """The layers' weights or biases one after the other; each layer's own is a view of them from now on."""
    whole = torch.cat([layer.get_parameter(name).detach() for layer in layers])
    for layer, part in zip(layers, whole.split([layer.out_features for layer in layers]), strict=True):
        layer.get_parameter(name).data = part
    return whole
