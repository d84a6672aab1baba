"""Checks with LeRobot itself that its plugin (integrations/lerobot_policy_pizero) does what pizero does.

`make test-lerobot-plugin LEROBOT_ENV=<an environment with LeRobot, gym-pusht and grpcio>` installs the plugin there and
runs this. One line per check:

chunk      the golden π0 and π0.5 of tests/golden/lerobot: LeRobot's own policy and the plugin, from the same noise
times      the same with a π0 of middle size, and the times of both, taken in turn
eval       lerobot-eval on PushT, which is the same simulator on both sides, and on the built-in one, against `pizero
           evaluate` with the same seeds: successes, and the sums of rewards
so101      the same on the simulated SO-101
train      lerobot-train from scratch and from a checkpoint; pizero reads what it saves
server     LeRobot's asynchronous policy server and the requests of its client, over gRPC
rollout    the call of lerobot-rollout's real-time chunking
commanded  lerobot-rollout itself, with a robot without hardware
export     lerobot-eval and lerobot-rollout with exports in ONNX, against pizero's rollouts of them

Policies for `eval` are trained first, some minutes of a core; --keep FOLDER keeps them and takes them again.
Leaves with status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot_in_simulators import SIZE, TASKS, our_episodes
from lerobot_opens_ours import GOLDEN, MODULES, CutAtTheEnd, TheirPolicy, check, distance, failures, robots
from lerobot_policy_pizero.configuration_pizero import PizeroConfig
from lerobot_policy_pizero.modeling_pizero import PizeroPolicy
from lerobot_sizes import use_sizes

from pizero.checkpoints.convert import convert
from pizero.checkpoints.facts import GivenFacts
from pizero.checkpoints.lerobot import plugin
from pizero.checkpoints.lerobot import policy as lerobot_format
from pizero.checkpoints.load import load_policy, read_checkpoint
from pizero.data.tokenizer import PaligemmaTokenizer
from pizero.envs.pusht.env import PROMPT
from pizero.model.config import GemmaConfig, SiglipConfig
from pizero.model.pi0 import Pi0
from pizero.policy.real_time import RealTime
from pizero.policy.sampling import episode_noise

SEED, EPISODES = 1000, 4


def lerobot_batch(robot: dict[str, Any]) -> dict[str, Any]:
    """An observation as LeRobot's commands hand it to a policy, after its processors."""
    images = {
        f"observation.images.{key}": torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        for key, image in robot["images"].items()
    }
    return {"observation.state": torch.from_numpy(robot["state"])[None], **images, "task": [robot["prompt"]]}


def check_chunks(root: Path) -> None:
    for name, (module, _) in MODULES.items():
        arch = json.loads((GOLDEN / f"{name}_tiny" / "tiny_arch.json").read_text())
        use_sizes(module, arch)
        theirs, folder = TheirPolicy(name, GOLDEN / f"{name}_tiny"), root / f"{name}-plugin"
        given = GivenFacts(tokenizer=CutAtTheEnd.bytes())
        shutil.rmtree(folder, ignore_errors=True)
        convert(GOLDEN / f"{name}_tiny", folder, "lerobot-plugin", arch=arch, given=given)
        ours = PizeroPolicy.from_pretrained(folder)
        ours.pipeline = dataclasses.replace(ours.pipeline, tokenizer=CutAtTheEnd.bytes())
        arrays = dict(np.load(GOLDEN / f"{name}_tiny" / "golden.npz"))
        far, largest = 0.0, 0.0
        for robot in robots(arrays):
            expected, noise = theirs.actions(robot), torch.from_numpy(robot["noise"])[None]
            chunk = ours.predict_action_chunk(lerobot_batch(robot), noise=noise)[0].numpy()
            far, largest = max(far, distance(chunk, expected)), max(largest, float(np.abs(expected).max()))
        check(f"{name}: the plugin's chunk against LeRobot's own policy, of the largest action", far / largest, 1e-5)


