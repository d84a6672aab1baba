"""What a checkpoint records of the robot: kept beside weights that came without all of it, and made into a pipeline."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pizero.checkpoints.files.remote import paligemma_tokenizer
from pizero.checkpoints.format import Facts
from pizero.checkpoints.models import NetworkConfig
from pizero.checkpoints.openpi.folder import mode_of
from pizero.data.embodiments import Embodiment, get_embodiment
from pizero.data.fast.codec import FastCodec
from pizero.data.fast.tokens import SKIP, FastTokenizer
from pizero.data.layouts import FAST_SKIP
from pizero.data.norm_stats import Mode, NormStats
from pizero.data.pipeline import CODEC, Pipeline
from pizero.data.prompts import PromptFormat
from pizero.data.recognition.description import of_folder
from pizero.data.recognition.recognise import recognise
from pizero.data.tokenizer import ByteEncoder, PaligemmaTokenizer
from pizero.files import read_json, values_of, write_bytes
from pizero.model.config import LanguageConfig, Pi0Config
from pizero.model.pi0_fast import Pi0FastConfig
from pizero.types import Convention, UserError

FACTS, STATS, TOKENIZER = "facts.json", "norm_stats.json", "tokenizer.model"
PALIGEMMA_VOCABULARY = 257_152
"""Entries of the token table of a model that started from PaliGemma; then no other tokenizer fits."""

PROMPT_FORMATS: dict[str | bool, PromptFormat] = {
    "token": "pi0", "prompt": "pi05", "none": "none",
    True: "pi0", False: "pi0",  # the diffusion policy is given the state and reads it or not
}  # fmt: skip
"""By the config's `state_input`."""


def unknown(facts: Facts, config: NetworkConfig) -> tuple[str, ...]:
    """The names of what is not known and what a pipeline for this model needs."""
    names = ("embodiment", "norm_stats", "tokenizer", *(("codec",) if isinstance(config, Pi0FastConfig) else ()))
    return tuple(name for name in names if getattr(facts, name) is None)


def needed_options(facts: Facts, config: NetworkConfig) -> tuple[str, ...]:
    """What a pipeline for this model needs beside the facts; PaliGemma's tokenizer need not be given."""
    default = ("tokenizer",) if config.vocab_size == PALIGEMMA_VOCABULARY else ()
    return tuple(name for name in unknown(facts, config) if name not in default)


@dataclass(frozen=True)
class GivenFacts:
    """What a user says in the place of what a checkpoint says; None where it is the checkpoint's.

    embodiment: or its name, or the folder of a dataset that has it. norm_stats: or its file, or the folder that holds
    it; one that does not say its mode, as openpi's, is used as the checkpoint's own are, else as openpi uses it with
    the model. tokenizer: or its file. codec: or its folder.
    """

    embodiment: Embodiment | str | None = None
    norm_stats: NormStats | str | Path | None = None
    tokenizer: PaligemmaTokenizer | str | Path | None = None
    codec: FastCodec | str | Path | None = None

    def over(self, facts: Facts, config: NetworkConfig) -> Facts:
        """The checkpoint's facts, and in their place those that are given. config: the model's."""
        embodiment, norm_stats, tokenizer = self.embodiment, self.norm_stats, self.tokenizer
        if isinstance(embodiment, str):
            embodiment = _robot_of(embodiment, config)
        if isinstance(norm_stats, str | Path):
            mode = mode_of(config) if isinstance(config, Pi0Config | Pi0FastConfig) else None
            mode = mode if facts.norm_stats is None else facts.norm_stats.mode
            norm_stats = stats_of_file(norm_stats, mode, embodiment or facts.embodiment)
        if isinstance(tokenizer, str | Path):
            tokenizer = PaligemmaTokenizer(tokenizer)
        codec = FastCodec.load(self.codec) if isinstance(self.codec, str | Path) else self.codec
        if codec is not None and not writes_actions(config):
            raise UserError("a codec is for π0-FAST, or a π0.5 that learns FAST tokens; leave --codec out")
        values = {"embodiment": embodiment, "norm_stats": norm_stats, "tokenizer": tokenizer, "codec": codec}
        return replace(facts, **{name: value for name, value in values.items() if value is not None})


def _robot_of(name: str, config: NetworkConfig) -> Embodiment:
    """A robot by its name, by its file, or of the dataset in a folder, with the places that the model has."""
    folder = Path(name)
    if folder.is_dir() and (folder / "meta").is_dir():
        return recognise(of_folder(folder), config.cameras).robot
    return get_embodiment(name)


def stats_of_file(
    where: str | Path, mode: Mode | None, embodiment: Embodiment | None, strict: bool = False
) -> NormStats:
    """Statistics of a file (ours, openpi's norm_stats.json or LeRobot's stats.json), or of the folder that holds it.

    mode: of one that does not say it; with `strict` another one is refused. UserError where there is no such file, or
    where it is of the columns as they are recorded and the embodiment changes them.
    """
    path = Path(where)
    if (path / "meta").is_dir():  # a dataset, whose file `pizero norm-stats` writes
        path = path / "meta"
    file = path / STATS if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{where}: there is nothing at this path; give the file {STATS}, or the folder that holds it")
    if not file.is_file():
        below = sorted(str(found.parent) for found in path.glob(f"assets/**/{STATS}"))
        hint = f"{STATS} lies in {', '.join(below)}" if below else f"give the file {STATS}, or the folder that holds it"
        raise UserError(f"{where}: no norm statistics here; {hint}")
    stored = read_json(file)
    if "norm_stats" in stored:
        return NormStats.load(file, mode if strict or "mode" not in stored else None)
    if embodiment is None:
        raise UserError(f"{file} is of a dataset's columns, and the robot that has them is not known; name it too")
    keys = embodiment.state_key, embodiment.action_key
    if any(embodiment.relative_mask):
        raise UserError(
            f"{file} does not record that its actions are relative, which those of the {embodiment.name} embodiment "
            "are; compute them with pizero norm-stats"
        )
    chooses = bool(embodiment.state_dims or embodiment.action_dims)
    if embodiment.conversions or chooses or not isinstance(keys[0], str) or not isinstance(keys[1], str):
        raise UserError(
            f"{file} is of the columns as they are, but the {embodiment.name} embodiment joins them, converts them or "
            "chooses some of their dimensions; compute them with pizero norm-stats"
        )
    return NormStats.load(file, mode, (keys[0], keys[1]))


