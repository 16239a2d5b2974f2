"""What a test asks a lifecycle node of."""

from __future__ import annotations

from collections.abc import Callable

import rclpy.node
from lifecycle_msgs.srv import GetState


def state_label(peer: rclpy.node.Node, until: Callable[..., bool]) -> str:
    """The state the controller node says it is in, asked for by ``peer``."""
    client = peer.create_client(GetState, "/cosmos3_controller/get_state")
    assert until(client.service_is_ready)
    future = client.call_async(GetState.Request())
    assert until(future.done)
    return str(future.result().current_state.label)
