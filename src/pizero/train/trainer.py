"""The training loop: read, step, validate, save. Every random number depends on seed and step alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pizero.checkpoints.models import Network
from pizero.checkpoints.native import Example, load_model_weights, save_checkpoint
from pizero.data.augment import Augmentation
from pizero.data.loader import Batch, Loader
from pizero.data.pipeline import ModelInputs, Pipeline
from pizero.model.flow_matching import sample_time
from pizero.model.pi0 import Pi0
from pizero.train.config import TrainConfig
from pizero.train.metrics import MetricsFile
from pizero.train.optim import WeightAverage, learning_rate, make_optimizers, product_context
from pizero.types import Observation, UserError

VALIDATION_SEED = 1_000_003
"""Noise, times and frames of the validation are the same at every step and in every run."""

VALIDATION_BATCHES = 8


@dataclass(frozen=True)
class Progress:
    """What a progress display needs to know after a step."""

    step: int
    loss: float
    samples_per_second: float
    data_share: float
    """Share of the time spent waiting for data, 0 to 1."""


class Trainer:
    """Trains `model` on batches of `loader` and writes checkpoints, `metrics.jsonl` and `train.json` into `folder`."""

    def __init__(
        self,
        model: Network,
        pipeline: Pipeline,
        config: TrainConfig,
        loader: Loader,
        validation: Loader | None,
        folder: Path,
        *,
        make_example: Callable[[Network], Example] | None = None,
        robots: Sequence[Pipeline] = (),
        device: str = "cpu",
    ) -> None:
        """robots: pipelines of the other robots of a mixture, saved with the checkpoint."""
        if model.config.past_actions:
            raise UserError(
                "a policy whose chunk starts before the newest observation runs, but is not trained further"
            )
        if config.max_delay and not isinstance(model, Pi0):
            raise UserError(f"max_delay is for π0 and π0.5, not for {type(model).__name__}")
        if isinstance(model, Pi0):  # the checkpoint tells what the model was trained to continue
            model.config = dataclasses.replace(model.config, max_delay=config.max_delay)
        self.model, self.pipeline, self.config, self.folder = model, pipeline, config, folder
        self.loader, self.validation, self._make_example = loader, validation, make_example
        self.robots = robots
        self.device = torch.device(device)
        self.model.to(self.device).train()
        self.optimizers = make_optimizers(model, config)
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.average = WeightAverage(model, config.ema_decay, config.ema_power)
        self.augmentation = Augmentation(config.augmentation)
        self.step = 0
        self.folder.mkdir(parents=True, exist_ok=True)

    # ---------------------------------------------------------------- loop

    def run(self, on_step: Callable[[Progress], None] | None = None) -> Path:
        """Trains to the last step and returns the folder of the last checkpoint."""
        config = self.config
        metrics = MetricsFile(self.folder / "metrics.jsonl", self.step)
        losses: list[Tensor] = []
        batches = self.loader.batches(self.step, config.steps)
        waited, since, busy = 0.0, time.perf_counter(), time.process_time()
        try:
            while self.step < config.steps:
                started = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - started
                losses.append(self.train_step(batch))
                if self.step % config.log_every == 0 or self.step == config.steps:
                    elapsed = time.perf_counter() - since
                    progress = self._progress(losses, elapsed, waited)
                    metrics.write(
                        self.step, loss=progress.loss, learning_rate=learning_rate(config, self.step - 1),
                        samples_per_second=progress.samples_per_second, data_share=progress.data_share,
                        cpu_seconds=time.process_time() - busy,
                    )  # fmt: skip
                    if on_step is not None:
                        on_step(progress)
                    losses, waited, since, busy = [], 0.0, time.perf_counter(), time.process_time()
                if self.validation is not None and (
                    self.step % config.validate_every == 0 or self.step == config.steps
                ):
                    metrics.write(self.step, validation_loss=self.validate())
                    since, busy = time.perf_counter(), time.process_time()
                if self.step % config.save_every == 0 or self.step == config.steps:
                    self.save()
                    since, busy = time.perf_counter(), time.process_time()
        finally:
            metrics.close()
        return checkpoint_folder(self.folder, self.step)

    def train_step(self, batch: Batch) -> Tensor:
        """One optimizer step; returns the loss as a tensor, so that the device is not waited for."""
        config = self.config
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, self.step)
        generator = self._generator(config.seed, self.step)
        observation, actions = self._to_device(batch, generator)
        draws = self._draw(actions, generator)
        with product_context(config.precision, self.device):
            loss = self.model.loss(observation, actions, **draws).mean()
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, config.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        if config.ema_decay > 0:
            self.average.update(self.step)
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of the averaged weights on held-out frames, at fixed noise and times, without augmentation."""
        assert self.validation is not None
        generator = self._generator(VALIDATION_SEED, 0)
        total, count = 0.0, 0
        self.model.eval()
        with self.average.applied(), product_context(self.config.precision, self.device):
            for step in range(min(VALIDATION_BATCHES, self.validation.batches_per_epoch)):
                observation, actions = self._to_device(self.validation.batch(step), None)
                loss = self.model.loss(observation, actions, **self._draw(actions, generator))
                total, count = total + float(loss.mean()), count + 1
        self.model.train()
        return total / count

    # ---------------------------------------------------------------- checkpoints

    def save(self) -> Path:
        """A native checkpoint with the averaged weights; what a resume needs lies in its `training_state` folder."""
        target = checkpoint_folder(self.folder, self.step)
        target.parent.mkdir(exist_ok=True)

        state = {
            "step": self.step,
            "weights": {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

        def write_state(folder: Path) -> None:
            (folder / "training_state").mkdir()
            torch.save(state, folder / "training_state" / "state.pt")
            (folder / "training_state" / "train.json").write_text(json.dumps(self.config.to_json(), indent=1))

        with self.average.applied():
            example = self._make_example(self.model) if self._make_example is not None else None
            save_checkpoint(target, self.model, self.pipeline, example, write_state, self.robots)
        for old in list_checkpoints(self.folder)[: -self.config.keep]:
            shutil.rmtree(old)
        return target

    def resume(self) -> bool:
        """Goes on from the newest complete checkpoint in the folder; false when there is none."""
        found = list_checkpoints(self.folder)
        if not found:
            return False
        state = torch.load(found[-1] / "training_state" / "state.pt", map_location=self.device, weights_only=True)
        # the checkpoint's own weights are the average
        load_model_weights(self.model, found[-1])
        self.average.load_state([parameter.detach() for parameter in self._trained])
        self.model.load_state_dict(state["weights"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = int(state["step"])
        return True

    # ---------------------------------------------------------------- inside

    def _to_device(self, batch: Batch, generator: torch.Generator | None) -> tuple[Observation, Tensor]:
        observation = self.pipeline.observation(trimmed(batch.inputs), self.device)
        if generator is not None:
            images = {name: self.augmentation(name, image, generator) for name, image in observation.images.items()}
            observation = Observation(
                images, observation.image_masks, observation.state, observation.prompt_tokens, observation.prompt_mask
            )
        return observation, torch.from_numpy(batch.actions).to(self.device)

    def _draw(self, actions: Tensor, generator: torch.Generator) -> dict[str, Any]:
        """Noise, times and delays on the host, so that they are the same on every device; as `loss` takes them."""
        shape = (self.config.draws, *actions.shape)
        draws = {"noise": torch.randn(shape, generator=generator), "time": sample_time(shape[:2], generator)}
        if self.config.max_delay:
            draws["delay"] = torch.randint(self.config.max_delay + 1, shape[:2], generator=generator)
        return {name: value.to(self.device) for name, value in draws.items()} | {"draws": self.config.draws}

    def _generator(self, seed: int, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed * 2_147_483_647 + step)

    def _progress(self, losses: list[Tensor], elapsed: float, waited: float) -> Progress:
        loss = float(torch.stack(losses).mean())
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise UserError(
                f"the loss is {loss} at step {self.step}: lower the learning rate or check the data; "
                f"the checkpoints in {self.folder} are intact"
            )
        return Progress(self.step, loss, len(losses) * self.loader.batch_size / elapsed, waited / elapsed)


def trimmed(inputs: ModelInputs) -> ModelInputs:
    """Without the prompt slots that no sample of the batch uses: padding changes nothing but the cost."""
    used = max(int(inputs["prompt_mask"].sum(axis=1).max()), 1)
    tokens, mask = inputs["prompt_tokens"][:, :used], inputs["prompt_mask"][:, :used]
    return {**inputs, "prompt_tokens": tokens, "prompt_mask": mask}


def checkpoint_folder(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"{step:07d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    paths = (folder / "checkpoints").glob("[0-9]" * 7)
    return sorted(path for path in paths if (path / "training_state" / "state.pt").is_file())


def read_train_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training_state" / "train.json").read_text())
