"""`pizero playground`: which policies play, and where the first one comes from when none is named."""

from __future__ import annotations

from pathlib import Path

from pizero.checkpoints.load import load_policy
from pizero.serving.playground.session import Player
from pizero.types import UserError
from pizero.workflows.demo import quickstart
from pizero.workflows.progress import tell

QUICKSTART = Path("runs/quickstart")
FLAT = "flat"


def find_checkpoint(checkpoint: str | None, folder: Path = QUICKSTART) -> str:
    """The one that is named, else the quick start's, which is trained where there is none; that is said first."""
    if checkpoint is not None:
        return checkpoint
    if not (folder / "results.json").is_file():
        tell(
            "note", f"no checkpoint is named and {folder} has no finished quick start. It runs first, as pizero "
            "quickstart does, 3 to 5 minutes on 2 cores: demonstrations, training, evaluation. Then the page's address "
            "is printed here. Ctrl-C ends it, the same command continues it; with a CHECKPOINT none of it is needed"
        )  # fmt: skip
        quickstart(folder)
    return str(folder / "train")


def players(checkpoint: str, beside: str | None = None) -> list[Player]:
    """One policy, or two. beside: another checkpoint, or "flat": the same one without the text that it writes."""
    first = Player(_name(checkpoint), load_policy(checkpoint))
    if beside is None:
        return [first]
    if beside == FLAT:
        if not first.policy.takes_subtask:
            raise UserError(f"{checkpoint} writes no text that it could do without; --beside takes another checkpoint")
        return [first, Player(f"{first.name}, flat", first.policy, plans=False)]
    return [first, Player(_name(beside), load_policy(beside))]


def _name(checkpoint: str) -> str:
    return "/".join(Path(checkpoint).parts[-2:])
