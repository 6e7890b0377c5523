"""An event loop with a clock of its own: when nothing is ready it jumps to the next timer instead of waiting for it."""

import asyncio
import selectors
from typing import Any


class _NoWait(selectors.SelectSelector):
    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("deadlock: nothing is ready, and no timer is set")
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
