"""Which measurements belong together: each scenario is a list of cases, all of them run in every round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from loadtest.bench.measure import Figures, Servers
from loadtest.bench.subjects import Bridge, Copy, Subject
from loadtest.bench.workload import Events, Workload


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
    workload: Events
    measure: Callable[[Servers], Figures]
    beside: str | None = None


@dataclass(frozen=True)
class Order:
    """What the user asked for, as far as scenarios depend on it.

    Attributes:
        events: of a backlog.
        seconds: how long a fixed rate is held.
        capacity: measures events/s of the bridge over so many of such events, once in this run.
        peers: to measure beside the bridge.
        workload: what flows, where the scenario does not vary it.
        bridge: makes the subject; takes the arguments of `Bridge`.
    """

    events: int
    seconds: float
    capacity: Callable[[Events, int], float]
    peers: Sequence[Subject] = ()
    workload: Events = field(default_factory=Workload)
    bridge: Callable[..., Subject] = Bridge


def backlog(order: Order) -> list[Case]:
    """A backlog of JSON events and one of raw rows, or of the user's own, beside a plain copy and the peers."""
    if not isinstance(order.workload, Workload):
        return [
            _drain("copy", Copy(), order.workload, order.events),
            _drain("headrace", order.bridge(), order.workload, order.events, "copy"),
        ]
    json, raw = order.workload, Workload(form="raw")
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


_SLOW = {"faust": 20, "flink": 20, "kafka_streams": 10, "mlserver": 80, "naive": 100, "quix": 100}
"""Slow peers get a shorter backlog, by this divisor."""


def rates(order: Order) -> list[Case]:
    """Latency at fixed rates, 10 events/s and 10, 50 and 90 % of the capacity found first, beside a plain copy."""
    return _at_rates(order, order.workload, order.events, (0.1, 0.5, 0.9))


def heavy(order: Order) -> list[Case]:
    """Latency at fixed rates with a model of some 10 ms a batch."""
    return _at_rates(order, Workload(model="wide"), order.events // 5, (0.1, 0.5))


def _at_rates(order: Order, workload: Events, events: int, shares: Sequence[float]) -> list[Case]:
    capacity = order.capacity(workload, events)
    steady = {"10 events/s": 10.0}
    steady |= {f"{share:.0%} of capacity, {capacity * share:,.0f} events/s": capacity * share for share in shares}
    cases: list[Case] = []
    if isinstance(workload, Workload):
        call = partial(_call, workload=workload, seconds=order.seconds)
        cases += (Case(f"a bare call, rows: {rows}", workload, partial(call, rows=rows)) for rows in (1, 256))
    for label, rate in steady.items():
        held = partial(Servers.hold, workload=workload, rate=rate, seconds=order.seconds)
        copy = f"copy, {label}"
        cases.append(Case(copy, workload, partial(held, subject=Copy())))
        cases.append(Case(f"headrace, {label}", workload, partial(held, subject=order.bridge()), copy))
    return cases


def delivery(order: Order) -> list[Case]:
    """exactly_once beside at_least_once: a backlog, and latency at 2,000 events/s."""
    low, high = modes = ("at_least_once", "exactly_once")
    bridges = {mode: order.bridge(mode, {"delivery": mode}) for mode in modes}
    steady = partial(Servers.hold, workload=order.workload, rate=2_000.0, seconds=order.seconds)
    held = {mode: f"{mode}, 2,000 events/s" for mode in modes}
    return [
        _drain(low, bridges[low], order.workload, order.events),
        _drain(high, bridges[high], order.workload, order.events, low),
        Case(held[low], order.workload, partial(steady, subject=bridges[low])),
        Case(held[high], order.workload, partial(steady, subject=bridges[high]), held[low]),
    ]


def batch(order: Order) -> list[Case]:
    """Batch sizes, beside a copy."""
    return [
        _drain("copy", Copy(), order.workload, order.events),
        *(
            _drain(
                f"batch of {size}",
                order.bridge(sections={"batch": {"max_events": size}}),
                order.workload,
                order.events // (20 if size == 1 else 1),
                "copy",
            )
            for size in (1, 16, 64, 256, 1024, 4096)
        ),
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
    """Processes of one pipeline: all on this machine's cores, and each on a quarter of one, so that some are free."""
    cases = []
    for share, cores in (("", None), (", a quarter of a core each", 0.25)):
        one = f"1 worker{share}"
        cases.append(_drain(one, order.bridge(), order.workload, order.events, cores=cores))
        for n in (2, 4):
            bridge = order.bridge(options=("--workers", str(n)))
            cases.append(_drain(f"{n} workers{share}", bridge, order.workload, order.events, one, cores))
    return cases


def depth(order: Order) -> list[Case]:
    """A backlog, and one that is 25 times as long."""
    short, long = (f"{events:,} events" for events in (order.events, 25 * order.events))
    return [
        _drain(short, order.bridge(), order.workload, order.events),
        _drain(long, order.bridge(), order.workload, 25 * order.events, short),
    ]


_LOADING = 60.0
"""Seconds that a version may take to load on a busy machine."""


def swap(order: Order) -> list[Case]:
    """A new version of the model while events flow, at 5,000 events/s."""
    workload = Workload(features=31)  # a model of its own, since it has two versions from then on
    held = partial(
        Servers.hold, subject=Bridge(), workload=workload, rate=5_000.0, seconds=max(_LOADING, order.seconds)
    )
    return [
        Case("no swap", workload, held),
        Case("a swap", workload, partial(held, swap=workload), "no swap"),
    ]


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
    for scenario in (
        backlog,
        rates,
        heavy,
        delivery,
        batch,
        size,
        features,
        partitions,
        workers,
        depth,
        model,
        swap,
        poison,
    )
}
OWN = ("backlog", "rates", "delivery", "batch", "workers", "depth")
"""Those that can be measured with a user's own events."""


def _drain(
    label: str,
    subject: Subject,
    workload: Events,
    events: int,
    beside: str | None = None,
    cores: float | None = None,
) -> Case:
    measure = partial(Servers.drain, subject=subject, workload=workload, events=events, cores=cores)
    return Case(label, workload, measure, beside)


def _call(servers: Servers, workload: Workload, rows: int, seconds: float) -> Figures:
    return servers.call(workload, rows, seconds)


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
