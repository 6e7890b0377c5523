"""The benchmark's arithmetic and its report."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from loadtest.bench import report
from loadtest.bench.measure import Figures
from loadtest.bench.own import OwnEvents
from loadtest.bench.run import Row
from loadtest.bench.scenarios import OWN, SCENARIOS, Order
from loadtest.bench.workload import Workload


def figures(rate: float, cpu: float = 10.0) -> Figures:
    return Figures(rate, {"subject": cpu, "model": 2.0, "kafka": 1.0}, [100.0, 110.0])


COPY = Row("copy", None, [figures(100.0, 5.0), figures(200.0, 4.0), figures(400.0, 6.0)])
BRIDGE = Row("headrace", "copy", [figures(50.0), figures(120.0), figures(100.0)])


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    # Of the medians it would be 100 / 200, of the means 90 / 233.
    assert report.ratio(BRIDGE, COPY, report.COLUMNS[0]) == pytest.approx(0.5)
    assert report.ratio(BRIDGE, COPY, report.COLUMNS[1]) == pytest.approx(2.0)


def test_the_table_has_a_median_with_its_spread_and_only_columns_with_figures() -> None:
    titles, body = report.table([COPY, BRIDGE])
    assert titles == ["", "events/s", "CPU µs/event", "with model and Kafka", "RSS MiB", "beside"]
    assert body[0][:3] == ["copy", "200 (100 to 400)", "5.00 (4.00 to 6.00)"]
    assert body[1][-1] == "0.50 x events/s, 2.00 x CPU µs/event, 1.62 x with model and Kafka"


def test_a_case_that_failed_says_so_and_takes_nothing_from_the_others() -> None:
    failed = Row("peer <1>", "copy", [figures(10.0)], "peer <1> has ended at 5 of 10 events:\nTraceback")
    _titles, body = report.table([COPY, failed, Row("never", "copy", [], "no")])
    assert body[1] == ["peer <1>", "10", "10.00", "13.00", "110", "peer <1> has ended at 5 of 10 events:"]
    assert body[2] == ["never", "", "", "", "", "no"]
    page = report.page({"backlog": [COPY, failed]}, "a <title>")
    assert page.count("<svg") == 1
    assert "a &lt;title&gt;" in page
    assert "peer &lt;1&gt;" in page
    assert "<1>" not in page


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05, 1.0])
def test_poison_is_spread_evenly(share: float) -> None:
    workload = Workload(model="picky", poison=share)
    bad = [number for number in range(20_000) if workload.poisoned(number)]
    assert len(bad) == pytest.approx(20_000 * share, abs=1)
    gaps = Counter(b - a for a, b in itertools.pairwise(bad))
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("form", ["json", "raw"])
def test_events_are_of_the_asked_size(form: str) -> None:
    small, large = (Workload(form=form, features=n).values() for n in (5, 100))  # type: ignore[arg-type]
    assert len(large[0]) > 15 * len(small[0])
    assert len(Workload(padding=10_000).values()[0]) > 10_000


@pytest.mark.parametrize(("name", "own"), [*((name, False) for name in SCENARIOS), *((name, True) for name in OWN)])
def test_what_a_case_is_compared_with_is_in_its_scenario(name: str, own: bool) -> None:
    order = Order(events=100_000, seconds=1.0, capacity=lambda *_: 50_000.0)
    if own:
        order = replace(order, workload=OwnEvents((b"{}",), 3))
    cases = SCENARIOS[name](order)
    assert {case.workload for case in cases} == {order.workload} or not own
    labels = [case.label for case in cases]
    assert len(set(labels)) == len(labels)
    assert {case.beside for case in cases} - {None} <= set(labels)
