"""What a process is told while it works, without waiting for it, and what it tells: lines."""

import json
import os
import select
import sys
from typing import Any


class Orders:
    """Standard input, a line at a time."""

    def __init__(self) -> None:
        self._file = sys.stdin.fileno()
        self._buffer = b""

    def next(self) -> list[str]:
        """The words of the next line; none when there is no line. A parent that has gone says `end 0`."""
        # Not by sys.stdin: what that has read ahead, select does not see.
        if b"\n" not in self._buffer and select.select([self._file], [], [], 0)[0]:
            read = os.read(self._file, 65_536)
            if not read:
                return ["end", "0"]
            self._buffer += read
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return []
        self._buffer = rest
        return line.decode().split()


def tell(found: dict[str, Any]) -> None:
    """A line of JSON to the parent; where that has gone, nobody needs this process any more."""
    try:
        print(json.dumps(found), flush=True)
    except BrokenPipeError:
        os._exit(0)  # at once: Python would try to write it again
