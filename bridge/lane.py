"""Outcomes of one partition leave in the order of its events, however the answers arrive. Pure: no I/O, no clock.

    admit(4 events) -> reserve(0..1), reserve(2..3) -> complete(2..3): nothing yet -> complete(0..1): both, in order
                                                                                       -> settle: room again

A lane lives as long as its epoch. Lanes know nothing of each other, so a partition that cannot be written halts alone:
its lane fills up, and then only this partition is not asked for more.
"""

from collections import deque

from bridge.offsets import PartitionEpoch
from bridge.record import Outcome, Segment


class Lane:
    """The events of one partition between the source and the acknowledgement of their outcome.

    Args:
        epoch: the assignment it belongs to; its `paused` is kept up to date.
        max_events: from so many events on the partition is paused.
        max_bytes: and from so many bytes of their values.
    """

    def __init__(self, epoch: PartitionEpoch, max_events: int, max_bytes: int) -> None:
        self.epoch = epoch
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._order: deque[int] = deque()
        self._complete: dict[int, tuple[Segment, Outcome]] = {}
        self.events = 0
        """Events admitted and not settled."""
        self.bytes = 0
        """Bytes of their values."""

    def admit(self, events: int, size: int) -> None:
        """Events of this partition have come in."""
        self._change(events, size)

    def reserve(self, segment: Segment) -> None:
        """The segment leaves for the model; reserved in the order of their events."""
        self._order.append(segment.start)

    def complete(self, segment: Segment, outcome: Outcome) -> list[tuple[Segment, Outcome]]:
        """The outcome of a reserved segment is known.

        Returns:
            What may leave now, in the order of the events.

        Raises:
            KeyError: it was not reserved, or is complete already.
        """
        if segment.start in self._complete or segment.start not in self._order:
            raise KeyError(f"{self}: the segment at {segment.start} is not under way")
        self._complete[segment.start] = (segment, outcome)
        ready = []
        while self._order and self._order[0] in self._complete:
            ready.append(self._complete.pop(self._order.popleft()))
        return ready

    def settle(self, segment: Segment) -> None:
        """The outcome of a segment is in the broker's hands."""
        self._change(-len(segment.records), -segment.size)

    def _change(self, events: int, size: int) -> None:
        self.events += events
        self.bytes += size
        self.epoch.paused = self.events >= self._max_events or self.bytes >= self._max_bytes

    def __repr__(self) -> str:
        return f"<Lane {self.epoch.topic}/{self.epoch.partition} events={self.events} under_way={len(self._order)}>"
