"""`make outcomes`: what comes of every event, here and in the peers, when one cannot be read and when the model dies.

    a bad record     2,000 events with one in the middle that is not JSON
    a dead model     100 events/s for 45 s; after 10 s the model server is killed, and 15 s later started again

Each program runs as an orchestrator would run it: one that ends is started again, after 1, 2, 4, 8 seconds.
An event has a result, a dead letter, or neither; without either it is lost when the group's offset has passed it, and
waits when not. A second result for an event is doubled.
"""

import argparse
import contextlib
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table

from headrace.rig.kafka import KafkaCluster
from headrace.rig.triton import TritonRig
from loadtest.bench.measure import Servers
from loadtest.bench.subjects import IN_PROCESS, Bridge, Job, Subject, peers
from loadtest.bench.workload import Workload, feed, make_models
from loadtest.trouble import read

_EVENTS = 2_000
_RATE = 100
_SECONDS, _DIES, _BACK = 45.0, 10.0, 25.0
_LONGEST_PAUSE = 8.0  # before one that has ended is started again
_STANDSTILL = 60.0  # longer than it takes until a successor has the partitions of one that died
_SETTLED = 15.0  # after as many outcomes as events: some may still come twice
_LONGEST = 120.0  # one that never stops ending


@dataclass(frozen=True)
class OneBroken(Workload):
    """`_EVENTS` events, each once; the middle one is cut off."""

    def topic(self, events: int) -> str:
        """See `Events`."""
        return f"one-broken-{events}"

    def values(self) -> list[bytes]:
        """See `Events`."""
        values = super().values()[:_EVENTS]
        values[_EVENTS // 2] = values[_EVENTS // 2][:40]
        return values


@dataclass
class Tally:
    """What came of the events of one run.

    Attributes:
        events: that there were.
        results: events with a result or more.
        doubled: results beyond the first of an event.
        letters: events with a dead letter.
        lost: events with neither that the group has left behind.
        waiting: events with neither that the group has before it.
        ended: how often the program ended by itself.
    """

    events: int
    results: int
    doubled: int
    letters: int
    lost: int
    waiting: int
    ended: int


def bad_record(servers: Servers, subject: Subject) -> Tally:
    """One event that cannot be read."""
    workload = OneBroken()
    source = servers.fill(workload, _EVENTS)
    job = servers.job(workload, source)
    ended = _supervised(servers, subject, job, lambda: _EVENTS, lambda: None)
    return _tally(servers, job, _EVENTS, ended)


def dead_model(servers: Servers, subject: Subject) -> Tally:
    """The model server dies under load and comes back."""
    assert servers.triton is not None, "it runs here"
    triton, workload = servers.triton, Workload()
    source = f"dead-model-{subject.name}"
    servers.create({source: workload.partitions})
    job = servers.job(workload, source)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        begun, feeding, alive = 0.0, None, True

        def turn() -> None:
            nonlocal begun, feeding, alive
            if feeding is None:
                begun = time.monotonic()
                feeding = pool.submit(feed, job.bootstrap, source, workload, _RATE, _SECONDS, stop)
            away = _DIES <= time.monotonic() - begun < _BACK
            if away and alive:
                triton.process.kill_all()
            elif not away and not alive:
                triton.launch()
            alive = not away

        def written() -> int | None:
            return feeding.result()[1] if feeding is not None and feeding.done() else None

        try:
            ended = _supervised(servers, subject, job, written, turn)
        finally:
            stop.set()
        events = written()
    triton.wait_ready()
    assert events is not None, "it has been waited for"
    return _tally(servers, job, events, ended)


def _supervised(
    servers: Servers, subject: Subject, job: Job, events: Callable[[], int | None], turn: Callable[[], None]
) -> int:
    """Run it, again and again if it must be, until nothing moves any more; how often it ended.

    Args:
        servers: where.
        subject: what.
        job: what it has to do.
        events: how many there are in all, once that is known.
        turn: called again and again once it is ready.
    """
    places = [TopicPartition(job.target, number) for number in range(job.workload.partitions)]
    places.append(TopicPartition(f"{job.target}-dead", 0))
    consumer = Consumer({"bootstrap.servers": job.bootstrap, "group.id": "outcomes"})
    with contextlib.closing(consumer), contextlib.ExitStack() as running:
        process = running.enter_context(subject.start(job))
        servers.wait_ready(process)
        supervisor, done = Supervisor(time.monotonic()), 0
        while True:
            turn()
            time.sleep(0.1)
            now = time.monotonic()
            if supervisor.starts_again(process.running, now):
                process = running.enter_context(subject.start(job))
            with contextlib.suppress(KafkaException):  # leaders are being elected
                done = sum(consumer.get_watermark_offsets(place, timeout=30)[1] for place in places)
            if supervisor.over(done, events(), now):
                return supervisor.ended


class Supervisor:
    """When a program is started again, and when no more can come of it. Pure.

    Args:
        now: seconds of a monotonic clock.

    Attributes:
        ended: how often the program has ended and been started again.
    """

    def __init__(self, now: float) -> None:
        self.ended = 0
        self._begun = self._moved = now
        self._again = now
        self._done = 0

    def starts_again(self, running: bool, now: float) -> bool:
        """Whether it is to be started again now: 1, 2, 4, then 8 seconds after it has ended."""
        if running:
            self._again = now + min(_LONGEST_PAUSE, 2.0**self.ended)
            return False
        self._moved = now  # it will go on
        if now < self._again:
            return False
        self.ended += 1
        return True

    def over(self, done: int, events: int | None, now: float) -> bool:
        """Whether to stop waiting.

        Args:
            done: outcomes so far.
            events: that there are in all; None while that is not known.
            now: seconds of the same clock.
        """
        if done != self._done or events is None:
            self._done, self._moved = done, now
        if events is None:
            return False
        patience = _SETTLED if done >= events else _STANDSTILL
        return now - self._moved > patience or now - self._begun > _LONGEST


def _tally(servers: Servers, job: Job, events: int, ended: int) -> Tally:
    results = Counter(int(message.key()) for message in read(servers, job.target, job.workload.partitions))
    letters = {int(message.key()) for message in read(servers, f"{job.target}-dead", 1)}
    admin = AdminClient({"bootstrap.servers": servers.kafka.bootstrap_servers, "log_level": 0})
    places = [TopicPartition(job.source, number) for number in range(job.workload.partitions)]
    (future,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(job.target, places)]).values()
    committed = {place.partition: place.offset for place in future.result(30).topic_partitions}
    return tally(events, results, letters, [committed.get(place.partition, -1) for place in places], ended)


