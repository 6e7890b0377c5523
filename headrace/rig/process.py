"""A server process: started, waited for until it is truly ready, watched, and always ended.

It ends with its parent too, even when that is killed: the kernel sends the signal.
"""

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from bridge.errors import HeadraceError

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may take a lock
_LOG_LINES = 15


class ServerFailed(HeadraceError):
    """A server did not start, or ended by itself; the message ends with the last lines of its log."""


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends. Linux only, as the servers are.

    For the kernel the parent is the thread that made the process: servers are started by the main thread.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """A TCP port that is free on loopback now, below those that the kernel gives to outgoing connections."""
    for port in random.sample(range(20_000, 32_000), 200):
        if not listening(port):
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise ServerFailed("no free port on loopback between 20000 and 32000")


def listening(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class ServerProcess:
    """One server in the background, a context manager.

    Args:
        name: for messages.
        command: its command line.
        log: file that takes its output; its folder is the server's working folder, so that nothing in ours, such as a
            model.py, gets in its way.
        env: its environment; ours when None.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        assert threading.current_thread() is threading.main_thread(), "see die_with_parent"  # noqa: S101
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=None if env is None else dict(env),
                # Its own session, so that Ctrl-C in the terminal reaches us alone and we end it in order.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_ready(self, ready: Callable[[], bool], timeout: float) -> None:
        """Until `ready` says so.

        Raises:
            ServerFailed: it ended before, or `timeout` seconds have passed.
        """
        until = time.monotonic() + timeout
        # It must run after the answer too: another server on its port may have given it.
        while not (ready() and self.running):
            if not self.running:
                raise ServerFailed(f"{self.name} ended with exit code {self._process.returncode}:\n{self.tail()}")
            if time.monotonic() > until:
                raise ServerFailed(f"{self.name} was not ready after {timeout:.0f} s:\n{self.tail()}")
            time.sleep(0.1)

    def tail(self) -> str:
        """The last lines of its log."""
        with self.log.open(errors="replace") as lines:
            return "".join(deque(lines, _LOG_LINES)).rstrip()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, such as SIGSTOP in a test."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Until it ends by itself; its exit code."""
        return self._process.wait()

    def terminate(self) -> None:
        """Ask it to end, without waiting."""
        if self.running:
            self._process.terminate()

    def stop(self, timeout: float = 15.0) -> None:
        """End it: SIGTERM, and SIGKILL when it does not listen."""
        if self.running:
            self.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def kill_all(self) -> None:
        """End it at once, and with it the processes it has started, where those would outlive it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # it leads a group of its own, since its session is its own
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<ServerProcess {self.name} pid={self.pid} {'running' if self.running else 'ended'}>"


class Rig(ABC):
    """A server of one or more processes; a context manager that has it ready inside."""

    @abstractmethod
    def launch(self) -> None:
        """Start it without waiting for it."""

    @abstractmethod
    def wait_ready(self) -> None:
        """Until clients can use it.

        Raises:
            ServerFailed: with the last lines of its log.
        """

    @abstractmethod
    def wait(self) -> None:
        """Until it ends by itself.

        Raises:
            ServerFailed: always, with the last lines of its log.
        """

    @abstractmethod
    def stop(self) -> None:
        """End it, and remove what it leaves behind."""

    def __enter__(self) -> Self:
        try:
            self.launch()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
