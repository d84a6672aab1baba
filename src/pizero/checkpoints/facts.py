"""What a checkpoint tells of the robot, made into a pipeline."""

from __future__ import annotations

from pizero.checkpoints.models import NetworkConfig
from pizero.checkpoints.source import Facts
from pizero.data.pipeline import Pipeline, PromptFormat
from pizero.types import UserError

PROMPT_FORMATS: dict[str | bool, PromptFormat] = {
    "token": "pi0", "prompt": "pi05", "none": "none",
    True: "pi0", False: "pi0",  # the diffusion policy is given the state and reads it or not
}  # fmt: skip
"""By the config's `state_input`."""


def unknown(facts: Facts) -> tuple[str, ...]:
    """The names of what is not known and what a pipeline needs."""
    return tuple(name for name in ("embodiment", "norm_stats", "tokenizer") if getattr(facts, name) is None)


def make_pipeline(config: NetworkConfig, facts: Facts) -> Pipeline:
    """From robot dictionaries to this model's tensors. UserError names what is unknown, or does not fit the model."""
    if missing := unknown(facts):
        raise UserError(
            f"the checkpoint does not tell {' nor '.join(missing)}, and it is not guessed; "
            "load the model alone and give it and a Pipeline to ModelPolicy"
        )
    assert facts.embodiment is not None
    assert facts.norm_stats is not None
    assert facts.tokenizer is not None
    if facts.tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {facts.tokenizer.vocab_size} pieces, the model's table {config.vocab_size}; "
            "choose a smaller tokenizer or a larger vocab_size"
        )
    return Pipeline(
        embodiment=facts.embodiment,
        norm_stats=facts.norm_stats,
        tokenizer=facts.tokenizer,
        cameras=config.cameras,
        prompt_format=PROMPT_FORMATS[config.state_input],
        prompt_length=config.prompt_length,
        image_size=config.image_shape,
        state_dim=config.state_dim,
        action_dim=config.action_dim,
        num_history=config.num_history,
    )
