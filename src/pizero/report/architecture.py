"""The network as a table: every box of the picture with measured shapes, parameters and FLOPs.

The network is built on the meta device (shapes without memory) and run once: prefill, then one integration step.
Shapes come from hooks, FLOPs from counting the matrix products that are really called (2 per multiply-add, attention
included; norms, activations and softmax are below 1 % and not counted). This is the plain path; the fast path
computes less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich import box as rich_box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pizero.model.config import Pi0Config
from pizero.model.flow_matching import integrate
from pizero.model.pi0 import Pi0
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.model.two_expert import KVCache
from pizero.types import Observation, UserError

Shape = tuple[int, ...]

LEGEND = "Measured shapes. Runs: times per call. FLOP: two per multiply-add of every matrix product, all runs together."


@dataclass(frozen=True)
class Row:
    """One part of one box. `flops` are those of one run; `runs` is how often one call of the model runs it.

    input, output: measured shapes, None where a part has none; `tensors` is the number of outputs of that shape.
    """

    box: str
    part: str
    input: Shape | None
    output: Shape | None
    parameters: int = 0
    flops: int = 0
    runs: int = 1
    tensors: int = 1

    @property
    def total_flops(self) -> int:
        return self.flops * self.runs


@dataclass(frozen=True)
class Architecture:
    """What `describe` measured, for a batch of one. num_steps: of integration; of a π0-FAST the tokens written."""

    config: Pi0Config | Pi0FastConfig
    num_cameras: int
    prompt_tokens: int
    num_steps: int
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def flops(self) -> int:
        """FLOPs of one call: prefill and all integration steps."""
        return sum(row.total_flops for row in self.rows)

    def box(self, name: str) -> tuple[Row, ...]:
        """The rows of one box, such as "VISION TOWER"."""
        return tuple(row for row in self.rows if row.box == name)

    def to_json(self) -> dict[str, Any]:
        rows = [
            {**dataclasses.asdict(row), "total_flops": row.total_flops, "share": self._share(row)} for row in self.rows
        ]
        return {
            "config": self.config.to_json(),
            "num_cameras": self.num_cameras,
            "prompt_tokens": self.prompt_tokens,
            "num_steps": self.num_steps,
            "parameters": self.parameters,
            "flops": self.flops,
            "rows": rows,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_json`, also after a way through a file."""
        rows = [{field.name: row[field.name] for field in dataclasses.fields(Row)} for row in values["rows"]]
        for row in rows:
            row.update({end: None if row[end] is None else tuple(row[end]) for end in ("input", "output")})
        kind = Pi0Config if "expert" in values["config"] else Pi0FastConfig
        return Architecture(
            kind.from_json(values["config"]),
            values["num_cameras"],
            values["prompt_tokens"],
            values["num_steps"],
            tuple(Row(**row) for row in rows),
        )

    def _share(self, row: Row) -> float:
        return row.total_flops / self.flops


def describe(
    config: Pi0Config, *, num_cameras: int | None = None, prompt_tokens: int | None = None, num_steps: int = 10
) -> Architecture:
    """Measures the network for one observation.

    num_cameras: cameras present, the first of the config's (None: all). prompt_tokens: tokens of the prompt (None: the
    config's `prompt_length`). num_steps: Euler steps. Needs no memory for weights and 2 to 4 seconds at full size.
    """
    num_cameras = len(config.cameras) if num_cameras is None else num_cameras
    prompt_tokens = config.prompt_length if prompt_tokens is None else prompt_tokens
    if not 1 <= num_cameras <= len(config.cameras):
        raise UserError(f"num_cameras is {num_cameras}; this model takes 1 to {len(config.cameras)}")
    if prompt_tokens < 1 or num_steps < 1:
        raise UserError(f"prompt_tokens {prompt_tokens} and num_steps {num_steps} must be at least 1")
    with torch.device("meta"):
        model = Pi0(config).eval()
    measured = _measure(model, shapes_observation(config, num_cameras, prompt_tokens))
    rows = _rows(config, measured, _parameters(model), num_steps)
    return Architecture(config, num_cameras, prompt_tokens, num_steps, rows)


