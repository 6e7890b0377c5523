"""Which measurements belong together: each scenario is a list of cases, all of them run in every round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from loadtest.bench.measure import Figures, Servers
from loadtest.bench.subjects import Bridge, Copy, Subject
from loadtest.bench.workload import Workload


@dataclass(frozen=True)
class Case:
    """One row of a report.

    Attributes:
        label: names it; unique in its scenario.
        workload: what flows.
        measure: runs it once.
        beside: label of the case whose figures this one's are divided by.
    """

    label: str
    workload: Workload
    measure: Callable[[Servers], Figures]
    beside: str | None = None


@dataclass(frozen=True)
class Order:
    """What the user asked for, as far as scenarios depend on it.

    Attributes:
        events: of a backlog.
        seconds: how long a fixed rate is held.
        capacity: measures events/s of the bridge in this run, once.
        peers: to measure beside the bridge.
    """

    events: int
    seconds: float
    capacity: Callable[[], float]
    peers: Sequence[Subject] = ()


def backlog(order: Order) -> list[Case]:
    """A backlog of JSON events and one of raw rows, beside a plain copy and the peers."""
    json, raw = Workload(), Workload(form="raw")
    cases = [
        _drain("copy, json", Copy(), json, order.events),
        _drain("headrace, json", Bridge(), json, order.events, "copy, json"),
        _drain("copy, raw", Copy(), raw, order.events),
        _drain("headrace, raw", Bridge(), raw, order.events, "copy, raw"),
    ]
    return cases + [
        _drain(f"{peer.name}, json", peer, json, order.events // _SLOW.get(peer.name, 1), "headrace, json")
        for peer in order.peers
    ]


_SLOW = {"faust": 20, "naive": 100, "quix": 100}
"""Slow peers get a shorter backlog, by this divisor."""


def rates(order: Order) -> list[Case]:
    """Latency at fixed rates, 10 events/s and 10, 50 and 90 % of the capacity found first, beside a bare call."""
    capacity = order.capacity()
    cases = [
        Case(f"a bare call with {rows} rows", Workload(), partial(_call, rows=rows, seconds=order.seconds))
        for rows in (1, 256)
    ]
    cases.append(_hold("10 events/s", 10, order, "a bare call with 1 rows"))
    for share in (0.1, 0.5, 0.9):
        label = f"{share:.0%} of capacity: {capacity * share:,.0f} events/s"
        cases.append(_hold(label, capacity * share, order, "a bare call with 256 rows"))
    return cases


def delivery(order: Order) -> list[Case]:
    """exactly_once beside at_least_once: a backlog, and latency at 2,000 events/s."""
    once = Bridge("exactly_once", {"delivery": "exactly_once"})
    steady = partial(Servers.hold, workload=Workload(), rate=2_000.0, seconds=order.seconds)
    return [
        _drain("at_least_once", Bridge(), Workload(), order.events),
        _drain("exactly_once", once, Workload(), order.events, "at_least_once"),
        Case("at_least_once, 2,000 events/s", Workload(), partial(steady, subject=Bridge())),
        Case(
            "exactly_once, 2,000 events/s", Workload(), partial(steady, subject=once), "at_least_once, 2,000 events/s"
        ),
    ]


def batch(order: Order) -> list[Case]:
    """Batch sizes."""
    sizes = (1, 16, 64, 256, 1024, 4096)
    return [
        _drain(
            f"batch of {size}",
            Bridge(sections={"batch": {"max_events": size}}),
            Workload(),
            order.events // (20 if size == 1 else 1),
        )
        for size in sizes
    ]


def size(order: Order) -> list[Case]:
    """Sizes of an event, beside a copy of the same."""
    return _beside_copy("{:,} bytes more", "padding", (0, 1_000, 10_000, 100_000), order, 1_000)


def features(order: Order) -> list[Case]:
    """Numbers in an event, beside a copy of the same."""
    return _beside_copy("{:,} features", "features", (5, 30, 100, 1_000), order, 30)


def partitions(order: Order) -> list[Case]:
    """Partitions of the topics, beside a copy of the same."""
    return _beside_copy("{} partitions", "partitions", (1, 6, 24, 96), order, 96)


def workers(order: Order) -> list[Case]:
    """Processes of one pipeline."""
    more = [
        _drain(f"{n} workers", Bridge(options=("--workers", str(n))), Workload(), order.events, "1 worker")
        for n in (2, 4)
    ]
    return [_drain("1 worker", Bridge(), Workload(), order.events), *more]


def model(order: Order) -> list[Case]:
    """What the model costs: a small network, and one of some 10 ms a batch."""
    return [
        _drain("small network", Bridge(), Workload(), order.events),
        _drain("10 ms network", Bridge(), Workload(model="wide"), order.events // 5, "small network"),
    ]


def poison(order: Order) -> list[Case]:
    """Events that the model refuses, spread evenly."""
    shares = {"no poison": (0.0, 2), "0.1 % poison": (0.001, 2), "5 % poison": (0.05, 20)}
    return [
        _drain(
            label,
            Bridge(),
            Workload(model="picky", poison=share),
            order.events // fewer,
            "no poison" if share else None,
        )
        for label, (share, fewer) in shares.items()
    ]


SCENARIOS: dict[str, Callable[[Order], list[Case]]] = {
    scenario.__name__: scenario
    for scenario in (backlog, rates, delivery, batch, size, features, partitions, workers, model, poison)
}


def _drain(label: str, subject: Subject, workload: Workload, events: int, beside: str | None = None) -> Case:
    measure = partial(Servers.drain, subject=subject, workload=workload, events=events)
    return Case(label, workload, measure, beside)


def _hold(label: str, rate: float, order: Order, beside: str) -> Case:
    measure = partial(Servers.hold, subject=Bridge(), workload=Workload(), rate=rate, seconds=order.seconds)
    return Case(label, Workload(), measure, beside)


def _call(servers: Servers, rows: int, seconds: float) -> Figures:
    return servers.call(Workload(), rows, seconds)


def _beside_copy(text: str, name: str, values: Sequence[int], order: Order, full: int) -> list[Case]:
    """Cases over one attribute of the workload; beyond the value `full` with fewer events, since each is larger."""
    cases = []
    for value in values:
        workload = replace(Workload(), **{name: value})  # type: ignore[arg-type]  # one of its numbers
        events = int(order.events * min(1.0, full / max(1, value)))
        label = text.format(value)
        cases.append(_drain(f"copy, {label}", Copy(), workload, events))
        cases.append(_drain(f"headrace, {label}", Bridge(), workload, events, f"copy, {label}"))
    return cases
