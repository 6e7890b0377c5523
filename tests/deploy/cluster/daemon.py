"""Processes that outlive the command which starts them: by name, with a log and a process id kept in a folder."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Failed(Exception):
    """Something did not come up; the message ends with the last lines of its log."""


def until(condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    """Wait for something that must come.

    Raises:
        Failed: it did not.
    """
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"{what}: not after {timeout:.0f} s")
        time.sleep(0.2)


class Daemon:
    """One process.

    Args:
        folder: of its log and process id.
        name: its own in that folder.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._pid = folder / f"{name}.pid"

    def start(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Start it, unless it runs."""
        if self.running:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self._pid.write_text(f"{process.pid} {_born(process.pid)}")

    @property
    def running(self) -> bool:
        """Whether it runs; a process id that something else has by now does not count."""
        if not self._pid.exists():
            return False
        pid, born = self._pid.read_text().split()
        return _born(int(pid)) == born

    def wait_ready(self, ready: Callable[[], bool], timeout: float = 60.0) -> None:
        """Until `ready` says so.

        Raises:
            Failed: it ended before, or is not ready in time.
        """
        try:
            until(lambda: not self.running or ready(), self.name, timeout)
        except Failed as error:
            raise Failed(f"{error}\n{self.tail()}") from None
        if not self.running:
            raise Failed(f"{self.name} has ended:\n{self.tail()}")

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def stop(self, timeout: float = 20.0) -> None:
        """End it: SIGTERM, and SIGKILL when it does not listen."""
        if self.running:
            pid = int(self._pid.read_text().split()[0])
            os.kill(pid, signal.SIGTERM)
            try:
                until(lambda: not self.running, self.name, timeout)
            except Failed:
                os.kill(pid, signal.SIGKILL)
        self._pid.unlink(missing_ok=True)


def _born(pid: int) -> str:
    """When a process was started, in the kernel's ticks; empty when there is none, or it is a zombie."""
    with contextlib.suppress(OSError), contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
