"""Whether the pipeline is alive and ready. Written by the event loop, read by the HTTP thread."""

import time
from collections.abc import Callable

STUCK_AFTER = 15.0
"""Seconds without a turn of the event loop after which it counts as stuck."""


class Health:
    """Liveness is that the loop turns, and never depends on Kafka or the model; readiness depends on both.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turned = clock()
        self.assigned = False
        """The group has given this member its partitions, perhaps none."""
        self.model_missing = "the model has not answered yet"
        """Why the model does not answer, in one sentence; empty when the last call was answered."""
        self.draining = False

    def turn(self) -> None:
        """The event loop turns."""
        self._turned = self._clock()

    def live(self) -> tuple[bool, str]:
        """Whether the loop turns, and one word or sentence about it."""
        still = self._clock() - self._turned
        return (True, "live") if still < STUCK_AFTER else (False, f"the event loop has not turned for {still:.0f} s")

    def ready(self) -> tuple[bool, str]:
        """Whether events can flow, and what is missing."""
        missing = []
        if self.draining:
            missing.append("draining")
        if not self.assigned:
            missing.append("waiting for the consumer group")
        if self.model_missing:
            missing.append(self.model_missing)
        return (False, "; ".join(missing)) if missing else (True, "ready")

    def __repr__(self) -> str:
        return f"<Health {self.live()[1]}; {self.ready()[1]}>"
