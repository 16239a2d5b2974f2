"""Checkpoints: every variant's graphs equal its stock modules, and a bad one is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from bundles import SIM_PANDA, TINY
from safetensors.torch import load_file, save_file

from cosmos3_ros.engine import export as exporting
from cosmos3_ros.engine.backends import open_backend
from cosmos3_ros.engine.bundle import Bundle
from cosmos3_ros.engine.export import export
from cosmos3_ros.engine.export_checkpoint import INDEX, WEIGHTS, CheckpointWeights
from cosmos3_ros.engine.export_contract import make_contract
from cosmos3_ros.engine.export_model import make_components, open_components
from cosmos3_ros.engine.export_reference import stock_text, stock_velocity
from cosmos3_ros.engine.parts import run_graph
from cosmos3_ros.engine.recipe import Recipe, RecipeError, load_recipe
from cosmos3_ros.engine.session import TEXT_PADDING_BIAS
from cosmos3_ros.export_command import body_of
from cosmos3_ros.policy.embodiment import load_embodiment
from cosmos3_ros.policy.positions import positions, rotary_tables

# What the released models change, at a tiny size.
VARIANTS: dict[str, dict[str, Any]] = {
    "nano": {},
    # With sound as base Nano has it: weights that no graph here reads.
    "nano_with_sound": {"sound_gen": True, "sound_dim": 8},
    # Heads that are together wider than the hidden states, and more layers.
    "super": {
        "hidden_size": 80,
        "intermediate_size": 160,
        "num_attention_heads": 8,
        "num_hidden_layers": 5,
    },
    "edge": {
        "hidden_act": "relu2",
        "qk_norm_for_text": False,
        "use_und_k_norm_for_gen": True,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e8,
        "num_key_value_heads": 1,
    },
}
TOLERANCE = 2e-5


def recipe_for(folder: Path, variant: str = "nano", **changes: Any) -> Recipe:
    """Tiny's recipe for a checkpoint of a variant."""
    path = folder / f"{variant}.yaml"
    model = {"random_seed": None, "tokenizer": "checkpoint", "transformer": VARIANTS[variant]}
    recipe = {"name": variant, "extends": str(TINY), "model": model} | changes
    path.write_text(yaml.safe_dump(recipe))
    return load_recipe(path)


def write_checkpoint(folder: Path, variant: str, dtype: torch.dtype, shard: str = "10GB") -> Path:
    """A variant with random weights, norms included, as diffusers writes it."""
    recipe = yaml.safe_load(TINY.read_text()) | {"name": variant}
    recipe["model"]["transformer"] |= VARIANTS[variant]
    (folder / "random.yaml").write_text(yaml.safe_dump(recipe))
    parts = make_components(load_recipe(folder / "random.yaml"), None)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in parts.transformer.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    parts.transformer.to(dtype).save_pretrained(folder / "transformer", max_shard_size=shard)
    parts.vae.to(dtype).save_pretrained(folder / "vae", max_shard_size=shard)
    parts.scheduler.save_pretrained(folder / "scheduler")
    parts.tokenizer.save_pretrained(folder / "text_tokenizer")
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    return write_checkpoint(folder, "nano", torch.float32, shard="200KB")


@pytest.fixture
def copy(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "checkpoint"))


@pytest.fixture(scope="module", autouse=True)
def without_the_vae() -> Iterator[None]:
    """Exports leave image and frame out: they take most of the time, and do not differ here."""
    every = exporting.graph_parts

    def some(*arguments: Any) -> dict[str, Any]:
        return {g: p for g, p in every(*arguments).items() if g not in ("image", "frame")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "graph_parts", some)
        yield


def export_tiny(recipe: Recipe, out: Path, checkpoint: Path) -> Bundle:
    return export(recipe, body_of(load_embodiment(SIM_PANDA)), out, checkpoint)


