"""Stops the pipeline when most of the recent events are dead letters: then the fault is not the events'. Pure.

A wrong mapping, a changed producer or a broken model would otherwise pour a whole topic into the dead letters.
"""

from collections import Counter, deque
from collections.abc import Sequence

from bridge.errors import PipelineStopped
from bridge.record import Reject

WINDOW = 1000
"""Events looked at; fewer never stop the pipeline."""


class PoisonBreaker:
    """Watches the share of dead letters among the last events. Expired events do not count: they are late, not bad.

    Args:
        max_share: the largest share that is tolerated; 1 tolerates all.
    """

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._recent: deque[tuple[int, Sequence[Reject]]] = deque()
        self._events = 0
        self._letters = 0

    def count(self, events: int, rejects: Sequence[Reject]) -> None:
        """So many more events, of which these are rejected.

        Raises:
            PipelineStopped: more than `max_share` of the last events are.
        """
        bad = [reject for reject in rejects if reject.reason != "expired"]
        self._recent.append((events, bad))
        self._events += events
        self._letters += len(bad)
        while self._events - self._recent[0][0] >= WINDOW:
            gone, letters = self._recent.popleft()
            self._events -= gone
            self._letters -= len(letters)
        if self._events >= WINDOW and self._letters > self._max_share * self._events:
            errors = Counter(reject.error for _, letters in self._recent for reject in letters)
            (error, count), *_ = errors.most_common(1)
            raise PipelineStopped(
                f"{self._letters} of the last {self._events} events would be dead letters, more than "
                f"dead_letter.max_share ({self._max_share:g}) allows; {count} of them because {error}. Mend the "
                "mapping, the events or the model, or raise dead_letter.max_share, and start again"
            )
