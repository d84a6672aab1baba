"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pizero import files
from pizero.files import new_folder, partial_path, read_file, read_json, read_toml, write_bytes
from pizero.types import UserError


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def left_by(monkeypatch: pytest.MonkeyPatch, process: int, path: Path) -> Path:
    """The name that a process with this id uses."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process)
        return partial_path(path)


def test_what_a_dead_process_left_goes_with_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = dead_process()
    old_file, old_folder = (left_by(monkeypatch, gone, tmp_path / "out") for _ in range(2))
    old_file.write_bytes(b"half")
    (old_folder / "data").mkdir(parents=True)
    (old_folder / "data" / "x").touch()
    of_another = left_by(monkeypatch, gone, tmp_path / "out.json")
    of_another.touch()
    with new_folder(tmp_path / "out") as folder:
        (folder / "y").touch()
    assert sorted(tmp_path.iterdir()) == sorted([of_another, tmp_path / "out"])
    write_bytes(tmp_path / "out.json", b"{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.json"]


def test_what_may_be_alive_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running process, anybody's; our own; one of another machine; names that only look like it."""
    gone = dead_process()
    running = [left_by(monkeypatch, pid, tmp_path / "out") for pid in (1, os.getppid(), os.getpid())]
    with monkeypatch.context() as patch:
        patch.setattr(files, "_machine", lambda: "0badcafe")
        elsewhere = left_by(monkeypatch, gone, tmp_path / "out")
    odd = [tmp_path / f".out.partial-{gone}", tmp_path / f"{left_by(monkeypatch, gone, tmp_path / 'out').name}.json"]
    kept = [*running, elsewhere, *odd]
    for path in kept:
        path.touch()
    write_bytes(tmp_path / "out", b"new")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "out"])


def test_a_link_is_removed_and_not_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").touch()
    link = left_by(monkeypatch, dead_process(), tmp_path / "out")
    link.symlink_to(tmp_path / "precious")
    write_bytes(tmp_path / "out", b"new")
    assert not link.is_symlink()
    assert (tmp_path / "precious" / "x").is_file()


def test_new_files_and_folders_are_as_private_as_others(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_bytes(tmp_path / "deep" / "file", b"x")
        with new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(mask)
    assert (tmp_path / "deep" / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "x").touch()
            raise OSError("No space left on device")

    with pytest.raises(UserError, match="could not be written"):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a pipe"])
def test_what_may_never_end_is_not_read(kind: str, tmp_path: Path) -> None:
    """A downloaded archive may hold links to devices."""
    path, pipe = tmp_path / "config.json", tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(pipe)
        path.symlink_to(pipe)
    for read in (read_json, read_toml):
        with pytest.raises(UserError, match="no file, but a folder, a device or a pipe"):
            read(path)
    path.rmdir() if kind == "folder" else path.unlink()
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_a_file_that_hides_its_size_is_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"[" * 100)
    assert read_file(path, 100) == b"[" * 100
    with pytest.raises(UserError, match="larger than any file of this kind"):
        read_file(path, 99)
    with pytest.raises(UserError, match="cannot be read as JSON"):  # of /proc, where every size is 0
        read_json(Path("/proc/self/status"))


def test_a_key_that_is_there_twice_is_found_at_once(tmp_path: Path) -> None:
    names = [f"k{index}" for index in range(200_000)]
    (tmp_path / "x.json").write_text("{" + ", ".join(f'"{name}": 0' for name in [*names, names[-1]]) + "}")
    with pytest.raises(UserError, match="the key 'k199999' is there twice"):
        read_json(tmp_path / "x.json")


def test_toml_as_editors_write_it(tmp_path: Path) -> None:
    path = tmp_path / "robot.toml"
    path.write_bytes(b'\xef\xbb\xbf[cameras]\r\nbase_0_rgb = "front"\r\n')
    assert read_toml(path) == {"cameras": {"base_0_rgb": "front"}}
    path.write_text("a = 'C:\\temp'\nb = \"one: two\\nthree\"\n")
    assert read_toml(path) == {"a": r"C:\temp", "b": "one: two\nthree"}
    path.write_bytes("a = 1".encode("utf-16"))
    with pytest.raises(UserError, match="no text in UTF-8; save it in that encoding"):
        read_toml(path)


@pytest.mark.parametrize("written", [r"C:\Users\me\data", r"D:\temp", r"C:\data\new", r"\\server\share"])
def test_a_windows_path_in_double_quotes(tmp_path: Path, written: str) -> None:
    """An error of the reader, or, where the letter after the backslash is known to it, a path with a tab in it."""
    path = tmp_path / "mixture.toml"
    path.write_text(f'[[datasets]]\npath = "{written}"\n')
    with pytest.raises(UserError, match=r"in double quotes .* write a path in single quotes, 'C:\\data', or with /$"):
        read_toml(path)
    path.write_text("a = ")
    with pytest.raises(UserError, match=r"cannot be read as TOML \(Invalid value .*\)$"):
        read_toml(path)