@pytest.mark.parametrize(
    ("variant", "shard", "layers_per_part"),
    [
        ("nano_with_sound", "10GB", None),
        ("super", "200KB", 2),
        ("edge", "200KB", {"text": 1}),
    ],
)
def test_the_graphs_of_every_variant_equal_its_stock_modules(
    variant: str, shard: str, layers_per_part: object, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path, variant, torch.float32, shard)
    assert (checkpoint / "transformer" / INDEX).is_file() == (shard == "200KB")
    recipe = recipe_for(tmp_path, variant, layers_per_part=layers_per_part)
    bundle = export_tiny(recipe, tmp_path / "bundle", checkpoint)
    contract, graphs = bundle.manifest.contract, bundle.manifest.graphs
    engine = open_backend(bundle, "onnxruntime", 2)
    stock = make_components(recipe, checkpoint)

    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, 50)
    text_tokens = contract.prompting.text_tokens
    token_ids = np.zeros(text_tokens, np.int64)
    token_ids[:50] = ids
    ours = run_graph(engine, graphs, "text", {"token_ids": token_ids})
    for name, expected in stock_text(stock, ids.tolist()).items():
        assert np.abs(ours[name][:, :, :50] - expected).max() < TOLERANCE
        assert expected.std() > 0.01

    latents = rng.standard_normal(contract.latent_shape, np.float32)
    rows = rng.standard_normal((contract.rows, contract.action_dim), np.float32)
    noisy = np.ones((contract.rows, 1), np.float32)
    noisy[:3] = 0
    bias = np.zeros(text_tokens, np.float32)
    bias[50:] = TEXT_PADDING_BIAS
    cos, sin = rotary_tables(positions(50, contract), contract.rope)
    feeds = {"latents": latents, "rows": rows, "noisy_rows": noisy, "cos": cos, "sin": sin}
    feeds |= {"timestep": np.array([700.0], np.float32), "text_bias": bias, **ours}
    feeds |= {"domain_id": np.array([contract.domain_id])}
    found = run_graph(engine, graphs, "denoise", feeds)
    velocities = stock_velocity(stock, contract, ids.tolist(), latents, rows, noisy, 700.0)
    for name, expected in zip(("latent_velocity", "row_velocity"), velocities, strict=True):
        assert np.abs(found[name] - expected).max() < TOLERANCE * max(1, np.abs(expected).max())
        assert expected.std() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_is_read_as_it_was_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7), "c": torch.tensor(2.5)}
    stored = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(stored, tmp_path / WEIGHTS, metadata={"format": "pt"})
    weights = CheckpointWeights(tmp_path)
    assert weights.shapes == {"a": (3, 5), "b": (7,), "c": ()}
    for name, tensor in stored.items():
        assert (weights.read(name).astype(np.float32) == tensor.float().numpy()).all()


def test_half_a_checkpoint_is_the_whole_one_rounded(tmp_path: Path) -> None:
    for name, dtype in (("half", torch.bfloat16), ("whole", torch.float32)):
        (tmp_path / name).mkdir()
        write_checkpoint(tmp_path / name, "nano", dtype)
    half, whole = (
        open_components(recipe_for(tmp_path), tmp_path / name).transformer_weights
        for name in ("half", "whole")
    )
    for name in whole.shapes:
        rounded = torch.from_numpy(whole.read(name)).bfloat16().float().numpy()
        assert (half.read(name).astype(np.float32) == rounded).all()


SHARD = "transformer/diffusion_pytorch_model-00002-of-"


def shard_of(folder: Path) -> Path:
    return next((folder / "transformer").glob("*-00002-of-*"))


