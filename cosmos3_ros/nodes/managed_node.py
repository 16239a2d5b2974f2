"""What both nodes share: transitions that say why they fail, parts that end with their state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

_LAST_WORDS = Duration(seconds=0.2)


class ManagedNode(LifecycleNode, ABC):
    """A lifecycle node that frees what it made: publishers when cleaned up, the rest when inactive.

    A node fills in ``configure``, ``start`` and ``say_goodbye``.
    """

    def __init__(self, name: str, **node_arguments: Any) -> None:
        super().__init__(name, **node_arguments)
        self._active_parts: list[Callable[[], object]] = []
        self._configured_parts: list[Callable[[], object]] = []

    @abstractmethod
    def configure(self) -> None:
        """Refuse by raising whatever can be refused: the node then stays unconfigured."""

    @abstractmethod
    def start(self) -> None:
        """Begin to work. What is raised leaves the node inactive."""

    @abstractmethod
    def say_goodbye(self) -> None:
        """Called once after work has ended, while publishers can still speak."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        # rclpy turns an exception into a failure without a word, so every one is caught here.
        try:
            self.configure()
        except Exception as error:
            self.get_logger().error(f"not configured: {error or repr(error)}")
            _release(self._configured_parts)
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        super().on_activate(state)
        try:
            self.start()
        except Exception as error:
            self.get_logger().error(f"not activated: {error or repr(error)}")
            _release(self._active_parts)
            super().on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        _release(self._configured_parts)
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self.on_cleanup(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.get_logger().error("a transition failed: back to unconfigured")
        return self.on_cleanup(state)

    def destroy_node(self) -> None:
        """End what still works, for a thread of it would outlive the node."""
        _release(self._active_parts)
        super().destroy_node()

    def own_publisher(self, kind: type, topic: str, qos: Any, *, inactive_too: bool = False) -> Any:
        """A publisher until clean-up; it speaks while the node is active, or ``inactive_too``."""
        if inactive_too:
            publisher = self.create_publisher(kind, topic, qos)
            destroy = self.destroy_publisher
        else:
            publisher = self.create_lifecycle_publisher(kind, topic, qos)
            destroy = self.destroy_lifecycle_publisher
        self.until_cleaned_up(partial(destroy, publisher))
        # Its last words would go with it: where a listener has died, they are not waited for long.
        self.until_cleaned_up(partial(publisher.wait_for_all_acked, _LAST_WORDS))
        return publisher

    def until_cleaned_up(self, end: Callable[[], object]) -> None:
        """``end`` is called when the node is cleaned up, the last registered first."""
        self._configured_parts.append(end)

    def listen(self, kind: type, topic: str, qos: Any, callback: Callable[[Any], None]) -> None:
        """A subscription while the node is active."""
        subscription = self.create_subscription(kind, topic, callback, qos)
        self.while_active(partial(self.destroy_subscription, subscription))

    def serve(self, kind: type, name: str, callback: Callable[[Any, Any], Any]) -> None:
        """A service while the node is active."""
        service = self.create_service(kind, name, callback)
        self.while_active(partial(self.destroy_service, service))

    def repeat(self, period_s: float, callback: Callable[[], None]) -> None:
        """A timer while the node is active, on a steady clock: the node's own may stand or jump."""
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        timer = self.create_timer(period_s, callback, clock=steady)
        self.while_active(partial(self.destroy_timer, timer))

    def while_active(self, end: Callable[[], object]) -> None:
        """``end`` is called when the node stops being active, the last registered first."""
        self._active_parts.append(end)

    def now_ns(self) -> int:
        """Time of the node's clock [ns]."""
        return int(self.get_clock().now().nanoseconds)

    def _stop(self) -> None:
        if self._active_parts:
            _release(self._active_parts)
            self.say_goodbye()


def _release(parts: list[Callable[[], object]]) -> None:
    while parts:
        parts.pop()()
