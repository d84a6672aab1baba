"""A ROS 2 node that drives a robot's joints from a policy server. It needs rclpy, of a sourced ROS 2 (Humble or later).

    pizero serve runs/mine
    python examples/ros2_node.py --joints joint1 joint2 --cameras front=/camera/image_raw --task "open the drawer"

In: /joint_states (sensor_msgs/JointState) and an image topic for each camera (sensor_msgs/Image, rgb8 or bgr8).
Out: /forward_position_controller/commands (std_msgs/Float64MultiArray), ros2_control's targets of the joints in the
order of --joints, from the moment when all has been seen. Nothing is sent while a joint state or an image is older than
half a second, nor after the policy was late for a second: the controller then holds the last target.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pizero.policy.chunk_executor import ActionLimits, ChunkExecutor, RobotLoop
from pizero.serving.client import PolicyClient

FPS, HORIZON, OLDEST = 30.0, 15, 0.5


class Driver:
    """What the node does with messages; it knows no ROS. speed: of a joint, in its units per second at most."""

    def __init__(
        self,
        policy: Any,
        joints: Sequence[str],
        cameras: Sequence[str],
        task: str,
        speed: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.joints, self.cameras, self.task = list(joints), list(cameras), task
        self._limits = ActionLimits(max_change=[speed / FPS] * len(joints))
        self.loop = RobotLoop(policy, ChunkExecutor(HORIZON, asynchronous=True, real_time=True, max_hold=round(FPS)))
        self._clock = clock
        self._seen: dict[str, tuple[float, NDArray[Any]]] = {}
        self._last: NDArray[np.float32] | None = None

    def on_joints(self, message: Any) -> None:
        """A JointState, of some of the joints or more, in any order; half a message is no state."""
        places = dict(zip(message.name, message.position, strict=False))
        if all(name in places and math.isfinite(places[name]) for name in self.joints):
            self._seen["state"] = self._clock(), np.array([places[name] for name in self.joints], np.float32)

    def on_image(self, camera: str, message: Any) -> None:
        """An Image in rgb8 or bgr8; ValueError for another encoding."""
        if message.encoding not in ("rgb8", "bgr8"):
            raise ValueError(f"{camera}: the encoding is {message.encoding}; give rgb8 or bgr8")
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        image = rows[:, : 3 * message.width].reshape(message.height, message.width, 3)
        image = image[..., ::-1] if message.encoding == "bgr8" else image
        self._seen[camera] = self._clock(), np.ascontiguousarray(image)

    def step(self) -> list[float] | None:
        """The targets of this control step; None while something has not been seen lately."""
        keys = ["state", *self.cameras]
        if any(self._clock() - self._seen.get(key, (-math.inf,))[0] > OLDEST for key in keys):
            self._last = None  # goes on from where the robot then is
            self.loop.reset()
            return None
        images = {camera: self._seen[camera][1] for camera in self.cameras}
        action = self.loop.act({"state": self._seen["state"][1], "images": images, "prompt": self.task})
        self._last = self._limits.apply(action, self._seen["state"][1] if self._last is None else self._last)
        return self._last.tolist()


def spin(driver: Driver, topics: Mapping[str, str]) -> None:
    """Runs the node until Ctrl-C, or until the policy fails or is late."""
    import rclpy
    from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.node import Node
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import Float64MultiArray

    rclpy.init()
    node = Node("pizero_policy")
    commands = node.create_publisher(Float64MultiArray, "/forward_position_controller/commands", 1)
    node.create_subscription(JointState, "/joint_states", driver.on_joints, qos_profile_sensor_data)
    for camera, topic in topics.items():

        def on_image(message: Any, camera: str = camera) -> None:
            driver.on_image(camera, message)

        node.create_subscription(Image, topic, on_image, qos_profile_sensor_data)

    def tick() -> None:
        targets = driver.step()
        if targets is not None:
            commands.publish(Float64MultiArray(data=targets))

    # a group and a thread of its own: messages arrive while the first chunk is waited for
    node.create_timer(1 / FPS, tick, callback_group=MutuallyExclusiveCallbackGroup())
    threads = MultiThreadedExecutor(2)
    threads.add_node(node)
    try:
        threads.spin()
    except KeyboardInterrupt:
        pass
    finally:
        driver.loop.close()
        node.destroy_node()
        rclpy.try_shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joints", nargs="+", required=True, help="in the order of the policy's state and actions")
    parser.add_argument("--cameras", nargs="+", required=True, metavar="NAME=TOPIC")
    parser.add_argument("--task", required=True)
    parser.add_argument("--server", default="ws://127.0.0.1:8000")
    parser.add_argument("--speed", type=float, default=1.0, help="of a joint, in its units per second at most")
    arguments = parser.parse_args()
    try:
        import rclpy  # noqa: F401
    except ImportError:
        sys.exit("this node needs ROS 2's rclpy: source /opt/ros/<release>/setup.bash, and use its Python")
    topics = dict(camera.split("=", 1) for camera in arguments.cameras)
    with PolicyClient(arguments.server) as policy:
        spin(Driver(policy, arguments.joints, list(topics), arguments.task, arguments.speed), topics)


if __name__ == "__main__":
    main()
