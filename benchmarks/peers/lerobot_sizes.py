"""LeRobot's π0 and π0.5 at other sizes than the two that it knows: its config has no field for them.

physicalai's π0.5 is made of the same classes, and takes them as well.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

_OWN: dict[str, tuple[Any, Any, Any]] = {}
"""The module's own classes, by its name, so that sizes can be chosen again."""


def use_sizes(module: ModuleType, arch: dict[str, Any]) -> None:
    """Puts sizes in the place of the fixed ones in `module`: LeRobot's modeling_pi0 or modeling_pi05, or physicalai's
    policies.pi05.model.

    arch: vlm, expert (fields of what its get_gemma_config gives), vision (fields of Transformers' config), vocab_size.
    """
    if module.__name__ not in _OWN:
        kinds = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM
        _OWN[module.__name__] = type(module.get_gemma_config("gemma_2b")), *kinds
    gemma, vlm, expert = _OWN[module.__name__]
    sizes = {"gemma_2b": arch["vlm"], "gemma_300m": arch["expert"]}
    module.get_gemma_config = lambda variant: gemma(**sizes[variant])

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
