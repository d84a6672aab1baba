"""What came and went, as a LeRobot dataset: a frame for each request, its action the first of the chunk that it got.

A robot's connection is an episode; a new one starts where its instruction changes or it was silent for long. Frames
wait on disk until their episode ends, so that robots that work at the same time do not mix.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pizero.data.datasets.lerobot_writer import ImageFormat, LeRobotWriter
from pizero.data.datasets.video import check_encoding
from pizero.serving.log import log
from pizero.serving.protocol import Limits, pack, unpack
from pizero.types import RobotDict, UserError

LONGEST_PAUSE = 5.0
"""Seconds of silence that end an episode."""
SHORTEST = 2
"""Frames below which an episode is left out."""


@dataclass
class _Episode:
    prompt: str
    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    times: list[float] = field(default_factory=list)

    def write(self, frame: dict[str, Any], now: float) -> None:
        data = pack(frame)
        self.file.write(len(data).to_bytes(8, "big") + data)
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


class Recorder:
    """Writes one dataset at `root`, which appears at `close`. fps: of the recording; None takes that of its first
    episode's requests. UserError if something is at `root`.
    """

    def __init__(self, root: Path, robot_type: str, fps: float | None) -> None:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise UserError(f"{root} exists already; record into another folder, it will not be overwritten")
        self.root, self.fps, self.robot_type = root, fps, robot_type
        self._episodes: dict[int, _Episode] = {}
        self._writer: LeRobotWriter | None = None
        self._frames = ThreadPoolExecutor(1, thread_name_prefix="frames")
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._encoding: list[Future[None]] = []

    async def add(self, robot: int, observation: RobotDict, action: NDArray[np.float32]) -> None:
        """One request of a robot; on disk when it returns."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._frames, self._add, robot, observation, action)

    def end_episode(self, robot: int) -> None:
        """The robot is gone."""
        self._frames.submit(self._end, robot)

    async def close(self) -> None:
        """Ends every episode and gives the dataset its name."""
        await asyncio.to_thread(self._close)

    def _add(self, robot: int, observation: RobotDict, action: NDArray[np.float32]) -> None:
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
        episode.write({"state": state, "action": action, "images": images}, now)

    def _end(self, robot: int) -> None:
        episode = self._episodes.pop(robot, None)
        if episode is not None:
            self._encoding = [future for future in self._encoding if not future.done()]
            self._encoding.append(self._encoder.submit(self._save, episode))

    def _save(self, episode: _Episode) -> None:
        """Writes an episode into the dataset; one that does not fit is left out and told."""
        with episode.file:
            if len(episode.times) < SHORTEST:
                return
            try:
                for frame in episode.frames():
                    if self._writer is None:
                        self._writer = self._start(frame, episode.fps)
                    self._writer.add_frame(frame["state"], frame["action"], frame["images"])
            except UserError as error:
                if self._writer is not None:
                    self._writer.discard_episode()
                log("episode not recorded", reason=str(error))
                return
            assert self._writer is not None
            number = self._writer.save_episode(episode.prompt)
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
            state_names=[f"state_{index}" for index in range(len(frame["state"]))],
            action_names=[f"action_{index}" for index in range(len(frame["action"]))],
        )  # fmt: skip

    def _close(self) -> None:
        self._frames.submit(lambda: [self._end(robot) for robot in list(self._episodes)]).result()
        self._frames.shutdown()
        for future in self._encoding:
            future.result()
        self._encoder.shutdown()
        writer = self._writer
        if writer is not None and writer.num_episodes:
            writer.finalize()
            log("recorded", dataset=self.root, episodes=writer.num_episodes, frames=writer.num_frames)
        elif writer is not None:
            writer.abort()
