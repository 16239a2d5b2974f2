"""Image messages become RGB pictures, or a refusal that says what to do."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image

from cosmos3_ros.nodes.images import ENCODINGS, ImageError, image_message, rgb_of

RGB = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)


def enormous_jpeg() -> bytes:
    """A picture whose header asks for 65500 x 65500 pixels."""
    _, data = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))
    head, _, rest = data.tobytes().partition(b"\xff\xc0")
    size = (65500).to_bytes(2, "big")
    return head + b"\xff\xc0" + rest[:3] + size + size + rest[7:]


def encoded(encoding: str, padding: int = 0) -> Image:
    """The picture RGB in an encoding, each row followed by ``padding`` bytes."""
    grey = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)
    pixels = {
        "rgb8": RGB,
        "bgr8": RGB[:, :, ::-1],
        "rgba8": np.dstack([RGB, np.full((6, 10), 7, np.uint8)]),
        "bgra8": np.dstack([RGB[:, :, ::-1], np.full((6, 10), 7, np.uint8)]),
        "mono8": grey[:, :, None],
    }[encoding]
    rows = pixels.reshape(6, -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=9)
    message = Image(height=6, width=10, encoding=encoding, step=padded.shape[1])
    message.data = padded.tobytes()
    return message


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_becomes_rgb(encoding: str, padding: int) -> None:
    picture = rgb_of(encoded(encoding, padding), "wrist")
    assert picture.shape == (6, 10, 3) and picture.dtype == np.uint8
    if encoding == "mono8":
        expected = np.repeat(cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    else:
        expected = RGB
    assert (picture == expected).all()


@pytest.mark.parametrize("format_", [".png", ".jpg"])
def test_a_compressed_picture_is_decoded_to_rgb(format_: str) -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, :, 0] = 200
    data = cv2.imencode(format_, red[:, :, ::-1])[1].tobytes()
    picture = rgb_of(CompressedImage(format="jpeg", data=data), "wrist")
    assert np.abs(picture.astype(int) - red).max() < 4


def test_an_unsupported_encoding_is_refused_with_the_supported_ones() -> None:
    message = Image(height=2, width=2, step=4, encoding="yuv422", data=bytes(8))
    with pytest.raises(
        ImageError,
        match=r"camera 'wrist': encoding 'yuv422' is not supported \(rgb8, bgr8, rgba8, bgra8, "
        r"mono8\); set image_transport to compressed or convert upstream",
    ) as refusal:
        rgb_of(message, "wrist")
    assert refusal.value.reason == "camera_encoding"


@pytest.mark.parametrize(
    "change", [{"height": 7}, {"width": 11}, {"step": 29}, {"height": 0}, {"width": 0}]
)
def test_a_size_that_the_bytes_do_not_bear_out_is_refused(change: dict[str, int]) -> None:
    message = encoded("rgb8")
    for key, value in change.items():
        setattr(message, key, value)
    with pytest.raises(ImageError, match="camera 'wrist': 180 bytes for") as refusal:
        rgb_of(message, "wrist")
    assert refusal.value.reason == "camera_malformed"


@pytest.mark.parametrize("data", [b"", b"not a picture", enormous_jpeg()])
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="are no JPEG or PNG"):
        rgb_of(CompressedImage(format="jpeg", data=data), "wrist")


def test_a_picture_survives_its_message() -> None:
    message = image_message(RGB, Time(sec=3, nanosec=4), "canvas")
    assert (message.header.stamp.sec, message.header.frame_id) == (3, "canvas")
    assert (rgb_of(message, "canvas") == RGB).all()
