"""Golden sets: inputs, weights and outputs of a reference implementation, recorded at tiny sizes.

A set is a folder with golden.npz, tiny_config.json and torch/model.safetensors. Every set in the folder that the
environment variable PIZERO_GOLDEN names (default: tests/golden/openpi) is tested on every array that it recorded.
"""

from __future__ import annotations

import json
import os
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pizero.checkpoints.load import load_model
from pizero.checkpoints.openpi.torch import config_from_arch
from pizero.model.flow_matching import interpolate
from pizero.model.pi0 import Pi0
from pizero.model.two_expert import KVCache
from pizero.types import Observation

FOLDER = Path(os.environ.get("PIZERO_GOLDEN") or Path(__file__).parents[1] / "golden" / "openpi")
PARTS = ("golden.npz", "tiny_config.json", "torch/model.safetensors")
TARGETS = ("in/x_t", "in/u_t")
"""Recorded inputs that can be computed from the others, so they are compared too."""


class GoldenSet:
    """One set; whatever several arrays need is computed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with np.load(folder / "golden.npz") as file:
            self.arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        self.config = config_from_arch(json.loads((folder / "tiny_config.json").read_text()))

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    @cached_property
    def model(self) -> Pi0:
        return load_model(self.folder / "torch", arch=self.config)

    @cached_property
    def observation(self) -> Observation:
        cameras = [name for name in self.config.cameras if f"in/image/{name}" in self.arrays]
        absent = torch.zeros(len(self["in/tokenized_prompt"]), dtype=torch.bool)
        return Observation(
            images={name: self.image(name) for name in cameras},
            image_masks={name: self.arrays.get(f"in/image_mask/{name}", absent) for name in self.config.cameras},
            state=self.arrays.get("in/state"),
            prompt_tokens=self["in/tokenized_prompt"],
            prompt_mask=self["in/tokenized_prompt_mask"],
        )

    def image(self, camera: str) -> Tensor:
        return self[f"in/image/{camera}"].float() / 255 * 2 - 1

    @cached_property
    def x_t(self) -> Tensor:
        if "in/x_t" in self.arrays:
            return self["in/x_t"]
        return interpolate(self["in/actions"], self["in/noise"], self["in/time"])

    @cached_property
    def prefix(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.model.embed_prefix(self.observation)

    @cached_property
    def suffix(self) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.no_grad():
            return self.model.embed_suffix(self.observation.state, self.x_t, self["in/time"])

    @cached_property
    def prefilled(self) -> tuple[Tensor, KVCache]:
        with torch.no_grad():
            return self.model.transformer.prefill(*self.prefix)

    @cached_property
    def suffix_hidden(self) -> Tensor:
        with torch.no_grad():
            return self.model.transformer.joint(*self.prefix, *self.suffix)

    @cached_property
    def loss(self) -> Tensor:
        """With its graph, for the gradients."""
        with torch.enable_grad():
            noise, time = self["in/noise"], self["in/time"]
            return self.model.loss(self.observation, self["in/actions"], noise=noise, time=time)


@cache
def load_set(folder: Path) -> GoldenSet:
    return GoldenSet(folder)


def find_sets() -> list[Path]:
    folders = sorted(FOLDER.iterdir()) if FOLDER.is_dir() else []
    return [folder for folder in folders if all((folder / part).is_file() for part in PARTS)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each set, or for each recorded array of each set; one that fails when there is no set at all."""
    if "golden" not in metafunc.fixturenames:
        return
    sets = find_sets()
    if "name" not in metafunc.fixturenames:
        metafunc.parametrize("golden", sets or [None], indirect=True, ids=lambda path: path.name if path else "no-sets")
        return
    cases = []
    for folder in sets:
        with np.load(folder / "golden.npz") as file:
            names = [name for name in file.files if name.startswith("out/") or name in TARGETS]
        if (folder / "grad_norms.json").is_file():
            names.append("grad_norms")
        cases += [pytest.param(folder, name, id=f"{folder.name}-{name}") for name in names]
    cases = cases or [pytest.param(None, "", id="nothing-recorded")]
    metafunc.parametrize(("golden", "name"), cases, indirect=["golden"])


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> GoldenSet:
    if request.param is None:
        pytest.fail(f"{FOLDER} holds no golden set with recorded arrays; a set is a folder with {', '.join(PARTS)}")
    return load_set(request.param)
