"""Records what LeRobot's diffusion policy computes, at small sizes with seeded random weights, for our parity tests.

Run it in an environment of its own, with `pip install lerobot==0.6.1 diffusers`:

    make record-lerobot-diffusion LEROBOT_ENV=<that environment>

Two checkpoints, saved by the policy's and the processors' own `save_pretrained`, each with `golden.npz`; and
`default_state_dict.json`, names and shapes of the policy with all its defaults. LeRobot has no setting for the widths
of its ResNet-18, so the constructor that it calls is replaced by one of narrow levels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy, _make_noise_scheduler
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

WIDTHS = (16, 16, 32, 32)
BATCH, STATE, ACTION, STEPS = 2, 4, 3, 10
IMAGE = (3, 76, 100)

VARIANTS: dict[str, dict[str, Any]] = {
    "group_norm": {
        "n_obs_steps": 2, "n_action_steps": 8, "use_group_norm": True, "use_separate_rgb_encoder_per_camera": True,
        "crop_shape": (70, 97), "noise_scheduler_type": "DDIM", "num_inference_steps": STEPS, "clip_sample_range": 0.7,
    },
    "batch_norm": {
        "n_obs_steps": 3, "n_action_steps": 4, "use_group_norm": False, "use_separate_rgb_encoder_per_camera": False,
        "resize_shape": (68, 80), "crop_ratio": 0.85, "use_film_scale_modulation": False, "prediction_type": "sample",
        "clip_sample": False, "noise_scheduler_type": "DDPM", "num_train_timesteps": 50,
    },
}  # fmt: skip


class NarrowResNet(ResNet):
    """ResNet-18 with the levels' widths divided: the same names, in the same order."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self._norm_layer, self.inplanes, self.dilation, self.groups, self.base_width = (
            nn.BatchNorm2d,
            WIDTHS[0],
            1,
            1,
            64,
        )
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(WIDTHS[0]), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        for index, width in enumerate(WIDTHS):
            setattr(self, f"layer{index + 1}", self._make_layer(BasicBlock, width, 2, 1 if index == 0 else 2))
        self.avgpool, self.fc = nn.Identity(), nn.Identity()


