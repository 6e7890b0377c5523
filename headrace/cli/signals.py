"""How a command that runs until it is stopped is stopped."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def until_stopped(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set `stop` meanwhile."""
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
