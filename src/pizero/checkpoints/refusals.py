"""Folders and files that hold no checkpoint that can be read here: what they are, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from pizero.checkpoints.files.json_file import peek, short
from pizero.checkpoints.files.safetensors_file import WEIGHTS, weight_names
from pizero.checkpoints.lerobot.keys import LEGACY_KEYS
from pizero.exported.manifest import detect as is_export
from pizero.files import read_json
from pizero.types import UserError

_SAFETENSORS = "save its state dict as safetensors where it was trained"
_ENDINGS = {
    (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"): f"a pickle, which is never opened here; {_SAFETENSORS}",
    (".onnx", ".tflite", ".gguf", ".engine", ".plan"): "exported for another runtime; take the original weights",
    (
        ".npz",
        ".npy",
    ): "big_vision's format, as PaliGemma's: an initial checkpoint (pizero train --checkpoint), no policy",
    (".msgpack", ".h5"): "of a framework that is not read here; save it as safetensors",
}
_CONFIG, _PEFT = "config.json", "adapter_config.json"
LEGACY_PI0 = (
    "π0 of an older LeRobot (before 0.4), whose tensors have other names; it is not read here: fine-tune today's "
    "lerobot/pi0_base instead"
)
_LEGACY_PARTS = tuple(f"_with_expert.paligemma.{part}." for part in ("language_model", "vision_tower"))
_MARK = "action_in_proj"
_DEPTH, _MOST_FOLDERS = 4, 2_000
"""How far below a folder checkpoints are looked for: LeRobot's lie in checkpoints/<step>/pretrained_model."""


def refusal(path: Path, known: Callable[[Path], bool]) -> str:
    """One line on a path that no format knows. known: whether a folder is a checkpoint of some format.

    UserError when its config.json cannot be read.
    """
    if not path.exists():
        return f"{path}: there is nothing at this path"
    if not path.is_dir():
        return f"{path} {_file(path, known)}"
    if is_export(path):
        return f"{path} is an export, no checkpoint; pizero serve, pizero evaluate and load_exported run it"
    if (path / _CONFIG).is_file():
        read_json(path / _CONFIG)  # says what is wrong with it
    return f"{path} {_config(path) or _content(path, known) or _listed(path)}"


def check_no_adapters(folder: Path) -> None:
    """UserError where a checkpoint's folder holds adapters of PEFT too: its weights are not what was trained."""
    if (folder / _PEFT).is_file():
        raise UserError(
            f"{folder} holds LoRA adapters of PEFT ({_PEFT}) beside weights; merge them (merge_and_unload) where it "
            f"was trained and save that, or take {_PEFT} away if the weights are the merged ones"
        )


def legacy_pi0(names: Iterable[str]) -> str | None:
    """What to say of π0 as LeRobot had it before its processors, recognised by the names of its tensors."""
    if any(part in name for name in names for part in _LEGACY_PARTS):
        return f"is {LEGACY_PI0}"
    if any(name.startswith(("normalize_", "unnormalize_")) for name in names):
        return (
            "is π0 of an older LeRobot (before 0.4), with statistics among the weights; run LeRobot's "
            "migrate_policy_normalization on it first"
        )
    return None


def _file(path: Path, known: Callable[[Path], bool]) -> str:
    if _is_known(path.parent, known):
        return f"is one file of a checkpoint; give its folder, {path.parent}"
    what = _by_ending(path)
    return f"is a file and no checkpoint folder: {what}" if what else "is no checkpoint: it is a file; give the folder"


def _config(folder: Path) -> str | None:
    """By what its JSON files say."""
    config = peek(folder / _CONFIG)
    policy, kind = config.get("type"), config.get("model_type")
    if (folder / _PEFT).is_file():
        base = peek(folder / _PEFT).get("base_model_name_or_path")
        return (
            f"holds LoRA adapters of PEFT for {short(base)}, not a whole model; merge them into it (merge_and_unload) "
            "where it was trained, and save that"
        )
    if policy == "pi0_fast":
        return "has the config.json of LeRobot's pi0_fast, but no weights of one; copy the checkpoint again"
    if policy == "pi0fast":
        return "holds LeRobot's π0-FAST of a version before 0.4, which is not supported; convert it with LeRobot's own"
    if policy is None and "input_features" in config:
        return (
            'has a config.json of LeRobot without "type", so it does not say which policy it is; add "type": "pi0" or '
            '"pi05" to it'
        )
    if policy == "pi0" and LEGACY_KEYS & config.keys():
        return f"is {LEGACY_PI0}"
    if policy in ("pi0", "pi05") and (pickled := _pickled(folder)):
        return f"has the config.json of LeRobot's {policy}, but its weights are {pickled}"
    if policy in ("pi0", "pi05") and (other := [name for name in weight_names(folder) if _MARK in name]):
        return (
            f"has the config.json of LeRobot's {policy}, but tensors that are named otherwise, as {short(min(other))} "
            f"for 'model.{_MARK}.weight'; save the policy's own state dict, without what is wrapped around it"
        )
    if policy in ("pi0", "pi05"):
        return (
            f"has the config.json of LeRobot's {policy}, but no weights of such a policy in {WEIGHTS} "
            "(action_in_proj); copy the checkpoint again, all its files"
        )
    if kind is None and (told := _kind_of_weights(folder)):
        says = f"{_CONFIG} says the type {short(policy)}" if config else f"there is no {_CONFIG} with a type"
        return (
            f"holds tensors of {told} under LeRobot's names, and {says}; copy the policy's own {_CONFIG}, which has "
            f'"type": "{told}"'
        )
    if isinstance(policy, str) and ("input_features" in config or "normalization_mapping" in config):
        return f"holds a policy {short(policy)} of LeRobot; of LeRobot's policies pi0, pi05 and diffusion can be read"
    if kind == "paligemma":
        return "holds PaliGemma, an initial checkpoint (pizero train --checkpoint), no policy: it has no action expert"
    if isinstance(kind, str):
        return f"holds a {short(kind)} of Transformers, which is neither π0 nor π0.5"
    return None


