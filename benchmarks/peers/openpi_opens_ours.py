"""Checks against openpi itself that it opens what pizero writes and that pizero reads what openpi writes.

`make test-openpi-peer OPENPI=<a checkout of openpi>` runs it in an environment of its own (.peers/openpi). It takes the
golden sets of tests/golden/openpi, at openpi's own smallest sizes, and prints one line per check:

- openpi's restore_params opens a written openpi-jax checkpoint, with the reference's tree, dtypes and numbers;
- openpi's JAX model and its PyTorch port act on written checkpoints as pizero does, from the same noise;
- openpi reads the written norm stats, and normalises with them as pizero does;
- a LoRA model of openpi, saved by Orbax, acts as pizero's merged one;
- checkpoints that Orbax writes in other ways (no "value", bfloat16, Zarr 3) are read.

Leaves with status 1 if anything differs by more than its tolerance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import openpi.models.gemma as their_gemma
import openpi.models.model as their_model
import openpi.models.siglip as their_siglip
import openpi.models_pytorch.gemma_pytorch as their_port
import openpi.shared.normalize as their_normalize
import openpi.transforms as their_transforms
import orbax.checkpoint as ocp
import safetensors.torch
import torch
from flax import traverse_util
from openpi.models.lora import LoRAConfig
from openpi.models.pi0_config import Pi0Config as TheirConfig
from openpi.models_pytorch.pi0_pytorch import PI0Pytorch

from pizero.checkpoints.files.keymap import fill
from pizero.checkpoints.format import Facts, StoredCheckpoint
from pizero.checkpoints.openpi import jax as openpi_jax
from pizero.checkpoints.openpi import torch as openpi_torch
from pizero.data.transforms import Normalize
from pizero.model.pi0 import Pi0
from pizero.types import Observation

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "openpi"
EXACT, ACTIONS = 0.0, 2e-4
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
failures: list[str] = []


def check(what: str, difference: float, tolerance: float) -> None:
    good = difference <= tolerance  # NaN is not
    print(f"{'ok  ' if good else 'FAIL'} {what}: greatest difference {difference:.3g} (tolerance {tolerance:.0e})")
    if not good:
        failures.append(what)


def use_golden_sizes(vocab_size: int) -> None:
    """openpi's smallest vision tower ("mu"), and a smaller vocabulary, in place of the fixed full sizes."""
    decode, vlm, expert = (
        their_siglip.decode_variant,
        their_port.PaliGemmaForConditionalGeneration,
        their_port.GemmaForCausalLM,
    )
    sizes = decode("mu/14")
    their_siglip.decode_variant = lambda variant: sizes
    their_gemma.PALIGEMMA_VOCAB_SIZE = vocab_size

    def small_vlm(config: Any) -> Any:
        vision = config.vision_config
        vision.hidden_size, vision.intermediate_size = sizes["width"], sizes["mlp_dim"]
        vision.num_hidden_layers, vision.num_attention_heads = sizes["depth"], sizes["num_heads"]
        vision.projection_dim = config.projection_dim = config.text_config.hidden_size
        config.text_config.vocab_size = vocab_size
        return vlm(config=config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = vocab_size
        return expert(config=config)

    their_port.PaliGemmaForConditionalGeneration, their_port.GemmaForCausalLM = small_vlm, small_expert


def their_config(name: str) -> TheirConfig:
    return TheirConfig(
        dtype="float32", paligemma_variant="dummy", action_expert_variant="dummy", pi05=name.startswith("pi05"),
        pytorch_compile_mode=None,
    )  # fmt: skip


def load(source: StoredCheckpoint) -> Pi0:
    with torch.device("meta"):
        model = Pi0(source.config)
    fill(model, source.tensors())
    return model.eval()


def our_actions(model: Pi0, arrays: dict[str, np.ndarray]) -> np.ndarray:
    observation = Observation(
        images={name: torch.from_numpy(image(arrays, name)) for name in CAMERAS},
        image_masks={name: torch.from_numpy(arrays[f"in/image_mask/{name}"]) for name in CAMERAS},
        state=torch.from_numpy(arrays["in/state"]),
        prompt_tokens=torch.from_numpy(arrays["in/tokenized_prompt"]),
        prompt_mask=torch.from_numpy(arrays["in/tokenized_prompt_mask"]),
    )
    with torch.no_grad():
        return model.sample_actions(observation, num_steps=10, noise=torch.from_numpy(arrays["in/noise"])).numpy()


def image(arrays: dict[str, np.ndarray], camera: str) -> np.ndarray:
    return arrays[f"in/image/{camera}"].astype(np.float32) / 255 * 2 - 1


def their_observation(arrays: dict[str, np.ndarray], convert: Any) -> their_model.Observation:
    return their_model.Observation(
        images={name: convert(image(arrays, name)) for name in CAMERAS},
        image_masks={name: convert(arrays[f"in/image_mask/{name}"]) for name in CAMERAS},
        state=convert(arrays["in/state"]),
        tokenized_prompt=convert(arrays["in/tokenized_prompt"]),
        tokenized_prompt_mask=convert(arrays["in/tokenized_prompt_mask"]),
    )


def jax_actions(model: Any, arrays: dict[str, np.ndarray]) -> np.ndarray:
    observation = their_observation(arrays, jnp.asarray)
    noise = jnp.asarray(arrays["in/noise"])
    return np.asarray(model.sample_actions(jax.random.key(0), observation, num_steps=10, noise=noise))


def port_actions(config: TheirConfig, path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    model = PI0Pytorch(config)
    safetensors.torch.load_model(model, str(path))  # strict, as openpi calls it
    observation = their_observation(arrays, torch.from_numpy)
    channels_first = {name: value.permute(0, 3, 1, 2) for name, value in observation.images.items()}
    observation = dataclasses.replace(observation, images=channels_first)
    with torch.no_grad():
        return model.eval().sample_actions("cpu", observation, noise=torch.from_numpy(arrays["in/noise"])).numpy()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def tree_distance(a: Any, b: Any) -> float:
    """Infinite when names or dtypes differ."""
    first, second = traverse_util.flatten_dict(a), traverse_util.flatten_dict(b)
    if first.keys() != second.keys() or any(first[key].dtype != second[key].dtype for key in first):
        return float("inf")
    return max(distance(np.asarray(first[key]), np.asarray(second[key])) for key in first)


def model_distance(a: Pi0, b: Pi0) -> float:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x.double() - y.double()).abs().max()) if x.dtype == y.dtype else float("inf") for x, y in pairs)


