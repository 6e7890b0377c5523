"""Steering, against a simulated server that is always busy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.steer import Steering


def saturated(steering: Steering, fixed: float, each: float, seconds: float = 60.0) -> list[float]:
    """Work at full load on a server that takes `fixed + each * events` seconds for a call, one after the other.

    Returns:
        The time of the events of each batch: in a full queue, then among those that are under way.
    """
    now, times = 100.0, []
    end = now + seconds
    while now < end:
        events, slots = steering.events, steering.slots
        call = fixed + each * events
        now += call
        times.append(call * (2 * slots + 1))
        steering.left(True)
        steering.settled(events, now - times[-1], now)
    return times


def test_without_a_target_nothing_changes() -> None:
    steering = Steering(1024, 4, None)
    saturated(steering, 0.01, 0.001, 5.0)
    assert (steering.events, steering.slots) == (1024, 4)


@pytest.mark.parametrize("target", [0.02, 0.05, 0.2])
def test_batches_become_as_large_as_the_target_allows(target: float) -> None:
    steering = Steering(4096, 4, target)
    times = saturated(steering, 0.0005, 0.00001)[-200:]
    assert max(times) <= target * 1.15
    assert max(times) >= target * 0.6


def test_a_target_that_is_far_off_leaves_the_most() -> None:
    steering = Steering(256, 4, 10.0)
    saturated(steering, 0.001, 0.00001, 300.0)
    assert (steering.events, steering.slots) == (256, 4)


def test_where_small_batches_do_not_help_fewer_are_under_way_and_more_again_later() -> None:
    steering = Steering(256, 4, 0.030)
    times = saturated(steering, 0.005, 0.0000001, 30.0)
    assert (steering.events, steering.slots) == (256, 2)
    assert times[-1] <= 0.031
    saturated(steering, 0.0001, 0.0000001, 60.0)
    assert (steering.events, steering.slots) == (256, 4)


def test_a_target_that_cannot_be_held_ends_at_the_least_and_stays() -> None:
    steering = Steering(1024, 4, 0.001)
    saturated(steering, 0.5, 0.0, 600.0)
    assert (steering.events, steering.slots) == (8, 1)


def test_a_light_load_changes_nothing() -> None:
    steering = Steering(1024, 4, 1.0)
    before = steering.events
    now = 0.0
    for _ in range(500):
        now += 0.1
        steering.left(False)
        assert not steering.settled(1, now - 0.004, now)
    assert steering.events == before


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.floats(0, 100), st.floats(0, 1)), max_size=200), st.floats(0.001, 10)
)
def test_it_stays_within_its_bounds(done: list[tuple[int, float, float]], target: float) -> None:
    steering = Steering(512, 3, target)
    now = 0.0
    for events, took, pause in done:
        now += pause
        steering.left(True)
        steering.settled(events, now - took, now)
        assert 1 <= steering.events <= 512
        assert 1 <= steering.slots <= 3
