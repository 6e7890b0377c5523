"""Reads every outcome, and when it came. A process of its own, so that reading waits for nothing.

Writes `ready` once it reads, then a line of JSON ten times a second: the latencies of what came. Told `end N` it waits
until the outcomes of N events are there, and writes what is wrong with them.
"""

import json
import math
import time
from collections import Counter
from typing import Any

import orjson
from confluent_kafka import Consumer, TopicPartition
from hdrh.histogram import HdrHistogram

from loadtest.load.orders import Orders
from loadtest.load.sender import LONGEST_US
from loadtest.load.settings import INTENDED, Settings

_TELL = 0.1


class Reading:
    """What has been read.

    Args:
        settings: of the stream.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prefix = f"{settings.run}-".encode()
        self._seen: Counter[int] = Counter()
        self._newest: dict[int, int] = {}
        self._first = math.inf
        self.fresh: list[int] = []
        self.latency = HdrHistogram(1, LONGEST_US, 3)
        self.disordered = 0
        self.letters = 0
        self.versions: dict[str, float] = {}

    def take(self, message: Any, now: float) -> None:
        """One record of a topic of outcomes."""
        key = message.key() or b""
        if message.error() is not None or not key.startswith(self._prefix):
            return
        number = int(key[len(self._prefix) :])
        self._seen[number] += 1
        if self._seen[number] > 1:
            return
        intended = next(int(value) for name, value in message.headers() if name == INTENDED)
        took = max(1, int(now * 1e6 - intended / 1e3))
        self.fresh.append(took)
        self._first = min(self._first, intended)
        if intended >= self._first + self._settings.warm_up * 1e9:
            self.latency.record_value(min(took, LONGEST_US))
        if message.topic() == self._settings.dead_letter:
            self.letters += 1
            return
        partition = message.partition()
        self.disordered += number < self._newest.get(partition, -1)
        self._newest[partition] = max(number, self._newest.get(partition, -1))

    def note_version(self, message: Any, now: float) -> None:
        """Which version answers now; looked up in one result of many."""
        if message.error() is None and message.topic() == self._settings.result:
            version = str(orjson.loads(message.value()).get("model_version"))
            self.versions.setdefault(version, now)

    def complete(self, count: int) -> bool:
        """Whether each of the first so many events has an outcome."""
        return len(self._seen) >= count

    def verdict(self, count: int) -> dict[str, Any]:
        """What is wrong with the outcomes of so many events."""
        return {
            "received": len(self._seen),
            "missing": count - len(self._seen),
            "duplicated": sum(self._seen.values()) - len(self._seen),
            "disordered": self.disordered,
            "dead_letters": self.letters,
            "latency": self.latency.encode().decode(),
            "versions": self.versions,
        }


def main() -> None:
    """Read until told to end."""
    settings = Settings.of_command_line()
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap,
            "group.id": f"loadtest-{settings.run}",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 10,
            "enable.auto.commit": False,
            **(settings.security or {}),
        }
    )
    places = []
    for topic in (settings.result, settings.dead_letter):
        for number in consumer.list_topics(topic, 10).topics[topic].partitions:
            place = TopicPartition(topic, number)
            place.offset = consumer.get_watermark_offsets(place, timeout=10)[1]  # what came before is not ours
            places.append(place)
    consumer.assign(places)
    reading = Reading(settings)
    print("ready", flush=True)
    orders, told = Orders(), time.time()
    expected: int | None = None
    earliest = latest = math.inf  # to end
    while time.monotonic() < latest:
        first = consumer.poll(0.02)  # to ask for many would wait for many
        now = time.time()
        for message in [first, *consumer.consume(1_000, 0)] if first else []:
            reading.take(message, now)
        if now - told >= _TELL:
            if first:
                reading.note_version(first, now)
            print(json.dumps({"at": now, "us": reading.fresh}), flush=True)
            reading.fresh, told = [], now
        match orders.next():
            case ["end", count]:
                expected = int(count)
                earliest = time.monotonic() + 1.0  # for what may come twice
                latest = time.monotonic() + settings.patience
        if expected is not None and reading.complete(expected) and time.monotonic() > earliest:
            break
    print(json.dumps({"at": time.time(), "us": reading.fresh}), flush=True)
    print(json.dumps(reading.verdict(expected or 0)), flush=True)
    consumer.close()


if __name__ == "__main__":
    main()
