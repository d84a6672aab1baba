"""A checkpoint that does not record its robot takes it, and the statistics, from the folder of a dataset."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pizero.checkpoints.facts import GivenFacts
from pizero.checkpoints.format import Facts
from pizero.data.recognition.description import of_folder
from pizero.data.recognition.recognise import recognise
from pizero.model.config import small_config
from pizero.types import UserError
from pizero.workflows.norm_stats import norm_stats

PNG = Path(__file__).parents[1] / "golden/lerobot/datasets/v30_png"


def test_a_dataset_in_the_place_of_a_robot(tmp_path: Path) -> None:
    data, config = shutil.copytree(PNG, tmp_path / "data"), small_config("nano")
    given = GivenFacts(str(data), str(data))
    with pytest.raises(UserError, match=r"no norm statistics here"):
        given.over(Facts(), config)
    stats = norm_stats(data, None, "zscore", 4, None)[0]
    facts = given.over(Facts(), config)
    assert facts.embodiment == recognise(of_folder(data), config.cameras).robot
    assert facts.norm_stats is not None
    np.testing.assert_array_equal(facts.norm_stats.actions.mean, stats.actions.mean)
