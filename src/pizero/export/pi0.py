"""The three graphs of a π0 or π0.5: vision tower; prefix -> keys and values; one integration step.

    images [n, h, w, 3] ──▶ vision ──▶ [n, S_img, W] ─┐
    words of the prompt [L, W] ───────────────────────┴─▶ prefix ──▶ key.i [K, head_dim, P], value.i [K, P, head_dim]
    x [H, D], step, state, settled ─────────────────────▶ step, reads them ──▶ x [H, D] one step further

One observation a call, without padding: an absent camera and an unused prompt slot are not there. What depends on the
flow time alone is a constant of the step's graph, a row for each step. Of a model trained with delays the step takes
actions that are settled: their row is that of a clean action, and they stay as they are.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import nn

from pizero.engine.time_tables import TimeTables, action_weight, integration_times, make_tables, targets_of
from pizero.export.convolutions import conv, normed
from pizero.export.graph import Dtype, Graph, Runtime, Value
from pizero.export.layers import (
    Modulation,
    Rotary,
    add_mask,
    attended,
    finish,
    gelu,
    layer_norm,
    linear,
    masked,
    product,
    project,
    rms_norm,
)  # fmt: skip
from pizero.model.attention import MASKED, block_mask
from pizero.model.gemma import GemmaBlock
from pizero.model.pi0 import Pi0
from pizero.model.siglip import ConvolutionalStem, VisionBlock
from pizero.model.two_expert import TwoExpertLayer


def vision_graph(model: Pi0, image_size: tuple[int, int], dtype: Dtype, runtime: Runtime) -> Graph:
    """images [n, h, w, 3] in [-1, 1] -> tokens [n, S_img, W]."""
    tower, graph = model.vision_tower, Graph("vision", dtype, runtime)
    patch, (height, width) = tower.patch_size, image_size
    rows, columns = height // patch, width // patch
    x = graph.input("images", ("n", height, width, 3))
    if tower.stem is not None:
        x = _stem(graph, x, tower.stem)
    else:
        x = graph.op("Reshape", x, graph.integers(-1, rows, patch, columns, patch, 3))
        x = graph.op("Transpose", x, perm=(0, 1, 3, 2, 4, 5))
        x = graph.op("Reshape", x, graph.integers(-1, rows * columns, 3 * patch**2))
    x = linear(graph, x, tower.patch_embedding, "patches")
    x = graph.op("Add", x, graph.vector("positions", lambda: tower.positions(rows, columns)))
    for index, block in enumerate(tower.blocks):
        x = _vision_layer(graph, x, cast(VisionBlock, block), f"vision.{index}")
    x = layer_norm(graph, x, tower.final_norm, "final_norm")
    projection = tower.projection
    x = graph.op("MatMul", x, graph.kernel("projection", projection.weight.t()))
    x = graph.op("Add", x, graph.vector("projection.bias", projection.bias))
    graph.output(x, "tokens", ("n", rows * columns, model.config.prefix.width))
    return graph


def _stem(graph: Graph, images: Value, stem: ConvolutionalStem) -> Value:
    """[n, h, w, 3] -> [n, S_img, stem.out_width]."""
    x = graph.op("Transpose", images, perm=(0, 3, 1, 2))
    for level, (convolution, norm) in enumerate(zip(stem.convolutions, stem.norms, strict=True)):
        x = conv(graph, x, cast(nn.Conv2d, convolution), f"stem.{level}")
        x = graph.op("Relu", normed(graph, x, norm, f"stem_norm.{level}", 4))
    x = graph.op("Reshape", x, graph.integers(0, stem.out_width, -1))
    return graph.op("Transpose", x, perm=(0, 2, 1))


def _vision_layer(graph: Graph, x: Value, block: VisionBlock, name: str) -> Value:
    heads, dim = block.num_heads, block.head_dim
    scales = (dim**-0.5, 1.0, 1.0)
    layers = (block.query, block.key, block.value)

    def joined(which: str) -> torch.Tensor:
        return torch.cat([getattr(layer, which).float() * s for layer, s in zip(layers, scales, strict=True)])

    y = layer_norm(graph, x, block.attention_norm, f"{name}.attention_norm")
    qkv = graph.product(y, f"{name}.query", lambda: joined("weight"), lambda: joined("bias"))
    qkv = graph.op("Reshape", qkv, graph.integers(0, 0, 3 * heads, dim))
    query, key, value = graph.ops("Split", 3, qkv, axis=2, num_outputs=3)
    query, value = (graph.op("Transpose", part, perm=(0, 2, 1, 3)) for part in (query, value))
    logits = graph.op("MatMul", query, graph.op("Transpose", key, perm=(0, 2, 3, 1)))
    seen = graph.op("MatMul", graph.op("Softmax", logits, axis=-1), value)
    seen = graph.op("Reshape", graph.op("Transpose", seen, perm=(0, 2, 1, 3)), graph.integers(0, 0, heads * dim))
    x = graph.op("Add", x, product(graph, seen, block.output, f"{name}.output"))
    y = layer_norm(graph, x, block.mlp_norm, f"{name}.mlp_norm")
    y = gelu(graph, product(graph, y, block.mlp_in, f"{name}.mlp_in"))
    return graph.op("Add", x, product(graph, y, block.mlp_out, f"{name}.mlp_out"))


def longest_prefix(model: Pi0, image_size: tuple[int, int], prompt_length: int) -> int:
    patch = model.config.vision.patch_size
    return len(model.config.cameras) * (image_size[0] // patch) * (image_size[1] // patch) + prompt_length


def prefix_graph(model: Pi0, longest: int, dtype: Dtype, runtime: Runtime) -> Graph:
    """tokens [P, W] -> keys and values."""
    config, graph = model.config, Graph("prefix", dtype, runtime)
    dim, kv_heads = config.prefix.head_dim, config.prefix.num_kv_heads
    x = graph.input("tokens", ("P", config.prefix.width))
    length = graph.op("Slice", graph.op("Shape", x), graph.integers(0), graph.integers(1))
    rotary = Rotary(graph, longest, dim, graph.integers(0), length)
    layers = _prefix_blocks(model)
    for index, block in enumerate(layers):
        name, last = f"prefix.{index}", index + 1 == len(layers)
        y = rms_norm(graph, x, f"{name}.attention_norm", block.attention_norm, None)
        query, key, value = project(graph, y, block, name, rotary, keys_only=last)
        graph.output(key, f"key.{index}", (kv_heads, dim, "P"))
        graph.output(value, f"value.{index}", (kv_heads, "P", dim))
        if query is None:
            break
        seen = graph.op("MatMul", graph.op("Softmax", graph.op("MatMul", query, key), axis=-1), value)
        x = finish(graph, x, attended(graph, seen, block), block, name, None, None)
    return graph


def growing_prefix_graph(model: Pi0, longest: int, dtype: Dtype, runtime: Runtime) -> Graph:
    """Of a model that writes text, one graph for the prompt and for the tokens after it, so that the weights are there
    once: tokens [T, W] after P that are known, the place [1] of the first, and which they see, [T, P + T] -> the last
    token's [1, W] for the head, and keys and values of all P + T.
    """
    config, graph = model.config, Graph("prefix", dtype, runtime)
    dim, kv_heads = config.prefix.head_dim, config.prefix.num_kv_heads
    x = graph.input("tokens", ("T", config.prefix.width))
    place = graph.input("place", (1,), "INT64")
    bias = masked(graph, graph.input("sees", ("T", "S"), "BOOL"))
    count = graph.op("Slice", graph.op("Shape", x), graph.integers(0), graph.integers(1))
    rotary = Rotary(graph, longest, dim, place, graph.op("Add", place, count))
    for index, block in enumerate(_prefix_blocks(model)):
        name = f"prefix.{index}"
        known = graph.input(f"key.{index}", (kv_heads, dim, "P")), graph.input(f"value.{index}", (kv_heads, "P", dim))
        y = rms_norm(graph, x, f"{name}.attention_norm", block.attention_norm, None)
        query, key, value = project(graph, y, block, name, rotary)
        assert query is not None
        key, value = graph.op("Concat", known[0], key, axis=2), graph.op("Concat", known[1], value, axis=1)
        graph.output(key, f"longer_key.{index}", (kv_heads, dim, "S"))
        graph.output(value, f"longer_value.{index}", (kv_heads, "S", dim))
        logits = add_mask(graph, graph.op("MatMul", query, key), bias, block)
        seen = attended(graph, graph.op("MatMul", graph.op("Softmax", logits, axis=-1), value), block)
        x = finish(graph, x, seen, block, name, None, None)
    last = graph.op("Slice", x, graph.integers(-1), graph.integers(np.iinfo(np.int64).max), graph.integers(0))
    last = rms_norm(graph, last, "prefix_norm", model.transformer.prefix_norm, None)
    graph.output(last, "last", (1, config.prefix.width))
    return graph


def _prefix_blocks(model: Pi0) -> list[GemmaBlock]:
    return [layer.prefix for layer in model.transformer.layers if isinstance(layer, TwoExpertLayer)]


def step_graph(model: Pi0, num_steps: int, longest: int, dtype: Dtype, runtime: Runtime) -> Graph:
    """x [H, D], step [1], perhaps state [1, state_dim] and settled [H, 1], and the prefix -> next [H, D]: x + dt *
    velocity.
    """
    config, graph = model.config, Graph("step", dtype, runtime)
    dim, kv_heads, suffix = config.expert.head_dim, config.expert.num_kv_heads, config.suffix_length
    horizon = config.action_horizon
    noisy = graph.input("x", (horizon, config.action_dim))
    step = graph.input("step", (1,), "INT64")
    times = integration_times(num_steps, "euler")
    tables = make_tables(model, times, False, targets_of(config, times, num_steps, "euler"))
    x = graph.op("MatMul", noisy, graph.vector("action_in", lambda: action_weight(model).t()))
    settled = graph.input("settled", (horizon, 1), "BOOL") if config.max_delay else None
    biases = graph.vector("time_bias", tables.biases)
    x = graph.op("Add", x, _at_times(graph, biases, step, num_steps, settled))
    if not config.adaptive:
        sigmoid = graph.op("Sigmoid", x)
        x = linear(graph, graph.op("Mul", x, sigmoid), model.time_mlp_out, "time_mlp_out")
    if model.state_proj is not None:
        state = linear(graph, graph.input("state", (1, config.state_dim)), model.state_proj, "state_proj")
        x = graph.op("Concat", state, x, axis=0)
    clean = settled
    if settled is not None and model.state_proj is not None:
        clean = graph.op("Concat", graph.constant(np.zeros((1, 1), np.bool_)), settled, axis=0)
    norms = _modulations(graph, tables, step, num_steps, clean)
    starts = model.suffix_block_starts()
    sees = block_mask(torch.ones(1, suffix, dtype=torch.bool), starts)[0]
    own_mask = None if bool(sees.all()) else graph.constant(np.where(sees.numpy(), 0, MASKED).astype(np.float32))
    layers = [layer.expert for layer in model.transformer.layers if isinstance(layer, TwoExpertLayer)]
    first_keys = graph.input("key.0", (kv_heads, dim, "P"))
    length = graph.op("Slice", graph.op("Shape", first_keys), graph.integers(2), graph.integers(3))
    rotary = Rotary(graph, longest + suffix, dim, length, graph.op("Add", length, graph.integers(suffix)))
    for index, block in enumerate(layers):
        name, (first, second) = f"expert.{index}", norms[2 * index : 2 * index + 2]
        keys = graph.input(f"key.{index}", (kv_heads, dim, "P")) if index else first_keys
        values = graph.input(f"value.{index}", (kv_heads, "P", dim))
        y = rms_norm(graph, x, f"{name}.attention_norm", block.attention_norm, first)
        query, key, value = project(graph, y, block, name, rotary)
        assert query is not None
        # the prefix's keys and values are read where they are: logits and results are joined instead
        own = graph.op("MatMul", query, key)
        own = own if own_mask is None else add_mask(graph, own, own_mask, block)
        logits = graph.op("Concat", graph.op("MatMul", query, keys), own, axis=-1)
        sizes = graph.op("Concat", length, graph.integers(suffix), axis=0)
        weights = graph.ops("Split", 2, graph.op("Softmax", logits, axis=-1), sizes, axis=-1)
        parts = [graph.op("MatMul", weight, v) for weight, v in zip(weights, (values, value), strict=True)]
        seen = attended(graph, graph.op("Add", *parts), block)
        x = finish(graph, x, seen, block, name, first, second)
    x = rms_norm(graph, x, "expert_norm", model.transformer.expert_norm, norms[-1])
    if model.state_proj is not None:
        x = graph.op("Slice", x, graph.integers(1), graph.integers(suffix), graph.integers(0))
    velocity = linear(graph, x, model.action_out_proj, "action_out")
    moved = graph.op("Mul", velocity, graph.constant(-1.0 / num_steps))
    moved = graph.op("Add", noisy, moved)
    moved = moved if settled is None else graph.op("Where", settled, noisy, moved)
    graph.output(moved, "next", (horizon, config.action_dim))
    return graph


def _at_times(graph: Graph, table: Value, step: Value, num_steps: int, settled: Value | None) -> Value:
    """Rows of a table [num_steps + 1, W], of the step's time and for a clean action: [1, W]; or [T, W] where settled
    [T, 1] says which tokens are clean.
    """
    now = graph.op("Gather", table, step)
    if settled is None:
        return now
    return graph.op("Where", settled, graph.op("Gather", table, graph.integers(num_steps)), now)


def _modulations(
    graph: Graph, tables: TimeTables, step: Value, num_steps: int, settled: Value | None
) -> list[Modulation | None]:
    """Of every norm of the expert, at each token's time; None where they do not depend on it."""
    count = len(tables.norms[0])
    if len(tables.norms) == 1:
        return [None] * count
    rows = [torch.cat([cast(torch.Tensor, part).float() for norm in row for part in norm]) for row in tables.norms]
    table = graph.vector("modulations", lambda: torch.stack(rows))  # [num_steps + 1, 3 * norms * E]
    at_step = _at_times(graph, table, step, num_steps, settled)
    parts = graph.ops("Split", 3 * count, at_step, axis=1, num_outputs=3 * count)
    return [Modulation(*parts[3 * index : 3 * index + 3]) for index in range(count)]