def print_architecture(architecture: Architecture, console: Console) -> None:
    """The table, at most 120 columns wide."""
    header, body, total = table_text(architecture)
    table = Table(
        box=rich_box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=caption(architecture), title_style="bold", caption=LEGEND
    )
    for name in header:
        numeric = name in header[4:]
        table.add_column(name, justify="right" if numeric else "left", style="bold" if name == header[0] else None)
    for i, row in enumerate(body):
        table.add_row(*row, end_section=i + 1 == len(body) or bool(body[i + 1][0]))
    table.add_row(*total, style="bold")
    console.print(table)


def caption(architecture: Architecture) -> str:
    """One line: what the figures of the table are for."""
    cameras, count = architecture.num_cameras, architecture.num_steps
    steps = f"{count} integration step{'s' if count > 1 else ''}"
    if isinstance(architecture.config, Pi0FastConfig):
        steps = f"{architecture.num_steps} tokens written"
    return (
        f"One call: {cameras} camera{'s' if cameras > 1 else ''}, {architecture.prompt_tokens} prompt tokens, "
        f"{architecture.config.action_horizon} actions, {steps}"
    )


def table_text(architecture: Architecture) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows and total row as text. The name of a box stands in its first row only."""
    unit, divisor = ("GFLOP", 1e9) if architecture.flops >= 1e11 else ("MFLOP", 1e6)
    header = ["Box", "Part", "Input", "Output", "Parameters", "Runs", unit, "Share"]
    body: list[list[str]] = []
    previous = ""
    for row in architecture.rows:
        flops = _amount(row.total_flops / divisor)
        share = _amount(100 * row.total_flops / architecture.flops) + " %"
        body.append(
            [
                row.box if row.box != previous else "",
                row.part,
                _shape_text(row.input),
                f"{row.tensors} × {_shape_text(row.output)}" if row.tensors > 1 else _shape_text(row.output),
                f"{row.parameters:,}" if row.parameters else "",
                str(row.runs) if row.flops else "",
                flops if row.flops else "",
                share if row.flops else "",
            ]
        )
        previous = row.box
    total = ["TOTAL", "", "", "", f"{architecture.parameters:,}", "", f"{architecture.flops / divisor:,.1f}", "100.0 %"]
    return header, body, total


def _shape_text(shape: Shape | None) -> str:
    return "" if shape is None else f"[{', '.join(map(str, shape))}]"


def _amount(value: float) -> str:
    return f"{value:,.1f}" if value >= 0.05 else "< 0.1"


# -------------------------------------------------------------------------------------------------- measuring

HOOKED = (
    "vision_tower", "vision_tower.projection", "token_embedding", "transformer.layers.0", "transformer.prefix_norm",
    "transformer.expert_norm", "state_proj", "action_in_proj", "time_mlp_in", "time_mlp_out", "target_time",
    "action_out_proj", "norm",
)  # fmt: skip


@dataclass
class Call:
    """One call of one module: shapes of its first input and output, and the FLOPs counted inside."""

    input: Shape | None = None
    output: Shape | None = None
    flops: int = 0


@dataclass(frozen=True)
class _Measured:
    prefill: dict[str, Call]
    decode: dict[str, Call]
    prefill_flops: int
    decode_flops: int
    cache: KVCache
    actions: Shape


def shapes_observation(config: Pi0Config | Pi0FastConfig, num_cameras: int, prompt_tokens: int) -> Observation:
    """Shapes only, but for the image masks, whose values choose the images to compute and which live on the host."""
    size = config.image_size
    return Observation(
        images={name: torch.empty(1, size, size, 3, device="meta") for name in config.cameras[:num_cameras]},
        image_masks={name: torch.tensor([i < num_cameras]) for i, name in enumerate(config.cameras)},
        state=torch.empty(1, config.state_dim, device="meta") if config.has_state_token else None,
        prompt_tokens=torch.empty(1, prompt_tokens, dtype=torch.long, device="meta"),
        prompt_mask=torch.empty(1, prompt_tokens, dtype=torch.bool, device="meta"),
    )


@torch.no_grad()
def _measure(model: Pi0, observation: Observation) -> _Measured:
    """One prefill and one integration step under hooks and a FLOP counter."""
    noise = torch.empty(1, model.config.action_horizon, model.config.action_dim, device="meta")
    prefill: dict[str, Call] = {}
    decode: dict[str, Call] = {}
    with FlopCounterMode(display=False) as counter:
        handles = hook(model, counter, prefill)
        cache = model.prefill(observation)
        for handle in handles:
            handle.remove()
    prefill_flops = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        handles = hook(model, counter, decode)
        actions = integrate(lambda x, t: model.decode(cache, observation.state, x, t), noise, num_steps=1)
        for handle in handles:
            handle.remove()
    return _Measured(prefill, decode, prefill_flops, counter.get_total_flops(), cache, tuple(actions.shape))


def hook(model: Pi0 | Pi0Fast, counter: FlopCounterMode, calls: dict[str, Call]) -> list[Any]:
    """Hooks that write one `Call` per module of HOOKED; to be removed by the caller."""

    def before(name: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[name] = Call(input=_first_shape(inputs), flops=-counter.get_total_flops())

    def after(name: str, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        calls[name].output = _first_shape(output)
        calls[name].flops += counter.get_total_flops()

    handles: list[Any] = []
    for name, module in model.named_modules():
        if name in HOOKED:
            handles.append(module.register_forward_pre_hook(partial(before, name)))
            handles.append(module.register_forward_hook(partial(after, name)))
    return handles


def _first_shape(value: Any) -> Shape | None:
    """The shape of the first tensor in nested tuples."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, tuple):
        return next((shape for shape in map(_first_shape, value) if shape is not None), None)
    return None


