"""pizero train: a policy from a LeRobot dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from pizero.configs.presets import Preset


@dataclass(frozen=True)
class Arguments:
    """Trains a policy on a LeRobot dataset, from scratch or from a checkpoint. The robot is read from the dataset's own
    description unless --embodiment or a simulator's preset names it, and shown before the training begins.

    Examples: pizero train DATASET --output runs/mine
              pizero train DATASET --checkpoint pi05 --lora --device cuda --output runs/mine
    """

    dataset: Annotated[Path, tyro.conf.Positional]
    """LeRobot dataset: its folder, or its id on the Hugging Face hub (owner/name); or a .toml file that lists several
    (examples/mixture.toml)."""
    output: Path
    """Folder of the run: checkpoints, metrics.jsonl, run.json."""
    preset: str | None = None
    """Model size, optimisation settings and robot; without it small, or with a --checkpoint of a released size the
    recognised robot's (aloha, droid, libero, so101, metaworld-full), else full. small: for any robot, from scratch,
    sized by the dataset; tabletop, metaworld, metaworld-mt10, metaworld-mt50, pusht, aloha-sim, so101-sim, libero-sim:
    for these simulators. full: for any robot, with the full sizes, as aloha, droid, libero, so101, metaworld-full and
    tabletop-full have them. Or a TOML file
    (examples/my_preset.toml), module:function, or a name that an installed package offers (docs/simulators.md)."""
    model: Literal["pi0", "pi05", "pi0-fast", "diffusion"] | None = None
    """Without it the checkpoint's, else pi0. pi05: adaptive RMSNorm and the state in the prompt. pi0-fast: one language
    model that writes the actions as tokens (docs/pi0_fast.md). diffusion: the baseline, a diffusion policy that sees
    five observations and neither state nor instruction."""
    embodiment: str | None = None
    """Robot instead of the preset's: by name, as a TOML file (examples/my_arm.toml), module:function, or own: the
    dataset's own columns and cameras."""
    resume: bool = False
    """Continue from the newest checkpoint in the output folder."""
    checkpoint: str | None = None
    """Start from these weights instead of fresh ones: a checkpoint of any format by path, hub id or address, pi0 or
    pi05 (LeRobot's copies of the released base models), or a PaliGemma (its folder, or big_vision's .npz) for the
    prefix of a π0 or π0-FAST. Its tokenizer stays."""
    tokenizer: Path | None = None
    """SentencePiece model (for example PaliGemma's); without it a small one is trained on the dataset's prompts."""
    text: Literal["openpi", "opentau", "lerobot"] | None = None
    """Of pi0 and pi05: learn to write the dataset's subtasks too, in this layout of prompt and text (docs/pi05.md)."""
    fast: bool = False
    """Of pi0 and pi05: learn FAST tokens of the actions too, which the actions never see. With text or FAST tokens the
    flow's gradients end at the prefix (knowledge insulation)."""
    no_insulation: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With text or FAST tokens: let the flow's gradients into the prefix all the same."""
    one_step: bool = False
    """Of pi0 and pi05, with --checkpoint: learn to reach in one step what the checkpoint does in many
    (docs/one_step.md). Vision tower and prefix keep their weights."""
    codec: str | None = None
    """Of --model pi0-fast and of --fast: the action codec, a folder as `pizero fit-codec` writes it or a hub id;
    without it the checkpoint's, or one that is fitted to the dataset."""
    norm_stats: str | None = None
    """Statistics to use instead of the dataset's own: a file (of pizero norm-stats, openpi's norm_stats.json, LeRobot's
    meta/stats.json), or a checkpoint, such as the one of --checkpoint where the robot is one that it has seen (of an
    openpi checkpoint with several robots, CHECKPOINT/assets/ROBOT)."""
    skip_bad_episodes: bool = False
    """Skips episodes whose files are missing, damaged or contradictory, with one warning that lists them."""
    frames: Literal["auto", "memory", "disk", "decode"] = "auto"
    """Decoded frames: kept in memory; kept in a file, decoded once for this and all later runs; or decoded whenever
    they are read. auto: memory up to 2 GiB, else the disk where there is room."""
    subtasks: str | None = None
    """What the robot does when, in words: a column of text, or a CSV file with the columns episode,from,to,text
    (docs/data.md). Without it the dataset's own: meta/subtasks.csv, LeRobot's language columns."""
    workers: int | None = None
    """Processes that prepare batches ahead; without it none on the CPU and up to 4 otherwise."""
    steps: int | None = None
    """Optimizer steps, instead of the preset's (same for the options below)."""
    batch_size: int | None = None
    learning_rate: float | None = None
    """Peak, reached after the warm-up."""
    warmup_steps: int | None = None
    """Over which the learning rate rises to its peak; fewer than the steps, or it is never reached."""
    draws: int | None = None
    max_delay: int | None = None
    """Trains for real-time chunking: the first 0 to max_delay actions of each chunk are given (docs/real_time.md)."""
    augmentation: Literal["openpi", "shift", "none"] | None = None
    precision: Literal["auto", "float32", "mixed", "bfloat16"] | None = None
    optimizer: Literal["adamw", "adamw8bit", "muon"] | None = None
    ema_decay: float | None = None
    validation_fraction: float | None = None
    validate_every: int | None = None
    save_every: int | None = None
    seed: int | None = None
    threads: int | None = None
    accumulate: int | None = None
    """Equal parts of a batch that are computed one after the other, for less memory."""
    ignore_padding: bool = False
    """Exclude action dimensions that the robot does not have from the loss; in openpi they count."""
    non_finite: Literal["stop", "skip"] | None = None
    """At a loss or gradient that is not finite: stop, or skip the step and count it."""
    lora: bool = False
    """Train adapters of openpi's ranks on both experts, vision tower and heads (see --freeze), no average."""
    freeze: tuple[Literal["vision", "prefix", "expert", "embedding", "heads"], ...] | None = None
    """Parts that keep their weights."""
    embedding_steps: Literal["optimizer", "stateless"] | None = None
    """stateless: the embedding table is trained without optimizer state."""
    open_loop_chunks: int = 0
    """Chunks of held-out episodes that are replayed at every validation, for the error of the actions."""
    evaluate_env: str | None = None
    """Simulator, as for pizero evaluate, in which the policy is run during the training."""
    evaluate_every: int = 5_000
    evaluate_episodes: int = 10
    """Of each task."""
    metric: Literal["validation_loss", "open_loop_error", "success_rate"] | None = None
    """What checkpoints are compared by."""
    keep_best: bool = False
    """Keeps the best checkpoint beside the newest ones; best.json names it."""
    patience: int | None = None
    """Ends the run when that many measurements in a row bring nothing better."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the numbers go beside metrics.jsonl."""
    device: str = "cpu"
    sharding: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """Of a training that torchrun starts (docs/training.md). ddp: every rank has all weights; fsdp: weights, gradients,
    optimizer and average are divided among the ranks; hsdp: among those of a machine."""
    recompute: bool = False
    """Activation checkpointing: each block keeps its inputs alone and is computed again in the backward pass."""
    compile: bool = False
    """Blocks through torch.compile: 1.2 times as fast on an H100. Needs a C++ compiler; not with several ranks."""
    plan: bool = False
    """Loads and trains nothing: prints the memory this training takes, what to change if it does not fit, how long."""
    plan_ranks: tuple[int, int] = (1, 1)
    """Of --plan: machines, and ranks on each, that torchrun will start."""
    plan_memory: float | None = None
    """Of --plan: GiB available per rank, to plan for hardware you are not on."""


