"""One stream of events of a Locust process: its sender and its receiver, and what they have found.

Both are processes of their own. Locust's own greenlets could neither send to the millisecond nor read without blocking
each other; here they only pass on what the two say.
"""

import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gevent
import numpy as np
from hdrh.histogram import HdrHistogram

from loadtest.load.sender import LONGEST_US
from loadtest.load.settings import Settings

_BOUNDS = np.geomspace(100, LONGEST_US, 241)
"""Buckets of latencies within a second, microseconds: some 7 % wide, and the same everywhere, so that they add up."""
_START = 20.0  # seconds for the receiver to find its partitions


@dataclass
class Found:
    """What one stream, or several together, have found.

    Attributes:
        sent: events.
        outcomes: what became of them: received, missing, duplicated, disordered, dead_letters, refused.
        latency: from when an event was due until its outcome was read; microseconds.
        delays: from when an event was due until it was sent: the generator's own part of it.
        sending: second since 1970 -> events sent.
        arriving: second since 1970 -> latencies of the outcomes that came, counted in buckets.
        versions: model version -> when it first answered, seconds since 1970.
    """

    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    latency: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, LONGEST_US, 3))
    delays: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, LONGEST_US, 3))
    sending: Counter[int] = field(default_factory=Counter)
    arriving: dict[int, Any] = field(default_factory=lambda: defaultdict(lambda: np.zeros(len(_BOUNDS) + 1, np.int64)))
    versions: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Found") -> None:
        """What another stream has found."""
        self.sent += other.sent
        self.outcomes += other.outcomes
        self.latency.add(other.latency)
        self.delays.add(other.delays)
        self.sending += other.sending
        for second, counts in other.arriving.items():
            self.arriving[second] = self.arriving[second] + counts
        for version, at in other.versions.items():
            self.versions[version] = min(at, self.versions.get(version, at))

    def encode(self) -> dict[str, Any]:
        """For the wire from a worker to its master."""
        return {
            "sent": self.sent,
            "outcomes": dict(self.outcomes),
            "latency": self.latency.encode().decode(),
            "delays": self.delays.encode().decode(),
            "sending": list(self.sending.items()),
            "arriving": [(second, counts.tolist()) for second, counts in self.arriving.items()],
            "versions": self.versions,
        }

    @classmethod
    def decode(cls, data: dict[str, Any]) -> "Found":
        """The other way."""
        found = cls(data["sent"], Counter(data["outcomes"]), versions=data["versions"])
        found.latency.decode_and_add(data["latency"])
        found.delays.decode_and_add(data["delays"])
        found.sending = Counter(dict(data["sending"]))
        for second, counts in data["arriving"]:
            found.arriving[second] = np.array(counts, np.int64)
        return found

    def percentile_of_second(self, second: int, share: float) -> float:
        """Of the latencies of what came in a second: milliseconds, to some 7 %; nan when nothing came."""
        counts = self.arriving.get(second)
        if counts is None or not counts.sum():
            return float("nan")
        index = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
        return float(_BOUNDS[min(index, len(_BOUNDS) - 1)]) / 1000


class Stream:
    """Sender and receiver.

    Args:
        settings: of the stream.
        fire: called for each outcome with its latency, milliseconds.
    """

    def __init__(self, settings: Settings, fire: Callable[[float], None]) -> None:
        self._fire = fire
        self.found = Found()
        self._receiver = self._start("receiver", settings)
        with gevent.Timeout(_START, RuntimeError(f"the receiver is not ready after {_START:.0f} s")):
            line = self._receiver.stdout.readline()
        if line.strip() != "ready":
            raise RuntimeError("the receiver has ended; its output is above")
        self._sender = self._start("sender", settings)
        self._greenlets = [gevent.spawn(self._hear_receiver), gevent.spawn(self._hear_sender)]

    def rate(self, rate: float) -> None:
        """From now on, so many events/s."""
        self._tell(self._sender, f"rate {rate}")

    def finish(self) -> Found:
        """Stop sending, wait for the last outcomes, and what was found."""
        self._tell(self._sender, "end")
        self._greenlets[1].join()
        self._tell(self._receiver, f"end {self.found.sent}")
        self._greenlets[0].join()
        for process in (self._sender, self._receiver):
            process.wait()
        return self.found

    def _start(self, name: str, settings: Settings) -> Any:
        return subprocess.Popen(
            [sys.executable, "-m", f"loadtest.load.{name}", settings.text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def _tell(self, process: Any, line: str) -> None:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()

    def _hear_sender(self) -> None:
        for line in self._sender.stdout:
            said = json.loads(line)
            self.found.sent = said["sent"]
            self.found.sending += Counter({int(second): count for second, count in said["second"].items()})
            if "delays" in said:
                self.found.delays.decode_and_add(said["delays"])
                self.found.outcomes["refused"] += said["refused"]

    def _hear_receiver(self) -> None:
        for line in self._receiver.stdout:
            said = json.loads(line)
            if "us" not in said:
                self.found.latency.decode_and_add(said.pop("latency"))
                self.found.versions = said.pop("versions")
                self.found.outcomes.update(said)
                continue
            second = int(said["at"])
            places, counts = np.unique(np.searchsorted(_BOUNDS, said["us"]), return_counts=True)
            self.found.arriving[second][places] += counts
            for number, microseconds in enumerate(said["us"]):
                self._fire(microseconds / 1000)
                if number % 200 == 199:
                    time.sleep(0)  # patched: lets other greenlets run
