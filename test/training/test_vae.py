"""The VAE's training: whole clips, two stages, and stopping on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from training_parts import recording, small_recipe

from cosmos3_ros.engine.recipe import Recipe
from cosmos3_ros.training.run import new_vae
from cosmos3_ros.training.runs import Stage, TrainingError, read_curve
from cosmos3_ros.training.settings import VaeSettings
from cosmos3_ros.training.vae import (
    WholeClip,
    _draw,
    _learning_rate,
    decibel,
    encode_clips,
    set_statistics,
    to_canvases,
    to_pictures,
    train_vae,
)

SETTINGS = VaeSettings(
    episodes=3,
    short_steps=4,
    long_steps=2,
    decoder_steps=2,
    short_learning_rate=2.5e-3,
    long_learning_rate=8e-4,
    decoder_learning_rate=8e-4,
)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return small_recipe(tmp_path)


def films() -> list[np.ndarray]:
    return [np.stack(recording(i, "x").frames["wrist"]) for i in range(3)]


def trained(vae: AutoencoderKLWan, folder: Path, settings: VaeSettings = SETTINGS) -> None:
    folder.mkdir(exist_ok=True)
    train_vae(Stage(folder, "vae"), vae, films, 17, settings, seed=0, compiled=False)


def test_a_clip_in_one_piece_is_the_stock_one_in_chunks(recipe: Recipe) -> None:
    vae = new_vae(recipe, 0).eval()
    pictures = torch.rand(2, 3, 17, 64, 96) * 2 - 1
    with torch.no_grad():
        expected = vae._encode(pictures)
        channels = vae.config.z_dim
        shown = vae._decode(expected[:, :channels], return_dict=False)[0]
        first = vae._encode(pictures[:, :, :1])[:, :channels]
        clip = WholeClip(vae)
        mean, variance = clip.encode(pictures)
        decoded = clip.decode(mean)
    torch.testing.assert_close(mean, expected[:, :channels], atol=3e-5, rtol=0)
    torch.testing.assert_close(variance, expected[:, channels:].clamp(-20, 5), atol=3e-5, rtol=0)
    torch.testing.assert_close(decoded.clamp(-1, 1), shown, atol=3e-5, rtol=0)
    # What the policy sees, one picture, is what it was trained on, the first of a clip.
    torch.testing.assert_close(mean[:, :, :1], first, atol=1e-6, rtol=0)


def test_the_second_stage_is_of_whole_clips(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []

    def noted(films: list[np.ndarray], count: int, frames: int, random: Any) -> torch.Tensor:
        lengths.append(frames)
        return _draw(films, count, frames, random)

    monkeypatch.setattr("cosmos3_ros.training.vae._draw", noted)
    trained(new_vae(recipe, 0), tmp_path / "run")
    # Four steps, two, and two of the decoder alone.
    assert lengths == [5, 9, 5, 9, 17, 17, 17, 17]


def test_learning_rates_rise_and_fall_to_nearly_nothing_in_each_stage() -> None:
    settings = replace(SETTINGS, short_steps=400, long_steps=300, decoder_steps=200)
    begin = 0
    for peak, steps in settings.stages:
        rates = [_learning_rate(begin + step, settings) / peak for step in range(steps)]
        begin += steps
        assert rates[0] < 0.05 and 0.8 < max(rates) <= 1.0 and rates[-1] < 0.05
        assert 20 < int(np.argmax(rates)) < 80


def test_training_makes_pictures_more_like_themselves(recipe: Recipe, tmp_path: Path) -> None:
    vae = new_vae(recipe, 0)
    clips = np.stack([film[:17] for film in films()])
    before = squared_error(vae, clips)
    settings = replace(
        SETTINGS, short_steps=30, long_steps=5, short_learning_rate=5e-3, long_learning_rate=2e-3
    )
    trained(vae, tmp_path / "run", settings)
    assert squared_error(vae, clips) < 0.5 * before
    curve = read_curve(tmp_path / "run" / "vae.csv")
    assert [row["step"] for row in curve] == [25]
    assert curve[0]["psnr_db"] > 5


def squared_error(vae: AutoencoderKLWan, clips: np.ndarray) -> float:
    whole = WholeClip(vae)
    with torch.no_grad():
        shown = to_canvases(whole.decode(whole.encode(to_pictures(clips))[0])).astype(float)
    return float(np.square(shown - clips).mean())


def test_a_training_that_was_stopped_ends_where_it_would_have_ended(
    recipe: Recipe, tmp_path: Path
) -> None:
    whole, halves = new_vae(recipe, 0), new_vae(recipe, 0)
    trained(whole, tmp_path / "whole")
    state = tmp_path / "halves" / "vae.state.pt"
    trained(halves, tmp_path / "halves", replace(SETTINGS, long_steps=0, decoder_steps=0))
    assert state.is_file()
    fresh = new_vae(recipe, 99)
    trained(fresh, tmp_path / "halves")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], tensor, atol=0, rtol=0, msg=name)


def test_chunks_shorter_than_a_short_clip_are_trained_on(recipe: Recipe, tmp_path: Path) -> None:
    vae = new_vae(recipe, 0)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    films_of_six = [film[:6] for film in films()]
    stage = Stage(tmp_path, "vae")
    train_vae(stage, vae, lambda: films_of_six, 5, SETTINGS, seed=0, compiled=False)
    assert any((tensor != before[name]).any() for name, tensor in vae.state_dict().items())


def test_the_decoder_alone_leaves_the_latents_as_they_are(recipe: Recipe, tmp_path: Path) -> None:
    vae = new_vae(recipe, 0)
    trained(vae, tmp_path / "run", replace(SETTINGS, decoder_steps=0))
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    trained(vae, tmp_path / "run")
    changed = {name for name, tensor in vae.state_dict().items() if (tensor != before[name]).any()}
    assert changed, "the decoder learns"
    assert not [n for n in changed if not n.startswith(("decoder.", "post_quant_conv."))]


def test_a_state_of_another_model_is_refused_by_name(recipe: Recipe, tmp_path: Path) -> None:
    trained(new_vae(recipe, 0), tmp_path / "run")
    (tmp_path / "wider").mkdir()
    other = small_recipe(tmp_path / "wider")
    other.model.vae["base_dim"] = 8
    with pytest.raises(TrainingError, match="vae.state.pt' does not belong to this recipe"):
        trained(new_vae(other, 0), tmp_path / "run")


def test_a_state_that_was_cut_short_is_refused_by_name(recipe: Recipe, tmp_path: Path) -> None:
    trained(new_vae(recipe, 0), tmp_path / "run")
    state = tmp_path / "run" / "vae.state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="or is damaged"):
        trained(new_vae(recipe, 0), tmp_path / "run")


def test_latents_are_normalised_by_the_statistics_of_what_was_seen(recipe: Recipe) -> None:
    vae = new_vae(recipe, 0)
    latents = encode_clips(WholeClip(vae), iter(film[:17] for film in films()), batch=2)
    assert latents.shape == (3, 24, 5, 6, 4) and latents.dtype == np.float16
    set_statistics(vae, latents)
    mean, std = (np.array(vae.config[f"latents_{name}"]) for name in ("mean", "std"))
    normalised = (latents - mean.reshape(1, -1, 1, 1, 1)) / std.reshape(1, -1, 1, 1, 1)
    np.testing.assert_allclose(normalised.mean((0, 2, 3, 4)), 0, atol=1e-3)
    np.testing.assert_allclose(normalised.std((0, 2, 3, 4)), 1, atol=1e-3)


def test_pictures_survive_the_way_to_the_model_and_back() -> None:
    canvases = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 6, 3), np.uint8)
    pictures = to_pictures(canvases)
    assert pictures.shape == (2, 3, 5, 8, 6)
    assert pictures.min() >= -1 and pictures.max() <= 1
    np.testing.assert_array_equal(to_canvases(pictures), canvases)


def test_a_tenth_of_the_range_is_20_decibel() -> None:
    assert decibel(0.1**2) == pytest.approx(20.0)
