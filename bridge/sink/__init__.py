"""Where results, alerts and dead letters go, behind a Protocol of a few methods."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from bridge.receipt import Receipt

Row = tuple[bytes | None, bytes | None, int, list[tuple[str, bytes | None]]]
"""One record to write: key, value, timestamp (ms since 1970), headers. A bare tuple, since one is made per event."""


BATCH_OVERHEAD = 512
"""Bytes of a produced batch beside its rows, generously."""


def row_size(row: Row) -> int:
    """Bytes the row takes in a batch, at most."""
    key, value, _, headers = row
    size = 60 + (len(key) if key else 0) + (len(value) if value else 0)
    for name, item in headers:
        size += 3 * len(name) + (len(item) if item else 0) + 10
    return size


class Sink(Protocol):
    """Writes records in order per partition, and acknowledges receipts."""

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Connect; returns once the brokers answer. What runs on runs in `tasks`, so that no failure goes unseen.

        Raises:
            PipelineStopped: the brokers refuse in a way that waiting does not cure.
        """
        ...

    async def write(self, topic: str, partition: int, rows: Sequence[Row], receipt: Receipt) -> None:
        """Queue rows; `receipt` is held, and released when all of them are acknowledged.

        Waits while too much is queued for that partition already.
        """
        ...

    async def stop(self, timeout: float) -> None:
        """Disconnect within so many seconds; what is not acknowledged by then stays unacknowledged."""
        ...
