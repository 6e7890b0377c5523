"""How the benchmark tells what came of every event in trouble."""

from collections import Counter

import orjson

from loadtest.outcomes import OneBroken, Supervisor, Tally, tally


def test_an_event_without_an_outcome_is_lost_where_the_group_has_passed_it_and_waits_where_not() -> None:
    # Two partitions: events 0, 2, 4, 6 and 1, 3, 5, 7. The group goes on at offsets 3 and 1.
    results = Counter({0: 1, 1: 3, 4: 1})
    found = tally(8, results, {2}, [3, 1], 1)
    assert found == Tally(events=8, results=3, doubled=2, letters=1, lost=0, waiting=4, ended=1)
    assert tally(8, results, set(), [3, 1], 0).lost == 1
    assert tally(8, results, set(), [-1, -1], 0).lost == 0


def test_exactly_one_event_is_broken() -> None:
    def readable(value: bytes) -> bool:
        try:
            return bool(orjson.loads(value))
        except orjson.JSONDecodeError:
            return False

    values = OneBroken().values()
    assert [number for number, value in enumerate(values) if not readable(value)] == [len(values) // 2]


def test_what_has_ended_is_started_again_after_pauses_that_double() -> None:
    supervisor = Supervisor(0.0)
    started, running = [], True
    for now in range(60):
        if supervisor.starts_again(running, float(now)):
            started.append(now)
            running = True
        else:
            running = running and now in started  # it ends as soon as it runs
    assert started == [1, 4, 9, 18, 27, 36, 45, 54]
    assert supervisor.ended == len(started)


def test_the_wait_ends_when_nothing_has_moved_for_long() -> None:
    supervisor = Supervisor(0.0)
    assert not supervisor.over(done=0, events=None, now=500.0)  # still being written
    supervisor = Supervisor(0.0)
    assert not supervisor.over(done=5, events=10, now=30.0)
    assert not supervisor.over(done=5, events=10, now=90.0)
    assert supervisor.over(done=5, events=10, now=90.1)


def test_after_the_last_outcome_the_wait_is_short_and_a_double_begins_it_anew() -> None:
    supervisor = Supervisor(0.0)
    assert not supervisor.over(done=10, events=10, now=20.0)
    assert not supervisor.over(done=11, events=10, now=34.0)
    assert not supervisor.over(done=11, events=10, now=49.0)
    assert supervisor.over(done=11, events=10, now=49.1)


def test_one_that_is_down_is_waited_for_but_not_for_ever() -> None:
    supervisor = Supervisor(0.0)
    assert not supervisor.over(done=5, events=10, now=1.0)
    supervisor.starts_again(running=False, now=61.0)
    assert not supervisor.over(done=5, events=10, now=62.0)
    supervisor.starts_again(running=False, now=119.0)
    assert not supervisor.over(done=5, events=10, now=120.0)
    assert supervisor.over(done=5, events=10, now=120.1)
