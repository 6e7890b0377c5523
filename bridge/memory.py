"""A broker inside the process, for tests and experiments: the fake `Source` and `Sink` over one log.

Deterministic and fast; held to the same contract suite as the clients of a real Kafka.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.errors import PipelineStopped
from bridge.offsets import PartitionEpoch
from bridge.record import Record, Segment
from bridge.sink import Emission, Restart, Row
from bridge.source import Owner


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
    _beginning: asyncio.Future[None] | None = None
    _owner: Owner | None = None

    async def start(self, tasks: asyncio.TaskGroup, owner: Owner) -> None:
        """See `Source`."""
        self._owner = owner
        await self._assign()

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

    def restart(self, epoch: PartitionEpoch, after: float, because: str) -> None:
        """See `Source`."""
        place = (epoch.topic, epoch.partition)
        if self.epochs.get(place) is epoch:
            self._kill(epoch)
            self._beginning = asyncio.ensure_future(self._again(place, after))

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
        if self._owner:
            await self._owner.drain(timeout)
        await self.commit(timeout)
        for epoch in epochs:
            self._kill(epoch)
        await self._assign()

    async def _assign(self) -> None:
        for topic in self.topics:
            for number in range(len(self.broker.log[topic])):
                await self._again((topic, number), 0.0)
        self.assigned = True

    async def _again(self, place: tuple[str, int], after: float) -> None:
        topic, number = place
        epoch = self.epochs[place] = PartitionEpoch(topic, number)
        await asyncio.sleep(after)
        if self._owner:
            await self._owner.claim(epoch)
        committed = self.broker.committed.get((self.group, topic, number))
        if committed is None and self.start_at == "fail":
            raise PipelineStopped(f"group {self.group!r} cannot begin in {topic}/{number}: it has no offset there")
        if committed is None:
            committed = 0 if self.start_at == "earliest" else len(self.broker.log[topic][number])
            self.broker.committed[self.group, topic, number] = committed
        epoch.start_at(committed)
        epoch.committed = committed
        self.broker.arrived.set()

    def _kill(self, epoch: PartitionEpoch) -> None:
        epoch.alive = False
        if self._owner:
            self._owner.released(epoch)

    def _take(self, max_records: int) -> list[Segment]:
        segments = []
        for (topic, number), epoch in self.epochs.items():
            at = epoch.next_offset or 0
            records: Sequence[Record] = self.broker.log[topic][number][at : at + max_records]
            if records and epoch.ready and not epoch.paused:
                segments.append(Segment(epoch, epoch.deliver([record.offset for record in records]), records))
                max_records -= len(records)
            if not max_records:
                break
        return segments


class FakeSink:
    """`Sink` over a `MemoryBroker`.

    Args:
        broker: where outcomes appear.
        group: with it, offsets are committed together with the outcomes, as in a transaction.

    Attributes:
        open: while cleared, emissions are taken, but neither appear nor are acknowledged.
        fail_next: how many of the next emissions fail, as a transaction does, and have their partition begin again.
    """

    def __init__(self, broker: MemoryBroker, group: str | None = None) -> None:
        self._broker = broker
        self._group = group
        self._waiting: list[Emission] = []
        self._claimed: set[PartitionEpoch] = set()
        self._restart: Restart | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.fail_next = 0

    async def start(self, tasks: asyncio.TaskGroup, restart: Restart) -> None:
        """See `Sink`."""
        self._restart = restart

    async def claim(self, epoch: PartitionEpoch) -> None:
        """See `Sink`."""
        self._claimed.add(epoch)

    def release(self, epoch: PartitionEpoch) -> None:
        """See `Sink`."""
        self._claimed.discard(epoch)
        dead = [emission for emission in self._waiting if emission.segment.epoch is epoch]
        self._waiting = [emission for emission in self._waiting if emission.segment.epoch is not epoch]
        for emission in dead:
            emission.drop()

    def write(self, emission: Emission) -> None:
        """See `Sink`."""
        if emission.segment.epoch not in self._claimed:
            emission.drop()
        elif self.open.is_set():
            self._settle(emission)
        else:
            self._waiting.append(emission)

    def resume(self) -> None:
        """Open again, and write what waits."""
        self.open.set()
        waiting, self._waiting = self._waiting, []
        for emission in waiting:
            self._settle(emission)

    async def stop(self, timeout: float) -> None:
        """See `Sink`."""

    def _settle(self, emission: Emission) -> None:
        epoch = emission.segment.epoch
        if self.fail_next and self._restart:
            self.fail_next -= 1
            self._restart(epoch, 0.1, "the fake was told to fail")
            emission.drop()
            return
        if not epoch.alive:
            emission.drop()
            return
        for write in emission.writes:
            for row in write.rows:
                self._broker.append(write.topic, write.partition, row)
        emission.acknowledge()
        if self._group is not None and epoch.position is not None:
            self._broker.committed[self._group, epoch.topic, epoch.partition] = epoch.position
            epoch.committed = epoch.position
