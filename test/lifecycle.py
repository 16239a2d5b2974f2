"""What a test asks a lifecycle node of."""

from __future__ import annotations

from collections.abc import Callable

import rclpy.node
from lifecycle_msgs.srv import GetState

_TRIES = 5


def state_label(peer: rclpy.node.Node, until: Callable[..., bool]) -> str:
    """The state the controller node says it is in, asked for by ``peer``.

    A server that has not yet found its client's reader answers into the void: then ask again.
    """
    client = peer.create_client(GetState, "/cosmos3_controller/get_state")
    assert until(client.service_is_ready)
    for _ in range(_TRIES):
        future = client.call_async(GetState.Request())
        if until(future.done, 2.0):
            return str(future.result().current_state.label)
    raise AssertionError(f"no answer to {_TRIES} requests")
