"""The acknowledgement of a segment: complete when everything written for it is in the broker's hands. Pure."""

from collections.abc import Callable

from bridge.record import Segment


class Receipt:
    """Counts the writes that a segment's outcome is made of; the last acknowledgement marks the segment in its epoch.

    It is held open by whoever makes it until the last write is handed over, so that it cannot complete in between.

    Args:
        segment: what is marked as complete.
        settled: called once, after the mark.
    """

    __slots__ = ("_open", "_settled", "segment")

    def __init__(self, segment: Segment, settled: Callable[["Receipt"], None]) -> None:
        self.segment = segment
        self._settled = settled
        self._open = 1

    def hold(self) -> None:
        """One more write must be acknowledged."""
        self._open += 1

    def release(self) -> None:
        """One is; the last one completes the segment. In a dead epoch, never committed, that counts for nothing."""
        self._open -= 1
        if self._open == 0:
            segment = self.segment
            segment.epoch.complete(segment.start, segment.start + len(segment.records))
            self._settled(self)
