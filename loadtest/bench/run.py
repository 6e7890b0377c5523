"""All cases of the chosen scenarios, in alternating rounds on one set of servers."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import psutil

from bridge.config import Pipeline
from bridge.errors import HeadraceError
from headrace.rig.kafka import KafkaCluster
from headrace.rig.triton import TritonRig
from loadtest.bench.measure import Figures, Servers
from loadtest.bench.own import OwnBridge, OwnEvents
from loadtest.bench.scenarios import SCENARIOS, Case, Order
from loadtest.bench.subjects import Subject
from loadtest.bench.workload import Workload, make_models
from serving.errors import ServingError

Told = Callable[[str, int, int], None]
"""What is done now, how many measurements are done, and how many there are in all."""


@dataclass
class Row:
    """A case, what each round found, and why there are no more rounds when it failed."""

    label: str
    beside: str | None
    rounds: list[Figures] = field(default_factory=list)
    failure: str | None = None


_FAILED = (HeadraceError, ServingError, psutil.Error)

Results = dict[str, list[Row]]
"""scenario -> its rows."""


def run(
    scenarios: Sequence[str],
    events: int,
    rounds: int,
    seconds: float,
    told: Told,
    peers: Sequence[Subject] = (),
    own: tuple[Pipeline, OwnEvents] | None = None,
) -> Results:
    """Measure.

    Args:
        scenarios: names out of `SCENARIOS`.
        events: of a full backlog.
        rounds: of every case.
        seconds: how long a fixed rate is held.
        told: of the progress.
        peers: to measure beside the bridge.
        own: the user's pipeline and events, in place of made-up ones.

    A case that fails is not tried again, nor a scenario whose capacity cannot be measured; the others go on.

    Raises:
        HeadraceError: a server cannot run here.
    """
    told("starting servers", 0, 1)
    order = Order(events, seconds, lambda *_: 1.0, peers)
    if own is not None:
        order = replace(order, workload=own[1], bridge=partial(OwnBridge, base=own[0]))
    with _servers(scenarios, order, own[0].model.address if own else None) as servers:
        order = replace(order, capacity=cache(lambda *asked: servers.drain(order.bridge(), *asked).events_per_second))
        cases: dict[str, list[Case]] = {}
        results: Results = {}
        for name in scenarios:
            try:
                cases[name] = SCENARIOS[name](order)
                results[name] = [Row(case.label, case.beside) for case in cases[name]]
            except _FAILED as error:  # its capacity could not be measured
                results[name] = [Row("capacity", None, failure=str(error))]
        total, done = rounds * sum(map(len, cases.values())), 0
        # Rounds outside, cases inside: what the machine does meanwhile falls on all of them alike.
        for number, (name, found_cases) in product(range(rounds), cases.items()):
            for case, row in zip(found_cases, results[name], strict=True):
                told(f"round {number + 1} of {rounds}: {name}: {case.label}", done, total)
                done += 1
                if row.failure is None:
                    try:
                        row.rounds.append(case.measure(servers))
                    except _FAILED as error:
                        row.failure = str(error)
        told("done", total, total)
    return results


@contextmanager
def _servers(scenarios: Sequence[str], order: Order, model: str | None) -> Iterator[Servers]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, KafkaCluster() as kafka:
        home = Path(folder)
        if model is not None:
            yield Servers(kafka, model, None, home)
            return
        cases: list[Case] = [case for name in scenarios for case in SCENARIOS[name](order)]
        workloads = [case.workload for case in cases if isinstance(case.workload, Workload)]
        make_models(home / "models", [Workload(), *workloads])
        with TritonRig(home / "models") as triton:
            yield Servers(kafka, triton.address, triton, home)
