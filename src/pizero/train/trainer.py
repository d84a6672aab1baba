"""The training loop: read, step, measure, save. Every random number depends on seed and step alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pizero.checkpoints.models import Network
from pizero.data.augment import Augmentation, BatchPart
from pizero.model.language import Losses, target_counts
from pizero.model.pi0_fast import Pi0Fast
from pizero.train.config import TrainConfig
from pizero.train.distributed import ON_CPU, Placement, spread_model, training_method, whole, without_exchange
from pizero.train.failure import NotFiniteError, not_finite
from pizero.train.inputs import draw, trimmed
from pizero.train.lora import load_adapters
from pizero.train.metrics import Interval, MetricsFile
from pizero.train.optim import (
    WeightAverage,
    learning_rate,
    make_optimizers,
    multiplies_in_bfloat16,
    product_context,
    set_learning_rate,
)
from pizero.train.parts import choose_parts, keep_in_precision, language_of
from pizero.train.run_folder import checkpoint_folder
from pizero.train.saving import Checkpoints, RunOutput, sampling
from pizero.train.seeds import Purpose, stream
from pizero.train.selection import Selection
from pizero.train.utilization import peak_memory, share_of_peak
from pizero.types import Observation, UserError

if TYPE_CHECKING:  # with it come the libraries of the datasets
    from pizero.data.loader import Batch, Loader

VALIDATION_SEED = 1_000_003
"""Noise and times of the validation are the same at every step and in every run; which frames, the run's seed says."""

VALIDATION_BATCHES = 8
SHOWN_SECONDS = 10.0
"""Longest time between two calls of `on_step`, where no step takes longer."""


@dataclass(frozen=True)
class Progress:
    """What a progress display needs to know after a step."""

    step: int
    loss: float
    samples_per_second: float
    data_share: float
    """Share of the time spent waiting for data, 0 to 1."""


@dataclass(frozen=True)
class Measure:
    """Something that is measured on the averaged weights every so many steps, and at the end: numbers by name."""

    every: int
    names: tuple[str, ...]
    run: Callable[[Network], Mapping[str, float]]