def make_pipeline(config: NetworkConfig, facts: Facts) -> Pipeline:
    """From robot dictionaries to this model's tensors. UserError names what is unknown, or does not fit the model.

    Warns where the statistics are of more dimensions than the robot has, and not padded.
    A model with PaliGemma's vocabulary has PaliGemma's tokenizer unless another is known; it is downloaded once.
    """
    if missing := needed_options(facts, config):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise UserError(
            f"the checkpoint does not record {' nor '.join(missing)}, and it is not guessed; give {options} to pizero "
            "train, evaluate, serve or convert"
        )
    assert facts.embodiment is not None
    assert facts.norm_stats is not None
    fast, language = isinstance(config, Pi0FastConfig), language_of(config)
    tokenizer = facts.tokenizer or PaligemmaTokenizer(paligemma_tokenizer())
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the model's table {config.vocab_size}; "
            "choose a smaller tokenizer or a larger vocab_size"
        )
    pipeline = Pipeline(
        embodiment=facts.embodiment,
        norm_stats=facts.norm_stats,
        tokenizer=tokenizer,
        cameras=config.cameras,
        prompt_format="fast" if fast else PROMPT_FORMATS[config.state_input],
        prompt_length=config.prompt_length,
        image_size=config.image_shape,
        state_dim=config.state_dim,
        action_dim=config.action_dim,
        num_history=config.num_history,
        convention=facts.convention,
        fast=fast_tokenizer(config, tokenizer, facts.codec, facts.convention)
        if facts.codec and writes_actions(config)
        else None,
        layout=None if language is None else language.layout,
        text_length=language.text_length if language is not None and language.writes_text else 0,
    )
    try:
        facts.norm_stats.fitted(pipeline.robot_state_dim, pipeline.robot_action_dim)
    except UserError as more:
        warnings.warn(f"{more}; as it is, the first dimensions are used", stacklevel=2)
    return pipeline


def language_of(config: NetworkConfig) -> LanguageConfig | None:
    """Of a π0 or π0.5 that learns to write; None for every other model."""
    return config.language if isinstance(config, Pi0Config) else None


def writes_actions(config: NetworkConfig) -> bool:
    """Whether the model learns actions as tokens: all that π0-FAST does, and what a π0.5 may learn beside."""
    language = language_of(config)
    return isinstance(config, Pi0FastConfig) or (language is not None and language.writes_fast)


def fast_tokenizer(
    config: NetworkConfig, tokenizer: PaligemmaTokenizer, codec: FastCodec, convention: Convention
) -> FastTokenizer:
    """Where the codec's tokens stand in the model's vocabulary. convention: of π0-FAST's text."""
    language = language_of(config)
    skip = SKIP
    if language is not None and config.vocab_size == PALIGEMMA_VOCABULARY:
        skip = FAST_SKIP[language.layout]
    return FastTokenizer(tokenizer, codec, skip, config.vocab_size, convention)


def save_facts(facts: Facts, folder: Path) -> None:
    """facts.json, and the files of what is known."""
    values: dict[str, Any] = {
        "embodiment": None if facts.embodiment is None else facts.embodiment.to_json(),
        "norm_stats": facts.norm_stats is not None,
        "tokenizer": None,
        "convention": facts.convention,
        **({} if facts.codec is None else {"codec": True}),
    }
    if facts.codec is not None:
        facts.codec.save(folder / CODEC)
    if facts.norm_stats is not None:
        facts.norm_stats.save(folder / STATS)
    if facts.tokenizer is not None:
        byte_level = isinstance(facts.tokenizer.encoder, ByteEncoder)
        values["tokenizer"] = "bytes" if byte_level else "sentencepiece"
        if not byte_level:
            facts.tokenizer.save(folder / TOKENIZER)
    write_bytes(folder / FACTS, (json.dumps(values, indent=1) + "\n").encode())


def load_facts(folder: Path) -> Facts:
    """What `save_facts` wrote; nothing known when it wrote nothing."""
    path = folder / FACTS
    if not path.is_file():
        return Facts()
    values = read_json(path)
    with values_of(path):
        embodiment, tokenizer, stats = (values[name] for name in ("embodiment", "tokenizer", "norm_stats"))
        return Facts(
            embodiment=None if embodiment is None else Embodiment.from_json(embodiment),
            norm_stats=NormStats.load(folder / STATS) if stats else None,
            tokenizer=None if tokenizer is None
            else PaligemmaTokenizer.bytes() if tokenizer == "bytes"
            else PaligemmaTokenizer(folder / TOKENIZER),
            convention=values.get("convention", "openpi"),
            codec=FastCodec.load(folder / CODEC) if values.get("codec") else None,
        )  # fmt: skip


def pipeline_facts(pipeline: Pipeline) -> Facts:
    """The inverse of `make_pipeline`."""
    codec = None if pipeline.fast is None else pipeline.fast.codec
    return Facts(pipeline.embodiment, pipeline.norm_stats, pipeline.tokenizer, pipeline.convention, codec)