def features() -> dict[str, Any]:
    image = PolicyFeature(FeatureType.VISUAL, IMAGE)
    return {
        "input_features": {
            "observation.images.top": image, "observation.images.wrist": image,
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
    }  # fmt: skip


def statistics(random: np.random.Generator) -> dict[str, dict[str, Tensor]]:
    """As LeRobot keeps them; one dimension of the action never moves."""

    def of(shape: tuple[int, ...], low: float, high: float) -> dict[str, Tensor]:
        first = torch.from_numpy(random.uniform(low, (low + high) / 2, shape)).float()
        last = torch.from_numpy(random.uniform((low + high) / 2, high, shape)).float()
        return {"min": first, "max": last, "mean": (first + last) / 2, "std": (last - first) / 3 + 0.05}

    stats = {
        "observation.images.top": of((3, 1, 1), 0.0, 1.0), "observation.images.wrist": of((3, 1, 1), 0.0, 1.0),
        "observation.state": of((STATE,), -2.0, 3.0), "action": of((ACTION,), -4.0, 4.0),
    }  # fmt: skip
    stats["action"]["max"][ACTION - 1] = stats["action"]["min"][ACTION - 1]
    return stats


def randomise(policy: DiffusionPolicy, seed: int) -> None:
    """Every tensor gets random values, none is left at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in policy.state_dict().items():
        if name.endswith(("pos_grid", "num_batches_tracked")):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor.ndim == 1:
            tensor.copy_((1.0 if name.endswith("weight") else 0.0) + 0.2 * noise)
        else:
            tensor.copy_(noise * (2.0 / tensor[0].numel()) ** 0.5)


def frames(images: dict[str, Tensor], state: np.ndarray) -> list[list[dict[str, Tensor]]]:
    """What a robot hands over, for each history in the batch and each moment of it: no batch axis."""
    values = {**images, "observation.state": torch.from_numpy(state)}
    return [
        [{key: value[row, moment] for key, value in values.items()} for moment in range(state.shape[1])]
        for row in range(BATCH)
    ]


def play(policy: DiffusionPolicy, before: Any, after: Any, history: list[dict[str, Tensor]], noise: Tensor) -> Tensor:
    """The actions in robot units that `select_action` plays after this history, one by one [n_action_steps, ACTION].

    The policy plans at the first call and once more when that plan is played; then its last observations are these.
    """
    policy.reset()
    length = policy.config.n_action_steps
    for observation in history[:1] * (length + 1 - len(history)) + history[:-1]:
        policy.select_action(before(observation), noise=noise[None].clone())
    newest = before(history[-1])
    return torch.cat([after(policy.select_action(newest, noise=noise[None].clone())) for _ in range(length)])


def record(name: str, changes: dict[str, Any], folder: Path) -> None:
    config = DiffusionConfig(
        horizon=16, down_dims=(16, 32), kernel_size=3, diffusion_step_embed_dim=16, spatial_softmax_num_keypoints=6,
        pretrained_backbone_weights=None, device="cpu", push_to_hub=False, **features(), **changes,
    )  # fmt: skip
    random = np.random.default_rng(len(name))
    stats = statistics(random)
    with mock.patch.object(torchvision.models, "resnet18", side_effect=lambda weights: NarrowResNet()):
        policy = DiffusionPolicy(config).eval()
    randomise(policy, len(name))
    before, after = make_diffusion_pre_post_processors(config, stats)
    for part in (policy, before, after):
        part.save_pretrained(folder)

    history = (BATCH, config.n_obs_steps)
    images = {key: random.integers(0, 256, (*history, *IMAGE), dtype=np.uint8) for key in ("top", "wrist")}
    state = random.uniform(-2, 3, (*history, STATE)).astype(np.float32)
    actions = torch.from_numpy(random.uniform(-1, 1, (BATCH, config.horizon, ACTION)).astype(np.float32))
    noise = torch.from_numpy(random.standard_normal(actions.shape).astype(np.float32))
    step = torch.tensor([3, config.num_train_timesteps - 2])
    raw = {f"observation.images.{key}": torch.from_numpy(value).float() / 255 for key, value in images.items()}
    batch = before({**raw, "observation.state": torch.from_numpy(state)})
    batch["observation.images"] = torch.stack([batch[key] for key in config.image_features], dim=-4)
    with torch.no_grad():
        encoded = policy.diffusion._prepare_global_conditioning(batch)
        predicted = policy.diffusion.unet(noise, step, global_cond=encoded)
        with (
            mock.patch.object(torch, "randn", return_value=noise),
            mock.patch.object(torch, "randint", return_value=step),
        ):
            loss = policy.diffusion.compute_loss(
                {**batch, "action": actions, "action_is_pad": torch.zeros(actions.shape[:2])}
            )
        policy.diffusion.noise_scheduler = _make_noise_scheduler(
            "DDIM", num_train_timesteps=config.num_train_timesteps, beta_schedule=config.beta_schedule,
            clip_sample=config.clip_sample, clip_sample_range=config.clip_sample_range,
            prediction_type=config.prediction_type,
        )  # fmt: skip
        policy.diffusion.num_inference_steps = STEPS
        sampled = policy.diffusion.conditional_sample(BATCH, global_cond=encoded, noise=noise.clone())
    histories = frames(raw, state)
    played = torch.stack([play(policy, before, after, *pair) for pair in zip(histories, noise, strict=True)])
    np.savez_compressed(
        folder / "golden.npz",
        **{f"in.{key}": value.transpose(0, 1, 3, 4, 2) for key, value in images.items()},
        **{"in.state": state, "in.actions": actions, "in.noise": noise, "in.step": step},
        **{"out.state": batch["observation.state"], "out.encoded": encoded, "out.unet": predicted, "out.loss": loss},
        **{"out.sampled": sampled, "out.played": played},
    )


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name, changes in VARIANTS.items():
        record(name, changes, folder / name)
    with torch.device("meta"):
        config = DiffusionConfig(pretrained_backbone_weights=None, device="cpu", **features())
        with mock.patch("lerobot.policies.diffusion.modeling_diffusion.get_output_shape", return_value=(1, 512, 2, 2)):
            shapes = {key: list(value.shape) for key, value in DiffusionPolicy(config).state_dict().items()}
    (folder / "default_state_dict.json").write_text(json.dumps(shapes, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
