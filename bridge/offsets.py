"""The offset watermark of one partition under one assignment. Pure: no I/O, no clock.

An epoch object is made when a partition is assigned and marked dead when it is revoked; a later assignment of the same
partition is another object, so that a late completion can never touch it. Records are tracked in delivery order, by
position and not by offset: compaction and transaction markers leave gaps between offsets.

    delivered   o o o o o o o o o o        done = 1
    done        1 1 1 0 1 1 0 0 0 0
                      ^ head: the first unfinished; its offset is the commit position

The highest offset seen never enters the commit position: only a finished prefix does.
"""

from array import array
from collections.abc import Sequence

_COMPACT_AT = 65_536


class PartitionEpoch:
    """One partition, from its assignment to its revocation.

    Attributes:
        topic: name of the topic.
        partition: number of the partition.
        generation: number of the assignment, in this process; several epochs may follow each other in one.
        ready: whether its starting position is known; nothing is delivered before.
        alive: False once revoked; a dead epoch's outcomes are dropped and its offsets never committed.
        paused: whether too much of it is under way; the source does not ask for more meanwhile.
    """

    __slots__ = (
        "_base", "_done", "_head", "_next", "_offsets",
        "alive", "committed", "generation", "partition", "paused", "ready", "topic",
    )  # fmt: skip

    def __init__(self, topic: str, partition: int, generation: int = 0) -> None:
        self.topic = topic
        self.partition = partition
        self.generation = generation
        self.ready = False
        self.alive = True
        self.paused = False
        self.committed: int | None = None
        """The position last committed in this epoch."""
        self._base = 0  # position of _offsets[0]: everything before it is finished and forgotten
        self._offsets: array[int] = array("q")
        self._done = bytearray()
        self._head = 0  # index of the first unfinished record
        self._next: int | None = None

    def start_at(self, offset: int) -> None:
        """Deliveries begin at `offset`; also after a seek, which must not go back over delivered records."""
        self._next = offset
        self.ready = True

    def deliver(self, offsets: Sequence[int]) -> int:
        """Take note of records in delivery order.

        Returns:
            The position of the first of them.

        Raises:
            ValueError: an offset is not above the one before it, which would mark the wrong record as done.
        """
        start = self._base + len(self._offsets)
        if offsets:
            last = self._offsets[-1] if self._offsets else (self._next or 0) - 1
            if offsets[0] <= last or offsets[-1] < offsets[0]:
                raise ValueError(f"{self}: offset {offsets[0]} delivered after {last}")
            self._offsets.extend(offsets)
            self._done.extend(bytes(len(offsets)))
            self._next = offsets[-1] + 1
        return start

    def complete(self, start: int, stop: int) -> None:
        """The records at positions `start` to `stop` (exclusive) have their outcome in the broker's hands."""
        low, high = start - self._base, stop - self._base
        if not 0 <= low <= high <= len(self._offsets):
            raise ValueError(f"{self}: positions {start} to {stop} were not delivered, or are already forgotten")
        self._done[low:high] = b"\x01" * (high - low)
        if low <= self._head:
            head = self._done.find(0, self._head)
            self._head = len(self._done) if head < 0 else head
            if self._head >= _COMPACT_AT or self._head == len(self._done):
                del self._offsets[: self._head]
                del self._done[: self._head]
                self._base += self._head
                self._head = 0

    @property
    def pending(self) -> int:
        """Delivered records that wait for the watermark to pass them, finished or not."""
        return len(self._offsets) - self._head

    @property
    def uncommitted(self) -> int:
        """Offsets that have been delivered and not committed, finished or not; gaps count."""
        return 0 if self._next is None or self.committed is None else self._next - self.committed

    @property
    def next_offset(self) -> int | None:
        """Where reading goes on: one past the last delivered record. None before the start is known."""
        return self._next

    @property
    def position(self) -> int | None:
        """What may be committed: the first unfinished record's offset, else one past the last delivered."""
        return self._offsets[self._head] if self._head < len(self._offsets) else self._next

    def __repr__(self) -> str:
        state = ("ready" if self.ready else "starting") if self.alive else "dead"
        return (
            f"<PartitionEpoch {self.topic}/{self.partition} {state} position={self.position} next={self._next}"
            f" pending={self.pending}>"
        )