def tally(events: int, results: Counter[int], letters: set[int], committed: list[int], ended: int) -> Tally:
    """What came of events that were written to their partitions in turn.

    Args:
        events: how many there were.
        results: event -> its results.
        letters: events with a dead letter.
        committed: for each partition the offset where the group goes on; negative where it has none.
        ended: how often the program ended.
    """
    without = [number for number in range(events) if number not in results and number not in letters]
    lost = sum(number // len(committed) < committed[number % len(committed)] for number in without)
    doubled = sum(results.values()) - len(results)
    return Tally(events, len(results), doubled, len(letters), lost, len(without) - lost, ended)


def main() -> None:
    """Run all that are installed, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known: dict[str, Subject] = {"headrace": Bridge(), **{k: v for k, v in peers().items() if v.installed}}
    parser.add_argument("subjects", nargs="*", help=f"of {', '.join(known)}; all when none is named")
    parser.add_argument("--out", type=Path, help="also write what was found as JSON")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.subjects if name not in known]
    if unknown:
        parser.error(f"{', '.join(unknown)}: not known or not installed; there are {', '.join(known)}")
    console = Console(width=None if Console().is_terminal else 140)
    found: dict[str, dict[str, Tally]] = {"a bad record": {}, "a dead model": {}}
    with tempfile.TemporaryDirectory(prefix="headrace-outcomes-") as folder:
        home = Path(folder)
        make_models(home / "models", [Workload()])
        with KafkaCluster() as kafka, TritonRig(home / "models") as triton:
            servers = Servers(kafka, triton.address, triton, home)
            for name in dict.fromkeys(arguments.subjects or known):
                for part, run in (("a bad record", bad_record), ("a dead model", dead_model)):
                    if run is dead_model and name in IN_PROCESS:
                        continue
                    with console.status(f"{name}: {part}"):
                        found[part][name] = run(servers, known[name])
                    if arguments.out:
                        told = {p: {n: asdict(what) for n, what in tallies.items()} for p, tallies in found.items()}
                        arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    for part, tallies in found.items():
        table = Table(title=part, title_justify="left")
        for column in ("", "events", "results", "doubled", "dead letters", "lost", "waiting", "ended"):
            table.add_column(column, justify="right" if column else "left")
        for name, what in tallies.items():
            table.add_row(name, *(f"{value:,}" for value in asdict(what).values()))
        console.print(table)


if __name__ == "__main__":
    main()