def _pickled(folder: Path) -> str | None:
    """What a pickle in the place of the weights is, where there are no others."""
    found = None if weight_names(folder) else next(iter(sorted(folder.glob("*.bin"))), None)
    return found and f"in {found.name}, {_by_ending(found)}"


def _kind_of_weights(folder: Path) -> str | None:
    """LeRobot's name of the policy whose tensors lie in a folder."""
    names = weight_names(folder)
    if f"model.{_MARK}.weight" not in names:
        return None
    return "pi0" if "model.action_time_mlp_in.weight" in names else "pi05"


def _content(folder: Path, known: Callable[[Path], bool]) -> str | None:
    """By its files and folders."""
    if (folder / "meta" / "info.json").is_file():
        return "is a LeRobot dataset and no checkpoint; pizero check examines it, pizero train makes a checkpoint of it"
    inside = _checkpoints(folder, known)
    runs = list(dict.fromkeys(path.parent.parent for path in inside if path.parent.name == "checkpoints"))
    if len(runs) > 1:
        return f"is no checkpoint, but {len(runs)} training runs lie in it; give one of them, as {runs[-1]}"
    if inside:
        names = f"{len(inside)} checkpoints" if len(inside) > 1 else "a checkpoint"
        return f"is no checkpoint, but {names} lie{'' if len(inside) > 1 else 's'} in it; give the newest, {inside[-1]}"
    if (folder / "run.json").is_file():
        return "is a training run's folder without a finished checkpoint; wait for its first one, or give another run"
    if folder.name == "training_state" or (folder / "training_state").is_dir():
        return (
            "holds a trainer's state alone (optimizer, step), without the model; give the checkpoint's folder, whose "
            f"{WEIGHTS} lies beside training_state"
        )
    if (folder / WEIGHTS).is_file():
        return f"holds a {WEIGHTS} whose tensors are not those of a π0, π0.5 or diffusion policy (no action_in_proj)"
    files = sorted(entry for entry in islice(folder.iterdir(), _MOST_FOLDERS) if entry.is_file())
    return next((f"holds {file.name}: {what}" for file in files if (what := _by_ending(file))), None)


def _listed(folder: Path, shown: int = 8) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    found = f"found {', '.join(names[:shown])}{more}" if names else "the folder is empty"
    return f"holds no checkpoint of a known format: {found}"


def _checkpoints(folder: Path, known: Callable[[Path], bool]) -> list[Path]:
    """Checkpoints below a folder, the newest last: by step where the names on the way have numbers, else by time."""
    level, found, left = [folder], list[Path](), _MOST_FOLDERS
    for _ in range(_DEPTH):
        below = [path for parent in level for path in islice(_folders(parent), left)][:left]
        left -= len(below)
        here = [path for path in below if _is_known(path, known)]
        found += here
        level = [path for path in below if path not in here]
    return sorted(found, key=lambda path: (_step(path.relative_to(folder)), path.stat().st_mtime))


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted((p for p in parent.iterdir() if p.is_dir() and not p.is_symlink()), reverse=True)
    except OSError:
        return []


def _is_known(folder: Path, known: Callable[[Path], bool]) -> bool:
    try:
        return known(folder)
    except UserError:  # one that is damaged
        return False


def _step(path: Path) -> int:
    return max((int(part) for part in path.parts if part.isascii() and part.isdigit()), default=-1)


def _by_ending(file: Path) -> str | None:
    return next((what for endings, what in _ENDINGS.items() if file.suffix.lower() in endings), None)
