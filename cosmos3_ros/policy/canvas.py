"""From camera pictures to the one canvas the image graph takes: compose, scale down, pad."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import cv2
import numpy as np

from cosmos3_ros.engine.session import Contract
from cosmos3_ros.policy.embodiment import Embodiment


def compose(images: Mapping[str, np.ndarray], embodiment: Embodiment) -> np.ndarray:
    """Camera pictures (uint8 RGB [h,w,3] by name) in their cells: uint8 RGB [H,W,3].

    Each picture is resized to its cell bilinearly, without antialiasing, and truncated to uint8,
    as the pictures of the training data were.
    """
    canvas = np.zeros((embodiment.canvas_height, embodiment.canvas_width, 3), np.uint8)
    for view in embodiment.cameras:
        image = images[view.name]
        if image.shape[:2] != (view.height, view.width):
            size = (view.width, view.height)
            smooth = cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
            image = smooth.astype(np.uint8)
        canvas[view.y : view.y + view.height, view.x : view.x + view.width] = image
    return canvas


def fit(picture: np.ndarray, contract: Contract) -> np.ndarray:
    """A composed picture, scaled down to the contract's content and padded to its canvas.

    Pads right and bottom by reflection, or by the last pixel where the padding is wider than the
    picture. Scaling is bicubic with antialiasing, on uint8.
    """
    size = (contract.content_height, contract.content_width)
    if picture.shape[:2] != size:
        picture = downscale(picture, *size)
    bottom = contract.canvas_height - picture.shape[0]
    right = contract.canvas_width - picture.shape[1]
    if not bottom and not right:
        return picture
    wide = right >= picture.shape[1] or bottom >= picture.shape[0]
    border = cv2.BORDER_REPLICATE if wide else cv2.BORDER_REFLECT_101
    return np.asarray(cv2.copyMakeBorder(picture, 0, bottom, 0, right, border))


def downscale(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic with antialiasing, rounded to uint8: equals torch's ``interpolate(antialias=True)``.

    uint8 [h,w,3] to uint8 [height,width,3]. OpenCV has no antialiased bicubic.
    """
    rows = _bicubic_weights(picture.shape[0], height)
    columns = _bicubic_weights(picture.shape[1], width)
    scaled = np.einsum("yh,hwc->ywc", rows, picture.astype(np.float32), optimize=True)
    scaled = np.einsum("xw,ywc->yxc", columns, scaled, optimize=True)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def _bicubic_weights(source: int, target: int) -> np.ndarray:
    """Weights [target, source] of the cubic kernel with a = -0.5, widened by the scale."""
    scale = source / target
    stretch = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - 2 * stretch + 0.5).astype(int), 0)
    last = np.minimum((centre + 2 * stretch + 0.5).astype(int), source)
    pixel = np.arange(source)
    distance = np.abs((pixel[None] - centre[:, None] + 0.5) / stretch)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    weights *= (pixel[None] >= first[:, None]) & (pixel[None] < last[:, None])
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
