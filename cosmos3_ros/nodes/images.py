"""Images: sensor_msgs to numpy and back."""

from __future__ import annotations

import array

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image

# Channels of an encoding, and the OpenCV conversion to RGB where one is needed.
ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}


class ImageError(ValueError):
    """An image message cannot be read. ``reason`` is the word it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def rgb_of(message: Image | CompressedImage, camera: str) -> np.ndarray:
    """Picture of a message as uint8 RGB [h, w, 3]. Raises ImageError naming the camera."""
    if isinstance(message, CompressedImage):
        return _decompressed(message, camera)
    if message.encoding not in ENCODINGS:
        raise ImageError(
            "camera_encoding",
            f"camera '{camera}': encoding '{message.encoding}' is not supported "
            f"({', '.join(ENCODINGS)}); set image_transport to compressed or convert upstream",
        )
    channels, conversion = ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0 or step < width * channels or len(message.data) != height * step:
        raise ImageError(
            "camera_malformed",
            f"camera '{camera}': {len(message.data)} bytes for {width}x{height} {message.encoding} "
            f"in rows of {step}; expected {height} rows of at least {width * channels} bytes",
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(height, step)
    pixels = rows[:, : width * channels].reshape(height, width, channels)
    if conversion is None:
        return np.ascontiguousarray(pixels)
    return np.asarray(cv2.cvtColor(pixels, conversion))


def image_message(rgb: np.ndarray, stamp: Time, frame_id: str) -> Image:
    """Message of a picture, uint8 RGB [h, w, 3]."""
    message = Image()
    message.header.stamp = stamp
    message.header.frame_id = frame_id
    message.height, message.width = rgb.shape[:2]
    message.encoding = "rgb8"
    message.step = rgb.shape[1] * 3
    # An array of bytes is taken as it is; anything else is checked byte by byte.
    message.data = array.array("B", rgb.tobytes())
    return message


def _decompressed(message: CompressedImage, camera: str) -> np.ndarray:
    data = np.frombuffer(message.data, np.uint8)
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error:  # of a header that asks for more than there may be
        picture = None
    if picture is None:
        raise ImageError(
            "camera_malformed",
            f"camera '{camera}': {data.size} bytes of format '{message.format}' are no JPEG or "
            "PNG; expected a compressed colour image",
        )
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
