"""When events leave as a batch, and which. Pure: the time comes in as an argument, and waiting is the caller's.

add(segment, now) -> ready(now)? -> take() -> Batch
                  -> until_ready(now): seconds to wait when not
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from bridge.record import Batch, Record, Segment


@dataclass(slots=True)
class _Waiting:
    segment: Segment
    sizes: list[int]
    since: float


class Batcher:
    """Queued segments, cut into batches by count, bytes and waiting time.

    Args:
        max_events: most events of a batch.
        max_bytes: most bytes of event values in a batch; a single larger event leaves alone, for the decoder to reject.
        max_wait: seconds a batch may wait to grow; 0 lets it leave at once.
    """

    def __init__(self, max_events: int, max_bytes: int, max_wait: float) -> None:
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.max_wait = max_wait
        self._queue: deque[_Waiting] = deque()
        self.events = 0
        """Events queued."""
        self.bytes = 0
        """Bytes of the queued events' values."""

    def add(self, segment: Segment, now: float) -> int:
        """Queue a segment that arrived at `now` (seconds).

        Returns:
            The bytes of its values.
        """
        sizes = [len(record.value) if record.value else 0 for record in segment.records]
        total = sum(sizes)
        if sizes:
            self._queue.append(_Waiting(segment, sizes, now))
            self.events += len(sizes)
            self.bytes += total
        return total

    def ready(self, now: float) -> bool:
        """Whether a batch is due: full by count or bytes, or its oldest event has waited long enough."""
        return self.events > 0 and self.until_ready(now) <= 0

    def until_ready(self, now: float) -> float:
        """Seconds until the queued events are due even if no more arrive; 0 or less when they are, inf when none is."""
        if not self._queue:
            return float("inf")
        if self.events >= self.max_events or self.bytes >= self.max_bytes:
            return 0.0
        return self._queue[0].since + self.max_wait - now

    def waited(self, now: float) -> float:
        """Seconds the oldest queued event has waited; 0 when none is queued."""
        return now - self._queue[0].since if self._queue else 0.0

    def take(self) -> Batch:
        """The next batch, in the order of arrival; at least one event when any is queued."""
        segments: list[Segment] = []
        records: list[Record] = []
        space = self.max_bytes
        while self._queue and len(records) < self.max_events:
            head = self._queue[0]
            count = _fitting(head.sizes, self.max_events - len(records), space)
            if count == 0:
                if records:
                    break
                count = 1
            taken = sum(head.sizes[:count])
            space -= taken
            segment = head.segment
            self.events -= count
            self.bytes -= taken
            if count == len(head.sizes):
                self._queue.popleft()
                segment = Segment(segment.epoch, segment.start, segment.records, taken, head.since)
            else:
                self._queue[0] = _Waiting(
                    Segment(segment.epoch, segment.start + count, segment.records[count:]),
                    head.sizes[count:],
                    head.since,
                )
                segment = Segment(segment.epoch, segment.start, segment.records[:count], taken, head.since)
            segments.append(segment)
            records.extend(segment.records)
        return Batch(segments, records)

    def clear(self) -> None:
        """Drop what is queued; the tracker still counts it as unfinished, so it is never committed."""
        self._queue.clear()
        self.events = 0
        self.bytes = 0

    def __repr__(self) -> str:
        return f"<Batcher events={self.events} bytes={self.bytes} segments={len(self._queue)}>"


def _fitting(sizes: Sequence[int], most: int, space: int) -> int:
    """How many of the first events fit into `space` bytes, at most `most`."""
    head = sizes[:most]
    if sum(head) <= space:
        return len(head)
    return sum(total <= space for total in accumulate(head))
