"""The two graphs of the diffusion policy: what it knows of an observation; one sampling step.

    images [cameras, T, h, w, 3], present [cameras], state [T, state_dim], words [L] ──▶ encode ──▶ encoded [1, C]
    x [H, D], step ─────────────────────────────────────────▶ step, reads that ──▶ x [H, D] one step further

One observation a call. Images and modules are walked over as `baseline/policy.py` does.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from pizero.baseline.config import BaselineConfig
from pizero.baseline.encoder import ImageEncoder, ResidualBlock2d
from pizero.baseline.lerobot_style import LerobotStyle
from pizero.baseline.policy import STACKED, DiffusionPolicy
from pizero.baseline.schedule import step_at_flow_time
from pizero.baseline.unet import ConvBlock, Level, ResidualBlock1d
from pizero.engine.time_tables import integration_times
from pizero.export.convolutions import conv, normed
from pizero.export.graph import Dtype, Graph, Value
from pizero.export.layers import linear
from pizero.types import UserError

# ---------------------------------------------------------------- observation


def encode_graph(model: DiffusionPolicy, dtype: Dtype) -> Graph:
    """images in [-1, 1], of an absent camera anything with `present` 0 -> encoded [1, C]."""
    config, graph = model.config, Graph("encode", dtype)
    history, (height, width) = config.num_history, config.image_shape
    images = graph.input("images", (len(config.cameras), history, height, width, 3))
    present = graph.input("present", (len(config.cameras),))
    cameras = [_camera(graph, config, images, present, index) for index in range(len(config.cameras))]
    encoders = [config.cameras[index] for index in range(len(cameras))]
    if config.image_fusion == STACKED:
        cameras, encoders = [graph.op("Concat", *cameras, axis=1)], [STACKED]
    elif config.image_fusion == "shared":
        encoders = ["shared"] * len(cameras)
    parts = [
        _encoder(graph, image, cast(ImageEncoder, model.image_encoders[name]), f"{name}.{index}")
        for index, (image, name) in enumerate(zip(cameras, encoders, strict=True))
    ]  # each [T, features]
    if config.state_input:
        parts = [graph.input("state", (history, config.state_dim)), *parts]
    encoded = graph.op("Reshape", graph.op("Concat", *parts, axis=-1), graph.integers(1, -1))
    if model.prompt_embedding is not None:
        words = graph.input("words", ("L",), "INT64")
        table = graph.kernel("prompt_embedding", model.prompt_embedding.weight)
        mean = graph.op("ReduceMean", graph.op("Gather", table, words), graph.integers(0), keepdims=1)
        encoded = graph.op("Concat", encoded, mean, axis=-1)
    graph.output(encoded, "encoded", (1, config.observation_width))
    return graph


def _camera(graph: Graph, config: BaselineConfig, images: Value, present: Value, index: int) -> Value:
    """One camera as the encoder sees it: [T, 3, h, w]."""
    x = graph.op("Transpose", graph.op("Gather", images, graph.constant(np.array(index))), perm=(0, 3, 1, 2))
    if config.lerobot is not None:
        x = _prepared(graph, config.lerobot, x, index)
    return graph.op("Mul", x, graph.op("Gather", present, graph.constant(np.array(index))))


def _prepared(graph: Graph, style: LerobotStyle, x: Value, camera: int) -> Value:
    if style.resize is not None:
        raise UserError("a LeRobot diffusion policy that resizes its images is not exported; one without a resize is")
    mean, std = (
        graph.constant(np.array(value[camera], np.float32)[:, None, None])
        for value in (style.image_mean, style.image_std)
    )
    unit = graph.op("Mul", graph.op("Add", x, graph.constant(1.0)), graph.constant(0.5))
    x = graph.op("Div", graph.op("Sub", unit, mean), std)
    if style.crop is not None:
        top, left = (round((whole - cut) / 2) for whole, cut in zip(style.image_shape, style.crop, strict=True))
        ends = graph.integers(top + style.crop[0], left + style.crop[1])
        x = graph.op("Slice", x, graph.integers(top, left), ends, graph.integers(2, 3))
    return x


def _encoder(graph: Graph, x: Value, encoder: ImageEncoder, name: str) -> Value:
    """[T, C, h, w] -> [T, 2 * keypoints]."""
    x = normed(graph, conv(graph, x, encoder.stem, f"{name}.stem"), encoder.stem_norm, f"{name}.stem_norm", 4)
    x = graph.op("Relu", x)
    if isinstance(encoder.pool, nn.MaxPool2d):
        x = graph.op("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    for number, level in enumerate(encoder.levels):
        for part, block in enumerate(cast(nn.Sequential, level)):
            x = _residual_2d(graph, x, cast(ResidualBlock2d, block), f"{name}.{number}.{part}")
    maps = conv(graph, x, encoder.keypoints, f"{name}.keypoints")
    points = graph.op("Reshape", _softmax_points(graph, maps), graph.integers(0, -1))
    return graph.op("Relu", linear(graph, points, encoder.output, f"{name}.output"))


def _residual_2d(graph: Graph, x: Value, block: ResidualBlock2d, name: str) -> Value:
    y = normed(graph, conv(graph, x, block.conv1, f"{name}.conv1"), block.norm1, f"{name}.norm1", 4)
    y = conv(graph, graph.op("Relu", y), block.conv2, f"{name}.conv2")
    y = normed(graph, y, block.norm2, f"{name}.norm2", 4)
    if isinstance(block.shortcut, nn.Sequential):
        convolution, norm = block.shortcut
        x = conv(graph, x, cast(nn.Conv2d, convolution), f"{name}.shortcut")
        x = normed(graph, x, norm, f"{name}.shortcut_norm", 4)
    return graph.op("Relu", graph.op("Add", y, x))


def _softmax_points(graph: Graph, maps: Value) -> Value:
    """Where each map looks: [T, K, h, w] -> [T, K, 2], x then y."""
    shape = graph.op("Shape", maps)
    kept = graph.op("Slice", shape, graph.integers(0), graph.integers(2))
    flat = graph.op("Reshape", maps, graph.op("Concat", kept, graph.integers(-1), axis=0))
    weights = graph.op("Reshape", graph.op("Softmax", flat, axis=-1), shape)
    means = []
    for axis in (3, 2):  # columns, rows
        length = graph.op("Slice", shape, graph.integers(axis), graph.integers(axis + 1))
        last = graph.op("Cast", graph.op("Sub", length, graph.integers(1)), to=1)
        steps = graph.op("Range", graph.constant(np.array(0)), graph.op("Squeeze", length), graph.constant(np.array(1)))
        places = graph.op("Div", graph.op("Mul", graph.op("Cast", steps, to=1), graph.constant(2.0)), last)
        places = graph.op("Sub", places, graph.constant(1.0))
        sums = graph.op("ReduceSum", weights, graph.integers(5 - axis), keepdims=0)
        means.append(graph.op("ReduceSum", graph.op("Mul", sums, places), graph.integers(-1), keepdims=1))
    return graph.op("Concat", *means, axis=-1)


# ---------------------------------------------------------------- steps


def diffusion_step_graph(model: DiffusionPolicy, num_steps: int, dtype: Dtype) -> Graph:
    """x [H, D], step [1], encoded [1, C] -> next [H, D]: a step of DDIM, or along the flow's velocity."""
    config, graph = model.config, Graph("step", dtype)
    shape = (config.action_horizon, config.action_dim)
    x, step = graph.input("x", shape), graph.input("step", (1,), "INT64")
    encoded = graph.input("encoded", (1, config.observation_width))
    schedule = model.schedule
    times, coefficients = _times(model, num_steps)
    embedded = graph.vector("steps", lambda: model.unet.step_encoder(times))
    conditioning = graph.op("Concat", graph.op("Gather", embedded, step), encoded, axis=-1)
    predicted = _unet(graph, model, x, conditioning)
    if schedule is None:
        moved = graph.op("Mul", predicted, graph.constant(-1.0 / num_steps))
        graph.output(graph.op("Add", x, moved), "next", shape)
        return graph
    at_step = graph.op("Gather", graph.vector("coefficients", coefficients), step)  # [1, 4]
    signal, noise, next_signal, next_noise = graph.ops("Split", 4, at_step, axis=1, num_outputs=4)
    if schedule.predicts_actions:
        actions = predicted
        error = graph.op("Div", graph.op("Sub", x, graph.op("Mul", actions, signal)), noise)
    else:
        error = predicted
        actions = graph.op("Div", graph.op("Sub", x, graph.op("Mul", error, noise)), signal)
    if schedule.clip_range > 0:
        limits = (graph.constant(-schedule.clip_range), graph.constant(schedule.clip_range))
        actions = graph.op("Clip", actions, *limits)
    parts = graph.op("Mul", actions, next_signal), graph.op("Mul", error, next_noise)
    graph.output(graph.op("Add", *parts), "next", shape)
    return graph