def check_written(name: str, folder: Path, arch: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """What pizero writes, opened by openpi."""
    source = openpi_torch.read(GOLDEN / name / "torch", arch)
    stats = openpi_jax.read(GOLDEN / name / "jax", arch).facts.norm_stats
    assert stats is not None
    model, facts = load(source), Facts(norm_stats=dataclasses.replace(stats, epsilon=1e-3))
    ours, config = our_actions(model, arrays), their_config(name)
    for format in (openpi_jax, openpi_torch):
        (folder / format.NAME).mkdir()
        format.write(folder / format.NAME, model, facts)
    restored = their_model.restore_params(folder / openpi_jax.NAME / "params")
    reference = their_model.restore_params(GOLDEN / name / "jax" / "params")
    check(f"{name}: restore_params, all arrays against the reference's", tree_distance(restored, reference), EXACT)
    theirs = jax_actions(config.load(restored), arrays)
    check(f"{name}: actions of openpi's JAX model on what we wrote", distance(theirs, ours), ACTIONS)
    check(f"{name}: the same against the recorded actions", distance(theirs, arrays["out/actions_steps_10"]), ACTIONS)
    theirs = port_actions(config, folder / openpi_torch.NAME / "model.safetensors", arrays)
    check(f"{name}: actions of openpi's PyTorch port on what we wrote", distance(theirs, ours), ACTIONS)
    for format in (openpi_jax, openpi_torch):
        loaded = their_normalize.load(next((folder / format.NAME / "assets").iterdir()))
        theirs = their_transforms.Normalize(loaded, use_quantiles=config.pi05)({"state": arrays["in/state"]})["state"]
        mine = Normalize(stats.state, stats.mode, 1e-3)(arrays["in/state"])
        check(f"{name}: norm stats of {format.NAME}, a state normalised", distance(theirs, mine), 1e-12)


def save_by_orbax(folder: Path, params: Any, **options: Any) -> None:
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, **options)
    with ocp.Checkpointer(handler) as saver:
        saver.save(folder / "params", ocp.args.PyTreeSave({"params": params}))