class Trainer:
    """Trains `model` on batches of `loader` and writes checkpoints and `metrics.jsonl` into the output's folder."""

    def __init__(
        self,
        model: Network,
        config: TrainConfig,
        loader: Loader,
        validation: Loader | None,
        output: RunOutput,
        *,
        measures: Sequence[Measure] = (),
        adapters: Mapping[str, Tensor] | None = None,
        placement: Placement = ON_CPU,
    ) -> None:
        """loader: gives this rank's part of each batch; validation: whole batches.

        adapters: LoRA's of another training, by name, which are trained further.
        """
        self.model, self.config, self.output, self.folder = model, config, output, output.folder
        self.loader, self.validation, self.measures = loader, validation, measures
        self.device, self.ranks = placement.device, placement.ranks
        self._part = BatchPart(self.ranks.index, self.ranks.count)
        self._check()
        self._prepare_model(adapters)
        self._loss = spread_model(model, placement, bfloat16=multiplies_in_bfloat16(config.precision, self.device))
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizers = make_optimizers(model, config)
        self.average = WeightAverage(model, config.ema_decay, config.ema_power)
        self.augmentation = Augmentation(config.augmentation)
        self.selection = Selection(config.selection)
        self._checkpoints = Checkpoints(output, placement, config, model, self.optimizers, self.average, self.selection)
        self.step = self.skipped_steps = 0
        self._interval, self._carried = Interval(), list[float]()
        self._norm = torch.zeros(())
        self._share_of_peak: float | None = None
        self.folder.mkdir(parents=True, exist_ok=True)

    # ---------------------------------------------------------------- set-up

    def _check(self) -> None:
        """UserError for settings that this model, this data or these measures cannot honour."""
        model, config = self.model, self.config
        if model.config.past_actions:
            raise UserError(
                "a policy whose chunk starts before the newest observation runs, but is not trained further"
            )
        if isinstance(model, Pi0Fast) and config.draws != 1:
            raise UserError(
                f"draws {config.draws}: a π0-FAST learns without noise, so there is nothing to draw; give 1"
            )
        share = self.loader.batch_size // self.ranks.count
        if share % config.gradient.accumulate:
            raise UserError(f"a batch of {share} cannot be divided into {config.gradient.accumulate} equal parts")
        measured = {name for measure in self.measures for name in measure.names}
        measured |= {"validation_loss"} if self.validation is not None else set()
        if config.selection.active and config.selection.metric not in measured:
            raise UserError(
                f"checkpoints are to be compared by {config.selection.metric}, which this run does not measure; "
                "it needs held-out episodes (validation_fraction), open-loop chunks or a simulator"
            )

    def _prepare_model(self, adapters: Mapping[str, Tensor] | None) -> None:
        config = self.config
        self.model.expect_delays(config.max_delay)  # the checkpoint says what the model was trained to continue
        choose_parts(self.model, config.parts, config.seed)
        if adapters is not None:
            load_adapters(self.model, adapters)
        keep_in_precision(self.model, config.precision, multiplies_in_bfloat16(config.precision, self.device))
        self.model.train()

    # ---------------------------------------------------------------- loop

    def run(self, on_step: Callable[[Progress], None] | None = None) -> Path:
        """Trains to the last step, or until nothing gets better, and returns the folder of the last checkpoint."""
        config = self.config
        metrics = MetricsFile(
            self.folder / "metrics.jsonl" if self.ranks.is_first else None, self.step, self.output.trackers
        )  # fmt: skip
        if self.ranks.is_first:
            self._share_of_peak = share_of_peak(self.model.config, config, self.ranks, self.device)
        batches = self.loader.batches(self.step, config.steps)
        interval = self._interval = Interval(self._carried)
        shown = time.monotonic()
        try:
            while self.step < config.steps and not self.selection.ended:
                self._take_step(interval.next(batches), interval, metrics)
                last = self.step == config.steps
                logs = last or self.step % config.log_every == 0
                progress = self._log(interval, metrics) if logs else None
                if on_step is not None and (logs or time.monotonic() - shown > SHOWN_SECONDS) and interval.losses:
                    on_step(progress or self._progress(interval))
                    shown = time.monotonic()
                if logs:
                    interval = self._interval = Interval()
                with interval.paused():
                    improved = self._measure(metrics, last)
                    if (
                        last or self.step % config.save_every == 0 or self.selection.ended
                        or (improved and config.selection.keep_best)
                    ):  # fmt: skip
                        self.save()
            self._checkpoints.finish()
        finally:
            metrics.close()
        return checkpoint_folder(self.folder, self.step)

    def _log(self, interval: Interval, metrics: MetricsFile) -> Progress:
        if not interval.losses:
            raise UserError(
                f"every step up to {self.step} was skipped, {self.skipped_steps} in all: lower the learning rate or "
                f"check the data; the checkpoints in {self.folder} are intact"
            )
        progress = self._progress(interval)
        skipped = {"skipped_steps": self.skipped_steps} if self.skipped_steps else {}
        metrics.write(
            self.step, loss=progress.loss, learning_rate=learning_rate(self.config, self.step - 1),
            samples_per_second=progress.samples_per_second, data_share=progress.data_share,
            cpu_seconds=interval.cpu_seconds, gradient_norm=interval.mean_norm(),
            **self._usage(progress.samples_per_second), **skipped,
        )  # fmt: skip
        return progress

    def _progress(self, interval: Interval) -> Progress:
        rate = len(interval.losses) * self.loader.batch_size / interval.seconds
        return Progress(self.step, interval.mean_loss(), rate, interval.waited / interval.seconds)

    def _usage(self, rate: float) -> dict[str, float]:
        """Peak memory, and on a GPU whose speed is known the share of it that the model's operations are."""
        memory, share = peak_memory(self.device), self._share_of_peak
        found = {} if memory is None else {"memory_gib": memory / 2**30}
        return found if share is None else found | {"mfu": share * rate / self.loader.batch_size}

    # ---------------------------------------------------------------- step

    def _take_step(self, batch: Batch, interval: Interval, metrics: MetricsFile) -> None:
        """A step whose loss or gradient is not finite is skipped and noted, or ends the run with a UserError."""
        try:
            interval.losses.append(self.train_step(batch))
            interval.norms.append(self._norm)
        except NotFiniteError as error:
            metrics.write(self.step, not_finite=str(error), samples=error.samples)
            if self.config.gradient.non_finite == "stop":
                raise
            self.skipped_steps += 1
            self.step += 1

    def train_step(self, batch: Batch) -> Tensor:
        """One optimizer step; returns the mean loss as a tensor. NotFiniteError leaves weights and optimizers alone."""
        config = self.config
        generator = stream(config.seed, self.step, Purpose.DRAWS, self._checkpoints.seed_rule)
        observation, actions = self.tensors_of(batch, generator)
        drawn = draw(config, actions, generator, self._part)
        losses = self._backward(observation, actions, drawn, self._action_mask(batch))
        loss, gradients = self.ranks.mean(losses.mean()), [p.grad for p in self._trained if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._norm = whole(norm)
        if not bool(torch.isfinite(self._norm) & torch.isfinite(loss)):
            raise not_finite(self.step, losses, self.model, self.loader.places(self.step), self.folder)
        torch.nn.utils.clip_grads_with_norm_(self._trained, config.clip_norm, norm)
        set_learning_rate(self.optimizers, learning_rate(config, self.step))
        for optimizer in self.optimizers:
            optimizer.step()
        if config.ema_decay > 0:
            self.average.update(self.step)
        self.step += 1
        return loss

    def tensors_of(self, batch: Batch, generator: torch.Generator | None) -> tuple[Observation, Tensor]:
        """A batch on this rank's device: what the network sees, and the actions [B, H, D]. generator: of the image
        augmentation; None changes no image.
        """
        observation = self.output.pipeline.observation(trimmed(batch.inputs), self.device)
        if generator is not None:
            images = {
                name: self.augmentation(name, image, generator, self._part)
                for name, image in observation.images.items()
            }
            observation = replace(observation, images=images)
        return observation, torch.from_numpy(batch.actions).to(self.device)

    def _backward(
        self, observation: Observation, actions: Tensor, drawn: Mapping[str, Tensor], mask: Tensor | None
    ) -> Tensor:
        """The gradient of the mean loss, in as many parts as the config says; returns the losses [B, H]."""
        self.model.zero_grad(set_to_none=True)
        parts, losses = self.config.gradient.accumulate, list[Tensor]()
        size, whole = len(actions) // parts, None
        if language_of(self.model) is not None:
            whole = self.ranks.sum(target_counts(observation, mask))
        for rows in (slice(start, start + size) for start in range(0, len(actions), size)):
            part, own = (observation[rows], actions[rows]), None if mask is None else mask[rows]
            options = {name: value[:, rows] for name, value in drawn.items()}
            last = rows.stop == len(actions)
            with nullcontext() if last else without_exchange(self._loss):
                with product_context(self.config.precision, self.device):
                    loss, _ = self._part_losses(self._loss, part, own, options, whole, parts * self.ranks.count)
                (loss.mean() / parts).backward()
            losses.append(loss.detach())
        return torch.cat(losses)

    def _part_losses(
        self, loss: Callable[..., Any], part: tuple[Observation, Tensor], mask: Tensor | None,
        drawn: Mapping[str, Tensor], whole: Tensor | None, parts: float,
    ) -> tuple[Tensor, Losses | None]:  # fmt: skip
        """The loss [B, H] of one of so many equal parts of a batch, and of a model that writes its three kinds, scaled
        so that the mean of all parts is the batch's own, whichever samples have text or actions.

        loss: the model's. whole: the batch's `target_counts`.
        """
        found = loss(*part, draws=self.config.draws, **drawn, **({} if mask is None else {"action_mask": mask}))
        language = language_of(self.model)
        if language is None or whole is None:
            return found, None
        scaled = found.scaled(target_counts(part[0], mask) * parts / whole.clamp(min=1))
        return scaled.total(language), scaled

    # ---------------------------------------------------------------- measuring

    def _measure(self, metrics: MetricsFile, last: bool) -> bool:
        """What is due after this step; true when the selection calls it the best so far."""
        values = dict[str, float]()
        if self.validation is not None and (last or self.step % self.config.validate_every == 0):
            values.update(self.validate())
        due = [measure for measure in self.measures if last or self.step % measure.every == 0]
        if due:
            with self.average.applied():
                model = self._checkpoints.whole_model().eval()  # with shards on the host
                for measure in due:
                    values.update(self.ranks.from_first(lambda measure=measure: _measured(measure, model)))
            self.model.train()
        if values:
            metrics.write(self.step, **values)
        return self.selection.take(self.step, values)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss of the averaged weights on held-out frames, at fixed noise and times, without augmentation; of a
        model that learns to write, also its parts.
        """
        assert self.validation is not None
        generator = stream(VALIDATION_SEED, 0, Purpose.VALIDATION, self._checkpoints.seed_rule)
        names, count = self._validated_parts(), min(VALIDATION_BATCHES, self.validation.batches_per_epoch)
        total = torch.zeros(1 + len(names), dtype=torch.float64)
        # the average of bfloat16 weights is in float32
        precision = "mixed" if self.config.precision == "bfloat16" else self.config.precision
        self.model.eval()
        loss = getattr(self.model, training_method(self.model))
        with self.average.applied(), product_context(precision, self.device):
            for step in range(count):
                batch = self.validation.batch(step)
                observation, actions = self.tensors_of(batch, None)
                drawn = draw(self.config, actions, generator)
                mask, (rows, share) = self._action_mask(batch), self.ranks.rows(len(actions))
                part, own = (observation[rows], actions[rows]), None if mask is None else mask[rows]
                options = {name: value[:, rows] for name, value in drawn.items()}
                counts = None if language_of(self.model) is None else target_counts(observation, mask)
                mean, kinds = self._part_losses(loss, part, own, options, counts, 1 / max(share, 1e-9))
                found = [mean, *(getattr(kinds, name) for name in names)]
                total += torch.tensor([float(each.mean()) for each in found], dtype=torch.float64) * share
        self.model.train()
        means = (self.ranks.sum(total) / count).tolist()
        return dict(zip(("validation_loss", *(f"validation_{name}" for name in names)), means, strict=True))

    def _validated_parts(self) -> tuple[str, ...]:
        language = language_of(self.model)
        if language is None or getattr(self.model.config, "one_step", False):
            return ()
        written = (("text", language.writes_text), ("fast", language.writes_fast))
        return ("flow", *(name for name, there in written if there))

    # ---------------------------------------------------------------- checkpoints

    def save(self) -> Path:
        """A native checkpoint with the averaged weights; what a resume needs lies in its `training_state` folder.

        With LoRA the checkpoint's weights are merged, and `adapters` holds what was trained alone.
        """
        return self._checkpoints.save(self.step, self.skipped_steps, self._interval.to_carry())

    def resume(self) -> bool:
        """Goes on from the newest complete checkpoint in the folder; false when there is none."""
        found = self._checkpoints.resume()
        if found is not None:
            self.step, self.skipped_steps, self._carried = found
        return found is not None

    # ---------------------------------------------------------------- inside

    def _action_mask(self, batch: Batch) -> Tensor | None:
        """[B, D] true for the dimensions that the robot has, where only these count."""
        if self.config.gradient.padded_actions or batch.action_dims is None:
            return None
        dims = torch.from_numpy(batch.action_dims)[:, None]
        return (torch.arange(batch.actions.shape[-1]) < dims).to(self.device)


def _measured(measure: Measure, model: Network) -> Mapping[str, float]:
    with sampling(model):
        return measure.run(model)
