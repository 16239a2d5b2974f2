"""What is to come is worked out and sent beside the control loop, which never waits for it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

from cosmos3_ros.control.admission import Following
from cosmos3_ros.control.limits import Limits
from cosmos3_ros.control.outlook import Outlook, Steps
from cosmos3_ros.control.space import Space
from cosmos3_ros.nodes.forecaster import Forecaster

ONE = np.ones(1)
STEPS = Steps(Limits(Space(1), -ONE, ONE, ONE, ONE), Following(np.nan * ONE, ONE, np.nan * ONE))


def outlook(now_ns: int) -> Outlook:
    return Outlook(STEPS, now_ns, STEPS.limits.at_rest(np.zeros(1)), None, None)


def test_the_newest_is_sent_and_the_last_before_it_ends_whatever_fails() -> None:
    sent: list[int] = []
    failures: list[str] = []
    began, may_go_on = threading.Event(), threading.Event()

    def send(given: Outlook) -> None:
        began.set()
        assert may_go_on.wait(10.0)
        if given.now_ns == 1:
            raise RuntimeError("no driver")
        sent.append(given.now_ns)

    forecaster = Forecaster(send, lambda error: failures.append(str(error)))
    forecaster.start()
    forecaster.give(outlook(1))
    assert began.wait(10.0)
    before_s = time.monotonic()
    for now_ns in (2, 3, 4):
        forecaster.give(outlook(now_ns))
    assert time.monotonic() - before_s < 5.0, "nobody waits for what is under way"
    may_go_on.set()
    forecaster.stop()
    assert (sent, failures) == ([4], ["no driver"])
