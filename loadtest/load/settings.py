"""What sender and receiver are told by the Locust process that starts them."""

import json
import sys
from dataclasses import asdict, dataclass, field

import numpy as np

INTENDED = "headrace-intended-ns"
"""Header of every event, and so of its result: when it was due, in nanoseconds since 1970."""

WARM_UP = 2.0
"""Seconds from the first event on whose latencies do not count, unless told otherwise."""

AWAY = 20
"""So many times as late as an event may be sent, the reader may look for more."""

LONGEST_US = 3_600_000_000
"""The largest latency that is told from others, microseconds."""

BOUNDS = np.geomspace(100, LONGEST_US, 241)
"""Upper ends of the buckets in which latencies are counted second by second, microseconds: each some 7 % above the
last, and the same everywhere, so that they add up."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One stream of events.

    Attributes:
        bootstrap: the brokers.
        source: topic to send to.
        partitions: of that topic.
        result: topic of the results.
        dead_letter: topic of the dead letters.
        run: what the keys of this stream's events begin with; its own.
        events: file of events to repeat, one JSON object in each line.
        poisson: whether gaps are those of independent events.
        seed: of the gaps.
        linger_ms: of the producer.
        late_ms: after so many milliseconds an event is sent too late; after `AWAY` times as many the reader looks too
            late for more.
        warm_up: seconds from the first event on whose latencies are not counted: connections, first fetches.
        patience: seconds without another result to wait for the last ones.
        security: more options of both Kafka clients, in librdkafka's names.
    """

    bootstrap: str
    source: str
    partitions: int
    result: str
    dead_letter: str
    run: str
    events: str
    poisson: bool = False
    seed: int = 1
    linger_ms: int = 5
    late_ms: float = 1.0
    warm_up: float = WARM_UP
    patience: float = 30.0
    security: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def of_command_line(cls) -> "Settings":
        """What was given to this process."""
        return cls(**json.loads(sys.argv[1]))
