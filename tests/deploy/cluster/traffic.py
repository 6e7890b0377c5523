"""Events into a topic at a rate, every outcome read back, and what is wrong with them."""

import gzip
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from confluent_kafka import Consumer, Producer, TopicPartition

EVENTS = Path(__file__).parents[3] / "model_repository" / "fraud" / "events.jsonl.gz"
PARTITIONS = 6
_ROOM = 1 << 22


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a range of events.

    Attributes:
        events: written.
        lost: without an outcome.
        doubled: outcomes beyond the first, as a read_committed reader sees them.
        disordered: outcomes that stand before one of an earlier event of their partition.
        letters: dead letters among the outcomes.
        p99: of the milliseconds from an event's due time to when its outcome was read.
        longest: of them.
    """

    events: int
    lost: int
    doubled: int
    disordered: int
    letters: int
    p99: float
    longest: float


class Traffic:
    """A writer and a reader, each in a thread.

    Args:
        bootstrap: of the brokers.
        source: topic to write to.
        outcomes: topics of results and dead letters.
    """

    def __init__(self, bootstrap: str, source: str, outcomes: dict[str, int]) -> None:
        self._bootstrap = bootstrap
        self._source = source
        self._outcomes = outcomes
        self._values = [orjson.loads(line) for line in gzip.decompress(EVENTS.read_bytes()).splitlines()]
        # One for all: what two producers write to a partition has no order.
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "linger.ms": 5,
                "queue.buffering.max.messages": 2_000_000,
                "enable.idempotence": True,
            }
        )
        self._stop = threading.Event()
        self._rate = 0.0
        self._lock = threading.Lock()
        self.written = 0
        self._count = np.zeros(_ROOM, np.uint8)
        self._wait = np.zeros(_ROOM, np.float32)
        self._broken: list[BaseException] = []
        self._disordered: list[int] = []
        self._letters: list[int] = []
        self.seen = 0
        self.versions: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._until_stopped, args=(work,), daemon=True)
            for work in (self._write, self._read)
        ]

    def start(self) -> None:
        """Begin to read, and to write at the rate that is set."""
        for thread in self._threads:
            thread.start()

    def rate(self, events: float) -> None:
        """Write so many events a second from now on."""
        self._rate = events

    def burst(self, count: int) -> None:
        """Write so many at once, beside the rate."""
        with self._lock:
            for _ in range(count):
                self._send(time.time())
        self._producer.flush()

    def wait(self, timeout: float) -> bool:
        """Until everything written by now has an outcome."""
        until, target = time.monotonic() + timeout, self.written
        while len(self._count) < target or not self._count[:target].all():
            if self._broken:
                raise RuntimeError("the traffic has ended") from self._broken[0]
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def found(self, first: int, last: int) -> Found:
        """Of the events from number `first` up to `last`."""
        count = self._count[first:last]
        waits = self._wait[first:last][count > 0]
        return Found(
            events=last - first,
            lost=int((count == 0).sum()),
            doubled=int(np.maximum(count.astype(int) - 1, 0).sum()),
            disordered=sum(first <= number < last for number in self._disordered),
            letters=sum(first <= number < last for number in self._letters),
            p99=float(np.percentile(waits, 99)) if len(waits) else float("nan"),
            longest=float(waits.max()) if len(waits) else float("nan"),
        )

    def stop(self) -> None:
        """End both threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _until_stopped(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._broken.append(error)
            raise

    def _send(self, at: float) -> None:
        number = self.written
        value = orjson.dumps({"id": number, **self._values[number % len(self._values)]})
        while True:
            try:
                self._producer.produce(self._source, value, str(number), number % PARTITIONS, timestamp=int(at * 1000))
                break
            except BufferError:
                self._producer.poll(0.05)
        self.written = number + 1

    def _write(self) -> None:
        due = time.time()
        while not self._stop.is_set():
            now, rate = time.time(), self._rate
            if not rate:
                due = now
            with self._lock:
                while rate and due <= now:
                    self._send(due)
                    due += 1 / rate
            self._producer.poll(0)
            time.sleep(0.005)
        self._producer.flush()

    def _read(self) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": "cluster-trial",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 20,
            }
        )
        consumer.assign([TopicPartition(t, n, 0) for t, count in self._outcomes.items() for n in range(count)])
        newest = [-1] * PARTITIONS
        letters = next(topic for topic in self._outcomes if "dead" in topic)
        while not self._stop.is_set():
            messages = consumer.consume(2_000, 0.05)
            now = time.time()
            for message in messages:
                key = message.key()
                if message.error() is not None or not key.isdigit():
                    continue
                number = int(key)
                if number >= len(self._count):
                    self._count = np.append(self._count, np.zeros(number, np.uint8))
                    self._wait = np.append(self._wait, np.zeros(number, np.float32))
                self._count[number] += 1
                self._wait[number] = (now - message.timestamp()[1] / 1000) * 1000
                if message.topic() == letters:
                    self._letters.append(number)
                    continue
                partition = message.partition()
                if number < newest[partition] and self._count[number] == 1:
                    self._disordered.append(number)
                newest[partition] = max(newest[partition], number)
                self.seen += 1
            if messages and messages[-1].error() is None and messages[-1].topic() != letters:
                self.versions[json.loads(messages[-1].value())["model_version"]] += 1
        consumer.close()
