"""A broker inside the process, for tests and experiments: the fake `Source` and `Sink` over one log.

Deterministic and fast; held to the same contract suite as the clients of a real Kafka.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.errors import PipelineStopped
from bridge.offsets import PartitionEpoch
from bridge.receipt import Receipt
from bridge.record import Record, Segment
from bridge.sink import Row
from bridge.source import Drain


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A record as `bridge.record.Record` describes it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class MemoryBroker:
    """Topics, and the offsets that groups have committed.

    Args:
        topics: name -> number of partitions.
    """

    def __init__(self, topics: dict[str, int]) -> None:
        self.log: dict[str, list[list[MemoryRecord]]] = {name: [[] for _ in range(n)] for name, n in topics.items()}
        self.committed: dict[tuple[str, str, int], int] = {}
        self.arrived = asyncio.Event()

    def append(self, topic: str, partition: int, row: Row) -> int:
        """Append a record; its offset."""
        key, value, timestamp, headers = row
        records = self.log[topic][partition]
        records.append(MemoryRecord(topic, partition, len(records), timestamp, key, value, tuple(headers)))
        self.arrived.set()
        return len(records) - 1

    def records(self, topic: str) -> list[MemoryRecord]:
        """Every record of a topic, partition by partition."""
        return [record for partition in self.log[topic] for record in partition]


@dataclass
class FakeSource:
    """`Source` over a `MemoryBroker`: the only member of its group.

    Attributes:
        commits_fail: while set, commits are lost.
    """

    broker: MemoryBroker
    group: str
    topics: Sequence[str]
    start_at: str = "earliest"
    assigned: bool = False
    commits_fail: bool = False
    epochs: dict[tuple[str, int], PartitionEpoch] = field(default_factory=dict)
    _drain: Drain | None = None

    async def start(self, tasks: asyncio.TaskGroup, drain: Drain) -> None:
        """See `Source`."""
        self._drain = drain
        self._assign()

    async def poll(self, max_records: int, timeout: float) -> Sequence[Segment]:
        """See `Source`."""
        segments = self._take(max_records)
        if not segments:
            self.broker.arrived.clear()
            try:
                await asyncio.wait_for(self.broker.arrived.wait(), timeout)
            except TimeoutError:
                return []
            segments = self._take(max_records)
        return segments

    async def commit(self, timeout: float) -> None:
        """See `Source`."""
        if self.commits_fail:
            return
        for (topic, partition), epoch in self.epochs.items():
            if epoch.alive and epoch.position is not None and epoch.position != epoch.committed:
                self.broker.committed[self.group, topic, partition] = epoch.committed = epoch.position

    def lag(self) -> dict[tuple[str, int], int]:
        """See `Source`."""
        return {tp: len(self.broker.log[tp[0]][tp[1]]) - (e.position or 0) for tp, e in self.epochs.items()}

    async def stop(self) -> None:
        """See `Source`."""
        self.assigned = False

    async def rebalance(self, timeout: float = 30.0) -> None:
        """Revoke everything and assign it again, as an eager group does."""
        epochs = list(self.epochs.values())
        for epoch in epochs:
            epoch.ready = False
        if self._drain:
            await self._drain(timeout)
        await self.commit(timeout)
        for epoch in epochs:
            epoch.alive = False
        self._assign()

    def _assign(self) -> None:
        self.epochs = {
            (topic, number): PartitionEpoch(topic, number)
            for topic in self.topics
            for number in range(len(self.broker.log[topic]))
        }
        for (topic, number), epoch in self.epochs.items():
            committed = self.broker.committed.get((self.group, topic, number))
            if committed is None and self.start_at == "fail":
                raise PipelineStopped(f"group {self.group!r} cannot begin in {topic}/{number}: it has no offset there")
            first = 0 if self.start_at == "earliest" else len(self.broker.log[topic][number])
            epoch.start_at(first if committed is None else committed)
            epoch.committed = committed
        self.assigned = True

    def _take(self, max_records: int) -> list[Segment]:
        segments = []
        for (topic, number), epoch in self.epochs.items():
            at = epoch.next_offset or 0
            records: Sequence[Record] = self.broker.log[topic][number][at : at + max_records]
            if records and epoch.ready:
                segments.append(Segment(epoch, epoch.deliver([record.offset for record in records]), records))
                max_records -= len(records)
            if not max_records:
                break
        return segments


class FakeSink:
    """`Sink` over a `MemoryBroker`.

    Attributes:
        open: while cleared, writes are taken, but neither appear nor are acknowledged.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._waiting: dict[tuple[str, int], list[tuple[Sequence[Row], Receipt]]] = defaultdict(list)
        self.open = asyncio.Event()
        self.open.set()

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """See `Sink`."""

    async def write(self, topic: str, partition: int, rows: Sequence[Row], receipt: Receipt) -> None:
        """See `Sink`."""
        receipt.hold()
        if self.open.is_set():
            self._settle(topic, partition, rows, receipt)
        else:
            self._waiting[topic, partition].append((rows, receipt))

    def release(self) -> None:
        """Open again, and write what waits."""
        self.open.set()
        waiting, self._waiting = self._waiting, defaultdict(list)
        for (topic, partition), chunks in waiting.items():
            for rows, receipt in chunks:
                self._settle(topic, partition, rows, receipt)

    async def stop(self, timeout: float) -> None:
        """See `Sink`."""

    def _settle(self, topic: str, partition: int, rows: Sequence[Row], receipt: Receipt) -> None:
        for row in rows:
            self._broker.append(topic, partition, row)
        receipt.release()