SETTINGS = (
    "steps", "batch_size", "learning_rate", "warmup_steps", "draws", "max_delay", "augmentation", "precision",
    "optimizer", "ema_decay", "validation_fraction", "validate_every", "save_every", "seed", "threads",
)  # fmt: skip
PARTS = {
    "gradient": ("accumulate", "non_finite"),
    "parts": ("freeze", "embedding_steps"),
    "selection": ("metric", "patience"),
}


def run(arguments: Arguments) -> int:
    from pizero.configs.finetune import with_lora
    from pizero.configs.language import with_language
    from pizero.configs.one_step import ALONE, with_one_step
    from pizero.types import UserError
    from pizero.workflows.choose_preset import choose_preset
    from pizero.workflows.measures import MeasureConfig
    from pizero.workflows.progress import console
    from pizero.workflows.start import Initialization
    from pizero.workflows.train import Runtime, train_policy
    from pizero.workflows.training_data import DataOptions

    if arguments.one_step and (_learns_text(arguments) or arguments.lora):
        raise UserError(ALONE)
    run_folder = arguments.output if arguments.resume else None
    preset, told = choose_preset(arguments.preset, arguments.model, arguments.checkpoint, run_folder, arguments.dataset)
    if told:
        console.print(told)
    changes = _given(arguments, SETTINGS)
    for part, names in PARTS.items():
        changes[part] = dataclasses.replace(getattr(preset.train, part), **_given(arguments, names))
    if arguments.ignore_padding:
        changes["gradient"] = dataclasses.replace(changes["gradient"], padded_actions=False)
    if arguments.keep_best:
        changes["selection"] = dataclasses.replace(changes["selection"], keep_best=True)
    if arguments.lora:
        preset = with_lora(preset, **changes)
    else:
        preset = dataclasses.replace(preset, train=dataclasses.replace(preset.train, **changes))
    if _learns_text(arguments):
        preset = with_language(preset, arguments.text, arguments.fast, not arguments.no_insulation)
    if arguments.one_step:
        preset = with_one_step(preset)
    if arguments.embodiment is not None:
        preset = dataclasses.replace(preset, embodiment=arguments.embodiment)
    if arguments.plan:
        return _plan(arguments, preset)
    result = train_policy(
        arguments.dataset,
        arguments.output,
        preset,
        resume=arguments.resume,
        initial=Initialization(arguments.checkpoint, arguments.tokenizer, arguments.norm_stats, arguments.codec),
        data=DataOptions(
            skip_bad_episodes=arguments.skip_bad_episodes,
            frames=arguments.frames,
            workers=arguments.workers,
            subtasks=arguments.subtasks,
        ),
        runtime=Runtime(arguments.device, arguments.sharding, arguments.recompute, arguments.compile),
        measure=MeasureConfig(
            arguments.open_loop_chunks,
            arguments.evaluate_env,
            arguments.evaluate_every,
            arguments.evaluate_episodes,
            arguments.track,
        ),
    )
    console.print(f"{result.parameters:,} parameters, loss {result.loss:.4f}\ncheckpoint: {result.checkpoint}")
    return 0


def _learns_text(arguments: Arguments) -> bool:
    return arguments.text is not None or arguments.fast or arguments.no_insulation


def _plan(arguments: Arguments, preset: Preset) -> int:
    from pizero.configs.presets import OWN
    from pizero.workflows.plan import Resources, plan_training, print_plan
    from pizero.workflows.training_data import open_sources

    machines, local_ranks = arguments.plan_ranks
    memory = None if arguments.plan_memory is None else int(arguments.plan_memory * 2**30)
    resources = Resources(arguments.device, machines, local_ranks, arguments.sharding, arguments.recompute, memory)
    sources = None
    if preset.from_data or preset.embodiment == OWN:
        sources = open_sources(
            arguments.dataset, preset.embodiment, skip_bad_episodes=arguments.skip_bad_episodes,
            cameras=None if preset.from_data else preset.model.cameras,
        )  # fmt: skip
    print_plan(plan_training(preset, resources, arguments.checkpoint, sources), preset, resources)
    return 0


def _given(arguments: Arguments, names: Sequence[str]) -> dict[str, Any]:
    """The options that were given."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
