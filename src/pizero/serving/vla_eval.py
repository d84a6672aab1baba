"""allenai's vla-eval harness, which connects as to its own model servers: at /vla-eval, or /NAME/vla-eval.

Its messages are msgpack maps {"type", "payload", "seq", "timestamp"}. It says "hello" first, and wants one action for
each observation; "episode_start" and "episode_end" have no reply. Facts: github.com/allenai/vla-evaluation-harness,
protocol version 1, src/vla_eval/protocol, connection.py, runners/sync_runner.py.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pizero import __version__
from pizero.serving.hosted import Hosted
from pizero.serving.protocol import ProtocolError, array_of, pack, unpack
from pizero.serving.turns import Turns

PATH = "/vla-eval"
"""How an address for the harness ends."""
LONGEST = 10
"""Actions played of a chunk before the next one, at most; the harness's own π0 plays as many."""

Ask = Callable[[Callable[[], dict[str, Any]]], Awaitable[NDArray[np.float32]]]


class Harness:
    """One connection of the harness: what it sends as observations, what it gets as actions."""

    def __init__(self, hosted: Hosted, turns: Turns, owner: str) -> None:
        self._hosted, self._turns, self._owner = hosted, turns, owner
        self._actions: deque[NDArray[np.float32]] = deque()
        self._number = 0

    async def reply(self, message: bytes, ask: Ask) -> bytes | None:
        """The answer to a message; None where none is expected. `ask` gives the chunk of a robot's dictionary, which
        is made where it is prepared: pictures that were decoded wait for no turn.

        ProtocolError says what is wrong with the message; whatever `ask` raises.
        """
        kind, payload = await self._turns.run(self._owner, self._open, message)
        if kind == "hello":
            return self._message("hello", self._hello())
        if kind == "observation":
            if not self._actions:
                chunk = await ask(lambda: self._observation(payload))
                self._actions.extend(chunk[:LONGEST])
            return self._message("action", {"actions": _plain(self._actions.popleft())})
        self._actions.clear()  # of the episode before
        return None

    def error(self, text: str) -> bytes:
        """An error as the harness reads it: it ends the episode, and is counted apart from failures."""
        return self._message("error", {"error": text})

    def _open(self, message: bytes) -> tuple[str, dict[str, Any]]:
        """(type, payload) of a message."""
        value = unpack(message, self._hosted.limits)
        if not isinstance(value, dict) or not isinstance(value.get("payload"), dict):
            raise ProtocolError("a message of the harness is a dictionary with type, payload, seq and timestamp")
        kind, number = value.get("type"), value.get("seq")
        if not isinstance(kind, str) or kind not in ("hello", "observation", "episode_start", "episode_end", "error"):
            raise ProtocolError(f"a message of type {ascii(kind)[:40]}; the harness has no such type")
        if not isinstance(number, int):
            raise ProtocolError("seq must be a whole number")
        self._number = number
        return kind, value["payload"]

    def _observation(self, payload: dict[str, Any]) -> dict[str, Any]:
        """A robot's dictionary. Cameras by their names, or in the checkpoint's order where the names are others."""
        cameras, images = list(self._hosted.metadata["cameras"]), payload.get("images")
        if not isinstance(images, dict) or not 0 < len(images) <= len(cameras):
            got = list(images) if isinstance(images, dict) else type(images).__name__
            raise ProtocolError(f"images: got {ascii(got)[:200]}, expected at most those of {cameras}")
        names = list(images) if set(images) <= set(cameras) else cameras[: len(images)]
        found: dict[str, Any] = {}
        left = self._hosted.limits.max_bytes
        for name, image in zip(names, images.values(), strict=True):
            found[name] = self._value(image, left)
            left -= getattr(found[name], "nbytes", 0)
        state = self._value(payload.get("states", payload.get("state")), left)
        return {"images": found, "state": state, "prompt": payload.get("task_description", "")}

    def _value(self, value: Any, left: int) -> Any:
        """An array or picture of the harness as an array of at most `left` bytes; anything else as it is."""
        limits = self._hosted.limits
        if not isinstance(value, dict):
            return value
        kind = value.get("format")
        if value.get("__image__") is True and isinstance(kind, str) and kind in ("png", "jpeg"):
            return _picture(value.get("data"), limits.max_side, left)
        return array_of(value.get("data"), value.get("shape"), value.get("dtype"), limits)

    def _hello(self) -> dict[str, Any]:
        wrist = {"send_wrist_image": True} if len(self._hosted.metadata["cameras"]) > 1 else {}
        return {
            "harness_version": f"pizero {__version__}", "protocol_version": 1, "model_server": "pizero",
            "capabilities": {}, "observation_params": {"send_state": True, **wrist},
        }  # fmt: skip

    def _message(self, kind: str, payload: dict[str, Any]) -> bytes:
        return pack({"type": kind, "payload": payload, "seq": self._number, "timestamp": time.time()})


def _plain(array: NDArray[np.float32]) -> dict[str, Any]:
    """An array as the harness writes it: with keys of text."""
    data = np.ascontiguousarray(array)
    return {"__ndarray__": True, "data": data.tobytes(), "dtype": data.dtype.str, "shape": list(data.shape)}


def _picture(data: Any, max_side: int, max_bytes: int) -> NDArray[np.uint8]:
    """Its size is looked at before anything is decoded."""
    if not isinstance(data, bytes):
        raise ProtocolError(f"an image's data is {type(data).__name__}, expected bytes")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if max(image.size) > max_side:
                raise ProtocolError(f"an image of {image.size}; at most {max_side} to a side are taken")
            if 3 * image.width * image.height > max_bytes:
                raise ProtocolError(
                    f"images of a message beyond --max-message-mb when decoded, with one of {image.size}"
                )
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ProtocolError):
            raise
        raise ProtocolError("an image is neither PNG nor JPEG, or broken") from error
