"""Planning while the arm moves: what is committed, when it has to wait, and when it says so."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.control.overlap import Heard, Overlap, Strategy
from cosmos3_ros.control.space import Space

START_NS = 1_763_000_000 * NS_PER_S
RATE_HZ, ROWS = 10.0, 16
RAMP = np.column_stack((np.arange(1, ROWS + 1) / 10, np.zeros(ROWS)))


def at_s(seconds: float) -> int:
    return START_NS + round(seconds * NS_PER_S)


def overlap(strategy: Strategy, *delays_s: float) -> Overlap:
    """One that has seen plans from START_NS arrive so much later: each a ramp of 1 a second."""
    made = Overlap(strategy, ROWS, RATE_HZ, Space(2), np.array([False, True]))
    for plan_id, delay_s in enumerate(delays_s, 1):
        made.arrived(START_NS, at_s(delay_s))
        start_ns = at_s(delay_s) if strategy is Strategy.SYNC else START_NS
        made.published(Chunk(plan_id, START_NS, RATE_HZ, RAMP.copy(), start_ns))
    return made


def test_rows_that_are_due_before_the_plan_arrives_are_those_of_the_plan_before() -> None:
    committed = overlap(Strategy.PREFIX, 0.35).committed(at_s(0.42))
    # 0.35 s are three rows and a half: the fourth is on its way when the plan comes.
    assert committed is not None
    assert committed.rows[:, 0] == pytest.approx([0.52, 0.62, 0.72, 0.82])
    # And up to 1.6 s, what the plan before would do then.
    assert committed.continuation[:, 0] == pytest.approx(np.arange(0.92, 1.6, 0.1))


def test_past_the_last_row_the_arm_stays_there() -> None:
    committed = overlap(Strategy.PREFIX, 0.35).committed(at_s(1.45))
    assert committed is not None
    assert committed.rows[:, 0] == pytest.approx([1.55, 1.6, 1.6, 1.6])
    assert len(committed.continuation) == 0


@pytest.mark.parametrize("since_row_s", [0.0, 0.03])
def test_a_committed_row_of_a_gripper_is_the_one_that_stands_until_it_is_due(
    since_row_s: float,
) -> None:
    made = Overlap(Strategy.PREFIX, ROWS, RATE_HZ, Space(2), np.array([False, True]))
    rows = RAMP.copy()
    rows[5:, 1] = 1.0  # closing from the fifth row's time on
    made.arrived(START_NS, at_s(0.35))
    made.published(Chunk(1, START_NS, RATE_HZ, rows, START_NS))
    committed = made.committed(at_s(0.2 + since_row_s))
    assert committed is not None
    assert committed.rows[:, 1].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert set(committed.continuation[:, 1]) == {1.0}


def test_one_plan_in_twenty_may_be_slower_than_the_delay_that_counts() -> None:
    delays = [0.2] * 37 + [0.7] * 1
    assert overlap(Strategy.PREFIX, *delays).delay_s == pytest.approx(0.2)
    assert overlap(Strategy.PREFIX, *delays, 0.7, 0.7).delay_s > 0.2
    # What was long ago does not count.
    assert overlap(Strategy.PREFIX, *([0.7] * 40), *([0.1] * 40)).delay_s == pytest.approx(0.1)


@pytest.mark.parametrize("strategy", [Strategy.SYNC, Strategy.BLEND])
def test_other_strategies_commit_nothing(strategy: Strategy) -> None:
    assert overlap(strategy, 0.35).committed(at_s(0.4)) is None


def test_before_the_first_plan_nothing_is_committed_and_nothing_waited_for() -> None:
    for strategy in Strategy:
        first = overlap(strategy)
        assert first.committed(START_NS) is None and first.may_begin(START_NS)
        assert first.arrival(START_NS) is None


def test_in_sync_a_plan_begins_when_the_arm_rests_and_starts_when_it_is_there() -> None:
    sync = overlap(Strategy.SYNC, 0.7)
    # Rows from 0.8 to 2.3.
    assert not sync.may_begin(at_s(2.29))
    assert sync.may_begin(at_s(2.3))
    assert sync.arrived(at_s(2.3), at_s(3.0)) == at_s(3.0)


@pytest.mark.parametrize("strategy", [Strategy.BLEND, Strategy.PREFIX])
def test_a_plan_starts_at_its_observation_or_now_where_the_arm_has_stood_still_since(
    strategy: Strategy,
) -> None:
    moving = overlap(strategy, 0.7)
    assert moving.arrived(at_s(0.7), at_s(1.4)) == at_s(0.7)
    assert moving.arrived(at_s(1.6), at_s(2.2)) == at_s(2.2), "its last row was due"
    assert overlap(strategy).arrived(START_NS, at_s(0.7)) == at_s(0.7), "the first plan"
    moving.hear(Heard(tracked=0, newest=1))
    assert moving.arrived(at_s(0.8), at_s(1.5)) == at_s(1.5), "the controller holds"


@pytest.mark.parametrize("strategy", [Strategy.BLEND, Strategy.PREFIX])
def test_a_plan_that_comes_after_the_arm_has_come_to_rest_does_not_take_it_back(
    strategy: Strategy,
) -> None:
    """It was seen in motion, 0.6 s before the end of its chunk at 1.6 s: what is due after 0.6 s is
    where the arm rests now."""
    slow = overlap(strategy, 0.3)
    slow.begin(at_s(1.0))
    slow.hear(Heard(tracked=0, newest=1))  # the chunk has ended
    assert slow.arrived(at_s(1.0), at_s(1.9)) == at_s(1.3)
    # The next is of an arm that has stood still.
    slow.begin(at_s(1.95))
    assert slow.arrived(at_s(1.95), at_s(2.2)) == at_s(2.2)


def test_what_is_sent_to_a_controller_that_takes_nothing_moves_nothing() -> None:
    blend = overlap(Strategy.BLEND, 0.3)
    blend.hear(Heard(tracked=0, newest=1, obeys=False))  # it is deactivated
    blend.published(Chunk(2, at_s(0.5), RATE_HZ, RAMP.copy(), at_s(0.5)))
    blend.hear(Heard(tracked=0, newest=0))  # and activated again
    assert blend.arrived(at_s(1.7), at_s(1.9)) == at_s(1.9)
    blend.published(Chunk(3, at_s(1.7), RATE_HZ, RAMP.copy(), at_s(1.9)))
    assert blend.arrived(at_s(2.0), at_s(2.2)) == at_s(2.0), "on its way"


def test_a_plan_whose_stamp_is_ahead_of_the_clock_starts_at_its_stamp() -> None:
    assert overlap(Strategy.BLEND).arrived(at_s(0.4), at_s(0.3)) == at_s(0.4)


def test_a_plan_that_comes_too_late_to_be_used_counts_nevertheless() -> None:
    prefix = overlap(Strategy.PREFIX)
    prefix.arrived(START_NS, at_s(1.7))
    assert prefix.strategy is Strategy.SYNC and "plans take 1.70 s" in prefix.degraded


def test_near_half_a_chunk_it_does_not_go_to_and_fro() -> None:
    """In sync a plan is made of a fresh picture, and takes less by up to a picture's age."""
    blend = overlap(Strategy.BLEND, 0.83)
    seen = []
    for plan_id in range(2, 100):
        age_s = 0.0 if blend.strategy is Strategy.SYNC else 0.06
        blend.arrived(START_NS, at_s(0.77 + age_s))
        blend.published(Chunk(plan_id, START_NS, RATE_HZ, RAMP.copy(), START_NS))
        seen.append(blend.strategy)
    assert set(seen) == {Strategy.SYNC}
    assert "take 0.87 s with a picture 0.10 s old, the next comes 0.87 s after" in blend.degraded


