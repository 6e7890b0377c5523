"""Work that must not take the cores from what serves: in a thread of low priority."""

import os
import threading
from collections.abc import Callable

_NICE = 10
"""A tenth of the weight of what serves: in the way of nobody, and done within seconds on cores that are full."""


def gently(work: Callable[[], object]) -> None:
    """Do it in a thread of low priority, and wait for it.

    On Linux a thread has a priority of its own, and only a privileged one may raise it again: so the thread ends.
    Threads that it starts stay as low as it is; work that starts threads to serve with does not belong here.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            # Of 0, on Linux: of this thread.
            os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
            work()
        except BaseException as error:  # noqa: BLE001 - it belongs to who waits
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