def cut(folder: Path, size: int) -> None:
    data = shard_of(folder).read_bytes()
    shard_of(folder).write_bytes(data[:size])


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """All of the transformer's tensors in one file, changed."""
    part = folder / "transformer"
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(part.glob("*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (part / INDEX).unlink()
    change(tensors)
    save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_actions(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("action_")]:
        del tensors[name]


def as_fp8(tensors: dict[str, torch.Tensor]) -> None:
    tensors["proj_in.weight"] = tensors["proj_in.weight"].to(torch.float8_e4m3fn)


def as_the_framework_names_them(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[f"model.net.language_model.model.{name}"] = tensors.pop(name)


def training_checkpoint(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")
    (folder / "model").mkdir()
    (folder / "model" / ".metadata").write_bytes(b"")
    (folder / "model" / "__0_0.distcp").write_bytes(b"")


def framework_export(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")
    shutil.rmtree(folder / "vae")
    (folder / "config.json").write_text(json.dumps({"model": {"config": {}}}))
    (folder / "model.safetensors").write_bytes(b"")


CONVERT = "cosmos_framework.scripts.convert_model_to_diffusers --checkpoint-path .* -o OUT"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda c: shard_of(c).unlink(),
            "names 'diffusion_pytorch_model-00002-of-.*, which is not there",
        ),
        (lambda c: cut(c, 1000), f"{SHARD}.* is cut short .*header ends at byte .* of 1000"),
        (lambda c: cut(c, -1), f"{SHARD}.* is cut short .*tensors end at byte"),
        (lambda c: cut(c, 4), f"{SHARD}.* is cut short or no safetensors file"),
        (
            lambda c: shutil.copy(next((c / "transformer").glob("*-00001-of-*")), shard_of(c)),
            f"{SHARD}.* has no tensor '.*', which {INDEX} says it holds",
        ),
        (
            lambda c: (c / "transformer" / INDEX).write_text("{}"),
            f"transformer/{INDEX} is no index of weights",
        ),
        (
            lambda c: (
                rewrite(c, lambda t: (c / "transformer" / WEIGHTS).unlink(missing_ok=True))
                or (c / "transformer" / WEIGHTS).unlink()
            ),
            f"transformer/ has neither {WEIGHTS} nor {INDEX}",
        ),
        (
            lambda c: rewrite(c, lambda t: t.pop("layers.1.self_attn.add_q_proj.weight")),
            "transformer/ lacks 'layers.1.self_attn.add_q_proj.weight'; expected every tensor",
        ),
        (
            lambda c: rewrite(c, lambda t: t.update({"layers.2.norm": torch.zeros(1)})),
            "transformer/ has 'layers.2.norm', which diffusers' class .* does not know",
        ),
        (
            lambda c: rewrite(c, lambda t: t.update({"proj_in.bias": torch.zeros(63)})),
            r"proj_in.bias has shape \(63,\); its configuration asks for \(64,\)",
        ),
        (lambda c: rewrite(c, as_fp8), "proj_in.weight is F8_E4M3; expected one of F32, F16, BF16"),
        (
            lambda c: rewrite(c, without_actions),
            "lacks 'action_modality_embed', .* and 2 more; expected every tensor",
        ),
        (
            lambda c: edit_json(c / "transformer" / "config.json", action_gen=False),
            r"has no action head \(action_gen is False\)",
        ),
        (
            lambda c: edit_json(c / "transformer" / "config.json", action_dim=32),
            "does not fit the checkpoint's transformer: action_dim is 32, expected 64",
        ),
        (
            lambda c: (c / "vae" / "config.json").write_text("{"),
            "vae/config.json is no JSON object",
        ),
        (lambda c: shutil.rmtree(c / "vae"), "has no vae/config.json; expected diffusers' layout"),
        (training_checkpoint, rf"cosmos-framework's layout \(model/.metadata\).*{CONVERT}"),
        (framework_export, rf"cosmos-framework's layout \(config.json\).*{CONVERT}"),
        (
            lambda c: rewrite(c, as_the_framework_names_them),
            rf"cosmos-framework's layout \(tensor 'model.net.*\).*{CONVERT}",
        ),
    ],
)
def test_a_bad_checkpoint_is_refused_by_name(
    spoil: Callable[[Path], object], message: str, copy: Path, tmp_path: Path
) -> None:
    spoil(copy)
    out = tmp_path / "bundle"
    with pytest.raises(RecipeError, match=message) as refusal:
        export_tiny(recipe_for(tmp_path), out, copy)
    assert "\n" not in str(refusal.value)
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_an_action_head_narrower_than_the_robot_is_refused(copy: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path)
    recipe.model.transformer["action_dim"] = 4
    edit_json(copy / "transformer" / "config.json", action_dim=4)

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("action_proj_in.fc.weight", "action_proj_out.fc.weight"):
            tensors[name] = tensors[name][:, : 4 * 64].contiguous()
        tensors["action_proj_out.bias.weight"] = torch.zeros(32, 4)

    rewrite(copy, narrow)
    body = body_of(load_embodiment(SIM_PANDA))
    with pytest.raises(RecipeError, match="has 8 channels, the model's action head 4"):
        make_contract(recipe, body, open_components(recipe, copy))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tensor_that_is_not_finite_is_refused_by_name(
    dtype: torch.dtype, value: float, tmp_path: Path
) -> None:
    largest = torch.full((5, 7), torch.finfo(dtype).max, dtype=dtype)
    spoilt = largest.clone()
    spoilt[3, 4] = value
    save_file({"good": largest, "bad": spoilt}, tmp_path / WEIGHTS)
    weights = CheckpointWeights(tmp_path)
    assert weights.read("good").shape == (5, 7)
    with pytest.raises(RecipeError, match=f"tensor 'bad' in .*{WEIGHTS} has NaN or infinity"):
        weights.read("bad")


def test_a_nan_in_a_checkpoint_leaves_no_bundle(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = exporting.graph_parts
    monkeypatch.setattr(exporting, "graph_parts", lambda *a: {"text": every(*a)["text"]})

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["layers.0.mlp.up_proj.weight"][5, 6] = float("nan")

    rewrite(copy, spoil)
    with pytest.raises(RecipeError, match="'layers.0.mlp.up_proj.weight' .* has NaN"):
        export_tiny(recipe_for(tmp_path), tmp_path / "bundle", copy)
    assert not (tmp_path / "bundle").exists() and not list(tmp_path.glob(".*"))
