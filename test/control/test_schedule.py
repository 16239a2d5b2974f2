"""A schedule is a line through the rows, at their times; a cross-fade leads from one to another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cosmos3_ros.control import schedule as module
from cosmos3_ros.control.chunk import NS_PER_S, Chunk
from cosmos3_ros.control.schedule import CrossFade
from cosmos3_ros.control.space import Space

# A present-day epoch: float64 seconds of it would be 200 ns apart.
STAMP_NS = 1_763_000_000_123_456_789
LINEAR = np.zeros(3, bool)


def chunk_of(rows: object, rate_hz: float = 10.0) -> Chunk:
    return Chunk(1, STAMP_NS, rate_hz, np.array(rows, np.float64), STAMP_NS)


def schedule_of(
    chunk: Chunk, begin_ns: int, begin: np.ndarray, held: np.ndarray
) -> module.Schedule:
    return module.Schedule(chunk, begin_ns, begin, Space(len(held)), held)


def at_s(seconds: float) -> int:
    return STAMP_NS + round(seconds * NS_PER_S)


values = st.floats(-10, 10, allow_nan=False)
chunks = st.builds(
    chunk_of,
    arrays(np.float64, st.tuples(st.integers(1, 40), st.just(3)), elements=values),
    st.floats(1.0, 100.0),
)
begins = arrays(np.float64, 3, elements=values)
offsets_ns = st.integers(-2 * NS_PER_S, 45 * NS_PER_S)


@given(chunks, begins, offsets_ns)
def test_it_passes_through_every_row_at_its_due_time(
    chunk: Chunk, begin: np.ndarray, offset_ns: int
) -> None:
    schedule = schedule_of(chunk, STAMP_NS + offset_ns, begin, LINEAR)
    for i, row in enumerate(chunk.rows):
        if chunk.due_ns(i) >= STAMP_NS + offset_ns:
            assert schedule.at(chunk.due_ns(i)).position == pytest.approx(row, abs=1e-5)


@given(chunks, begins, offsets_ns, offsets_ns)
def test_it_never_leaves_the_span_of_its_rows_and_its_beginning(
    chunk: Chunk, begin: np.ndarray, begin_offset_ns: int, offset_ns: int
) -> None:
    schedule = schedule_of(chunk, STAMP_NS + begin_offset_ns, begin, LINEAR)
    at = schedule.at(STAMP_NS + offset_ns).position
    knots = np.vstack((begin, chunk.rows))
    assert np.all(at >= knots.min(axis=0) - 1e-12)
    assert np.all(at <= knots.max(axis=0) + 1e-12)


@given(chunks, begins, offsets_ns)
def test_its_velocity_is_the_slope_of_its_positions(
    chunk: Chunk, begin: np.ndarray, offset_ns: int
) -> None:
    schedule = schedule_of(chunk, STAMP_NS, begin, LINEAR)
    now_ns = STAMP_NS + max(offset_ns, 0)
    ahead_ns = 1000
    dues = [chunk.due_ns(i) for i in range(len(chunk.rows))]
    if not any(now_ns <= due <= now_ns + ahead_ns for due in dues):
        here, there = schedule.at(now_ns), schedule.at(now_ns + ahead_ns)
        moved = here.velocity * ahead_ns / NS_PER_S
        assert there.position - here.position == pytest.approx(moved, abs=1e-9)


def test_half_way_between_two_rows_it_is_half_way() -> None:
    schedule = schedule_of(chunk_of([[0, 0, 0], [1, -2, 0]]), STAMP_NS, np.zeros(3), LINEAR)
    target = schedule.at(at_s(0.15))
    assert target.position == pytest.approx([0.5, -1.0, 0.0])
    assert target.velocity == pytest.approx([10.0, -20.0, 0.0])


def test_before_the_first_row_it_comes_from_the_command_that_stood() -> None:
    schedule = schedule_of(chunk_of([[1.0], [1.0]]), at_s(0.05), np.array([3.0]), LINEAR[:1])
    assert schedule.at(at_s(0.05)).position == pytest.approx([3.0])
    assert schedule.at(at_s(0.075)).position == pytest.approx([2.0])


def test_a_chunk_taken_over_late_skips_what_is_past() -> None:
    schedule = schedule_of(chunk_of([[1.0], [2.0], [3.0]]), at_s(0.25), np.array([9.0]), LINEAR[:1])
    assert schedule.at(at_s(0.25)).position == pytest.approx([2.5])


def test_a_chunk_that_waited_for_its_plan_starts_when_it_came() -> None:
    chunk = Chunk(1, STAMP_NS, 10.0, np.array([[1.0], [2.0]]), at_s(0.7))
    schedule = schedule_of(chunk, at_s(0.7), np.zeros(1), LINEAR[:1])
    assert schedule.at(at_s(0.75)).position == pytest.approx([0.5])
    assert schedule.end_ns == at_s(0.9)


def test_after_the_last_row_it_rests_there() -> None:
    target = schedule_of(chunk_of([[1.0], [2.0]]), STAMP_NS, np.zeros(1), LINEAR[:1]).at(at_s(9))
    assert target.position == [2.0] and target.velocity == [0.0]


def test_a_held_channel_has_the_value_of_the_row_that_is_due_next() -> None:
    schedule = schedule_of(chunk_of([[0.0], [1.0], [0.0]]), STAMP_NS, np.zeros(1), np.array([True]))
    found = [schedule.at(at_s(s)).position[0] for s in (0.05, 0.11, 0.19, 0.21, 0.29, 0.31)]
    assert found == [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert schedule.at(at_s(0.11)).velocity == [0.0]


@given(chunks, chunks, st.floats(0.01, 2.0), st.floats(0.0, 1.0))
def test_a_cross_fade_begins_in_the_old_and_ends_in_the_new(
    one: Chunk, other: Chunk, blend_s: float, share: float
) -> None:
    old, new = (schedule_of(c, STAMP_NS, np.zeros(3), LINEAR) for c in (one, other))
    fade = CrossFade(old, new, STAMP_NS, blend_s, Space(len(LINEAR)), LINEAR)
    assert fade.at(STAMP_NS).position == pytest.approx(old.at(STAMP_NS).position)
    now_ns = at_s(share * blend_s)
    between = fade.at(now_ns).position
    ends = np.array([old.at(now_ns).position, new.at(now_ns).position])
    assert np.all(between >= ends.min(0) - 1e-9) and np.all(between <= ends.max(0) + 1e-9)
    after_ns = at_s(blend_s) + 1
    assert fade.at(after_ns).position == pytest.approx(new.at(after_ns).position)
    assert fade.end_ns == new.end_ns


def test_a_cross_fade_moves_as_fast_as_it_says() -> None:
    old = schedule_of(chunk_of([[1.0], [1.0]], 1.0), STAMP_NS, np.array([0.0]), LINEAR[:1])
    new = schedule_of(chunk_of([[-1.0], [5.0]], 1.0), STAMP_NS, np.array([0.0]), LINEAR[:1])
    fade = CrossFade(old, new, at_s(0.2), 0.5, Space(len(LINEAR[:1])), LINEAR[:1])
    here, there = fade.at(at_s(0.4)), fade.at(at_s(0.400001))
    assert (there.position - here.position) / 1e-6 == pytest.approx(here.velocity, rel=1e-3)


def test_a_held_channel_changes_over_at_once() -> None:
    held = np.array([True])
    old, new = (
        schedule_of(chunk_of([[v], [v]]), STAMP_NS, np.array([v]), held) for v in (0.0, 1.0)
    )
    assert CrossFade(old, new, STAMP_NS, 0.1, Space(len(held)), held).at(STAMP_NS).position == [1.0]


def test_an_orientation_turns_evenly_between_rows_and_in_a_fade() -> None:
    space, moving = Space(4, (0,)), np.zeros(4, bool)

    def about_z(angle: float) -> list[float]:
        return [0.0, 0.0, np.sin(angle / 2), np.cos(angle / 2)]

    def turned(target: module.Target) -> float:
        return float(2 * np.arctan2(target.position[2], target.position[3]))

    one, other = (
        module.Schedule(
            chunk_of([about_z(a) for a in angles]), STAMP_NS, np.array(about_z(0.0)), space, moving
        )
        for angles in ((0.2, 1.2), (0.6, 1.6))
    )
    target = one.at(at_s(0.125))
    assert turned(target) == pytest.approx(0.45)
    assert target.velocity == pytest.approx([0.0, 0.0, 10.0])
    fade = CrossFade(one, other, at_s(0.1), 0.05, space, moving)
    assert turned(fade.at(at_s(0.125))) == pytest.approx(0.65)


def test_fades_that_are_over_are_not_kept() -> None:
    held = LINEAR[:1]
    path: module.Path = schedule_of(chunk_of([[0.0], [0.0]]), STAMP_NS, np.zeros(1), held)
    depth = []
    for plan in range(40):
        now_ns = at_s(0.1 * plan)
        new = schedule_of(chunk_of([[1.0], [1.0]]), now_ns, np.ones(1), held)
        path = CrossFade(path.settled(now_ns), new, now_ns, 0.25, Space(1), held)
        inner, count = path, 0
        while isinstance(inner, CrossFade):
            inner, count = inner._old, count + 1
        depth.append(count)
    assert max(depth) <= 4


def test_a_fade_that_others_look_at_is_not_changed() -> None:
    held = LINEAR[:1]
    rows = [
        schedule_of(chunk_of([[place], [place]]), STAMP_NS, np.full(1, place), held)
        for place in (0.0, 1.0, 2.0)
    ]
    inner = CrossFade(rows[0], rows[1], at_s(0.0), 0.1, Space(1), held)
    outer = CrossFade(inner, rows[2], at_s(0.0), 0.4, Space(1), held)
    before = outer.at(at_s(0.05)).position
    settled = outer.settled(at_s(0.2))
    assert outer.at(at_s(0.05)).position == pytest.approx(before)
    assert settled.at(at_s(0.3)).position == pytest.approx(outer.at(at_s(0.3)).position)
