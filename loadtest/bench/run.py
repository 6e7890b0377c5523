"""All cases of the chosen scenarios, in alternating rounds on one set of servers."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path

from headrace.rig.kafka import KafkaCluster
from headrace.rig.process import ServerFailed
from headrace.rig.triton import TritonRig
from loadtest.bench.measure import BenchFailed, Figures, Servers
from loadtest.bench.scenarios import SCENARIOS, Case, Order
from loadtest.bench.subjects import Bridge, Subject
from loadtest.bench.workload import Workload, make_models

Told = Callable[[str, int, int], None]
"""What is done now, how many measurements are done, and how many there are in all."""


@dataclass
class Row:
    """A case, what each round found, and why there are no more rounds when it failed."""

    label: str
    beside: str | None
    rounds: list[Figures] = field(default_factory=list)
    failure: str | None = None


Results = dict[str, list[Row]]
"""scenario -> its rows."""


def run(
    scenarios: Sequence[str], events: int, rounds: int, seconds: float, peers: Sequence[Subject], told: Told
) -> Results:
    """Measure.

    Args:
        scenarios: names out of `SCENARIOS`.
        events: of a full backlog.
        rounds: of every case.
        seconds: how long a fixed rate is held.
        peers: to measure beside the bridge.
        told: of the progress.

    A case that fails is not tried again; the others go on.

    Raises:
        HeadraceError: a server cannot run here.
    """
    told("starting Kafka and Triton", 0, 1)
    with _servers(scenarios, peers) as servers:
        capacity = cache(lambda: servers.drain(Bridge(), Workload(), events).events_per_second)
        order = Order(events, seconds, capacity, peers)
        cases = {name: SCENARIOS[name](order) for name in scenarios}
        results = {name: [Row(case.label, case.beside) for case in cases[name]] for name in scenarios}
        total, done = rounds * sum(map(len, cases.values())), 0
        # Rounds outside, cases inside: what the machine does meanwhile falls on all of them alike.
        for number, (name, found_cases) in product(range(rounds), cases.items()):
            for case, row in zip(found_cases, results[name], strict=True):
                told(f"round {number + 1} of {rounds}: {name}: {case.label}", done, total)
                done += 1
                if row.failure is None:
                    try:
                        row.rounds.append(case.measure(servers))
                    except (BenchFailed, ServerFailed) as error:
                        row.failure = str(error)
        told("done", total, total)
    return results


@contextmanager
def _servers(scenarios: Sequence[str], peers: Sequence[Subject]) -> Iterator[Servers]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        home = Path(folder)
        # Which models are needed does not depend on the order.
        planned = Order(1, 1.0, lambda: 1.0, peers)
        cases: list[Case] = [case for name in scenarios for case in SCENARIOS[name](planned)]
        make_models(home / "models", [Workload(), *(case.workload for case in cases)])
        with KafkaCluster() as kafka, TritonRig(home / "models") as triton:
            yield Servers(kafka, triton, home)
