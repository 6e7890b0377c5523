"""Pauses grow, are spread, have a ceiling, and begin again after a success."""

import random

from bridge.retry import Backoff


def test_pauses() -> None:
    backoff = Backoff(0.1, 5.0, random.Random(1))
    pauses = [backoff.next() for _ in range(100)]
    ceilings = [min(5.0, 0.1 * 2**n) for n in range(100)]
    assert all(ceiling / 2 <= pause <= ceiling for pause, ceiling in zip(pauses, ceilings, strict=True))
    assert len(set(pauses)) == 100
    backoff.reset()
    assert backoff.next() <= 0.1
