"""An exported policy behind the server, opened as any checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_helpers import noise, observation

from pizero.export.export import export
from pizero.exported.policy import ExportedPolicy
from pizero.policy.policy import ModelPolicy
from pizero.serving.client import PolicyClient
from pizero.types import UserError
from pizero.workflows.policies import open_policy
from pizero.workflows.serve import loaders

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "export"
    export(checkpoint, folder, to="onnx", num_steps=2, threads=1)
    return folder


def test_a_server_answers_with_an_export(exported: Path, policy: ModelPolicy, serve: Any) -> None:
    served = loaders({"policy": str(exported)}, device="cpu", num_steps=None)["policy"]()
    assert isinstance(served, ExportedPolicy)
    expected = policy.infer({**observation(), "noise": noise()})["actions"]
    with PolicyClient(serve(served).uri) as client:
        assert (client.metadata["num_steps"], client.metadata["takes_subtask"]) == (2, False)
        answer = client.infer({**observation(), "noise": noise()})
    np.testing.assert_allclose(answer["actions"], expected, rtol=1e-4, atol=1e-4)


def test_what_an_export_has_settled_is_no_option(exported: Path) -> None:
    with pytest.raises(UserError, match="is an export, in which num_steps, kernels is settled"):
        open_policy(exported, num_steps=4, kernels="int8")
