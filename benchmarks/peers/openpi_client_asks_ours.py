"""openpi's client from PyPI, unmodified, against a running `pizero serve` of a policy for the built-in simulator.

benchmarks/peers/ask_server.py starts the server and runs this where openpi-client is, and pizero is not:

    python openpi_client_asks_ours.py ws://127.0.0.1:8000 KEY
"""

from __future__ import annotations

import sys

import numpy as np
from openpi_client import image_tools
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def observations(seed: int) -> list[dict]:
    """One observation in pizero's form and in openpi's two: columns, and cameras as [3, h, w]."""
    rng = np.random.default_rng(seed)
    state, prompt = rng.uniform(-1, 1, 7), "reach the red block"
    images = {name: rng.integers(0, 256, (48, 48, 3), dtype=np.uint8) for name in ("top", "ego")}
    small = {name: image_tools.resize_with_pad(image, 32, 32) for name, image in images.items()}
    noise = rng.standard_normal((ACTIONS, DIM)).astype(np.float32)
    turned = {name: image.transpose(2, 0, 1) for name, image in small.items()}
    columns = {f"observation/{name}": image for name, image in small.items()}
    rest = {"prompt": prompt, "noise": noise}
    return [
        {"state": state, "images": small, **rest},
        {"state": state, "images": turned, **rest},
        {"observation/state": state, **columns, **rest},
    ]


uri, key = sys.argv[1:]
host, port = uri.rsplit(":", 1)
policy = WebsocketClientPolicy(host=host, port=int(port), api_key=key)
metadata = policy.get_server_metadata()
ACTIONS, DIM = metadata["action_horizon"], metadata["action_dim"]
print("metadata", metadata)

for seed in range(5):
    replies = [policy.infer(observation) for observation in observations(seed)]
    for reply in replies:
        assert reply["actions"].shape == (ACTIONS, DIM), reply["actions"].shape
        assert reply["actions"].dtype == np.float32
        np.testing.assert_allclose(reply["actions"], replies[0]["actions"], rtol=1e-5, atol=1e-5)
        assert reply["server_timing"]["infer_ms"] > 0
        assert reply["policy_timing"]["model_ms"] > 0
assert replies[-1]["server_timing"]["prev_total_ms"] > 0
print("3 forms of an observation give the same chunk")

asked, inner = [], policy.infer
policy.infer = lambda observation: asked.append(1) or inner(observation)
broker = ActionChunkBroker(policy, action_horizon=2)
given = observations(7)[0]
chunk = inner(given)["actions"]
played = [broker.infer(given)["actions"] for _ in range(6)]
np.testing.assert_allclose(played, [chunk[i % 2] for i in range(6)], rtol=1e-5, atol=1e-5)
assert len(asked) == 3
broker.reset()
print("ActionChunkBroker plays 6 actions from 3 requests")


def refusal(work) -> str:
    """What an exception says."""
    try:
        work()
    except Exception as error:
        return str(error)
    raise AssertionError("it was taken")


policy.infer = inner
text = refusal(lambda: policy.infer({"observation/state": np.zeros(3)}))
assert "bad request" in text, text
assert "Traceback" not in text, text
assert policy.infer(given)["actions"].shape == (ACTIONS, DIM)
print("an error is one line, and the connection goes on")

text = refusal(lambda: WebsocketClientPolicy(host=host, port=int(port), api_key="wrong"))
assert "401" in text, text
print("a wrong key is refused")
