"""LeRobot's π0 and π0.5 at other sizes than the two that it knows: its config has no field for them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from lerobot.policies.pi0.modeling_pi0 import GemmaConfig

_OWN: dict[str, tuple[Any, Any]] = {}
"""LeRobot's own classes, by module, so that sizes can be chosen again."""


def use_sizes(module: ModuleType, arch: dict[str, Any]) -> None:
    """Puts sizes in the place of the fixed ones in `module`, LeRobot's modeling_pi0 or modeling_pi05.

    arch: vlm, expert (fields of its GemmaConfig), vision (fields of Transformers' config), vocab_size.
    """
    vlm, expert = _OWN.setdefault(
        module.__name__, (module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM)
    )
    sizes = {"gemma_2b": arch["vlm"], "gemma_300m": arch["expert"]}
    module.get_gemma_config = lambda variant: GemmaConfig(**sizes[variant])

    def small_vlm(config: Any) -> Any:
        for name, value in arch["vision"].items():
            setattr(config.vision_config, name, value)
        config.projection_dim = arch["vision"]["projection_dim"]
        config.text_config.vocab_size = arch["vocab_size"]
        return vlm(config=config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = arch["vocab_size"]
        return expert(config=config)

    module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM = small_vlm, small_expert