def check_times(root: Path) -> None:
    """A π0 of six layers, two cameras of 224 pixels, chunks of 50 actions: LeRobot's policy and the plugin."""
    arch = {
        "vlm": {"width": 512, "depth": 6, "mlp_dim": 2048, "num_heads": 8, "num_kv_heads": 1, "head_dim": 64},
        "expert": {"width": 256, "depth": 6, "mlp_dim": 1024, "num_heads": 8, "num_kv_heads": 1, "head_dim": 64},
        "vision": {
            "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536,
            "patch_size": 14, "image_size": 224, "projection_dim": 512,
        },
        "vocab_size": 2048,
    }  # fmt: skip
    tiny = json.loads((GOLDEN / "pi0_tiny" / "tiny_arch.json").read_text())
    source, folder = lerobot_format.read(GOLDEN / "pi0_tiny", tiny), root / "middle"
    config = dataclasses.replace(
        source.config, image_size=224, action_horizon=50, prefix=GemmaConfig(**arch["vlm"]),
        expert=GemmaConfig(**arch["expert"]),
        vision=SiglipConfig(width=384, depth=6, mlp_dim=1536, num_heads=6, patch_size=14),
    )  # fmt: skip
    for path in (folder, root / "middle-plugin"):
        shutil.rmtree(path, ignore_errors=True)
    folder.mkdir()
    torch.manual_seed(0)
    lerobot_format.write(folder, Pi0(config), source.facts)
    convert(
        folder,
        root / "middle-plugin",
        "lerobot-plugin",
        arch=config,
        given=GivenFacts(tokenizer=PaligemmaTokenizer.bytes()),
    )
    use_sizes(MODULES["pi0"][0], arch)
    theirs, ours = TheirPolicy("pi0", folder), PizeroPolicy.from_pretrained(root / "middle-plugin")
    ours.pipeline = dataclasses.replace(ours.pipeline, tokenizer=CutAtTheEnd.bytes())
    robot = robots(dict(np.load(GOLDEN / "pi0_tiny" / "golden.npz")))[0]
    robot["noise"] = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    noise, batch = torch.from_numpy(robot["noise"])[None], lerobot_batch(robot)
    times: list[tuple[float, float]] = []
    for _ in range(6):
        marks = [time.perf_counter()]
        expected = theirs.actions(robot)
        marks.append(time.perf_counter())
        chunk = ours.predict_action_chunk(batch, noise=noise)[0].numpy()
        times.append((marks[1] - marks[0], time.perf_counter() - marks[1]))
    far = distance(chunk, expected) / float(np.abs(expected).max())
    check("π0 of middle size: the plugin's chunk against LeRobot's own policy, of the largest action", far, 1e-5)
    seconds = np.array(times[1:])  # the first packs the weights
    ratio = np.median(seconds[:, 0] / seconds[:, 1])
    lerobot_s, ours_s = np.median(seconds, axis=0)
    print(f"     one chunk: LeRobot {lerobot_s:.3f} s, the plugin {ours_s:.3f} s, in turn {ratio:.2f} times as fast")


def check_eval(root: Path) -> None:
    """PushT with what `check_train` left, and the built-in simulator with a policy that solves it."""
    for env, task, make, options in (
        ("pusht", "push_t", pusht_policy, ["--env.type=pusht"]),
        ("tabletop", TASKS["tabletop"], tabletop_policy, ["--env.type=pizero_tabletop"]),
    ):
        policy = make(root)
        check_played(root, env, task, policy, options, together=1)
        check_played(root, env, task, policy, options, together=EPISODES)


def check_so101(root: Path) -> None:
    policy = so101_policy(root)
    for together in (1, EPISODES):
        check_played(root, "so101", TASKS["so101"], policy, ["--env.type=pizero_so101"], together=together)


