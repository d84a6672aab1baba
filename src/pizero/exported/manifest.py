"""manifest.json of an export: what its model is, which files it has, and how well they were proved.

manifest.json                                       this
vision.onnx prefix.onnx step.onnx  *.bin            graphs with their weights; of OpenVINO .xml and .bin
words.0.bin ...                                     the token table, row by row; head.0.bin ... where text has its own
pipeline.json norm_stats.json tokenizer.model       as in a checkpoint
example.npz                                         observation, noise and the chunk that pizero made of them
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from pizero.files import read_json, values_of
from pizero.types import DEEPEST, LARGEST_LENGTH, LONGEST_CHUNK, UserError, as_tuple, check_cameras, check_whole

MANIFEST, PIPELINE, FORMAT, VERSION = "manifest.json", "pipeline.json", "pizero-export", 1
Kind: TypeAlias = Literal["pi0", "diffusion"]
RuntimeName: TypeAlias = Literal["onnx", "openvino"]
DtypeName: TypeAlias = Literal["float32", "bfloat16", "float16", "int8"]

GRAPHS: dict[str, tuple[str, ...]] = {"pi0": ("vision", "prefix", "step"), "diffusion": ("encode", "step")}
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SMALL = 64 << 20
"""Bytes of a file whose hash is compared whenever it is opened."""
_MOST_FILES = 1000


@dataclass(frozen=True)
class Words:
    """The token table [rows, width] in files of so many rows each; a row times `scale` is what the prefix reads."""

    files: tuple[str, ...]
    rows_per_file: int
    rows: int
    width: int
    dtype: Literal["float32", "bfloat16", "float16"]
    scale: float


@dataclass(frozen=True)
class Manifest:
    """kind: of the model. cameras: the model's, in order. past_actions: of a chunk's start, never played.

    reads_state, reads_words: whether the robot's state and the prompt are inputs. writes_text: whether the prefix's
    graph goes on after the prompt. layers, kv_heads, head_dim: of its keys and values; 0 of a diffusion policy.
    max_delay: most settled first actions that the steps take; 0: none. head: of the text, where it is not `words`.
    proof: of the stored example, and of int8 the error of each layer alone. files: (bytes, SHA-256) by name.
    """

    kind: Kind
    runtime: RuntimeName
    dtype: DtypeName
    num_steps: int
    action_horizon: int
    action_dim: int
    past_actions: int
    num_history: int
    cameras: tuple[str, ...]
    reads_state: bool
    reads_words: bool
    writes_text: bool
    layers: int
    kv_heads: int
    head_dim: int
    max_delay: int
    words: Words | None
    head: Words | None
    proof: Mapping[str, float]
    files: Mapping[str, tuple[int, str]]

    def __post_init__(self) -> None:
        for name, kind in (("kind", Kind), ("runtime", RuntimeName), ("dtype", DtypeName)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name}: got {str(getattr(self, name))[:60]!r}, expected one of {get_args(kind)}")
        limits = {
            "num_steps": LARGEST_LENGTH, "action_horizon": LONGEST_CHUNK, "action_dim": LARGEST_LENGTH,
            "num_history": LARGEST_LENGTH,
        }  # fmt: skip
        for name, limit in limits.items():
            check_whole(name, getattr(self, name), limit)
        may_be_none = {
            "past_actions": self.action_horizon - 1, "layers": DEEPEST, "kv_heads": LARGEST_LENGTH,
            "head_dim": LARGEST_LENGTH, "max_delay": self.action_horizon - 1,
        }  # fmt: skip
        for name, limit in may_be_none.items():
            if getattr(self, name) != 0:
                check_whole(name, getattr(self, name), limit)
        check_cameras(self.cameras)
        for name in ("reads_state", "reads_words", "writes_text"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} must be true or false, got {str(getattr(self, name))[:60]}")
        if (self.words is None) != (self.kind == "diffusion"):
            raise UserError("words: a pi0 has a token table, a diffusion policy none")
        if self.kind == "diffusion" and self.writes_text:
            raise UserError("writes_text: a diffusion policy writes none")
        if self.head is not None and (self.words is None or self.head.width != self.words.width):
            raise UserError(f"head: its rows have width {self.head.width}, those of words another one")
        if self.kind == "diffusion" and self.max_delay:
            raise UserError(f"max_delay: got {self.max_delay} of a diffusion policy, which continues no chunk")

    def save(self, folder: Path) -> None:
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        (folder / MANIFEST).write_text(json.dumps(values, indent=1) + "\n")


def detect(folder: Path) -> bool:
    """Recognised by the format that manifest.json names."""
    try:
        return (folder / MANIFEST).is_file() and read_json(folder / MANIFEST).get("format") == FORMAT
    except UserError:
        return False


def read_manifest(folder: Path, verify: bool = False) -> Manifest:
    """UserError unless every file that it names is there in its size, and with its hash: of the smaller ones always, of
    all with `verify`, which reads gigabytes.
    """
    path = folder / MANIFEST
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise UserError(f"{path} does not say that its format is {FORMAT!r}; the folder is no export")
    if values.get("version") != VERSION:
        raise UserError(f"{path} has version {str(values.get('version'))[:20]!r}, this release reads {VERSION}")
    given = {name: value for name, value in values.items() if name not in ("format", "version")}
    known = {field.name for field in fields(Manifest)}
    if set(given) != known:
        raise UserError(f"{path}: keys {sorted(set(given) ^ known)} are unknown or missing; export again")
    with values_of(path):
        manifest = Manifest(
            **{
                **given, "cameras": as_tuple(given["cameras"]), "words": _words("words", given["words"]),
                "head": _words("head", given["head"]),
                "proof": {str(key): float(value) for key, value in given["proof"].items()},
                "files": {str(name): (int(size), str(digest)) for name, (size, digest) in given["files"].items()},
            }
        )  # fmt: skip
    _check_names(manifest)
    for name, (size, digest) in manifest.files.items():
        _check_file(folder / name, size, digest, verify)
    return manifest


def described(path: Path) -> tuple[int, str]:
    """(bytes, SHA-256) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return path.stat().st_size, digest.hexdigest()


