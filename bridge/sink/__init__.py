"""Where results, alerts and dead letters go, behind a Protocol of a few methods."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bridge.offsets import PartitionEpoch
from bridge.record import Segment

Row = tuple[bytes | None, bytes | None, int, list[tuple[str, bytes | None]]]
"""One record to write: key, value, timestamp (ms since 1970), headers. A bare tuple, since one is made per event."""


BATCH_OVERHEAD = 512
"""Bytes of a produced batch beside its rows, generously."""


BATCH_BYTES = 512 * 1024
"""Most bytes of one produced batch, unless the topic takes less."""


def row_size(row: Row) -> int:
    """Bytes the row takes in a batch, at most."""
    key, value, _, headers = row
    size = 60 + (len(key) if key else 0) + (len(value) if value else 0)
    for name, item in headers:
        size += 3 * len(name) + (len(item) if item else 0) + 10
    return size


class Write(NamedTuple):
    """Rows for one partition."""

    topic: str
    partition: int
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Emission:
    """All that becomes of a segment: its results, alerts and dead letters, written and settled together.

    Attributes:
        segment: what it was made of.
        writes: at least one, since every event has an outcome.
        settled: called once; True when all of it is in the broker's hands, which also marks the segment as complete in
            its epoch; False when it was dropped, because its epoch has ended.
    """

    segment: Segment
    writes: Sequence[Write]
    settled: Callable[["Emission", bool], None]

    def acknowledge(self) -> None:
        """All of it is in the broker's hands. In a dead epoch, never committed, that counts for nothing."""
        segment = self.segment
        segment.epoch.complete(segment.start, segment.start + len(segment.records))
        self.settled(self, True)

    def drop(self) -> None:
        """It will not be written; who owns the partition next does its events again."""
        self.settled(self, False)


Restart = Callable[[PartitionEpoch, float, str], None]
"""`Source.restart`: what cannot be written begins again from the committed offset."""


class Sink(Protocol):
    """Writes emissions, those of one partition in the order they come."""

    async def start(self, tasks: asyncio.TaskGroup, restart: Restart) -> None:
        """Connect; returns once the brokers answer. What runs on runs in `tasks`, so that no failure goes unseen.

        Raises:
            PipelineStopped: the brokers refuse in a way that waiting does not cure.
        """
        ...

    async def claim(self, epoch: PartitionEpoch) -> None:
        """See `Owner.claim`."""
        ...

    def release(self, epoch: PartitionEpoch) -> None:
        """See `Owner.released`."""
        ...

    def write(self, emission: Emission) -> None:
        """Queue an emission. How much waits is bounded by the lanes, which count what is not settled."""
        ...

    async def stop(self, timeout: float) -> None:
        """Disconnect within so many seconds; what is not acknowledged by then stays unacknowledged."""
        ...
