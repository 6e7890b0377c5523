"""Calls to a server that is away: a budget of retries, and when it is spent, one probe at a time. No I/O.

    closed: every batch asks, and asks again with growing pauses; each failure costs a token, each answer earns a part
            of one
    open:   no token is left: the intake pauses, one batch probes with growing pauses, the others wait for it; the first
            answer closes the circuit

So an overloaded server is not asked ever more often by all that wait, and an outage costs it next to nothing.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bridge.retry import Backoff

BUDGET = 10.0
"""Failures in a row that open the circuit."""
_EARNED = 0.5  # a token for every two answers


class Circuit:
    """The state of the way to one server.

    Args:
        backoff: pauses between probes.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._tokens = BUDGET
        self._probing = asyncio.Lock()
        self.open = False
        """Whether the server is taken to be away."""

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Around one call: at once while closed, in turn and after a pause while open."""
        if not self.open:
            yield
            return
        async with self._probing:
            if self.open:
                await asyncio.sleep(self._backoff.next())
            yield

    def answered(self) -> None:
        """The server has answered, be it with a refusal of the data."""
        self._tokens = min(BUDGET, self._tokens + _EARNED)
        if self.open:
            self.open = False
            self._tokens = BUDGET
            self._backoff.reset()

    def failed(self) -> None:
        """It has not."""
        self._tokens = max(0.0, self._tokens - 1)
        if self._tokens == 0:
            self.open = True

    def __repr__(self) -> str:
        return f"<Circuit {'open' if self.open else 'closed'} tokens={self._tokens:g}>"
