"""Chunks know when their rows are due, and what is not a chunk."""

from __future__ import annotations

import numpy as np
import pytest

from cosmos3_ros.control.chunk import NS_PER_S, Chunk, ChunkRefused, Refusal


def test_row_i_is_due_i_plus_one_periods_after_the_stamp() -> None:
    chunk = Chunk(1, 5 * NS_PER_S, 10.0, np.zeros((3, 2)), 5 * NS_PER_S)
    assert [chunk.due_ns(i) - chunk.stamp_ns for i in range(3)] == [
        100_000_000,
        200_000_000,
        300_000_000,
    ]
    assert chunk.end_ns == chunk.due_ns(2)
    assert chunk.due_s.tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_refuses_the_whole_chunk(bad: float) -> None:
    rows = np.zeros((4, 3))
    rows[2, 1] = bad
    with pytest.raises(ChunkRefused, match="row 2, channel 1") as caught:
        Chunk(1, 0, 10.0, rows, 0)
    assert caught.value.reason is Refusal.NOT_FINITE


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, np.nan, np.inf, 1e-300, 1e300])
def test_a_rate_without_meaning_is_malformed(rate_hz: float) -> None:
    with pytest.raises(ChunkRefused) as caught:
        Chunk(1, 0, rate_hz, np.zeros((4, 3)), 0)
    assert caught.value.reason is Refusal.MALFORMED


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_rows_without_rows_or_channels_are_malformed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ChunkRefused) as caught:
        Chunk(1, 0, 10.0, np.zeros(shape), 0)
    assert caught.value.reason is Refusal.MALFORMED


def test_rows_cannot_be_written_afterwards() -> None:
    chunk = Chunk(1, 0, 10.0, np.zeros((4, 3)), 0)
    with pytest.raises(ValueError, match="read-only"):
        chunk.rows[0, 0] = 1.0


def test_a_chunk_that_starts_before_its_observation_is_malformed() -> None:
    with pytest.raises(ChunkRefused, match="starts 0.500 s before its observation") as caught:
        Chunk(1, NS_PER_S, 10.0, np.zeros((4, 3)), NS_PER_S // 2)
    assert caught.value.reason is Refusal.MALFORMED
