"""Tells whether a Kafka client is stuck: it does not always say so, and then does not heal by itself. Pure.

A client is stuck when one of its inner tasks has ended, when a partition that is wanted gets neither an answer to a
fetch nor a record for long, or when it stays out of the group for longer than any rebalance takes.
"""

from collections.abc import Callable, Hashable, Mapping

ANSWER_SECONDS = 30.0
"""The broker answers a fetch after 250 ms even when there is nothing."""
JOIN_SECONDS = 180.0
"""Three times the rebalance timeout."""


class Watchdog:
    """Remembers what it saw before.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[Hashable, tuple[Hashable, float]] = {}
        self._outside: float | None = None

    def look(self, ended: str | None, joined: bool, signs: Mapping[Hashable, Hashable]) -> str | None:
        """What is wrong, in a sentence; None when nothing is.

        Args:
            ended: which inner task has ended, if any.
            joined: whether the client is in its group.
            signs: for each partition that is asked for now, something that changes with every sign of life.
        """
        now = self._clock()
        if ended:
            return f"its {ended} has ended"
        self._outside = None if joined else now if self._outside is None else self._outside
        if self._outside is not None and now - self._outside > JOIN_SECONDS:
            return f"it has been outside its group for {now - self._outside:.0f} s"
        before, self._seen = self._seen, {}
        for partition, sign in signs.items():
            last, since = before.get(partition, (sign, now))
            self._seen[partition] = (sign, since if sign == last else now)
            silent = now - self._seen[partition][1]
            if silent > ANSWER_SECONDS:
                return f"there has been no sign of {partition} for {silent:.0f} s"
        return None
