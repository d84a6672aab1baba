"""LeRobot's own π0 or π0.5, timed on request: python lerobot_samples.py FOLDER INPUTS.npz THREADS

FOLDER is a checkpoint in LeRobot's format. Says "ready" once it is loaded; then samples an action chunk for each line
that it reads, the name of a case in the inputs, and answers with its seconds. The actions go to INPUTS.<case>.npy.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import lerobot.policies.pi0.modeling_pi0 as pi0
import lerobot.policies.pi05.modeling_pi05 as pi05
import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig


def main() -> None:
    folder, inputs, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    config = PreTrainedConfig.from_pretrained(folder)
    config.device = "cpu"
    config.compile_model = False
    policy = pi0.PI0Policy if config.type == "pi0" else pi05.PI05Policy
    model = policy.from_pretrained(folder, config=config, strict=True).model.eval()
    arrays = {name: torch.from_numpy(value) for name, value in np.load(inputs).items()}
    print("ready", flush=True)
    for line in sys.stdin:
        case = line.strip()
        images = [image.permute(0, 3, 1, 2) for image in arrays[f"{case}/images"].unbind(1)]
        masks = list(arrays[f"{case}/masks"].unbind(1))
        state = [arrays[f"{case}/state"]] if config.type == "pi0" else []
        rest = arrays[f"{case}/tokens"], arrays[f"{case}/prompt_mask"], *state
        with torch.no_grad():
            started = time.perf_counter()
            actions = model.sample_actions(images, masks, *rest, noise=arrays[f"{case}/noise"].clone())
            seconds = time.perf_counter() - started
        np.save(inputs.with_suffix(f".{case}.npy"), actions.float().numpy())
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
