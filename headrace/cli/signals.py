"""How a command that runs until it is stopped is stopped."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def until_stopped(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set `stop` meanwhile; a second one ends the process at once."""

    def told(*_: object) -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