def _times(model: DiffusionPolicy, num_steps: int) -> tuple[Tensor, Tensor]:
    """[T] of the steps, as the step encoder takes them; and DDIM's coefficients [T, 4], nothing for the flow."""
    if model.schedule is not None:
        return model.schedule.coefficients(num_steps)
    times = integration_times(num_steps, "euler")
    return step_at_flow_time(times, model.config.diffusion_steps), times.new_zeros(0)


def _unet(graph: Graph, model: DiffusionPolicy, x: Value, conditioning: Value) -> Value:
    """[H, D] -> [H, D]."""
    unet, horizon = model.unet, model.config.action_horizon
    x = graph.op("Unsqueeze", graph.op("Transpose", x, perm=(1, 0)), graph.integers(0))  # [1, D, H]
    if missing := -horizon % unet.multiple:
        x = graph.op("Pad", x, graph.integers(0, 0, 0, 0, 0, missing))
    at = graph.op("Mish", conditioning)
    skips: list[Value] = []
    for number, level in enumerate(unet.down):
        x, skip = _level(graph, x, at, cast(Level, level), f"down.{number}")
        skips.append(skip)
    x, _ = _level(graph, x, at, cast(Level, unet.middle), "middle")
    for number, level in enumerate(unet.up):
        x = graph.op("Concat", x, skips.pop(), axis=1)
        x, _ = _level(graph, x, at, cast(Level, level), f"up.{number}")
    x = conv(graph, _conv_block(graph, x, unet.final, "final"), unet.output, "output")
    x = graph.op("Slice", x, graph.integers(0), graph.integers(horizon), graph.integers(2))
    return graph.op("Transpose", graph.op("Squeeze", x, graph.integers(0)), perm=(1, 0))