def check_orbax_forms(name: str, folder: Path, arch: dict[str, Any]) -> None:
    """Checkpoints that Orbax writes without a final "value": as they are, in bfloat16, with Zarr 3."""
    params = their_model.restore_params(GOLDEN / name / "jax" / "params")
    reference = load(openpi_torch.read(GOLDEN / name / "torch", arch))
    half = jax.tree.map(lambda array: array.astype(jnp.bfloat16), params)
    for form, tree, options in (
        ("float32", params, {}),
        ("Zarr 3", params, {"use_zarr3": True}),
        ("bfloat16", half, {}),
    ):
        save_by_orbax(folder / form, tree, **options)
        read = load(openpi_jax.read(folder / form, arch))
        expected = reference.bfloat16() if form == "bfloat16" else reference
        check(f"{name}: written by Orbax, {form}", model_distance(read, expected), EXACT)


def check_lora(name: str, folder: Path, arch: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """openpi's own LoRA layers on random factors, against the merged weights."""
    get_config = their_gemma.get_config
    ranks = iter((16, 32) * 4)

    def with_lora(variant: str) -> Any:
        rank = next(ranks)  # asked for the prefix, then for the expert
        lora = LoRAConfig(rank=rank, alpha=float(rank), init_fn=jax.nn.initializers.normal(stddev=0.1))
        return dataclasses.replace(get_config(variant), lora_configs={"attn": lora, "ffn": lora})

    their_gemma.get_config = with_lora
    try:
        model = their_config(name).create(jax.random.key(0))
    finally:
        their_gemma.get_config = get_config
    graph, state = nnx.split(model)
    params = traverse_util.flatten_dict(state.to_pure_dict())
    params.update(traverse_util.flatten_dict(their_model.restore_params(GOLDEN / name / "jax" / "params")))
    params = traverse_util.unflatten_dict(params)
    state.replace_by_pure_dict(params)
    save_by_orbax(folder, params)
    theirs = jax_actions(nnx.merge(graph, state), arrays)
    ours = our_actions(load(openpi_jax.read(folder, arch)), arrays)
    check(f"{name}: LoRA merged, actions against openpi's", distance(theirs, ours), ACTIONS)
    change = distance(theirs, arrays["out/actions_steps_10"])
    if change < 100 * ACTIONS:
        failures.append(f"{name}: the adapters change the actions by {change:.3g} only")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_float32_matmul_precision("highest")
    use_golden_sizes(vocab_size=512)
    for name in ("pi0_d32", "pi05_d32"):
        arch = json.loads((GOLDEN / name / "tiny_config.json").read_text())
        arrays = dict(np.load(GOLDEN / name / "golden.npz"))
        with tempfile.TemporaryDirectory() as folder:
            check_written(name, Path(folder), arch, arrays)
            check_orbax_forms(name, Path(folder), arch)
            check_lora(name, Path(folder) / "lora", arch, arrays)
    sys.exit("; ".join(failures) or None)


if __name__ == "__main__":
    main()
