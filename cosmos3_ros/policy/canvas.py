"""From camera pictures to the one canvas the image graph takes: compose, scale down, pad.

Each step writes into buffers of its own, so that a plan allocates nothing here. What a step returns
is such a buffer: it holds until the step's next call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from cosmos3_ros.engine.session import Contract
from cosmos3_ros.policy.embodiment import CameraView, Embodiment

# A target pixel depends on a few source pixels: products of so many rows leave most zeros out.
_BAND_ROWS = 8


class Composer:
    """Camera pictures (uint8 RGB [h,w,3] by name) in their cells: uint8 RGB [H,W,3].

    Each picture is resized to its cell bilinearly, without antialiasing, and truncated to uint8,
    as the pictures of the training data were.
    """

    def __init__(self, embodiment: Embodiment) -> None:
        self._views = embodiment.cameras
        self._picture = np.zeros((embodiment.canvas_height, embodiment.canvas_width, 3), np.uint8)
        # By camera: its picture as it came, and resized.
        self._wide: dict[str, np.ndarray] = {}
        self._resized = {v.name: np.empty((v.height, v.width, 3), np.float32) for v in self._views}

    def __call__(self, images: Mapping[str, np.ndarray]) -> np.ndarray:
        for view in self._views:
            cell = self._picture[view.y : view.y + view.height, view.x : view.x + view.width]
            image = images[view.name]
            if image.shape != cell.shape:
                image = self._resize(image, view)
            np.copyto(cell, image, casting="unsafe")
        return self._picture

    def _resize(self, image: np.ndarray, view: CameraView) -> np.ndarray:
        wide = self._wide.get(view.name)
        if wide is None or wide.shape != image.shape:
            wide = self._wide[view.name] = np.empty(image.shape, np.float32)
        np.copyto(wide, image)
        resized = self._resized[view.name]
        cv2.resize(wide, (view.width, view.height), resized, interpolation=cv2.INTER_LINEAR)
        return resized


class Fitter:
    """A composed picture, scaled down to the contract's content and padded to its canvas.

    Scaling is bicubic with antialiasing, on uint8. Pads right and bottom by reflection, or by the
    last pixel where the padding is wider than the picture.
    """

    def __init__(self, height: int, width: int, contract: Contract) -> None:
        """For pictures of this size [px]."""
        content = (contract.content_height, contract.content_width)
        self._downscale = Downscaler((height, width), content)
        self._bottom = contract.canvas_height - content[0]
        self._right = contract.canvas_width - content[1]
        wide = self._right >= content[1] or self._bottom >= content[0]
        self._border = cv2.BORDER_REPLICATE if wide else cv2.BORDER_REFLECT_101
        self._canvas = np.empty((contract.canvas_height, contract.canvas_width, 3), np.uint8)

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        content = self._downscale(picture)
        margins = (0, self._bottom, 0, self._right)
        cv2.copyMakeBorder(content, *margins, self._border, self._canvas)
        return self._canvas


class Downscaler:
    """Bicubic with antialiasing, rounded to uint8: equals torch's ``interpolate(antialias=True)``.

    uint8 [h,w,3] to uint8 [height,width,3]; a picture that has the size stays as it is. OpenCV has
    no antialiased bicubic.
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        self._is_idle = source == target
        if self._is_idle:
            return
        self._rows = _bands(_bicubic_weights(source[0], target[0]))
        self._columns = _bands(_bicubic_weights(source[1], target[1]))
        # The rows of one band, in whole lines as they lie in memory.
        most = max(band.source.stop - band.source.start for band in self._rows)
        self._lines = np.empty((most, 3 * source[1]), np.float32)
        self._shortened = np.empty((target[0], source[1], 3), np.float32)
        self._planes = np.empty((3, target[0], source[1]), np.float32)
        self._scaled = np.empty((3, *target), np.float32)
        self._picture = np.empty((*target, 3), np.uint8)

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        if self._is_idle:
            return picture
        lines, shortened = (a.reshape(len(a), -1) for a in (picture, self._shortened))
        for band in self._rows:
            pixels = self._lines[: band.source.stop - band.source.start]
            np.copyto(pixels, lines[band.source])
            np.matmul(band.weights, pixels, out=shortened[band.target])
        np.copyto(self._planes, self._shortened.transpose(2, 0, 1))
        for band in self._columns:
            pixels = self._planes[:, :, band.source]
            np.matmul(pixels, band.weights.T, out=self._scaled[:, :, band.target])
        np.rint(self._scaled, out=self._scaled)
        np.clip(self._scaled, 0, 255, out=self._scaled)
        np.copyto(self._picture, self._scaled.transpose(1, 2, 0), casting="unsafe")
        return self._picture


@dataclass(frozen=True)
class _Band:
    """Rows ``target`` of a matrix, without their zeros outside of the columns ``source``."""

    target: slice
    source: slice
    weights: np.ndarray


def _bands(weights: np.ndarray) -> list[_Band]:
    """A matrix whose rows are zero but for a few columns that move on from row to row."""
    bands = []
    for first in range(0, len(weights), _BAND_ROWS):
        target = slice(first, first + _BAND_ROWS)
        used = np.flatnonzero(weights[target].any(0))
        source = slice(used[0], used[-1] + 1)
        bands.append(_Band(target, source, np.ascontiguousarray(weights[target, source])))
    return bands


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