def check_played(
    root: Path, env: str, task: str, policy: Path, options: list[str], together: int, export: Path | None = None
) -> None:
    """together: episodes of LeRobot's at a time, more than one by --policy.path; pizero's are played one by one.
    export: of the policy, for LeRobot.
    """
    given = ["--policy.type=pizero", f"--policy.checkpoint={export or policy}"]
    if together > 1:
        folder = policy if plugin.detect(policy) else root / f"{env}-plugin"
        if not folder.exists():
            convert(policy, folder, "lerobot-plugin")
        rename = {"observation.image": "observation.images.top"} if env == "pusht" else {}
        given = [f"--policy.path={folder}", f"--rename_map={json.dumps(rename)}"]
    output, seeds = root / f"eval-{env}-{together}", list(range(SEED, SEED + EPISODES))
    shutil.rmtree(output, ignore_errors=True)
    lerobot(
        "lerobot_in_simulators.py", *options, *given,
        "--policy.device=cpu", f"--policy.seed={SEED}", f"--seed={SEED}", f"--eval.n_episodes={EPISODES}",
        f"--eval.batch_size={together}", "--eval.use_async_envs=false", f"--output_dir={output}",
    )  # fmt: skip
    metrics = json.loads((output / "eval_info.json").read_text())["per_task"][0]["metrics"]
    wins, rewards = our_episodes(env, task, export or policy, seeds, load_policy(policy).noise_shape[0] // 2)
    label = (
        f"lerobot-eval, {env}{', an export' if export else ''}, {together} at a time: {sum(wins)} of {EPISODES} succeed"
    )
    check(f"{label}; otherwise", sum(a != b for a, b in zip(metrics["successes"], wins, strict=True)), 0)
    changing, sums = sum(len(set(steps)) > 1 for steps in rewards), [sum(steps) for steps in rewards]
    far = max(abs(a - b) for a, b in zip(metrics["sum_rewards"], sums, strict=True)) / (max(map(abs, sums)) or 1)
    check(f"{label}; sums of rewards, of the largest ({max(sums):.2f})", far, 1e-3)
    # where nothing moves, other actions give the same sum
    check(f"{label}; rewards change in {changing}; missing of at least 1", max(1 - changing, 0), 0)


def check_train(root: Path) -> None:
    data = demonstrations(root, "pusht", 2)
    robot = root / "board.toml"
    robot.write_text(  # with an instruction, since LeRobot's PushT has none
        f'[robot]\nname = "board"\nstate_dim = 2\naction_dim = 2\ndefault_prompt = "{PROMPT}"\n'
        '[cameras]\nbase_0_rgb = "top"\n'
    )
    common = [
        f"--dataset.root={data}", "--dataset.repo_id=local/pusht", "--policy.type=pizero", "--policy.device=cpu",
        "--policy.push_to_hub=false", "--batch_size=8", "--num_workers=0", "--wandb.enable=false", "--log_freq=5",
        "--dataset.video_backend=pyav",
    ]  # fmt: skip
    first, second = root / "lerobot-train", root / "lerobot-tune"
    if not first.exists():
        lerobot(
            "-m", "lerobot.scripts.lerobot_train", *common, f"--output_dir={first}", "--steps=20", "--save_freq=20",
            f"--policy.embodiment={robot}", "--policy.chunk_size=16",
        )  # fmt: skip
    saved = first / "checkpoints" / "last" / "pretrained_model"
    model = read_checkpoint(saved)
    check("lerobot-train: what it saves has chunks of", abs(model.config.action_horizon - 16), 0)
    shutil.rmtree(second, ignore_errors=True)
    lerobot(
        "-m", "lerobot.scripts.lerobot_train", *common, f"--output_dir={second}", "--steps=2", "--save_freq=2",
        f"--policy.checkpoint={saved}", f"--policy.embodiment={robot}", "--policy.optimizer_lr=1e-9",
    )  # fmt: skip
    tuned = read_checkpoint(second / "checkpoints" / "last" / "pretrained_model")
    before, after = dict(model.tensors()), dict(tuned.tensors())
    far = max(float((before[name].float() - after[name].float()).abs().max()) for name in before)
    check("lerobot-train from a checkpoint, with a learning rate of 1e-9: weights move", far, 1e-6)


def check_server(root: Path) -> None:
    with contextlib.chdir(root):  # the server writes logs where it runs
        ask_server(root)


def ask_server(root: Path) -> None:
    """The server's own class and messages, over gRPC; the client's robot is missing here."""
    from concurrent import futures

    import grpc
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
    from lerobot.transport import services_pb2, services_pb2_grpc
    from lerobot.transport.utils import send_bytes_in_chunks
    from lerobot_policy_pizero.policy_server import PolicyServer, allow

    folder = root / "server-plugin"
    shutil.rmtree(folder, ignore_errors=True)
    convert(pusht_policy(root), folder, "lerobot-plugin")
    allow()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(PolicyServer(PolicyServerConfig()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    shape = (48, 64, 3)
    features = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x.pos", "y.pos"]},
        "observation.images.top": {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]},
    }
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seen = {"x.pos": 100.0, "y.pos": 300.0, "top": image, "task": PROMPT}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        stub.Ready(services_pb2.Empty())
        policy = RemotePolicyConfig("pizero", str(folder), features, actions_per_chunk=10, device="cpu")
        stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(policy)))
        observation = pickle.dumps(TimedObservation(timestamp=time.time(), timestep=0, observation=seen, must_go=True))
        stub.SendObservations(send_bytes_in_chunks(observation, services_pb2.Observation))
        actions = pickle.loads(stub.GetActions(services_pb2.Empty()).data)
    server.stop(None)
    chunk = np.stack([action.get_action().numpy() for action in actions])
    robot = {"state": np.array([100.0, 300.0], np.float32), "images": {"top": image}, "prompt": seen["task"]}
    ours = load_policy(folder)
    noise = episode_noise(0, 0, ours.noise_shape)
    expected = ours.infer({**robot, "noise": noise})["actions"][:10]
    check("asynchronous server: its chunk against ours", distance(chunk, expected), 1e-3)