def _level(graph: Graph, x: Value, at: Value, level: Level, name: str) -> tuple[Value, Value]:
    """The result, and what a skip connection carries."""
    for part, block in (("first", level.first), ("second", level.second)):
        x = _residual_1d(graph, x, at, block, f"{name}.{part}")
    if isinstance(level.resize, nn.Conv1d | nn.ConvTranspose1d):
        return conv(graph, x, level.resize, f"{name}.resize"), x
    return x, x


def _residual_1d(graph: Graph, x: Value, at: Value, block: ResidualBlock1d, name: str) -> Value:
    both = linear(graph, at, block.modulation, f"{name}.modulation")
    scale, shift = graph.ops("Split", 2, graph.op("Unsqueeze", both, graph.integers(2)), axis=1, num_outputs=2)
    y = _conv_block(graph, x, block.conv1, f"{name}.conv1")
    y = graph.op("Add", graph.op("Mul", scale, y), shift)
    y = _conv_block(graph, y, block.conv2, f"{name}.conv2")
    if isinstance(block.shortcut, nn.Conv1d):
        x = conv(graph, x, block.shortcut, f"{name}.shortcut")
    return graph.op("Add", y, x)


def _conv_block(graph: Graph, x: Value, block: ConvBlock, name: str) -> Value:
    convolution, norm, _ = block
    y = conv(graph, x, cast(Any, convolution), f"{name}.conv")
    return graph.op("Mish", normed(graph, y, norm, f"{name}.norm", 3))
