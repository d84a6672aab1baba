"""Norm statistics from wherever a user has them: a file of three kinds, or a checkpoint of any format."""

from __future__ import annotations

from pathlib import Path

from pizero.checkpoints.facts import stats_of_file
from pizero.checkpoints.files.remote import local_folder
from pizero.checkpoints.load import FORMATS, read_checkpoint
from pizero.checkpoints.openpi.folder import ASSETS, STATS
from pizero.data.datasets.meta.info import INFO_PATH, STATS_PATH
from pizero.data.embodiments import Embodiment
from pizero.data.norm_stats import Mode, NormStats
from pizero.types import UserError


def read_norm_stats(where: str | Path, mode: Mode, embodiment: Embodiment) -> NormStats:
    """Statistics to normalise a robot's data with.

    where: our file, openpi's norm_stats.json or LeRobot's stats.json; or a checkpoint as for `load_model`, also
    `<checkpoint>/assets/<robot>` of openpi. mode: how to use them; a file of ours for another one is refused. UserError
    when there are none, or when they are not known to be of actions that are relative where the robot's are.
    """
    path = _local_path(str(where))
    if (path / INFO_PATH).is_file():
        raise UserError(f"{where} is a dataset; give its {STATS_PATH}, or meta/{STATS} of pizero norm-stats")
    file = path / STATS if path.is_dir() else path
    if path.is_dir() and (not file.is_file() or any(format.detect(path) for format in FORMATS.values())):
        stats = _of_checkpoint(path, embodiment)
        return stats if stats.mode == mode else NormStats(mode, stats.state, stats.actions)
    if not file.is_file():
        raise UserError(f"{where}: there is nothing at this path, neither a file of norm statistics nor a checkpoint")
    return stats_of_file(file, mode, embodiment, strict=True)


def _local_path(where: str) -> Path:
    """The path, downloaded first if need be; of a robot in a checkpoint elsewhere with the whole checkpoint."""
    checkpoint, _, robot = where.rpartition(f"/{ASSETS}/")
    if checkpoint and not Path(where).exists():
        return local_folder(checkpoint) / ASSETS / robot
    return local_folder(where)


def _of_checkpoint(folder: Path, embodiment: Embodiment) -> NormStats:
    source = read_checkpoint(folder)
    facts = source.facts
    if facts.norm_stats is None:
        told = "; ".join(note for note in source.notes if "norm stats" in note or STATS in note)
        raise UserError(told or f"{folder} has no norm statistics; leave them out, or give a file")
    dims = facts.norm_stats.actions.dim, facts.norm_stats.state.dim
    theirs = None if facts.embodiment is None else facts.embodiment.relative.index_pairs(*dims)
    if theirs is not None and theirs != embodiment.relative.index_pairs(*dims):
        raise UserError(
            f"{folder} has the norm stats of actions that are relative in other dimensions than those of the "
            f"{embodiment.name} embodiment; leave them out, or choose another embodiment"
        )
    return facts.norm_stats