def _check_names(manifest: Manifest) -> None:
    needed = {graph + SUFFIX[manifest.runtime] for graph in GRAPHS[manifest.kind]} | {PIPELINE}
    for table in (manifest.words, manifest.head):
        needed |= set(table.files if table else ())
    if missing := sorted(needed - set(manifest.files)):
        raise UserError(f"manifest.json names no {', '.join(missing)[:200]}; copy the export again")
    if len(manifest.files) > _MOST_FILES:
        raise UserError(f"manifest.json names {len(manifest.files)} files; an export has at most {_MOST_FILES}")
    for name in manifest.files:
        if not _NAME.fullmatch(name):
            raise UserError(f"manifest.json: {name[:60]!r} is no name of a file in the folder; export again")


def _words(name: str, given: Any) -> Words | None:
    if given is None:
        return None
    words = Words(**{**given, "files": as_tuple(given["files"])})
    for part in ("rows_per_file", "rows", "width"):
        check_whole(part, getattr(words, part), 1 << 24)
    if words.dtype not in ("float32", "bfloat16", "float16") or not 0 < float(words.scale) < 1e6:
        raise UserError(f"{name}: got dtype {str(words.dtype)[:60]!r} and scale {str(words.scale)[:60]}")
    return words


def _check_file(path: Path, size: int, digest: str, verify: bool) -> None:
    try:
        state = path.stat()
    except OSError:
        raise UserError(f"{path} is missing; the export is not complete, copy it again") from None
    if not stat.S_ISREG(state.st_mode) or state.st_size != size:
        raise UserError(f"{path} has {state.st_size} bytes, its manifest says {size}; copy it again")
    if (verify or size <= _SMALL) and described(path)[1] != digest:
        raise UserError(f"{path} is not the file that was exported: its hash differs; copy it again")
