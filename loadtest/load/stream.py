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
from pathlib import Path
from typing import Any

import gevent
import numpy as np
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from hdrh.histogram import HdrHistogram

from loadtest.load.settings import BOUNDS, LONGEST_US, Settings

_START = 20.0  # seconds for the receiver to find its partitions
_BY_SECOND = ("sending", "late", "looks", "away")


class LoadError(Exception):
    """A load test that cannot be carried out; one sentence."""


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, LONGEST_US, 3)


@dataclass
class Found:
    """What one stream, or several together, have found.

    Attributes:
        sent: events.
        outcomes: what became of them: received, missing, duplicated, disordered, dead_letters, refused.
        streams: how many there are in it.
        latency: from when an event was due until its outcome was read; microseconds.
        delays: from when an event was due until it was sent: the generator's own part of it.
        busy: how long the reader did not look for more: at most so much later it saw what came meanwhile.
        sending: second since 1970 -> events that were due.
        late: second since 1970 -> of these, events that were sent later than they may be.
        looks: second since 1970 -> how often the reader looked for more.
        away: second since 1970 -> of these, looks that came too long after the last.
        arriving: second since 1970 -> latencies of the outcomes that came, counted in buckets.
        versions: model version -> when it first answered, seconds since 1970.
    """

    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    streams: int = 0
    latency: HdrHistogram = field(default_factory=_histogram)
    delays: HdrHistogram = field(default_factory=_histogram)
    busy: HdrHistogram = field(default_factory=_histogram)
    sending: Counter[int] = field(default_factory=Counter)
    late: Counter[int] = field(default_factory=Counter)
    looks: Counter[int] = field(default_factory=Counter)
    away: Counter[int] = field(default_factory=Counter)
    arriving: dict[int, Any] = field(default_factory=lambda: defaultdict(lambda: np.zeros(len(BOUNDS) + 1, np.int64)))
    versions: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Found") -> None:
        """What another stream has found."""
        self.sent += other.sent
        self.outcomes.update(other.outcomes)
        self.streams += other.streams
        for name in ("latency", "delays", "busy"):
            getattr(self, name).add(getattr(other, name))
        for name in _BY_SECOND:
            getattr(self, name).update(getattr(other, name))
        for second, counts in other.arriving.items():
            self.arriving[second] = self.arriving[second] + counts
        for version, at in other.versions.items():
            self.versions[version] = min(at, self.versions.get(version, at))

    def encode(self) -> dict[str, Any]:
        """For the wire from a worker to its master."""
        return {
            "sent": self.sent,
            "outcomes": dict(self.outcomes),
            "streams": self.streams,
            **{name: getattr(self, name).encode().decode() for name in ("latency", "delays", "busy")},
            **{name: list(getattr(self, name).items()) for name in _BY_SECOND},
            "arriving": [(second, counts.tolist()) for second, counts in self.arriving.items()],
            "versions": self.versions,
        }

    @classmethod
    def decode(cls, data: dict[str, Any]) -> "Found":
        """The other way."""
        found = cls(data["sent"], Counter(data["outcomes"]), data["streams"], versions=data["versions"])
        for name in ("latency", "delays", "busy"):
            getattr(found, name).decode_and_add(data[name])
        for name in _BY_SECOND:
            setattr(found, name, Counter(dict(data[name])))
        for second, counts in data["arriving"]:
            found.arriving[second] = np.array(counts, np.int64)
        return found


def percentile_ms(counts: Any, share: float) -> float:
    """Of latencies counted in buckets: milliseconds, to some 7 %; nan when there are none."""
    if not counts.sum():
        return float("nan")
    index = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return float(BOUNDS[min(index, len(BOUNDS) - 1)]) / 1000


def partitions(bootstrap: str, security: dict[str, str], source: str, *others: str) -> int:
    """So many the source topic has.

    Raises:
        LoadError: Kafka does not answer, or lacks one of the topics.
    """
    try:
        known = AdminClient({"bootstrap.servers": bootstrap, **security}).list_topics(timeout=10).topics
    except KafkaException as error:
        raise LoadError(f"Kafka at {bootstrap} does not answer: {error.args[0].str()} (--bootstrap)") from None
    missing = [topic for topic in (source, *others) if topic not in known]
    if missing:
        raise LoadError(f"Kafka at {bootstrap} has no topic {', '.join(map(repr, missing))}")
    return len(known[source].partitions)


def check_events(path: str) -> None:
    """Pass, where the file holds events.

    Raises:
        LoadError: it does not.
    """
    try:
        lines = Path(path).read_text().split("\n") if path else []
    except OSError as error:
        raise LoadError(f"--events {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LoadError(f"--events {path}: is not UTF-8") from None
    if not any(lines):
        raise LoadError(f"--events {path or '(not given)'}: names no file with an event in each line")


class Stream:
    """Sender and receiver.

    Args:
        settings: of the stream.
        fire: called for each outcome with its latency, milliseconds, to some 7 %.
    """

    def __init__(self, settings: Settings, fire: Callable[[float], None]) -> None:
        self._fire = fire
        self.found = Found(streams=1)
        self._receiver = self._start("receiver", settings)
        with gevent.Timeout(_START, LoadError(f"the receiver is not ready after {_START:.0f} s")):
            line = self._receiver.stdout.readline()
        if line.strip() != "ready":
            raise LoadError("the receiver has ended; its output is above")
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
            start_new_session=True,  # Ctrl-C is for Locust, which ends them and hears what they have found
        )

    def _tell(self, process: Any, line: str) -> None:
        try:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        except OSError:
            return  # it has ended; what it has not said makes the run void

    def _hear_sender(self) -> None:
        for line in self._sender.stdout:
            said = json.loads(line)
            self.found.sent = said["sent"]
            for name in ("sending", "late"):
                getattr(self.found, name).update({int(second): count for second, count in said[name].items()})
            if "delays" in said:
                self.found.delays.decode_and_add(said["delays"])
                self.found.outcomes["refused"] += said["refused"]
                for why in said["why"]:
                    print(f"an event was not sent: {why}", file=sys.stderr)

    def _hear_receiver(self) -> None:
        for line in self._receiver.stdout:
            said = json.loads(line)
            if "counts" not in said:
                self.found.latency.decode_and_add(said.pop("latency"))
                self.found.busy.decode_and_add(said.pop("busy"))
                self.found.versions = said.pop("versions")
                self.found.outcomes.update(said)
                continue
            for name in ("looks", "away"):
                getattr(self.found, name)[said["second"]] += said[name]
            for place, count in said["counts"]:
                self.found.arriving[said["second"]][place] += count
                milliseconds = float(BOUNDS[min(place, len(BOUNDS) - 1)]) / 1000
                for _ in range(count):
                    self._fire(milliseconds)
                time.sleep(0)  # patched: lets other greenlets run
