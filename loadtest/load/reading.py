"""What a receiver has read of one stream, and what is wrong with it. Pure."""

import math
from collections import Counter
from typing import Any, Protocol

import numpy as np
from hdrh.histogram import HdrHistogram

from loadtest.load.settings import BOUNDS, INTENDED, LONGEST_US, Settings


class Message(Protocol):
    """What is looked at of a Kafka client's message."""

    def error(self) -> Any: ...
    def key(self) -> bytes | None: ...
    def topic(self) -> str: ...
    def headers(self) -> list[tuple[str, bytes]]: ...


class Reading:
    """Outcomes, as they come.

    Args:
        settings: of the stream.

    Attributes:
        received: events that have one.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prefix = f"{settings.run}-".encode()
        self._seen = bytearray()  # how often each event's outcome has come; an hour's events fit into it
        self._newest = [-1] * settings.partitions
        self._first = math.inf
        self._fresh: list[int] = []
        self._latency = HdrHistogram(1, LONGEST_US, 3)
        self.received = 0
        self._again = 0
        self._found: Counter[str] = Counter()
        self._versions: dict[str, float] = {}

    def take(self, message: Message, now: float) -> None:
        """One record of a topic of outcomes, read `now` (seconds since 1970)."""
        key = message.key() or b""
        if message.error() is not None or not key.startswith(self._prefix):
            return
        number = int(key[len(self._prefix) :])
        if number >= len(self._seen):
            self._seen.extend(bytes(number + 65_536 - len(self._seen)))
        self._seen[number] = min(255, self._seen[number] + 1)
        if self._seen[number] > 1:
            self._again += 1
            return
        self.received += 1
        intended = next(int(value) for name, value in message.headers() if name == INTENDED)
        took = max(1, int(now * 1e6 - intended / 1e3))
        self._fresh.append(took)
        self._first = min(self._first, intended)
        if intended >= self._first + self._settings.warm_up * 1e9:
            self._latency.record_value(min(took, LONGEST_US))
        if message.topic() == self._settings.dead_letter:
            self._found["dead_letters"] += 1
            return
        # In the order of the event's own partition, wherever its result is.
        partition = number % self._settings.partitions
        self._found["disordered"] += number < self._newest[partition]
        self._newest[partition] = max(number, self._newest[partition])

    def note_version(self, version: str, now: float) -> None:
        """A version of the model has answered."""
        self._versions.setdefault(version, now)

    def fresh(self) -> list[tuple[int, int]]:
        """Latencies since this was last asked: (bucket, how many)."""
        places, counts = np.unique(np.searchsorted(BOUNDS, self._fresh), return_counts=True)
        self._fresh = []
        return list(zip(places.tolist(), counts.tolist(), strict=True))

    def complete(self, count: int) -> bool:
        """Whether so many events have an outcome."""
        return self.received >= count

    def verdict(self, count: int) -> dict[str, Any]:
        """What is wrong with the outcomes of so many events."""
        return {
            "received": self.received,
            "missing": count - self.received,
            "duplicated": self._again,
            "disordered": self._found["disordered"],
            "dead_letters": self._found["dead_letters"],
            "latency": self._latency.encode().decode(),
            "versions": self._versions,
        }
