"""LeRobot's plugin with an export as its checkpoint; the few classes of LeRobot that it needs are stood in for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from export_helpers import observation, write

from pizero.export.export import export
from pizero.exported.policy import load_exported
from pizero.policy.sampling import episode_noise
from pizero.types import UserError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PLUGIN = Path(__file__).parents[2] / "integrations" / "lerobot_policy_pizero" / "src"


@dataclass
class Config:
    """LeRobot's PreTrainedConfig, as far as the plugin reads it."""

    device: str = "cpu"
    pretrained_path: str | None = None
    input_features: Any = None
    output_features: Any = None
    image_features = ()

    @staticmethod
    def register_subclass(name: str) -> Any:
        return lambda kind: kind


class Policy(torch.nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config


@pytest.fixture(scope="module")
def plugin() -> Iterator[Any]:
    """The plugin's module of the policy, with its config class beside it."""

    class Feature:
        def __init__(self, *values: Any) -> None:
            self.values = values

    class Mode:
        IDENTITY = "IDENTITY"

    parts: dict[str, dict[str, Any]] = {
        "lerobot": {}, "lerobot.policies": {}, "lerobot.policies.rtc": {},
        "lerobot.configs": {
            "FeatureType": str, "PolicyFeature": Feature, "NormalizationMode": Mode, "PreTrainedConfig": Config
        },
        "lerobot.optim": dict.fromkeys(("AdamWConfig", "CosineDecayWithWarmupSchedulerConfig"), Feature),
        "lerobot.policies.rtc.configuration_rtc": {"RTCConfig": Feature},
        "lerobot.policies.pretrained": {"PreTrainedPolicy": Policy},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, values in parts.items():
            module = ModuleType(name)
            module.__dict__.update(values)
            patch.setitem(sys.modules, name, module)
        patch.syspath_prepend(str(PLUGIN))
        import lerobot_policy_pizero.modeling_pizero as found  # pyright: ignore[reportMissingImports]

        yield found
        for name in [name for name in sys.modules if name.startswith("lerobot_policy_pizero")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    for kind in ("pi0-delays", "flow"):
        export(write(root / f"{kind}-checkpoint", kind), root / kind, to="onnx", threads=1)
    return {"pi0": root / "pi0-delays", "diffusion": root / "flow", "checkpoint": root / "pi0-delays-checkpoint"}


def batch(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """An observation, and as LeRobot hands it to a policy."""
    robot = observation(seed)
    images = {
        f"observation.images.{name}": torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        for name, image in robot["images"].items()
    }
    state = torch.from_numpy(robot["state"])[None]
    return robot, {"observation.state": state, **images, "task": [robot["prompt"]]}


def test_an_export_is_played(plugin: Any, folders: dict[str, Path]) -> None:
    policy = plugin.PizeroPolicy(plugin.PizeroConfig(checkpoint=str(folders["pi0"]), seed=4))
    exported = load_exported(folders["pi0"])
    robot, given = batch(1)
    noise = episode_noise(4, 0, exported.noise_shape)
    expected = exported.infer({**robot, "noise": noise})["actions"]
    np.testing.assert_array_equal(policy.predict_action_chunk(given)[0].numpy(), expected)
    assert policy.select_action(given).shape == (1, 2)
    assert policy.config.chunk_size == exported.horizon == len(policy.config.action_delta_indices)
    left = torch.from_numpy(expected[2:])
    asked = {**robot, "noise": noise, "previous_actions": expected[2:], "inference_delay": 2}
    continued = policy.predict_action_chunk(
        given, noise=torch.from_numpy(noise)[None], inference_delay=2, prev_chunk_left_over=left
    )
    np.testing.assert_array_equal(continued[0].numpy(), exported.infer(asked)["actions"])


def test_what_an_export_cannot_do_in_lerobot_is_one_line(plugin: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    config = plugin.PizeroConfig
    policy = plugin.PizeroPolicy(config(checkpoint=str(folders["pi0"])))
    with pytest.raises(UserError, match="an export cannot be trained"):
        policy.forward(batch(0)[1])
    with pytest.raises(UserError, match="keeps no weights to save"):
        policy._save_pretrained(tmp_path)
    with pytest.raises(UserError, match="in which num_steps, embodiment is settled"):
        plugin.PizeroPolicy(config(checkpoint=str(folders["pi0"]), num_steps=3, embodiment="so101"))
    with pytest.raises(UserError, match="export of a diffusion policy"):
        plugin.PizeroPolicy(config(checkpoint=str(folders["diffusion"])))


def test_a_checkpoint_is_played_as_before(plugin: Any, folders: dict[str, Path]) -> None:
    """With the horizon read before the policy is made, as LeRobot does."""
    config = plugin.PizeroConfig(checkpoint=str(folders["checkpoint"]))
    horizon = len(config.action_delta_indices)
    policy = plugin.PizeroPolicy(config)
    _, given = batch(2)
    chunk = policy.predict_action_chunk(given)
    assert chunk.shape == (1, horizon, 2)
    with pytest.raises(UserError, match="gave its weights to the fast path"):
        policy.forward(given)
