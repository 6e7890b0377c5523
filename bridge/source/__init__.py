"""Where events come from, behind a Protocol of a few methods."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from bridge.offsets import PartitionEpoch
from bridge.record import Segment


class Owner(Protocol):
    """Who works on the partitions that a source is given."""

    async def claim(self, epoch: PartitionEpoch) -> None:
        """The partition is ours from now on; called before its committed offset is read, and again if it fails.

        Raises:
            KafkaError: it cannot be claimed now.
            PipelineStopped: it never can.
        """
        ...

    async def drain(self, timeout: float) -> None:
        """Partitions are about to be given up: drop what is queued, finish what is in flight within so many seconds."""
        ...

    def released(self, epoch: PartitionEpoch) -> None:
        """The epoch is dead: nothing of it is to be written or committed any more."""
        ...


class Source(Protocol):
    """A consumer group member."""

    async def start(self, tasks: asyncio.TaskGroup, owner: Owner) -> None:
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

        Nothing to do where offsets are committed with the results.

        Raises:
            PipelineStopped: as `start`.
        """
        ...

    def restart(self, epoch: PartitionEpoch, after: float, because: str) -> None:
        """End the epoch, and begin its partition again from the committed offset, under a new one.

        Args:
            epoch: one that died already is left alone.
            after: seconds to wait before.
            because: the reason, for the log.
        """
        ...

    def lag(self) -> dict[tuple[str, int], int]:
        """(topic, partition) -> events not yet finished, as far as known."""
        ...

    async def stop(self) -> None:
        """Leave the group and disconnect."""
        ...