def _parameters(model: Pi0) -> dict[str, int]:
    """Parameters by the name of the part that owns them."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        top = name.split(".")[0]
        if top == "transformer":
            top = "prefix" if ".prefix" in name else "expert"
        elif name.startswith("vision_tower.projection."):
            top = "projection"
        counts[top] = counts.get(top, 0) + parameter.numel()
    return counts


def _rows(config: Pi0Config, measured: _Measured, parameters: dict[str, int], steps: int) -> tuple[Row, ...]:
    """The boxes in the order of the data flow. What no part of a pass claims is the transformer's own."""
    before, each = measured.prefill, measured.decode
    tower, projection, table = before["vision_tower"], before["vision_tower.projection"], before["token_embedding"]
    prefix = measured.prefill_flops - tower.flops - table.flops
    small = ["state_proj", "action_in_proj", "target_time", "time_mlp_in", "time_mlp_out"]
    small = [name for name in small if name in each]
    expert = measured.decode_flops - sum(each[name].flops for name in (*small, "action_out_proj"))
    head, noise = each["action_out_proj"], each["action_in_proj"].input
    rows = [
        Row("INPUT", "images", None, tower.input),
        Row("INPUT", "prompt tokens", None, table.input),
        Row("INPUT", "noisy actions", None, noise),
        Row("VISION TOWER", f"SigLIP, {layers_text(config.vision.depth)}", tower.input, projection.input,
            parameters["vision_tower"], tower.flops - projection.flops),
        Row("VISION TOWER", "projection", projection.input, projection.output, parameters["projection"],
            projection.flops),
        Row("TOKEN TABLE", f"{config.vocab_size:,} tokens", table.input, table.output, parameters["token_embedding"],
            table.flops),
        Row("PREFIX EXPERT", f"Gemma, {layers_text(config.prefix.depth)}", before["transformer.layers.0"].input,
            before["transformer.prefix_norm"].output, parameters["prefix"], prefix),
        Row("PREFIX EXPERT", "KV cache", None, tuple(measured.cache.keys[0].shape),
            tensors=len(measured.cache.keys) + len(measured.cache.values)),
        *(Row("SUFFIX EMBEDDING", name, each[name].input, each[name].output, parameters[name], each[name].flops, steps)
          for name in small),
        Row("ACTION EXPERT", f"Gemma, {layers_text(config.expert.depth)}", each["transformer.layers.0"].input,
            each["transformer.expert_norm"].output, parameters["expert"], expert, steps),
        Row("VELOCITY", "action_out_proj", head.input, head.output, parameters["action_out_proj"], head.flops, steps),
        Row("FLOW MATCHING", f"Euler, {steps} step{'s' if steps > 1 else ''}", noise, measured.actions, runs=steps),
        Row("OUTPUT", "actions", None, measured.actions),
    ]  # fmt: skip
    if "state_proj" in each:
        rows.insert(2, Row("INPUT", "state", None, each["state_proj"].input))
    return tuple(rows)


def layers_text(depth: int) -> str:
    return f"{depth} layer{'s' if depth > 1 else ''}"