@pytest.mark.parametrize("strategy", [Strategy.BLEND, Strategy.PREFIX])
def test_where_a_plan_takes_more_than_half_a_chunk_it_degrades_to_sync_and_says_so(
    strategy: Strategy,
) -> None:
    in_time, late = overlap(strategy, 0.8), overlap(strategy, 0.81)
    assert (in_time.strategy, in_time.degraded) == (strategy, "")
    assert in_time.may_begin(at_s(0.8))
    assert late.strategy is Strategy.SYNC
    assert "plans take 0.81 s, the next comes 0.81 s after, a chunk lasts 1.60 s" in late.degraded
    assert not late.may_begin(at_s(0.8)) and late.committed(at_s(0.8)) is None
    for plan_id in range(2, 60):
        late.arrived(START_NS, at_s(0.3))
        late.published(Chunk(plan_id, START_NS, RATE_HZ, RAMP.copy(), START_NS))
    assert late.strategy is strategy, "and returns when plans are quick again"


def test_a_planner_that_waits_between_plans_has_rows_run_out_sooner() -> None:
    for period_s, degraded in ((1.2, False), (1.3, True)):
        made = Overlap(Strategy.BLEND, ROWS, RATE_HZ, Space(2), np.array([False, True]), period_s)
        assert not made.degraded
        made.arrived(START_NS, at_s(0.4))
        assert bool(made.degraded) is degraded
    assert "plans take 0.40 s, the next comes 1.30 s after" in made.degraded


