"""What came and went, as a LeRobot dataset: a frame for each request, its action the first of the chunk that it got.

A robot's connection is an episode; a new one starts where its instruction changes or it was silent for long. Frames
wait on disk until their episode ends, so that robots that work at the same time do not mix. An episode that cannot be
written (a full disk) is lost alone, and logged; those before it are whole already, those after it are tried again.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.images.video import check_encoding
from pizero.data.datasets.writer.lerobot_writer import ImageFormat, LeRobotWriter
from pizero.data.embodiments.dimensions import Dims
from pizero.serving.log import log
from pizero.serving.protocol import Limits, pack, unpack
from pizero.types import RobotDict, UserError

LONGEST_PAUSE = 5.0
"""Seconds of silence that end an episode."""
SHORTEST = 2
"""Frames below which an episode is dropped."""


@dataclass
class _Episode:
    prompt: str
    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    times: list[float] = field(default_factory=list)

    def write(self, frame: dict[str, Any], now: float) -> None:
        data = pack(frame)
        self.file.write(len(data).to_bytes(8, "big") + data)
        self.file.flush()
        self.times.append(now)

    def frames(self) -> Iterator[dict[str, Any]]:
        self.file.seek(0)
        while head := self.file.read(8):
            length = int.from_bytes(head, "big")
            yield unpack(self.file.read(length), Limits(max_bytes=length))

    @property
    def fps(self) -> float:
        """Requests per second."""
        return round(1 / max(float(np.median(np.diff(self.times))), 1e-3), 2)


def _names(what: str, values: NDArray[np.float32], dims: Dims) -> list[str]:
    return [str(dim) for dim in dims] or [f"{what}_{index}" for index in range(len(values))]


class Recorder:
    """Writes one dataset at `root`, which appears at `close`. fps: of the recording; None takes that of its first
    episode's requests. state_dims, action_dims: which dimensions of the robot these are; they become the names.
    UserError if something is at `root`.
    """

    def __init__(
        self, root: Path, robot_type: str, fps: float | None, state_dims: Dims = (), action_dims: Dims = ()
    ) -> None:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError(f"{root} exists already; record into another folder, it will not be overwritten")
        self.root, self.fps, self.robot_type = root, fps, robot_type
        self._state_dims, self._action_dims = state_dims, action_dims
        self._episodes: dict[int, _Episode] = {}
        self._writer: LeRobotWriter | None = None
        self._frames = ThreadPoolExecutor(1, thread_name_prefix="frames")
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._encoding: list[Future[None]] = []
        self._lost = 0

    async def add(
        self, robot: int, observation: RobotDict, action: NDArray[np.float32], subtask: str | None = None
    ) -> None:
        """One request of a robot; on disk when it returns, or its episode so far is dropped and reported.

        subtask: what the action is for, of a policy that takes one: in all requests, or in none.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._frames, self._add, robot, observation, action, subtask)

    def end_episode(self, robot: int) -> None:
        """The robot is gone."""
        with suppress(RuntimeError):  # the recording is closed, and so its episode is
            self._frames.submit(self._end, robot)

    async def close(self) -> None:
        """Ends every episode and gives the dataset its name. UserError where that cannot be, or nothing was saved."""
        await asyncio.to_thread(self._close)

    def _add(self, robot: int, observation: RobotDict, action: NDArray[np.float32], subtask: str | None) -> None:
        try:
            self._write(robot, observation, {"action": action, "subtask": subtask})
        except Exception as error:
            episode = self._episodes.pop(robot, None)
            if episode is not None:
                with suppress(OSError):
                    episode.file.close()
            self._tell_lost(observation.get("prompt", ""), error)

    def _write(self, robot: int, observation: RobotDict, answer: dict[str, Any]) -> None:
        now, prompt = time.monotonic(), str(observation.get("prompt", ""))
        episode = self._episodes.get(robot)
        if episode is not None and (episode.prompt != prompt or now - episode.times[-1] > LONGEST_PAUSE):
            self._end(robot)
            episode = None
        if episode is None:
            episode = self._episodes[robot] = _Episode(prompt)
        state = np.asarray(observation["state"], np.float32)
        images = {camera: np.asarray(image) for camera, image in observation["images"].items() if image is not None}
        if state.ndim == 2:  # a history: its newest
            state, images = state[-1], {camera: image[-1] for camera, image in images.items()}
        episode.write({"state": state, "images": images, **answer}, now)

    def _tell_lost(self, prompt: object, error: Exception) -> None:
        self._lost += 1
        log("episode not recorded", level=logging.ERROR, prompt=str(prompt)[:200], reason=_one_line(error))

    def _end(self, robot: int) -> None:
        episode = self._episodes.pop(robot, None)
        if episode is not None:
            self._encoding = [future for future in self._encoding if not future.done()]
            self._encoding.append(self._encoder.submit(self._save, episode))

    def _save(self, episode: _Episode) -> None:
        """Writes an episode into the dataset; one that does not fit is dropped and logged."""
        try:
            with episode.file:
                if len(episode.times) < SHORTEST:
                    return
                for frame in episode.frames():
                    if self._writer is None:
                        self._writer = self._start(frame, episode.fps)
                    self._writer.add_frame(frame["state"], frame["action"], frame["images"], frame["subtask"])
                assert self._writer is not None
                number = self._writer.save_episode(episode.prompt)
        except Exception as error:
            if self._writer is not None:
                self._writer.discard_episode()
            self._tell_lost(episode.prompt, error)
        else:
            log("episode recorded", episode=number, frames=len(episode.times), prompt=episode.prompt)

    def _start(self, frame: dict[str, Any], fps: float) -> LeRobotWriter:
        cameras = {name: (int(image.shape[0]), int(image.shape[1])) for name, image in frame["images"].items()}
        image_format: ImageFormat = "h264"
        try:
            for camera, size in cameras.items():
                check_encoding("h264", camera, *size)
        except UserError:
            image_format = "png"
        return LeRobotWriter(
            self.root, fps=self.fps or fps, robot_type=self.robot_type, cameras=cameras, image_format=image_format,
            apart=True,
            state_names=_names("state", frame["state"], self._state_dims),
            action_names=_names("action", frame["action"], self._action_dims),
        )  # fmt: skip

    def _close(self) -> None:
        self._frames.submit(lambda: [self._end(robot) for robot in list(self._episodes)]).result()
        self._frames.shutdown()
        for future in self._encoding:
            future.result()
        self._encoder.shutdown()
        writer = self._writer
        if writer is not None and writer.num_episodes:
            try:
                writer.finalize()
            except OSError as error:
                raise UserError(f"the recording in {self.root} could not be completed ({_one_line(error)})") from error
            level = logging.WARNING if self._lost else logging.INFO
            log("recorded", level=level, dataset=self.root, episodes=writer.num_episodes, frames=writer.num_frames,
                lost=self._lost)  # fmt: skip
            return
        if writer is not None:
            writer.abort()
        if self._lost:
            raise UserError(f"nothing was recorded in {self.root}: none of {self._lost} episodes could be written")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
