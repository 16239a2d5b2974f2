"""What the simulated arm's commands refuse: one line, exit code 1, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not in this environment; run ./run setup")

import rclpy
from rclpy.context import Context

from cosmos3_ros.nodes.controller_parameters import ControllerParameters
from cosmos3_ros.nodes.parameters import parameter_rows
from cosmos3_ros.nodes.policy_parameters import PolicyParameters
from cosmos3_ros.sim import arguments, demo
from cosmos3_ros.sim import eval as evaluation
from cosmos3_ros.sim.sim_node import SimNode
from cosmos3_ros.sim.tasks import KINDS

BOTH = (evaluation.main, demo.main)


@pytest.mark.parametrize(
    ("mains", "words", "said"),
    [
        ((evaluation.main,), ("--episodes", "0"), "'0' is no whole number of at least 1"),
        ((evaluation.main,), ("--episodes", "2.5"), "'2.5' is no whole number of at least 1"),
        ((evaluation.main,), ("--seed", "-1"), "'-1' is no whole number of at least 0"),
        ((evaluation.main,), ("--threads", "many"), "'many' is no whole number of at least 0"),
        ((evaluation.main,), ("--real-time-factor", "0"), "'0' is no finite number above 0"),
        ((evaluation.main,), ("--task", "dance"), "choose from 'touch', 'lift', 'any'"),
        ((demo.main,), ("--seconds", "nan"), "'nan' is no finite number above 0"),
        (BOTH, ("--added-latency-ms", "-1"), "'-1' is no finite number of at least 0"),
        (BOTH, ("--added-latency-ms", "inf"), "'inf' is no finite number of at least 0"),
        ((evaluation.main,), ("--seed", "2147483648"), "'2147483648' is above 2147483645"),
        ((evaluation.main,), ("--seed", "2147483646"), "'2147483646' is above 2147483645"),
        ((evaluation.main,), ("--threads", "257"), "'257' is above 256"),
        ((evaluation.main,), ("--real-time-factor", "100.5"), "'100.5' is above 100"),
        (
            (evaluation.main,),
            ("--added-latency-ms", "6000", "--real-time-factor", "0.5"),
            "held back for 12 s; expected at most 10 s",
        ),
        ((evaluation.main,), ("--record", "x.mcap"), "--record: expected one --task"),
        (
            (evaluation.main,),
            ("--record", "x.mcap", "--task", "touch", "--offline"),
            "not --offline, which has no nodes",
        ),
        (BOTH, ("--added-latency-ms", "10001"), "'10001' is above 10000"),
        (BOTH, ("--plan-rate", "-2"), "'-2' is no finite number of at least 0"),
        (BOTH, ("--plan-rate", "101"), "'101' is above 100"),
        (BOTH, ("--strategy", "hope"), "choose from 'sync', 'blend', 'prefix'"),
        (BOTH, ("--state-ahead", "--strategy", "prefix"), "expected one of both"),
        (BOTH, ("--colour", "red"), "unrecognized arguments: --colour red"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mains: tuple[object, ...],
    words: tuple[str, ...],
    said: str,
) -> None:
    for main in mains:
        with pytest.raises(SystemExit) as end:
            main(["--out", str(tmp_path / "out"), *words])  # type: ignore[operator]
        assert end.value.code == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error, error
        assert error.startswith("./run ") and "--help" in error
    assert not (tmp_path / "out").exists()


def test_the_largest_values_are_those_of_the_nodes(ros_context: Context) -> None:
    policy = {row.name: row.maximum for row in parameter_rows(PolicyParameters)}
    assert policy["added_latency_s"] == arguments.LARGEST_LATENCY_S
    assert policy["threads"] == arguments.LARGEST_THREADS
    assert policy["plan_rate_hz"] == arguments.LARGEST_RATE_HZ
    controller = {row.name: row.maximum for row in parameter_rows(ControllerParameters)}
    assert controller["chunk_timeout_s"] == arguments.LARGEST_TIMEOUT_S
    node = rclpy.create_node("of_the_simulator", context=ros_context)
    SimNode._declare_seed(node)  # type: ignore[arg-type]
    SimNode._declare_real_time_factor(node)  # type: ignore[arg-type]
    seed, factor = node.describe_parameters(["seed", "real_time_factor"])
    node.destroy_node()
    assert seed.integer_range[0].to_value == arguments.LARGEST_SEED
    assert factor.floating_point_range[0].to_value == arguments.LARGEST_REAL_TIME_FACTOR


def test_the_largest_values_are_taken() -> None:
    words = ["--out", "x", "--seed", "2147483645", "--threads", "256", "--real-time-factor", "100"]
    args = evaluation._arguments([*words, "--added-latency-ms", "10000"])
    assert args.seed + len(KINDS) - 1 == arguments.LARGEST_SEED
    assert (args.threads, args.real_time_factor, args.added_latency_ms) == (256, 100.0, 10_000.0)
