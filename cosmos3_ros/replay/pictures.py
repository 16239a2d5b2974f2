"""Camera pictures of a bag near wanted times, and the canvas they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from cosmos3_ros.policy.embodiment import Embodiment
from cosmos3_ros.replay.bags import Bag, Message

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
# Channels of an encoding, and the order of its red, green and blue.
ENCODINGS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}


def camera_topics(bag: Bag) -> dict[str, str]:
    """By camera name, topics ``camera/<name>/image[/compressed]`` that have pictures."""
    found = {}
    for topic in [*bag.typed(IMAGE), *bag.typed(COMPRESSED_IMAGE)]:
        parts = topic.removesuffix("/compressed").split("/")
        is_camera = len(parts) >= 3 and parts[-3] == "camera" and parts[-1] == "image"
        if is_camera and bag.topics[topic].count:
            found[parts[-2]] = topic
    return found


def nearest_pictures(
    bag: Bag, topics: Sequence[str], times_ns: Sequence[int]
) -> dict[str, list[np.ndarray]]:
    """By topic, the picture stamped nearest to each time: uint8 RGB [h,w,3]."""
    best: dict[str, list[Message | None]] = {topic: [None] * len(times_ns) for topic in topics}
    for message in bag.messages(topics):
        chosen = best[message.topic]
        for i, time_ns in enumerate(times_ns):
            rival = chosen[i]
            distance = abs(message.stamp_ns - time_ns)
            if rival is None or distance < abs(rival.stamp_ns - time_ns):
                chosen[i] = message
    return {t: [picture(m.decoded()) for m in chosen if m] for t, chosen in best.items()}


def picture(message: Any) -> np.ndarray:
    """uint8 RGB [h,w,3] of an Image or CompressedImage; grey where it cannot be read."""
    found = readable_picture(message)
    return np.full((9, 16, 3), 128, np.uint8) if found is None else found


def readable_picture(message: Any) -> np.ndarray | None:
    """uint8 RGB [h,w,3] of an Image or CompressedImage; None where it cannot be read."""
    if message.__msgtype__ == COMPRESSED_IMAGE:
        decoded = cv2.imdecode(np.asarray(message.data, np.uint8), cv2.IMREAD_COLOR)
        return None if decoded is None else np.ascontiguousarray(decoded[..., ::-1])
    channels, order = ENCODINGS.get(message.encoding, (0, ()))
    if not channels or len(message.data) != message.height * message.step:
        return None
    rows = np.asarray(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
    return np.ascontiguousarray(pixels[..., list(order)])


def canvas_like(
    predicted: np.ndarray, pictures: Mapping[str, np.ndarray], embodiment: Embodiment
) -> np.ndarray | None:
    """The pictures in their cells, as large as ``predicted`` [h,w,3]; None when one is missing.

    A predicted frame shows whole latent cells of the canvas, from its top left corner.
    """
    if any(view.name not in pictures for view in embodiment.cameras):
        return None
    canvas = np.zeros((embodiment.canvas_height, embodiment.canvas_width, 3), np.uint8)
    for view in embodiment.cameras:
        cell = cv2.resize(
            pictures[view.name], (view.width, view.height), interpolation=cv2.INTER_AREA
        )
        canvas[view.y : view.y + view.height, view.x : view.x + view.width] = cell
    height, width = predicted.shape[:2]
    scale = max(height / canvas.shape[0], width / canvas.shape[1])
    size = (round(canvas.shape[1] * scale), round(canvas.shape[0] * scale))
    return cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)[:height, :width]
