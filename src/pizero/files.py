"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pizero.types import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name beside it, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes the file private
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that gets its name at the end, or goes when anything fails.

    UserError when there is something at the name already, or its parent cannot be written. A full disk is one too.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another name, it will not be overwritten")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error})") from error
    try:
        yield partial
        os.chmod(partial, 0o755)  # mkdtemp makes it private
        partial.replace(folder)
    except OSError as error:
        raise UserError(f"{folder} could not be written ({error}); nothing is left of it") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
