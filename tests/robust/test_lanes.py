"""Every column goes through exactly once, on any number of threads, and what lanes return keeps its order."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.robust.lanes import LANES, in_lanes


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 6))
def test_lanes_share_out_every_column_once(dimension, width, threads):
    parts = [part for lane in in_lanes(list, dimension, width, threads) for part in lane]
    columns = [column for part in parts for column in range(part.start, part.stop)]
    assert sorted(columns) == list(range(dimension))
    assert all(part.stop - part.start <= width for part in parts)


@pytest.mark.parametrize("threads", [1, 2, LANES, None])
def test_the_order_of_the_result_does_not_depend_on_threads(threads):
    assert in_lanes(lambda parts: [part.start for part in parts], 90, 10, threads) == [[0, 40, 80], [10, 50], [20, 60], [30, 70]]


def test_lanes_run_at_the_same_time():
    barrier = threading.Barrier(2, timeout=20)
    assert in_lanes(lambda parts: barrier.wait() >= 0 and len(list(parts)), 20, 10, 2) == [1, 1]


def test_an_error_in_a_lane_is_raised():
    def lane(parts):
        raise ValueError(f"{len(list(parts))} parts")

    for threads in (1, 2):
        with pytest.raises(ValueError, match="1 parts"):
            in_lanes(lane, 20, 10, threads)
