"""What a training takes of its device: memory, and the share of a GPU's operations that the model uses."""

from __future__ import annotations

import sys

import torch

from pizero.checkpoints.models import NetworkConfig
from pizero.train.config import TrainConfig
from pizero.train.distributed import Ranks
from pizero.train.plan import Layout, plan_step

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""bfloat16 operations a second without sparsity, by NVIDIA's data sheets."""


def peak_memory(device: torch.device) -> int | None:
    """Bytes that this process has taken at most: of the GPU's, or of the host's on a CPU; None where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # no POSIX
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def peak_operations(device: torch.device) -> float | None:
    """A second, in bfloat16; None for a device that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS.items() if known in name), None)


def share_of_peak(network: NetworkConfig, config: TrainConfig, ranks: Ranks, device: torch.device) -> float | None:
    """What steps per second are multiplied with for the model's FLOP utilisation (MFU) of each rank's GPU.

    Operations of forward and backward pass, without those of a recomputation; about 20 seconds for a full π0.
    """
    peak = peak_operations(device)
    return None if peak is None else plan_step(network, config, Layout(ranks=ranks.count)).flops / peak