def test_the_state_may_be_rolled_forward_to_when_the_plan_arrives() -> None:
    arrival = overlap(Strategy.BLEND, 0.3).arrival(at_s(0.4))
    assert arrival is not None
    assert arrival.state == pytest.approx([0.7, 0.0]) and arrival.at_ns == at_s(0.7)


def test_an_arm_that_rests_until_the_plan_is_there_has_no_state_to_roll_forward() -> None:
    assert overlap(Strategy.SYNC, 0.3).arrival(at_s(0.4)) is None
    assert overlap(Strategy.BLEND, 0.3).arrival(at_s(1.6)) is None, "its last row was due"


def test_a_controller_that_holds_frees_the_planner() -> None:
    sync = overlap(Strategy.SYNC, 0.1, 0.1)
    sync.hear(Heard(tracked=0, newest=1))
    assert not sync.may_begin(at_s(0.4)), "it held before the last chunk came"
    sync.hear(Heard(tracked=0, newest=2))
    assert sync.may_begin(at_s(0.4))
    prefix = overlap(Strategy.PREFIX, 0.3)
    prefix.hear(Heard(tracked=0, newest=1))
    assert prefix.committed(at_s(0.4)) is None


def test_a_hold_of_a_moment_changes_nothing_once_the_chunk_is_followed_again() -> None:
    blend = overlap(Strategy.BLEND, 0.3)
    blend.hear(Heard(tracked=0, newest=1))
    blend.hear(Heard(tracked=1, newest=1))
    assert blend.arrived(at_s(0.3), at_s(0.6)) == at_s(0.3)


def test_rows_of_a_chunk_that_was_refused_are_not_committed_but_those_that_are_followed() -> None:
    made = overlap(Strategy.PREFIX, 0.2)
    made.published(Chunk(2, START_NS, RATE_HZ, RAMP + 5.0, START_NS))
    on_its_way = made.committed(at_s(0.4))
    assert on_its_way is not None and on_its_way.rows[0, 0] == pytest.approx(5.5)
    made.hear(Heard(tracked=1, newest=2))
    followed = made.committed(at_s(0.4))
    assert followed is not None and followed.rows[0, 0] == pytest.approx(0.5)


def test_a_controller_that_is_stopped_follows_no_chunk_that_is_on_its_way() -> None:
    blend = overlap(Strategy.BLEND, 0.3)
    blend.hear(Heard(obeys=False))
    assert blend.arrived(at_s(0.3), at_s(0.6)) == at_s(0.6), "the arm stands still"


def test_only_recent_chunks_are_remembered() -> None:
    made = overlap(Strategy.PREFIX, *([0.2] * 60))
    made.hear(Heard(tracked=1, newest=60))
    assert made.committed(at_s(0.4)) is None
