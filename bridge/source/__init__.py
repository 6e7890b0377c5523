"""Where events come from, behind a Protocol of a few methods."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from bridge.record import Segment

Drain = Callable[[float], Awaitable[None]]
"""Called before partitions are given up: drop what is queued, finish what is in flight within so many seconds."""


class Source(Protocol):
    """A consumer group member."""

    async def start(self, tasks: asyncio.TaskGroup, drain: Drain) -> None:
        """Connect and join the group; returns once the brokers answer. What runs on runs in `tasks`.

        Raises:
            PipelineStopped: the brokers refuse in a way that waiting does not cure.
        """
        ...

    @property
    def assigned(self) -> bool:
        """Whether this member has its partitions (perhaps none: standing by), and knows where each begins."""
        ...

    async def poll(self, max_records: int, timeout: float) -> Sequence[Segment]:
        """The next records of the assigned partitions, already tracked as delivered; nothing after `timeout` seconds.

        Raises:
            PipelineStopped: as `start`.
        """
        ...

    async def commit(self, timeout: float) -> None:
        """Commit the finished prefix of every partition that is still ours; a failure is logged and tried later.

        Raises:
            PipelineStopped: as `start`.
        """
        ...

    def lag(self) -> dict[tuple[str, int], int]:
        """(topic, partition) -> events not yet finished, as far as known."""
        ...

    async def stop(self) -> None:
        """Leave the group and disconnect."""
        ...