def check_rollout(root: Path) -> None:
    """The call of lerobot-rollout's real-time chunking, without a robot: the same as pizero's policy continues."""
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.rollout.inference.rtc import supports_rtc_inference

    path = pusht_policy(root)
    config = PizeroConfig(checkpoint=str(path), device="cpu", rtc_config=RTCConfig(execution_horizon=8))
    policy = PizeroPolicy.from_pretrained(None, config=config)
    check("real-time chunking: LeRobot finds that the policy has it", float(not supports_rtc_inference(policy)), 0)
    image = np.full((48, 64, 3), 200, np.uint8)
    robot = {"state": np.array([100.0, 300.0], np.float32), "images": {"top": image}, "prompt": "push"}
    batch = lerobot_batch(robot)
    first = policy.predict_action_chunk(batch)
    padded = torch.zeros(8, 2)
    padded[:6] = first[0, 10:16]  # as LeRobot fills up what is left
    with torch.inference_mode():
        second = policy.predict_action_chunk(batch, inference_delay=3, prev_chunk_left_over=padded)
    ours = load_policy(path, real_time=RealTime(schedule="linear", max_weight=10.0))
    left = {"previous_actions": first[0, 10:16].numpy(), "inference_delay": 3}
    expected = ours.infer({**robot, **left, "noise": episode_noise(0, 1, ours.noise_shape)})["actions"]
    check("real-time chunking: LeRobot's call against ours", distance(second[0], expected), 1e-3)


def check_commanded(root: Path) -> None:
    """lerobot-rollout itself moves a robot that is none, synchronously and by real-time chunking."""
    for engine in ("sync", "rtc"):
        check_moves(f"lerobot-rollout, {engine}", pusht_policy(root), engine)


def check_moves(label: str, policy: Path, engine: str) -> None:
    told = lerobot(
        "lerobot_with_stand_in.py", "--robot.type=stand_in", "--policy.type=pizero", "--policy.device=cpu",
        f"--policy.checkpoint={policy}", "--task=push", "--duration=5", "--fps=10",
        "--play_sounds=false", "--return_to_initial_position=false", f"--inference.type={engine}",
    )  # fmt: skip
    actions = [int(line.split()[4]) for line in told.splitlines() if line.startswith("the stand-in was sent")]
    check(f"{label}: actions missing of at least 3", max(3 - max(actions, default=0), 0), 0)


def check_export(root: Path) -> None:
    pusht, tabletop = (exported(policy(root)) for policy in (pusht_policy, tabletop_policy))
    check_moves("lerobot-rollout, an export", pusht, "sync")
    for env, task, policy, export, option in (
        ("pusht", "push_t", pusht_policy(root), pusht, "pusht"),
        ("tabletop", TASKS["tabletop"], tabletop_policy(root), tabletop, "pizero_tabletop"),
    ):
        check_played(root, env, task, policy, [f"--env.type={option}"], 1, export)


def exported(policy: Path) -> Path:
    """An export of a policy, beside it."""
    folder = policy.parent / f"{policy.name}-onnx"
    if not folder.exists():
        pizero("export", policy, folder, "--to", "onnx")
    return folder


def pusht_policy(root: Path) -> Path:
    """What check_train leaves."""
    saved = root / "lerobot-train" / "checkpoints" / "last" / "pretrained_model"
    if not saved.exists():
        check_train(root)
    return saved


def tabletop_policy(root: Path) -> Path:
    if not (root / "tabletop-run").exists():
        data = demonstrations(root, "tabletop", 200)
        pizero("train", data, "--preset", "tabletop", "--steps", 700, "--output", root / "tabletop-run")
    return root / "tabletop-run"


def so101_policy(root: Path) -> Path:
    if not (root / "so101-run").exists():
        data = demonstrations(root, "so101", 160, "--image-size", SIZE, "--image-format", "png")
        pizero("train", data, "--preset", "so101-sim", "--steps", 1000, "--output", root / "so101-run")
    return root / "so101-run"


def demonstrations(root: Path, env: str, episodes: int, *options: Any) -> Path:
    if not (root / f"{env}-demos").exists():
        pizero("collect", env, "--episodes", episodes, "--output", root / f"{env}-demos", *options)
    return root / f"{env}-demos"


def pizero(*arguments: Any) -> None:
    run(["-m", "pizero", *map(str, arguments)])


def lerobot(*arguments: str) -> str:
    """What one of its commands prints, or a script beside this one."""
    return run(
        [str(Path(__file__).parent / arguments[0]) if arguments[0].endswith(".py") else arguments[0], *arguments[1:]]
    )


def run(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


CHECKS: dict[str, Callable[[Path], None]] = {
    "chunk": check_chunks,
    "times": check_times,
    "train": check_train,
    "eval": check_eval,
    "server": check_server,
    "rollout": check_rollout,
    "commanded": check_commanded,
    "export": check_export,
    "so101": check_so101,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only", nargs="*", choices=list(CHECKS), default=list(CHECKS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only:
            (arguments.keep or Path(scratch)).mkdir(parents=True, exist_ok=True)
            CHECKS[name]((arguments.keep or Path(scratch)).absolute())
    sys.exit("; ".join(failures) or None)


if __name__ == "__main__":
    main()
