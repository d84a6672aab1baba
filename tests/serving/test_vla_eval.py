"""The evaluation harness's protocol: one action for each observation, its pictures, its errors."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image, ImageFile
from serving_helpers import observation
from websockets.sync.client import ClientConnection, connect

from pizero.policy.policy import ModelPolicy
from pizero.serving.client import PolicyClient
from pizero.serving.running import Background

Serve = Callable[..., Background]


def picture(image: np.ndarray, kind: str = "PNG") -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return {"__image__": True, "format": kind.lower(), "data": file.getvalue(), "shape": list(image.shape)}


def array(value: np.ndarray) -> dict[str, Any]:
    return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}


def harness_observation(seed: int = 0, **changes: Any) -> dict[str, Any]:
    robot = observation(seed)
    images = {"agentview": picture(robot["images"]["top"]), "wrist": picture(robot["images"]["ego"])}
    return {"images": images, "states": array(robot["state"]), "task_description": robot["prompt"], **changes}


class Harness:
    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.number = connection, 0

    def send(self, kind: str, payload: Any) -> None:
        self.number += 1
        message = {"type": kind, "payload": payload, "seq": self.number, "timestamp": 1.5}
        self.connection.send(msgpack.packb(message))

    def ask(self, kind: str, payload: Any) -> dict[str, Any]:
        self.send(kind, payload)
        reply = msgpack.unpackb(self.connection.recv(timeout=20))
        assert reply["seq"] == self.number
        return {"type": reply["type"], **reply["payload"]}

    def action(self, payload: Any) -> np.ndarray:
        actions = self.ask("observation", payload)["actions"]
        return np.frombuffer(actions["data"], actions["dtype"]).reshape(actions["shape"])


@contextmanager
def harness(server: Background, path: str = "/vla-eval") -> Iterator[Harness]:
    with connect(server.uri + path, compression=None, max_size=None, ping_interval=None) as connection:
        yield Harness(connection)


def test_it_plays_chunk_after_chunk(serve: Serve, policy: ModelPolicy) -> None:
    server = serve()
    with harness(server) as robot:
        hello = robot.ask("hello", {"harness_version": "1", "protocol_version": 1})
        assert hello["observation_params"] == {"send_state": True, "send_wrist_image": True}
        played = []
        for _ in range(2):
            robot.send("episode_start", {"task": {"name": "lift"}})
            played.append([robot.action(harness_observation(step)) for step in range(8)])
            robot.send("episode_end", {"metrics": {"success": True}})
        requests = server.call(lambda server: [one.figures.requests for one in server.service.live.robots.values()])
    assert all(action.shape == (5,) for action in played[0])
    assert requests == [4]  # chunks of 6 for 8 steps, anew for each episode


def test_its_observation_is_the_robots(serve: Serve, policy: ModelPolicy) -> None:
    server = serve()
    for names in (("agentview", "wrist"), ("top", "ego")):
        images = dict(zip(names, harness_observation()["images"].values(), strict=True))
        with harness(server) as robot:
            robot.action(harness_observation(images=images))
            seen = server.call(lambda server: next(iter(server.service.live.robots.values())).last.observation)
        expected = observation()
        for camera in ("top", "ego"):
            np.testing.assert_array_equal(seen["images"][camera], expected["images"][camera])
        np.testing.assert_array_equal(seen["state"], expected["state"])
        assert seen["prompt"] == expected["prompt"]


@pytest.mark.parametrize(
    ("kind", "payload", "text"),
    [
        ("observation", {}, "images: got"),
        ("observation", harness_observation(images={}), "images: got []"),
        ("observation", harness_observation(images={str(index): 0 for index in range(3)}), "at most those of"),
        ("observation", harness_observation(states=None, state=None), "state"),
        ("observation", harness_observation(states=array(np.zeros(3, np.float32))), "state"),
        ("observation", harness_observation(images={"a": {"__image__": True, "format": "png", "data": b"x"}}), "PNG"),
        ("observation", harness_observation(images={"a": picture(np.zeros((1, 5000, 3), np.uint8))}), "at most 4096"),
        ("observation", harness_observation(images={"a": {"data": b"", "dtype": "O", "shape": [1]}}), "of type 'O'"),
        ("dance", {}, "no such type"),
        ("observation", [], "is a dictionary with"),
    ],
)
def test_what_is_wrong_is_told(serve: Serve, kind: str, payload: Any, text: str) -> None:
    server = serve()
    with harness(server) as robot, PolicyClient(server.uri) as other:
        robot.number = -1 if kind == "dance" or payload == [] else 0  # the number of a message that is not understood
        reply = robot.ask(kind, payload)
        assert reply["type"] == "error"
        assert reply["error"].startswith("bad request: ")
        assert text in reply["error"]
        assert robot.action(harness_observation()).shape == (5,)
        assert other.infer(observation())["actions"].shape == (6, 5)


def test_beside_robots_and_by_name(serve: Serve, policy: ModelPolicy) -> None:
    server = serve({"red": policy, "blue": policy})
    with harness(server, "/blue/vla-eval") as robot, PolicyClient(server.uri + "/red") as other:
        assert robot.action(harness_observation()).shape == (5,)
        assert other.infer(observation())["actions"].shape == (6, 5)


def test_pictures_are_measured_before_they_are_decoded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kB of PNG are many MB of pixels: as many as a message may have, of all its pictures together."""
    server = serve(max_message_mb=1)
    decoded: list[tuple[int, int]] = []
    real = ImageFile.ImageFile.load

    def load(image: ImageFile.ImageFile) -> Any:
        decoded.append(image.size)
        return real(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    large, fits = picture(np.zeros((1024, 1024, 3), np.uint8)), picture(np.zeros((512, 512, 3), np.uint8))
    tiff, eps = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tiff, "TIFF")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(eps, "EPS")
    disguised = [{**fits, "data": file.getvalue()} for file in (tiff, eps)]
    with harness(server) as robot, PolicyClient(server.uri) as other:
        for images in ([large], [fits, large], [fits, fits]):
            decoded.clear()
            reply = robot.ask("observation", harness_observation(images=dict(zip("ab", images, strict=False))))
            assert reply["type"] == "error"
            assert reply["error"].startswith("bad request: images of a message beyond --max-message-mb when decoded")
            assert set(decoded) <= {(512, 512)}
        for image in disguised:
            assert "neither PNG nor JPEG" in robot.ask("observation", harness_observation(images={"a": image}))["error"]
        decoded.clear()
        assert robot.action(harness_observation(images={"a": fits})).shape == (5,)
        assert other.infer(observation())["actions"].shape == (6, 5)
        assert decoded


