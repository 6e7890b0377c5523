"""How long to wait before trying again: exponential, with full jitter, and without end. Pure."""

import random

HALTED_SECONDS = 30.0
"""How long a partition rests that somebody has to mend before it is tried again."""


class Backoff:
    """Delays that grow from `first` to `most` seconds, each drawn between half of it and all of it.

    The jitter keeps many bridges from coming back at the same moment after an outage.
    """

    def __init__(self, first: float, most: float, rng: random.Random) -> None:
        self._first = first
        self._most = most
        self._rng = rng
        self._tries = 0

    def next(self) -> float:
        """Seconds to wait before the next try."""
        ceiling = min(self._most, self._first * 2.0 ** min(self._tries, 60))
        self._tries += 1
        return ceiling * (0.5 + 0.5 * self._rng.random())

    def reset(self) -> None:
        """It worked; begin again from the first delay."""
        self._tries = 0
