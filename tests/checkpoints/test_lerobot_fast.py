"""LeRobot's pi0_fast: names and shapes, both directions to the bit, its text, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pizero.checkpoints.convert import convert
from pizero.checkpoints.facts import GivenFacts, make_pipeline
from pizero.checkpoints.lerobot.fast import _rows
from pizero.checkpoints.load import load_network, load_policy, read_checkpoint, save_model
from pizero.checkpoints.models import empty_model
from pizero.checkpoints.transformers.paligemma import key_names
from pizero.data.embodiments import Embodiment
from pizero.data.fast.codec import FastCodec
from pizero.data.fast.tokens import FastTokenizer
from pizero.data.tokenizer import BEGIN_ID, PaligemmaTokenizer
from pizero.model.config import Pi0Config
from pizero.model.pi0_fast import Pi0Fast, Pi0FastConfig
from pizero.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
SET = GOLDEN / "pi0_fast" / "pi0fast_d7h10"
ARCH = json.loads((SET / "tiny_config.json").read_text())
CODEC = GOLDEN / "fast_codec" / "t10_d7_v256" / "tokenizer"
HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
TABLE = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
ROBOT = GivenFacts(
    Embodiment("arm", {"base_0_rgb": "front"}), SET / "jax" / "assets" / "tiny",
    GOLDEN / "fast_prompts" / "loc256" / "tokenizer.model", CODEC,
)  # fmt: skip


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fast")
    save_model(load_network(SET / "jax", arch=ARCH), folder / "native")
    done = convert(folder / "native", folder / "lerobot", "lerobot", given=ROBOT)
    assert done.difference == 0.0
    notes = " ".join(done.notes)
    assert "LeRobot takes the action codec lerobot/fast-action-tokenizer" in notes
    assert 'a begin mark before "Action: "' in notes
    return folder / "lerobot"


def test_full_size_names_and_shapes() -> None:
    """PaliGemma's tensors as Transformers 5 has them, inside of LeRobot's modules, and every tensor of ours once."""
    rows = _rows(Pi0FastConfig(), TABLE.removeprefix("model."))
    ours = empty_model(Pi0FastConfig()).state_dict()
    assert sorted(row.ours for row in rows) == sorted(ours)
    paligemma = {name.replace("model.", "", 1) for name in key_names(Pi0Config())}
    inside = "paligemma_with_expert.paligemma.model."
    assert {row.theirs.removeprefix(inside) for row in rows} == paligemma


def test_a_round_trip(lerobot: Path, tmp_path: Path) -> None:
    config = json.loads((lerobot / "config.json").read_text())
    assert (config["type"], config["chunk_size"], config["fast_skip_tokens"]) == ("pi0_fast", 10, 128)
    stored = load_file(lerobot / "model.safetensors")
    assert torch.equal(stored[HEAD], stored[TABLE])
    steps = [step["registry_name"] for step in json.loads((lerobot / "policy_preprocessor.json").read_text())["steps"]]
    assert steps[3:7] == [
        "normalizer_processor", "pi0_fast_prepare_state_tokenizer_processor_step", "tokenizer_processor",
        "action_tokenizer_processor",
    ]  # fmt: skip
    model = load_network(SET / "jax", arch=ARCH)
    back = load_network(lerobot)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True))
    source = read_checkpoint(lerobot, model.config)
    facts = source.facts
    assert facts.norm_stats is not None
    assert facts.embodiment is not None
    assert facts.codec is not None
    assert (facts.convention, facts.embodiment.cameras["base_0_rgb"]) == ("lerobot", "front")
    assert not [note for note in source.notes if "unknown" in note or "not used" in note]
    policy = load_policy(lerobot, arch=model.config)
    chunk = policy.infer({"state": np.zeros(7, np.float32), "images": {"front": np.zeros((224, 224, 3), np.uint8)},
                          "prompt": "Lift it"})["actions"]  # fmt: skip
    assert chunk.shape == (10, 7)
    save_model(back, tmp_path / "again", "lerobot")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_its_text() -> None:
    """Capitals stay; a begin mark before the actions, which no loss is on."""
    text = PaligemmaTokenizer(GOLDEN / "fast_prompts" / "loc256" / "tokenizer.model")
    codec = FastCodec.load(CODEC)
    theirs, openpi = (FastTokenizer(text, codec, convention=name) for name in ("lerobot", "openpi"))
    chunk, state = np.zeros((1, 10, 7)), np.zeros((1, 7))
    made, plain = (tokenizer.encode_batch(["Lift_it\n"], state, 150, chunk) for tokenizer in (theirs, openpi))
    begin = int(made.causal[0].argmax())
    assert made.tokens[0, begin] == BEGIN_ID
    assert not made.target[0, begin]
    assert made.target[0, begin + 1 :].sum() == made.causal[0].sum() - 1 == plain.target[0].sum()
    written = made.tokens[0][made.causal[0]].tolist()
    np.testing.assert_allclose(theirs.decode(written, 10, 7), 0, atol=0.06)
    assert theirs.prompt_ids("Lift_it\n", [1]) == text.encoder.encode("Task: Lift it, State: 1;\n", add_bos=True)


def test_what_does_not_fit_is_refused(lerobot: Path, tmp_path: Path) -> None:
    arch = load_network(SET / "jax", arch=ARCH).config
    stored = load_file(lerobot / "model.safetensors")
    config = json.loads((lerobot / "config.json").read_text())

    def folder(name: str, tensors: dict[str, torch.Tensor], **changes: object) -> Path:
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **changes}))
        return tmp_path / name

    for found, message in (
        (folder("head", {**stored, HEAD: stored[HEAD] + 1}), "has a head of its own"),
        (folder("more", {**stored, "model.x": torch.zeros(1)}), r"1 left over \(model.x\)"),
        (folder("skip", stored, fast_skip_tokens=1152), "fast_skip_tokens is 1152; only 128"),
        (folder("variant", stored, paligemma_variant="gemma_9b"), "variant 'gemma_9b'"),
        (folder("variant of another width", stored), "of width 2048, but the weights have"),
        (folder("horizon", stored, chunk_size=12), "arch contradicts config.json: action_horizon 10 instead of 12"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_network(found, arch=None if "variant" in found.name else arch)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is of a π0-FAST, and the arch of a π0"):
        load_network(lerobot, arch=Pi0Config())
    only_head = {name: tensor for name, tensor in stored.items() if name != TABLE}
    model = load_network(folder("copy", only_head), arch=arch)  # LeRobot copies it
    assert isinstance(model, Pi0Fast)
    assert torch.equal(model.token_embedding.weight, stored[HEAD])
    facts = read_checkpoint(tmp_path / "copy", arch).facts
    with pytest.raises(UserError, match="codec"):
        make_pipeline(arch, dataclasses.replace(facts, codec=None))