def test_a_connection_keeps_no_large_pictures(serve: Serve) -> None:
    server = serve()
    robot_sends = observation(size=1500)
    history = {"images": {name: picture(image) for name, image in robot_sends["images"].items()}}
    with harness(server) as robot, PolicyClient(server.uri) as client:
        robot.action(harness_observation(**history))
        client.infer(robot_sends)
        kept = server.call(
            lambda server: [one.last.observation["images"] for one in server.service.live.robots.values()]
        )
        for images in kept:
            for name, image in images.items():
                assert image.shape == (375, 375, 3)
                assert image.base is None  # not a view of the large one
                np.testing.assert_array_equal(image, robot_sends["images"][name][::4, ::4])
        assert robot.action(harness_observation()).shape == (5,)


@pytest.mark.parametrize("place", ["type", "seq", "__image__", "format", "data", "shape", "dtype", "image", "prompt"])
def test_an_array_in_any_place_is_a_bad_request(serve: Serve, place: str) -> None:
    odd = {b"__ndarray__": True, b"data": b"\x01\x02", b"dtype": "|u1", b"shape": [2]}
    message = {"type": "observation", "payload": harness_observation(), "seq": 1, "timestamp": 1.5}
    if place in message:
        message[place] = odd
    elif place == "image":
        message["payload"]["images"]["wrist"] = odd
    elif place == "prompt":
        message["payload"]["task_description"] = odd
    elif place in ("shape", "dtype"):
        message["payload"]["images"]["wrist"] = {**array(observation()["images"]["ego"]), place: odd}
    else:
        message["payload"]["images"]["wrist"][place] = odd
    server = serve()
    with harness(server) as robot, PolicyClient(server.uri) as other:
        robot.connection.send(msgpack.packb(message))
        reply = msgpack.unpackb(robot.connection.recv(timeout=20))
        assert reply["type"] == "error"
        assert reply["payload"]["error"].startswith("bad request: ")
        robot.number = 1
        assert robot.action(harness_observation()).shape == (5,)
        assert other.infer(observation())["actions"].shape == (6, 5)
