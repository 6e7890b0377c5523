"""An event loop with a clock of its own: when nothing is ready it jumps to the next timer instead of waiting for it."""

import asyncio
import selectors
from typing import Any

_MOST_TURNS = 100_000


class _NoWait(selectors.SelectSelector):
    loop: "VirtualLoop"
    turns = 0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("deadlock: nothing is ready, and no timer is set")
        self.turns = 0 if timeout > 0 else self.turns + 1
        if self.turns > _MOST_TURNS:
            raise AssertionError("something spins: no time passes any more")
        if timeout > 0:
            self.loop.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Deterministic time for tests."""

    def __init__(self) -> None:
        selector = _NoWait()
        selector.loop = self
        self.now = 1_000.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now
