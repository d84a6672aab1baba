"""Where a checkpoint or a dataset lies: a folder here, the newest checkpoint of a training run's folder, hub ids of
Hugging Face, and what fsspec reaches (gs://, s3://).
"""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

from pizero.files import cache_folder, lies_inside, new_folder, write_bytes
from pizero.types import UserError

TOKENIZER_URL = "https://storage.googleapis.com/big_vision/paligemma_tokenizer.model"
"""PaliGemma's SentencePiece model at a place that asks for no licence click; openpi uses it too."""

RELEASED = {"pi0": "lerobot/pi0_base", "pi05": "lerobot/pi05_base"}
"""Short names of released checkpoints, and their ids on the hub."""
_HUB_ID = re.compile(r"(?:hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_WANTED = {
    "model": ["*.json", "*.safetensors", "*.model", "*.npz", "params/*", "assets/*"],
    "dataset": ["meta/*", "data/*", "videos/*"],
}
"""Files of a hub repository that a reader may need."""
_NEEDED = {"model": "json and safetensors files", "dataset": "folders meta, data and videos"}


def local_folder(path: str | Path, kind: Literal["model", "dataset"] = "model") -> Path:
    """The folder of a checkpoint, or of a LeRobot dataset, downloaded first if need be.

    A path that exists is taken as it is. "hf://owner/name", "owner/name" (both with "@revision") and the names of
    `RELEASED` come from the Hugging Face hub into its own cache; other addresses with "://" through fsspec into
    `cache_folder`. Progress is shown. Of a training run's folder the newest checkpoint is taken. UserError says what to
    put where when the network cannot be reached.
    """
    folder = _here(path, kind)
    steps = sorted((folder / "checkpoints").glob("[0-9]" * 7)) if kind == "model" else []
    return steps[-1] if steps else folder


def _here(path: str | Path, kind: Literal["model", "dataset"]) -> Path:
    text = str(path)
    if Path(path).exists():
        return Path(path)
    text = RELEASED.get(text, text) if kind == "model" else text
    found = _HUB_ID.fullmatch(text)
    if found and (text.startswith("hf://") or not text.startswith((".", "/", "~"))):
        return _from_hub(found["repo"], found["revision"], kind)
    if "://" in text:
        return _from_fsspec(text)
    return Path(path)


def paligemma_tokenizer() -> Path:
    """PaliGemma's tokenizer file, downloaded once."""
    path = cache_folder() / "paligemma_tokenizer.model"
    if not path.is_file():
        try:
            with urllib.request.urlopen(TOKENIZER_URL, timeout=30) as answer:
                write_bytes(path, answer.read())
        except (OSError, URLError) as error:
            raise UserError(
                f"cannot download PaliGemma's tokenizer ({error}); put paligemma_tokenizer.model at {path}, "
                f"from {TOKENIZER_URL}"
            ) from error
    return path


def _from_hub(repo: str, revision: str | None, kind: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repo, revision=revision, repo_type=kind, allow_patterns=_WANTED[kind]))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"there is no folder {repo}, and the hub did not give it ({reason}); copy its {_NEEDED[kind]} "
            "into a folder and give that folder's path"
        ) from error


def _from_fsspec(address: str) -> Path:
    import fsspec

    scheme, _, rest = address.partition("://")
    target = cache_folder() / scheme / rest.strip("/")
    if target.is_dir():
        return target
    options: dict[str, Any] = {"token": "anon"} if scheme == "gs" else {}  # the released checkpoints are public
    try:
        system, remote = fsspec.url_to_fs(address, **options)
        names = [name for name, entry in system.find(remote, detail=True).items() if entry["type"] == "file"]
        if not names:
            raise FileNotFoundError(f"nothing at {address}")
        with new_folder(target) as folder:
            _download(system, remote, names, folder)
    except ImportError as error:
        raise UserError(
            f"{address} needs another package ({error}); install it, or copy the folder yourself"
        ) from error
    except UserError:
        raise
    except Exception as error:  # every file system has exceptions of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot download {address} ({reason}); copy it to {target}, or elsewhere and give that path"
        ) from error
    return target


def _download(system: Any, remote: str, names: list[str], folder: Path) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    root = remote.rstrip("/") + "/"
    with Progress(*columns) as bars:
        bar = bars.add_task("download", total=sum(system.size(name) or 0 for name in names))
        for name in names:
            path = folder / name.removeprefix(root)
            if not lies_inside(path, folder):
                raise UserError(f"{name} lies outside of {remote}; it is not downloaded")
            path.parent.mkdir(parents=True, exist_ok=True)
            with system.open(name, "rb") as source, path.open("wb") as sink:
                while block := source.read(1 << 22):
                    sink.write(block)
                    bars.advance(bar, len(block))
