"""Steers the size of batches, and how many are at the model at once, by a target for the time of events here. Pure.

    settled(events, since) … -> every window: 99 % within the target?   no: smaller batches, at last fewer of them
                                                                        yes: larger ones, while they are full

Time here is from when an event is taken in until its result is acknowledged. The queue is a number of batches, so that
smaller batches wait less too. How long events lay in their topic before is not counted: no size of a batch helps there.
"""

_WINDOW_SECONDS = 0.25
_WINDOW_SEGMENTS = 20
_HEADROOM = 0.85
"""Below this share of the target there is room for more."""
_LEAST = 8
"""Events of a batch below which its size hardly changes how long a call takes."""


class Steering:
    """How large batches may be now, and how many may be under way.

    Args:
        most_events: of a batch.
        most_slots: batches under way.
        target: seconds that 99 % of the events may take; None lets everything be as large as it may.
    """

    def __init__(self, most_events: int, most_slots: int, target: float | None) -> None:
        self._most_events = most_events
        self._most_slots = most_slots
        self._target = target
        self.events = most_events if target is None else min(most_events, 4 * _LEAST)
        """Most events of a batch now."""
        self.slots = most_slots
        """Most batches under way now."""
        self._changed = 0.0
        self._times: list[tuple[float, int]] = []
        self._batches = 0
        self._full = 0

    def left(self, full: bool) -> None:
        """A batch has left for the model; `full` when it could not have been larger, by count or by bytes."""
        self._batches += 1
        self._full += full

    def settled(self, events: int, since: float, now: float) -> bool:
        """Events that were taken in at `since` are done.

        Args:
            events: how many.
            since: seconds, by the clock of `now`.
            now: seconds.

        Returns:
            Whether `events` or `slots` has changed.
        """
        if self._target is None or since < self._changed:
            return False  # what was taken in before the last change tells nothing of its effect
        self._times.append((now - since, events))
        if len(self._times) < _WINDOW_SEGMENTS or now - self._changed < _WINDOW_SECONDS:
            return False
        before = (self.events, self.slots)
        self._decide(_percentile_99(self._times) / self._target)
        self._times, self._batches, self._full, self._changed = [], 0, 0, now
        return before != (self.events, self.slots)

    def _decide(self, load: float) -> None:
        if load > 1:
            if self.events > _LEAST:
                self.events = max(_LEAST, int(self.events * max(0.5, 0.9 / load)))
            elif self.slots > 1:
                self.slots -= 1
        elif load < _HEADROOM and 2 * self._full > self._batches:
            # The time goes with the number that is under way, and with the size only as far as the model does.
            if self.slots < self._most_slots and load * (self.slots + 1) < _HEADROOM * self.slots:
                self.slots += 1
            else:
                self.events = min(self._most_events, self.events + max(1, self.events // 8))

    def __repr__(self) -> str:
        return f"<Steering events={self.events} slots={self.slots} target={self._target}>"


def _percentile_99(times: list[tuple[float, int]]) -> float:
    """The time that 99 % of the events did not exceed."""
    left = sum(events for _, events in times) / 100
    for seconds, events in sorted(times, reverse=True):
        left -= events
        if left < 0:
            return seconds
    return 0.0
