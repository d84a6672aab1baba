"""A tiny dataset, recorded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pizero.workflows.collect import CollectConfig, collect


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "tabletop"
    collect(CollectConfig(env="tabletop", episodes=8, image_size=28, image_format="png"), root)
    return root
