"""The policy itself: LeRobot's batches in, chunks in robot units out, by pizero's pipeline and fast path."""

from __future__ import annotations

from collections import deque
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_pizero.configuration_pizero import PizeroConfig
from pizero.checkpoints.facts import GivenFacts, make_pipeline
from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.lerobot import plugin
from pizero.checkpoints.load import open_checkpoint
from pizero.checkpoints.native.checkpoint import save_checkpoint, torch_dtype
from pizero.data.pipeline import Pipeline
from pizero.engine.fast_sampler import FastSampler
from pizero.exported.manifest import detect as is_export
from pizero.exported.policy import ExportedPolicy
from pizero.model.pi0 import Pi0
from pizero.policy.lerobot_batches import LeRobotBatches, previous_actions
from pizero.policy.policy import ModelPolicy
from pizero.policy.real_time import RealTime
from pizero.policy.sampling import episode_noise
from pizero.types import UserError
from pizero.workflows.policies import open_policy


class PizeroPolicy(PreTrainedPolicy):
    """dataset_meta: LeRobot's, of the dataset that is trained on. path: of a checkpoint in the place of the config's.

    The first chunk packs the weights for the fast path, in the place of the trainable ones; a policy in training runs
    the plain model instead.
    """

    config_class = PizeroConfig
    name = "pizero"

    def __init__(
        self, config: PizeroConfig, dataset_meta: Any = None, path: str | Path | None = None, **_: Any
    ) -> None:
        super().__init__(config)
        self.model: Pi0 | None = None
        self._policy: ModelPolicy | ExportedPolicy | None = None
        if dataset_meta is None and (export := _export(config, path)) is not None:
            self._policy = export
            self.pipeline, self._horizon = export.pipeline, export.manifest.action_horizon
        else:
            self.model, self.pipeline = _parts(config, path, dataset_meta)
            self._horizon = self.model.config.action_horizon
        self.batches = LeRobotBatches(plugin.camera_keys(self.pipeline), self.pipeline.embodiment.default_prompt)
        self._trained = False
        self._episode = self._rows = 0
        self._queue: deque[Tensor] = deque()
        self._describe(config)
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path | None,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        dataset_meta: Any = None,
        **_: Any,
    ) -> PizeroPolicy:
        """A checkpoint of any format that pizero reads; None takes the config's."""
        path = pretrained_name_or_path
        if path is not None:
            path = local_folder(f"{path}@{revision}" if revision and not Path(path).exists() else path)
        if config is None:
            config = PreTrainedConfig.from_pretrained(path) if path and plugin.detect(path) else PizeroConfig()
        policy = cls(config, dataset_meta, path)
        return policy.to(config.device).eval()

    def reset(self) -> None:
        """A new episode in each environment."""
        self._queue.clear()
        self._episode += self._rows
        self._rows = self._chunks = 0

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next action [B, d]; a new chunk every n_action_steps."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **kwargs)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        noise: Tensor | None = None,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Chunks [B, H, d] in robot units, on the CPU. noise: [B, H, action_dim] instead of the seed's.

        prev_chunk_left_over, inference_delay: as LeRobot's real-time chunking gives them, for one robot; its schedule,
        weight and horizon are those of rtc_config.
        """
        with torch.inference_mode(False), torch.no_grad():
            policy = self._running()
            real_time, longest = self._real_time()
            if isinstance(policy, ModelPolicy):
                policy.real_time = real_time
            observations = self.batches.observations(batch)
            given = [None] * len(observations) if noise is None else noise.float().cpu().numpy()
            for row, observation in enumerate(observations):
                drawn = episode_noise(self.config.seed + self._episode + row, self._chunks, policy.noise_shape)
                observation["noise"] = drawn if given[row] is None else given[row]
            left = previous_actions(prev_chunk_left_over, longest)
            if left is not None:
                delay = min(int(inference_delay or 0), len(left))
                observations = [{**o, "previous_actions": left, "inference_delay": delay} for o in observations]
            answers = policy.infer_batch(observations)
        self._chunks, self._rows = self._chunks + 1, len(observations)
        return torch.from_numpy(np.stack([answer["actions"] for answer in answers]))

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, Any]]:
        """The flow-matching loss, of a random noise and time for each sample; with the reduction "none" [B]."""
        if self.model is None:
            raise UserError("an export cannot be trained; give --policy.checkpoint the checkpoint that it was made of")
        if self._policy is not None and not self._trained:
            raise UserError("this policy gave its weights to the fast path; load it again to train it")
        self._trained = True
        state, images, prompts = self.batches.arrays(batch)
        device = next(self.model.parameters()).device
        observation = self.pipeline.observation(self.pipeline.model_inputs(images, state, prompts), device)
        actions = torch.from_numpy(self.pipeline.model_actions(self.batches.actions(batch), state)).to(device)
        losses = self.model.loss(observation, actions).mean(dim=1)
        return losses if reduction == "none" else losses.mean(), {"loss": float(losses.mean())}

    def get_optim_params(self) -> Any:
        return self.parameters()

    def supports_rtc(self) -> bool:
        return True

    def init_rtc_processor(self) -> None:
        """Nothing: rtc_config is read at each chunk."""

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.model is None or (self._policy is not None and not self._trained):
            raise UserError("this policy keeps no weights to save; copy the folder that it was loaded from")
        if state_dict is not None:
            raise UserError("saving gathered shards (FSDP) is not supported; use pizero train --sharding")
        config = copy(self.config)
        config.checkpoint = config.embodiment = config.norm_stats = config.tokenizer = None  # the folder has its own
        config._save_pretrained(save_directory)
        save_checkpoint(Path(save_directory) / plugin.INSIDE, self.model, self.pipeline)

    def _running(self) -> ModelPolicy | ExportedPolicy:
        """The policy that runs this model, made when it is first needed, where the weights then are; or the export."""
        if self._policy is None:
            assert self.model is not None
            options: dict[str, Any] = {"num_steps": self.config.num_steps}
            sampler = self.model
            if not self._trained:
                sampler = FastSampler(self.model, kernels=self.config.kernels, consume=True)
            self._policy = ModelPolicy(sampler, self.pipeline, fast=not self._trained, **options)
        return self._policy

    def _real_time(self) -> tuple[RealTime, int]:
        """How the old chunk is continued, and how much of it counts."""
        rtc, horizon = self.config.rtc_config, self._horizon
        if rtc is None:
            return RealTime(), horizon
        schedule: Any = rtc.prefix_attention_schedule.value.lower()
        return RealTime(schedule=schedule, max_weight=rtc.max_guidance_weight), min(rtc.execution_horizon, horizon)

    def _describe(self, config: PizeroConfig) -> None:
        """Fills in what the checkpoint says, for LeRobot's commands."""
        horizon = self._horizon
        config.n_action_steps = config.n_action_steps or max(horizon // 2, 1)
        if not 1 <= config.n_action_steps <= horizon:
            raise UserError(f"n_action_steps is {config.n_action_steps}, and the policy's chunks have {horizon}")
        if config.chunk_size not in (None, horizon):
            raise UserError(f"chunk_size is {config.chunk_size}, the checkpoint's chunks have {horizon}: leave it out")
        config.chunk_size = horizon
        inputs, outputs = plugin.features(self.pipeline)
        known = config.input_features or {}
        ours, theirs = list(self.batches.cameras.values()), list(config.image_features)
        if len(ours) == len(theirs) == 1:  # whatever its name, as in LeRobotBatches
            inputs[theirs[0]] = inputs.pop(ours[0])
        config.input_features = {key: known.get(key) or _feature(value) for key, value in inputs.items()}
        config.output_features = {key: _feature(value) for key, value in outputs.items()}


def _feature(values: dict[str, Any]) -> PolicyFeature:
    return PolicyFeature(FeatureType(values["type"]), tuple(values["shape"]))


def _export(config: PizeroConfig, path: str | Path | None) -> ExportedPolicy | None:
    """The policy of an export, if that is what is named. UserError for an option that it has settled."""
    where = path or config.checkpoint
    if where is None or not is_export(local_folder(where)):
        return None
    names = ("dtype", "kernels", "num_steps", "embodiment", "norm_stats", "tokenizer")
    policy = open_policy(where, **{name: getattr(config, name) for name in names})
    assert isinstance(policy, ExportedPolicy)
    if policy.manifest.kind != "pi0":
        raise UserError(f"{where} is the export of a diffusion policy; the plugin plays π0 and π0.5")
    return policy


def _parts(config: PizeroConfig, path: str | Path | None, dataset_meta: Any) -> tuple[Pi0, Pipeline]:
    """Model and pipeline: of the checkpoint; or what `pizero train` would begin with on this dataset."""
    if path is None and dataset_meta is not None:
        from pizero.workflows.untrained import untrained

        return untrained(
            Path(dataset_meta.root), config.model, config.horizon, config.checkpoint, config.embodiment,
            config.norm_stats, config.tokenizer,
        )  # fmt: skip
    where = path or config.checkpoint
    if where is None:
        raise UserError("give the policy a checkpoint, --policy.checkpoint=CHECKPOINT, or --policy.path=FOLDER")
    folder, source = open_checkpoint(where)
    given = GivenFacts(config.embodiment, config.norm_stats, config.tokenizer)
    pipeline = make_pipeline(source.config, given.over(source.facts, source.config))
    model = source.build(config.device or "cpu", torch_dtype(config.dtype))
    if not isinstance(model, Pi0):
        raise UserError(f"{folder} holds a {type(model).__name__}; the plugin plays π0 and π0.5")
    return model, pipeline
