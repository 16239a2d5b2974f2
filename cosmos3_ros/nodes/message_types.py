"""Message types by the names that bags and the ROS graph give them."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MessageTypeError(ValueError):
    """There is no message type of this name here."""


def message_type(name: str) -> Any:
    """The class of a type name such as ``sensor_msgs/msg/Image``. Raises MessageTypeError."""
    package, _, message = name.partition("/msg/")
    try:
        return getattr(import_module(f"{package}.msg"), message)
    except (ImportError, AttributeError, ValueError):
        raise MessageTypeError(
            f"message type '{name}' is not known here; expected PACKAGE/msg/NAME of an installed "
            "package"
        ) from None
