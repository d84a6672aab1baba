"""Action chunks with the numbers of `Pi0.sample_actions`, without the work that changes nothing.

Left out: absent cameras and unused prompt slots; the last prefix layer but its keys and values; the state token in
every step; what depends on the flow time alone; masks where everything is seen; copies of the cache. Products that
share an input are one (`packed.py`), each by the kernel that is fastest here (`products.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pizero.engine.attention_kernels import attention_of
from pizero.engine.capture import CudaGraphs, as_it_is, compiled
from pizero.engine.needed_inputs import Inputs, make_inputs, with_lost_cameras
from pizero.engine.packed import (
    Modulation,
    PackedBlock,
    PackedVisionBlock,
    Packing,
    expert_layer,
    normalized,
    prefix_layer,
    project,
    vision_layer,
)  # fmt: skip
from pizero.engine.products import Kernels, check_kernels
from pizero.engine.time_tables import (
    TimeTables,
    action_weight,
    integration_times,
    make_tables,
    of_any_time,
    targets_of,
    with_token,
)  # fmt: skip
from pizero.model.action_model import ChunkFromNoise
from pizero.model.attention import block_mask, token_positions
from pizero.model.config import Pi0Config, check_observation
from pizero.model.flow_matching import Sampling, Solver, follow
from pizero.model.gemma import GemmaBlock
from pizero.model.layers import rotary_table
from pizero.model.pi0 import Pi0
from pizero.model.siglip import VisionBlock
from pizero.types import Observation, UserError

KeyValue: TypeAlias = tuple[Tensor, Tensor]


class Cache(NamedTuple):
    """Per layer keys and values [B, P + S, kv_heads, head_dim]; the last places are written in each step.

    turns [B, S, 1, head_dim / 2, 2] of the suffix. mask [B, H, P + S] of the actions, None where they see everything.
    token: the state's [B, 1, E]; it has run, or runs beside the actions of the first step, with the mask token_mask
    [B, S, P + S]. state[row][layer]: its keys and values at a time of the tables, where they depend on the time.
    """

    keys: list[Tensor]
    values: list[Tensor]
    turns: Tensor
    mask: Tensor | None
    token: Tensor | None
    token_mask: Tensor | None
    token_ran: bool
    state: list[list[KeyValue]]


class FastSampler(ChunkFromNoise[Pi0Config]):
    """Stands in for a π0 or π0.5 in inference: the same config, the same call.

    It keeps weights of its own, and is made anew after the model's changed. consume: the model gives up its large
    matrices while they are packed, so that memory never holds both; it computes nothing any more.
    kernels: "auto" measures once which of torch's kernels are fastest here. "int8" (CPU) and "float8" (NVIDIA) change
    the numbers; UserError where this machine does not have them for the model's dtype. keep: patterns of products that
    stay as they are, such as "prefix.17.*" (`engine/quantize.py` shows which ones matter). compile: with torch.compile,
    which needs a C++ compiler and a while at the first call; None: on a GPU. graphs: one CUDA graph for a call, on a
    GPU. `engine/ablation.py` disables each of these.
    """

    @torch.no_grad()
    def __init__(
        self, model: Pi0, *, kernels: Kernels = "auto", keep: Collection[str] = (), compile: bool | None = None,
        graphs: bool = True, consume: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.config, self.device = model, model.config, model.action_in_proj.weight.device
        check_kernels(kernels, self.device, model.transformer.dtype)
        _check_weights(model, self.device)
        compile = self.device.type == "cuda" if compile is None else compile
        self._kernels: Kernels = "torch" if compile and kernels == "auto" else kernels
        self._keep = tuple(keep)
        self._attend = attention_of(self.device, compile)
        self._action_weight = action_weight(model)
        self._tables: dict[tuple[int, Solver], TimeTables] = {}
        self._pack(consume)
        self._consumed = consume
        self.static = compile or (graphs and self.device.type == "cuda")
        """Few shapes are compiled or captured: prompts are padded to a few lengths, a camera that is lost is masked."""
        self._black: dict[str, Tensor] = {}
        ready = compiled if compile else as_it_is
        self._see, self._prefix, self._expert = ready(vision_layer), ready(prefix_layer), ready(expert_layer)
        self._in, self._out = ready(self._enter), ready(self._leave)
        self._graphs = CudaGraphs(self.device) if graphs and self.device.type == "cuda" else None

    def _sample(self, observation: Observation, noise: Tensor, sampling: Sampling) -> Tensor:
        inputs, tables = self.inputs(observation), self.tables(sampling.num_steps, sampling.solver)
        if not self.static and sampling.guide is None:
            with torch.inference_mode():  # for a small model the book-keeping of views is a fifth of a call
                actions = self._run(inputs, noise, tables, sampling)
            return actions.clone()  # a tensor like any other
        if self._graphs is None or sampling.settled is not None or sampling.guide is not None:
            return self._run(inputs, noise, tables, sampling)
        return self._graphs(
            lambda inputs, noise: self._run(inputs, noise, tables, sampling), sampling, inputs, noise
        )  # fmt: skip

    def inputs(self, observation: Observation) -> Inputs:
        """What of an observation is computed. Reads masks on the host; nothing after it does."""
        check_observation(self.config, observation)
        if self.static:
            observation = with_lost_cameras(observation, self._black)
        return make_inputs(observation, self.config, self.device, self.static, self._black)

    def tables(self, num_steps: int, solver: Solver = "euler") -> TimeTables:
        """What depends on the flow time alone, made at the first call for these steps and kept."""
        if (num_steps, solver) not in self._tables:
            times = integration_times(num_steps, solver)
            targets = targets_of(self.config, times, num_steps, solver)
            self._tables[num_steps, solver] = make_tables(self.model, times, self._fold, targets)
        return self._tables[num_steps, solver]

    def see(self, images: Tensor) -> Tensor:
        """The vision tower: [n, h, w, 3] -> [n, S_img, W]."""
        tower = self.model.vision_tower
        x = tower.embed_patches(images).to(tower.projection.weight.dtype)
        for block in self.vision_blocks:
            x = self._see(block, self._attend, x)
        return tower.projection(tower.final_norm(x))

    # ---------------------------------------------------------------- packing

    def layer_names(self) -> list[str]:
        """ "vision.0" and on, then "prefix.0", "expert.0" and on."""
        pairs = [(f"prefix.{index}", f"expert.{index}") for index in range(len(self.model.transformer.layers))]
        vision = [f"vision.{index}" for index in range(len(self.model.vision_tower.blocks))]
        return vision + [name for pair in pairs for name in pair]

    def repack(self, name: str, kernels: Kernels) -> Callable[[], None]:
        """Packs one layer for other kernels; returns what undoes it. UserError where the model gave up its weights."""
        if self._consumed:
            raise UserError(
                "a sampler that took its model's weights (consume=True, as load_policy does) cannot be packed again; "
                "load the checkpoint with load_model"
            )
        blocks, index = self._place(name)
        before = blocks[index]
        blocks[index] = self._packed(name, lambda _: kernels)

        def undo() -> None:
            blocks[index] = before

        return undo

    def _pack(self, consume: bool) -> None:
        self.vision_blocks: list[PackedVisionBlock] = []
        self.prefix_blocks: list[PackedBlock] = []
        self.expert_blocks: list[PackedBlock] = []
        for name in self.layer_names():
            self._place(name)[0].append(self._packed(name, self._kernels_of))
            if consume:
                give_up(self._source(name))

    def _place(self, name: str) -> tuple[list[Any], int]:
        part, _, index = name.partition(".")
        blocks = {"vision": self.vision_blocks, "prefix": self.prefix_blocks, "expert": self.expert_blocks}
        return blocks[part], int(index)

    def _source(self, name: str) -> VisionBlock | GemmaBlock:
        part, _, index = name.partition(".")
        if part == "vision":
            found = self.model.vision_tower.blocks[int(index)]
        else:
            found = self.model.transformer.get_submodule(f"layers.{index}.{part}")
        assert isinstance(found, VisionBlock | GemmaBlock)
        return found

    def _packed(self, name: str, kernels: Callable[[str], Kernels]) -> PackedVisionBlock | PackedBlock:
        source, packing = self._source(name), self._packing(name, kernels)
        if isinstance(source, VisionBlock):
            return PackedVisionBlock.of(source, name, packing)
        return PackedBlock.of(source, name, packing, self._keys_only(name))

    def _packing(self, name: str, kernels: Callable[[str], Kernels]) -> Packing:
        image_tokens = len(self.model.vision_tower.position_embedding) * len(self.config.cameras)
        prefix_tokens, horizon = image_tokens + self.config.prompt_length, self.config.action_horizon
        tokens = {"vision": image_tokens, "prefix": prefix_tokens, "expert": horizon}[name.partition(".")[0]]
        return Packing(tokens, kernels, self._fold)

    @property
    def _fold(self) -> bool:
        return self.model.transformer.dtype == torch.float32

    def _keys_only(self, name: str) -> bool:
        """Of the last prefix layer nothing but keys and values is read, unless text is written."""
        language = self.config.language
        if language is not None and language.writes_text:
            return False
        return name == f"prefix.{self.config.prefix.depth - 1}"

    def _kernels_of(self, name: str) -> Kernels:
        kept = self._kernels in ("int8", "float8") and any(fnmatchcase(name, pattern) for pattern in self._keep)
        return "auto" if kept else self._kernels

    # ---------------------------------------------------------------- prefix

    def _run(self, inputs: Inputs, noise: Tensor, tables: TimeTables, sampling: Sampling) -> Tensor:
        """Tensors in, tensors out: no host work that depends on a value."""
        return self.integrate(self.prefill(inputs, tables, alone=sampling.guide is not None), noise, tables, sampling)

    def integrate(self, cache: Cache, noise: Tensor, tables: TimeTables, sampling: Sampling) -> Tensor:
        """From noise to actions [B, H, D], against a cache whose state token runs as the guide needs it."""
        guide, settled = sampling.guide, sampling.settled
        calls, places = iter(range(len(tables.biases))), None if settled is None else settled.settled

        def velocity(x_t: Tensor, time: Tensor) -> Tensor:
            chunk = time if places is None else time[:, -1]  # settled actions are the first ones
            # integration asks in the tables' order; a guide at any time, as often as it likes
            row = next(calls) if guide is None else tables.row(chunk.flatten())
            return self.velocity(cache, *self._at(time, tables, row, places), x_t, row)

        return follow(velocity, noise, sampling)

    def _at(
        self, time: Tensor, tables: TimeTables, row: int | None, settled: Tensor | None
    ) -> tuple[Tensor, list[Modulation]]:
        """Bias and norms of a flow time [B] or [B, H]: those of its row of the tables, if it has one."""
        if row is None:
            return of_any_time(self.model, time, self._fold, whole=tables.targets is not None)
        return tables.at(row, settled)

    def prefill(self, inputs: Inputs, tables: TimeTables, alone: bool = False) -> Cache:
        """alone: the state token runs now and not beside the first actions, so that those can be differentiated."""
        tokens = self.embed_prefix(inputs)
        batch, length, _ = tokens.shape
        padding, starts = inputs.padding, inputs.starts
        mask = None if padding is None else block_mask(padding, torch.zeros_like(padding) if starts is None else starts)
        turns = self.turns(inputs, length, batch)
        room = length + self.config.suffix_length
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for block in self.prefix_blocks:
            keys.append(tokens.new_empty(batch, room, block.kv_heads, block.head_dim))
            values.append(torch.empty_like(keys[-1]))
            key, value = keys[-1][:, :length], values[-1][:, :length]
            if len(keys) == len(self.prefix_blocks) and block.heads:  # packed whole, for text
                project(block, normalized(tokens, block.norms[0]), turns[:, :length], key, value)
            else:
                tokens = self._prefix(block, self._attend, tokens, turns[:, :length], key, value, mask)
        return self.suffix_cache(inputs, keys, values, turns, tables, alone)

    def embed_prefix(self, inputs: Inputs) -> Tensor:
        """[B, P, W]: the cameras in order, then the prompt."""
        prompt = F.embedding(inputs.prompt, self.model.token_embedding.weight)
        prompt = (prompt * self.config.prefix.width**0.5).to(self.model.transformer.dtype)
        return torch.cat([*self._see_cameras(inputs), prompt], dim=1)

    def _see_cameras(self, inputs: Inputs) -> list[Tensor]:
        """[B, S_img, W] of each. Images of one size go through the tower as one batch."""
        found: dict[int, Tensor] = {}
        sizes = [tuple(image.shape[1:3]) for image in inputs.images]
        for size in dict.fromkeys(sizes):
            group = [index for index, other in enumerate(sizes) if other == size]
            images = torch.cat([inputs.images[index] for index in group])
            if inputs.present is None:
                seen = self.see(images)
            else:  # only on a CPU, where looking costs nothing
                rows = inputs.present[group].flatten().nonzero().squeeze(1)
                some = self.see(images[rows])
                seen = some.new_zeros(len(images), *some.shape[1:]).index_copy(0, rows, some)
            found.update(zip(group, seen.chunk(len(group)), strict=True))
        return [found[index] for index in range(len(sizes))]

    def turns(self, inputs: Inputs, length: int, batch: int) -> Tensor:
        """Cosine and sine of every token's rotary angles: [B, P + S, 1, head_dim / 2, 2]."""
        suffix = self.config.suffix_length
        if inputs.padding is None:
            positions = torch.arange(length + suffix, device=self.device).expand(batch, -1)
        else:
            positions = token_positions(F.pad(inputs.padding, (0, suffix), value=True))
        return torch.stack(rotary_table(positions, self.config.prefix.head_dim), dim=-1)

    # ---------------------------------------------------------------- suffix

    def suffix_cache(
        self, inputs: Inputs, keys: list[Tensor], values: list[Tensor], turns: Tensor, tables: TimeTables, alone: bool
    ) -> Cache:
        """What steps need beside the prefix; the state token's keys and values, if they depend on the time."""
        horizon, suffix = self.config.action_horizon, self.config.suffix_length
        length = turns.shape[1] - suffix
        masked = inputs.padding is not None or self.config.action_attention == "causal"
        if not masked and self.model.state_proj is None:  # everything is seen
            return Cache(keys, values, turns[:, -suffix:], None, None, None, True, [])
        padding = inputs.padding
        if padding is None:
            padding = torch.ones(turns.shape[0], length, dtype=torch.bool, device=self.device)
        starts = self.model.suffix_block_starts(self.device)
        whole = block_mask(F.pad(padding, (0, suffix), value=True), torch.cat([starts.new_zeros(length), starts]))
        whole, seen = whole[:, -suffix:], whole[:, length : length + 1, : length + 1] if masked else None
        mask = whole[:, -horizon:] if masked else None
        cache = Cache(keys, values, turns[:, -suffix:], mask, None, whole, True, [])
        if self.model.state_proj is None:
            return cache
        assert inputs.state is not None  # check_observation saw to it
        token = self.model.state_proj(inputs.state)[:, None].to(self.model.transformer.dtype)
        return self._with_state(cache._replace(token=token, token_ran=False), seen, tables, alone)

    def _with_state(self, cache: Cache, seen: Tensor | None, tables: TimeTables, alone: bool) -> Cache:
        """Runs the state token now, once for each time that it depends on; or leaves it for the first velocity."""
        times = tables.norms[:-1] or tables.norms  # without a clean action's
        if len(times) == 1 and not alone:
            return cache
        state = [self._state(cache, seen, norms) for norms in times]
        return cache._replace(token_ran=True, state=state if self.config.adaptive else [])

    def _state(self, cache: Cache, mask: Tensor | None, norms: list[Modulation]) -> list[KeyValue]:
        """Runs the state token [B, 1, E] through the layers; returns its keys and values, also found in their place."""
        found: list[KeyValue] = []
        x, turns = cache.token, cache.turns[:, :1]
        assert x is not None
        at = cache.keys[0].shape[1] - self.config.suffix_length
        for index, (block, key, value) in enumerate(zip(self.expert_blocks, cache.keys, cache.values, strict=True)):
            key, value, pair = key[:, : at + 1], value[:, : at + 1], norms[2 * index : 2 * index + 2]
            if index + 1 < len(self.expert_blocks):
                x = self._expert(block, self._attend, x, pair, turns, key, value, mask)
            else:
                project(block, normalized(x, pair[0]), turns, key[:, at:], value[:, at:])
            found.append((key[:, at:].clone(), value[:, at:].clone()))
        return found

    def velocity(self, cache: Cache, bias: Tensor, norms: list[Modulation], x_t: Tensor, row: int | None) -> Tensor:
        """[B, H, D] at the time of bias and norms, the one in that row of the tables; None where it is in none.

        It can be differentiated in x_t. Without a guide the first velocity that is asked for is that of row 0.
        """
        horizon, of_layers = self.config.action_horizon, norms
        x, turns, mask = self._in(x_t, bias), cache.turns[:, -horizon:], cache.mask
        if cache.token is not None and self._beside(cache, row):
            x, turns, mask = torch.cat([cache.token, x], dim=1), cache.turns, cache.token_mask
            of_layers = with_token(norms)
        layer = expert_layer if x.requires_grad else self._expert
        for index, (block, key, value) in enumerate(zip(self.expert_blocks, cache.keys, cache.values, strict=True)):
            if cache.state and row is not None:
                place = slice(-horizon - 1, -horizon)
                key[:, place], value[:, place] = cache.state[row][index]
            if x.requires_grad:  # autograd follows no writes into what the next step overwrites
                key, value = key.clone(), value.clone()
            x = layer(block, self._attend, x, of_layers[2 * index : 2 * index + 2], turns, key, value, mask)
        return self._out(x[:, -horizon:], norms[-1])

    def _beside(self, cache: Cache, row: int | None) -> bool:
        """Whether the state token runs beside the actions: it has not run, or not at a time that it depends on."""
        if not cache.token_ran:
            return row == 0
        return row is None and self.config.adaptive

    def _enter(self, x_t: Tensor, bias: Tensor) -> Tensor:
        """Noisy actions [B, H, D] -> the expert's tokens [B, H, E]."""
        tokens = F.linear(x_t, self._action_weight, bias if bias.ndim == 1 else None)
        tokens = tokens if bias.ndim == 1 else tokens + bias
        if not self.config.adaptive:
            tokens = self.model.time_mlp_out(F.silu(tokens))
        return tokens.to(self.model.transformer.dtype)

    def _leave(self, x: Tensor, norm: Modulation) -> Tensor:
        return self.model.action_out_proj(normalized(x, norm))


def _check_weights(model: Pi0, device: torch.device) -> None:
    """Before any weight is packed or given up."""
    for name, parameter in model.named_parameters():
        if name.endswith("lora_a"):
            raise ValueError("the fast path reads plain weights; merge the LoRA adapters first")
        if parameter.device != device:
            raise ValueError(
                f"{name} is on {parameter.device} and the model on {device}; after consume=True a model has no weights "
                "to pack: load it again"
            )


def give_up(block: VisionBlock | GemmaBlock) -> None:
    """Frees the block's matrices; their shapes stay, and so do the norms and what modulates them."""
    for path, part in block.named_modules():
        if isinstance(part, nn.Linear) and not path.endswith("modulation"):
            for name, parameter in part.named_parameters(recurse=False):
                part.register_parameter(name, nn.Parameter(parameter.to("meta"), requires_grad=False))
