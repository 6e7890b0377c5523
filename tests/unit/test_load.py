"""The load test's pure parts: plans, spacing, what is found and how it is judged."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from loadtest.load import plan
from loadtest.load.reading import Reading
from loadtest.load.report import FAILED, PASSED, VOID, Gates, page, percentiles
from loadtest.load.settings import BOUNDS, INTENDED, Settings
from loadtest.load.steps import capacity, judge, told
from loadtest.load.stream import Found, percentile_ms


def test_a_plan_says_the_rate_of_every_moment() -> None:
    steps = plan.steps(800, 4, 10)
    assert [plan.rate_at(steps, second) for second in (0, 9.9, 10, 39.9)] == [200, 200, 400, 800]
    assert plan.rate_at(steps, 40) is None
    spike = plan.spike(100, 120)
    assert [plan.rate_at(spike, second) for second in (0, 47.9, 48, 77.9, 78, 119)] == [100, 100, 1000, 1000, 100, 100]
    with pytest.raises(plan.PlanError, match="does not fit in 40 s"):
        plan.spike(100, 40)


def test_a_recorded_day_is_played_again(tmp_path: Path) -> None:
    record = tmp_path / "day.csv"
    record.write_text("seconds,events_per_second\n0,100\n3600,500\n7200,0\n")
    played = plan.replay(record, speed=60)
    assert played == [plan.Phase(60, 100), plan.Phase(60, 500)]
    record.write_text("seconds,events_per_second\n0,100\n0,500\n")
    with pytest.raises(plan.PlanError, match="in the order of their seconds"):
        plan.replay(record)
    record.write_text("time,rate\n0,100\n")
    with pytest.raises(plan.PlanError, match="columns seconds and events_per_second"):
        plan.replay(record)
    with pytest.raises(plan.PlanError, match="cannot be read"):
        plan.replay(tmp_path / "missing.csv")


def test_uniform_events_are_due_at_even_distances() -> None:
    spacing = plan.Spacing(poisson=False, seed=1, start=100.0)
    spacing.set_rate(4, 100.0)
    assert list(spacing.due(101.0)) == pytest.approx([100.25, 100.5, 100.75, 101.0])
    assert spacing.wait(101.0) == pytest.approx(0.25)


def test_a_change_of_the_rate_stretches_only_what_is_left_of_a_gap() -> None:
    spacing = plan.Spacing(poisson=False, seed=1, start=0.0)
    spacing.set_rate(1, 0.0)
    spacing.set_rate(2, 0.5)  # half a gap is left, which now takes a quarter of a second
    assert list(spacing.due(2.0)) == pytest.approx([0.75, 1.25, 1.75])
    spacing.set_rate(0, 2.0)
    assert list(spacing.due(1000.0)) == []
    assert spacing.wait(1000.0) == 1.0


@given(st.integers(0, 2**31), st.floats(50, 5_000))
def test_poisson_events_come_at_their_rate_and_not_evenly(seed: int, rate: float) -> None:
    spacing = plan.Spacing(poisson=True, seed=seed, start=0.0)
    spacing.set_rate(rate, 0.0)
    due = list(spacing.due(2_000 / rate))
    assert due == sorted(due)
    assert 1_700 < len(due) < 2_300  # 2,000 give or take 6.7 of its standard deviations
    gaps = [after - before for before, after in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert 0.8 < spread / mean < 1.2  # of an exponential distribution: 1


def found(
    latency_ms: float = 10, delay_ms: float = 0.1, busy_ms: float = 1, warm: bool = False, **outcomes: int
) -> Found:
    made = Found(sent=100, streams=1)
    made.outcomes.update({"received": 100 - outcomes.get("missing", 0), **outcomes})
    if not warm:
        made.latency.record_value(int(latency_ms * 1000), 100)
    made.busy.record_value(int(busy_ms * 1000), 100)
    made.delays.record_value(int(delay_ms * 1000), 100)
    made.sending[1_000] = 100
    made.arriving[1_000][80] = 100
    return made


@pytest.mark.parametrize(
    ("run", "code", "word"),
    [
        (found(), PASSED, None),
        (found(latency_ms=60), FAILED, "p99 is 60"),
        (found(missing=1), FAILED, "1 events have no outcome"),
        (found(duplicated=4), FAILED, "4 outcomes came again"),
        (found(dead_letters=5), FAILED, "5 events have a dead letter"),
        (found(disordered=2), FAILED, "2 outcomes are out of order"),
        (found(delay_ms=1.5), VOID, "the generator's own delay is 1.5"),
        (found(refused=3), VOID, "3 events were not sent"),
        (Found(streams=1), VOID, "nothing was sent"),
        (Found(), VOID, "1 of 1 workers have not told"),
        (Found(sent=100, streams=1), VOID, "the receiver has not told"),
        (found(busy_ms=30), VOID, "the reader looked away for 30"),
        (found(warm=True), VOID, "shorter than its warm-up"),
    ],
)
def test_a_run_passes_fails_or_says_nothing(run: Found, code: int, word: str | None) -> None:
    given_code, sentences = Gates(max_p99_ms=50).judge(run, streams=1)
    assert given_code == code
    assert bool(sentences) == (word is not None)
    assert word is None or word in sentences[0]


def rising(outcomes: list[int], late: int = 0, seconds: int = 12) -> Found:
    """Steps of 4 s at 100, 200, 300 events/s: outcomes of each second of a step; events late in the second step."""
    made = found(delay_ms=50 if late else 0.1, busy_ms=50)  # over all of it; a step that counts may be better
    made.sending.clear()
    made.arriving.clear()
    for second in range(seconds):
        step = second // 4
        made.sending[1_000 + second] = 100 * (step + 1)
        made.arriving[1_000 + second][80] = outcomes[step]
        made.late[1_000 + second] = late if step == 1 else 0
        made.looks[1_000 + second] = 100
    return made


def looking_away(made: Found) -> Found:
    """In the last step."""
    made.away[1_010] = 3
    return made


@pytest.mark.parametrize(
    ("run", "verdicts", "most", "sentence"),
    [
        (rising([100, 200, 300]), ["kept up"] * 3, 300, "may do more: no step was too much"),
        (rising([100, 195, 150]), ["kept up", "kept up", "fell behind"], 200, "at 300 it falls behind"),
        (rising([100, 120, 300]), ["kept up", "fell behind", "after"], 100, "at 200 it falls behind"),
        (rising([100, 200, 300], late=2), ["kept up"] * 3, 300, "may do more"),
        (rising([100, 200, 300], late=3), ["kept up", "void", "kept up"], 300, "may do more: no step was too much"),
        (rising([100, 200, 150], late=3), ["kept up", "void", "fell behind"], 100, "at 300 it falls behind"),
        (
            looking_away(rising([100, 200, 300])),
            ["kept up", "kept up", "void"],
            200,
            "from 300 on the generator itself",
        ),
        (rising([100, 200, 300], seconds=6), ["kept up", "cut short", "after"], 100, "at 200 the run was ended"),
    ],
)
def test_steps_say_how_much_the_system_takes(run: Found, verdicts: list[str], most: float, sentence: str) -> None:
    steps = judge(run, plan.steps(300, 3, 4))
    assert [step.verdict for step in steps] == verdicts
    assert [step.rate for step in steps] == [100, 200, 300]
    assert capacity(steps) == most
    assert sentence in told(steps)
    assert Gates().judge(run, 1, steps) == (PASSED, [])


def test_steps_of_which_the_first_is_too_much_have_found_nothing() -> None:
    run = rising([50, 60, 70])
    code, sentences = Gates().judge(run, 1, judge(run, plan.steps(300, 3, 4)))
    assert code == FAILED
    assert "nothing was found; at 100 it falls behind: begin lower" in sentences[0]
    run = rising([100, 200, 300])
    run.late = run.looks  # a hundred in every second
    code, sentences = Gates().judge(run, 1, judge(run, plan.steps(300, 3, 4)))
    assert code == VOID
    assert "nothing was found; from 100 on the generator itself was too slow" in sentences[0]


def test_a_step_may_be_too_slow_and_the_run_still_says_what_was_found() -> None:
    run = rising([100, 200, 300])
    for second in range(1_008, 1_012):
        run.arriving[second][:] = 0
        run.arriving[second][200] = 300  # of so many seconds
    steps = judge(run, plan.steps(300, 3, 4), max_p99_ms=1_000)
    assert [step.verdict for step in steps] == ["kept up", "kept up", "too slow"]
    assert Gates(max_p99_ms=0.001).judge(run, 1, steps) == (PASSED, [])
    with pytest.raises(plan.PlanError, match="a step of 3 s is too short"):
        plan.steps(300, 3, 3)


def test_workers_findings_add_up_over_the_wire() -> None:
    whole = Found()
    for latency in (10, 30):
        one = found(latency_ms=latency)
        one.late[1_000], one.looks[1_000], one.away[1_000] = 7, 9, 1
        one.versions["2"] = 1_000.0 + latency
        whole.add(Found.decode(json.loads(json.dumps(one.encode()))))
    assert whole.streams == 2
    assert whole.sent == 200
    assert whole.outcomes["received"] == 200
    assert whole.latency.get_total_count() == 200
    assert percentiles(whole.latency)["100"] == pytest.approx(30, rel=0.01)
    assert percentiles(whole.latency)["50"] == pytest.approx(10, rel=0.01)
    assert whole.sending[1_000] == 200
    assert (whole.late[1_000], whole.looks[1_000], whole.away[1_000]) == (14, 18, 2)
    assert whole.arriving[1_000].sum() == 200
    assert whole.versions == {"2": 1_010.0}


def test_a_percentile_of_counted_latencies_is_within_its_bucket() -> None:
    counts = np.zeros(len(BOUNDS) + 1)
    assert np.isnan(percentile_ms(counts, 0.5))
    for milliseconds in (5, 50, 500):
        counts[int(np.searchsorted(BOUNDS, milliseconds * 1000))] += 1
    for share, expected in ((0.1, 5), (0.5, 50), (1.0, 500)):
        assert percentile_ms(counts, share) == pytest.approx(expected, rel=0.08)


def test_the_page_shows_what_was_found() -> None:
    latency = HdrHistogram(1, 1_000_000, 3)
    latency.record_value(12_345)
    document = {
        "verdict": "failed",
        "wrong": ["p99 is above"],
        "sent": 1,
        "received": 1,
        "missing": 0,
        "duplicated": 0,
        "disordered": 0,
        "dead_letters": 0,
        "events_per_second": 1.0,
        "latency_ms": percentiles(latency),
        "generator_delay_ms": percentiles(latency),
        "versions": {"1": 0.5},
        "told": "keeps up with 100 events/s; at 200 it falls behind",
        "steps": [
            {"rate": 100.0, "outcomes": 99.5, "p50": 4.0, "p99": 9.0, "late": 0.001, "away": 0.0, "verdict": "kept up"},
            {
                "rate": 200.0,
                "outcomes": 0.0,
                "p50": None,
                "p99": None,
                "late": 0.0,
                "away": 0.0,
                "verdict": "fell behind",
            },
        ],
        "seconds": [
            {"second": 0, "sent": 1, "received": 1, "p50": 12.0, "p99": 12.0, "max": 12.0, "lag": None, "batch": None}
        ],
    }
    text = page(document)
    assert "Load test: failed" in text
    assert "p99 is above" in text
    assert "12.3" in text
    assert "version 1" in text
    assert "<td>200</td><td>0</td><td>-</td><td>-</td><td>0.00%</td><td>0.00%</td><td>fell behind</td>" in text


class Message:
    """As Kafka's client gives one: of an event's number, due at a time."""

    def __init__(self, number: int, due: float, topic: str = "results", run: str = "run") -> None:
        self._key, self._topic = f"{run}-{number}".encode(), topic
        self._headers = [("trace", b"x"), (INTENDED, b"%d" % (due * 1e9))]

    def error(self) -> None:
        return None

    def key(self) -> bytes:
        return self._key

    def topic(self) -> str:
        return self._topic

    def headers(self) -> list[tuple[str, bytes]]:
        return self._headers


def reading(warm_up: float = 0.0) -> Reading:
    return Reading(Settings("k:1", "events", 2, "results", "letters", "run", "file", warm_up=warm_up))


def test_every_outcome_is_counted_once_and_what_is_wrong_with_it() -> None:
    read = reading()
    for number, topic in (
        (0, "results"),
        (1, "results"),
        (4, "results"),
        (2, "results"),
        (5, "letters"),
        (4, "results"),
    ):
        read.take(Message(number, due=100.0, topic=topic), now=100.05)
    read.take(Message(3, due=100.0, run="another"), now=100.05)
    verdict = read.verdict(7)
    assert verdict["received"] == 5
    assert verdict["missing"] == 2  # 3 and 6
    assert verdict["duplicated"] == 1  # 4 came twice
    assert verdict["disordered"] == 1  # 2 after 4: both are of partition 0
    assert verdict["dead_letters"] == 1
    assert not read.complete(7)
    assert sum(count for _, count in read.fresh()) == 5
    assert read.fresh() == []


def test_latency_counts_from_when_an_event_was_due_and_not_before_the_warm_up_is_over() -> None:
    read = reading(warm_up=2.0)
    for number, due in ((0, 100.0), (1, 101.9), (2, 102.0), (3, 103.0)):
        read.take(Message(number, due), now=due + 0.040)
    latency = HdrHistogram(1, 3_600_000_000, 3)
    latency.decode_and_add(read.verdict(4)["latency"])
    assert latency.get_total_count() == 2
    assert latency.get_value_at_percentile(100) == pytest.approx(40_000, rel=0.001)


def test_a_plan_is_told_to_the_streams_as_it_is() -> None:
    """In a process of its own: Locust patches what it finds."""
    script = """
from loadtest.load.plan import Phase
from loadtest.load.shape import PlanShape
told = []
ready = 2
shape = PlanShape([Phase(10, 333.3), Phase(5, 0), Phase(5, 50)], lambda: 3, lambda: ready, told.append)
at = 0.0
shape.get_run_time = lambda: at
assert shape.tick() == (3, 100.0) and not told  # a stream is not there yet
ready = 3
ticks = []
for at in (0, 1, 10, 15, 20):
    ticks.append(shape.tick())
assert told == [333.3, 0, 50], told
assert ticks == [(3, 100.0)] * 4 + [None], ticks
shape.reset_time()  # another test, whose streams are not there yet
ready, at = 0, 0
assert shape.tick() == (3, 100.0) and len(told) == 3
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
