"""A preset whose model also learns to write: the text of subtasks, FAST tokens, or both."""

from __future__ import annotations

from dataclasses import replace

from pizero.configs.preset import Preset
from pizero.model.config import LanguageConfig, Pi0Config
from pizero.types import LayoutName, UserError


def with_language(preset: Preset, text: LayoutName | None, fast: bool, insulation: bool) -> Preset:
    """text: the layout in which subtasks are written; None writes none. fast: FAST tokens of the actions beside them.

    UserError for another model, and where nothing is to be written.
    """
    if text is None and not fast:
        raise UserError("insulation is for a model that learns text or FAST tokens, which then train its prefix alone")
    if not isinstance(preset.model, Pi0Config):
        raise UserError("text and FAST tokens are learnt beside the actions by pi0 and pi05; give --model pi05")
    own = preset.model.language or LanguageConfig()
    language = replace(
        own, layout=text or own.layout, text_weight=(own.text_weight or 1.0) if text is not None else 0.0,
        fast_weight=(own.fast_weight or 1.0) if fast else 0.0, insulation=insulation,
    )  # fmt: skip
    return replace(preset, model=replace(preset.model, language=language))
