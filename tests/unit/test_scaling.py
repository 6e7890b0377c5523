"""The simulation of autoscaling, where its outcome can be told without it."""

from dataclasses import replace
from itertools import pairwise

import pytest

from loadtest.scaling import DAY, Settings, World, simulate

WORLD = World(partitions=12, skew=1.0, capacity=1_000.0, start=10.0, stop=2.0, load=lambda second: 1_500.0)


def test_enough_bridges_leave_no_lag() -> None:
    outcome = simulate(WORLD, Settings(min_replicas=2, max_replicas=2))
    assert outcome.wait(1.0) == 0
    assert outcome.rebalances == 0
    assert outcome.bridge_hours == pytest.approx(48)


def test_too_few_fall_behind_by_what_they_cannot_do() -> None:
    """One bridge of 1,000 events/s under 1,500 after a day: half a day's worth of its own work waits."""
    world = replace(WORLD, load=lambda second: 1_500.0)
    outcome = simulate(world, Settings(min_replicas=1, max_replicas=1))
    # The simulation begins with enough bridges for the load, and is held to one at the first look.
    assert outcome.wait(1.0) == pytest.approx(DAY * 0.5, rel=0.01)


def test_by_lag_alone_bridges_come_and_go_and_by_cpu_they_stay() -> None:
    by_lag = simulate(WORLD, Settings(lag_threshold=1_000))
    by_cpu = simulate(WORLD, Settings(lag_threshold=1_000, cpu=0.75))
    assert by_cpu.rebalances <= 2
    assert by_lag.rebalances > 20
    assert by_lag.wait(0.999) > by_cpu.wait(0.999)


def test_a_sudden_load_is_met_after_a_look_and_a_start() -> None:
    world = replace(WORLD, load=lambda second: 500.0 if second < 3_600 else 3_500.0)
    outcome = simulate(world, Settings(lag_threshold=1_000))
    # Until 15 s + 10 s have passed, 2,500 events/s too many come; then 4 bridges or more work that off.
    assert 20 < outcome.wait(1.0) < 90


def test_full_bridges_show_no_more_than_their_cpu_so_that_cpu_grows_step_by_step() -> None:
    """From 1 bridge of 1,000 under 4,500: CPU shows 1,000, then 2,000 …, each time asking for 1 / 0.7 of it."""
    world = replace(WORLD, load=lambda second: 700.0 if second < 3_600 else 4_500.0)
    members = [count for _, _, _, count, _ in simulate(world, Settings(lag_threshold=1e12, cpu=0.7)).line]
    steps = [after for before, after in pairwise(members) if after > before]
    assert steps[:3] == [2, 3, 5]


def test_no_more_than_four_come_in_a_minute() -> None:
    world = replace(WORLD, load=lambda second: 500.0 if second < 3_600 else 11_000.0)
    line = simulate(world, Settings(lag_threshold=100)).line
    first = next(at for at, _, _, members, _ in line if members > 1)
    assert max(members for at, _, _, members, _ in line if at < first + 50) <= 5


def test_a_tenth_more_or_less_changes_nothing() -> None:
    world = replace(WORLD, load=lambda second: 1_400.0 if second < 3_600 else 1_500.0)
    outcome = simulate(world, Settings(lag_threshold=1e12, cpu=0.7))
    assert outcome.rebalances == 0
    assert {members for _, _, _, members, _ in outcome.line} == {2}
