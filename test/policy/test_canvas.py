"""Canvas composition, scaling and padding equal the torch operations of the reference."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bundles import Exported

from cosmos3_ros.policy.canvas import Composer, Downscaler, Fitter
from cosmos3_ros.policy.embodiment import load_embodiment


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_torch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


def test_the_droid_canvas_has_the_wrist_on_top_and_the_exteriors_below() -> None:
    images = {
        "wrist": np.full((360, 640, 3), 10, np.uint8),
        "exterior_1": np.full((360, 640, 3), 20, np.uint8),
        "exterior_2": np.full((360, 640, 3), 30, np.uint8),
    }
    canvas = Composer(load_embodiment("droid_joint_pos"))(images)
    assert canvas.shape == (540, 640, 3)
    assert (canvas[:360] == 10).all()
    assert (canvas[360:, :320] == 20).all()
    assert (canvas[360:, 320:] == 30).all()


def test_a_view_is_scaled_bilinearly_without_antialiasing_and_truncated() -> None:
    images = {
        "wrist": random_image(720, 1280, 1),
        "exterior_1": random_image(360, 640, 2),
        "exterior_2": random_image(333, 501, 3),
    }
    canvas = Composer(load_embodiment("droid_joint_pos"))(images)
    cells = {
        "wrist": canvas[:360],
        "exterior_1": canvas[360:, :320],
        "exterior_2": canvas[360:, 320:],
    }
    for name, cell in cells.items():
        size = cell.shape[:2]
        smooth = F.interpolate(as_torch(images[name]), size, mode="bilinear", antialias=False)
        reference = smooth[0].permute(1, 2, 0).numpy().astype(np.uint8)
        difference = np.abs(cell.astype(int) - reference)
        # A sum that lies on a whole number may be truncated either way.
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3, name


def test_the_picture_is_reflected_right_and_bottom(tiny: Exported) -> None:
    picture = random_image(540, 640)
    contract = replace(
        tiny.bundle.manifest.contract,
        canvas_height=544,
        canvas_width=736,
        content_height=540,
        content_width=640,
    )
    padded = F.pad(as_torch(picture), (0, 96, 0, 4), mode="reflect")
    reference = padded[0].permute(1, 2, 0).numpy()
    assert (Fitter(*picture.shape[:2], contract)(picture) == reference).all()


def test_padding_wider_than_the_picture_repeats_its_edge(tiny: Exported) -> None:
    picture = random_image(64, 32)
    contract = replace(
        tiny.bundle.manifest.contract,
        canvas_height=64,
        canvas_width=96,
        content_height=64,
        content_width=32,
    )
    reference = F.pad(as_torch(picture), (0, 64, 0, 0), mode="replicate")[0].permute(1, 2, 0)
    assert (Fitter(*picture.shape[:2], contract)(picture) == reference.numpy()).all()


@pytest.mark.parametrize(
    ("source", "target"),
    [((540, 640), (256, 303)), ((180, 320), (100, 177)), ((97, 131), (64, 64))],
)
def test_scaling_down_equals_torch_bicubic_with_antialiasing(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    picture = random_image(*source)
    smooth = F.interpolate(as_torch(picture), target, mode="bicubic", antialias=True)
    reference = smooth[0].permute(1, 2, 0).clamp(0, 255).round().numpy()
    difference = np.abs(Downscaler(source, target)(picture) - reference)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_pictures_of_another_size_than_before_find_room() -> None:
    compose = Composer(load_embodiment("droid_joint_pos"))
    small, large = (
        {name: random_image(height, width) for name in ("wrist", "exterior_1", "exterior_2")}
        for height, width in ((180, 320), (720, 1280))
    )
    first = compose(small).copy()
    assert not (compose(large) == first).all()
    assert (compose(small) == first).all()


def test_nothing_is_allocated_once_every_buffer_is_there(tiny: Exported) -> None:
    embodiment = load_embodiment("droid_joint_pos")
    contract = replace(
        tiny.bundle.manifest.contract,
        canvas_height=256,
        canvas_width=320,
        content_height=256,
        content_width=303,
    )
    compose = Composer(embodiment)
    fit = Fitter(embodiment.canvas_height, embodiment.canvas_width, contract)
    images = {view.name: random_image(720, 1280) for view in embodiment.cameras}
    fit(compose(images))
    tracemalloc.start()
    try:
        fit(compose(images))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000
