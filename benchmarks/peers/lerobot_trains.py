"""LeRobot's own π0, trained on request: python lerobot_trains.py FOLDER ARCH.json INPUTS.npz THREADS float32|autocast

FOLDER is a checkpoint in LeRobot's format, ARCH.json its sizes. Says "ready" once it is loaded; then takes a step for
each line that it reads and answers with a JSON object: loss, and seconds of the step. A step is what its training does
(lerobot 0.6.1, scripts/lerobot_train.py, update_policy): forward, backward, clipping, AdamW of its preset; autocast is
its --accelerator.mixed_precision=bf16.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path

import lerobot.policies.pi0.modeling_pi0 as pi0
import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot_sizes import use_sizes


def main() -> None:
    folder, arch, inputs, threads, kind = sys.argv[1:]
    torch.set_num_threads(int(threads))
    use_sizes(pi0, json.loads(Path(arch).read_text()))
    config = PreTrainedConfig.from_pretrained(folder)
    config.device = "cpu"
    with contextlib.redirect_stdout(io.StringIO()):
        policy = pi0.PI0Policy.from_pretrained(folder, config=config, strict=True).train()
    preset = config.get_optimizer_preset()
    optimizer = preset.build(policy.get_optim_params())
    arrays = {name: torch.from_numpy(value) for name, value in np.load(inputs).items()}
    images = [image.permute(0, 3, 1, 2).contiguous() for image in arrays["images"].unbind(1)]
    masks = list(arrays["masks"].unbind(1))
    rest = [arrays[name] for name in ("tokens", "prompt_mask", "state", "actions", "noise", "time")]
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            loss = policy.model.forward(images, masks, *rest).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), preset.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        print(json.dumps({"loss": loss.item(), "seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main()
