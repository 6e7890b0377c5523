"""What sender and receiver are told by the Locust process that starts them."""

import json
import sys
from dataclasses import asdict, dataclass

INTENDED = "headrace-intended-ns"
"""Header of every event, and so of its result: when it was due, in nanoseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One stream of events.

    Attributes:
        bootstrap: the brokers.
        source: topic to send to.
        result: topic of the results.
        dead_letter: topic of the dead letters.
        run: what the keys of this stream's events begin with; its own.
        events: file of events to repeat, one JSON object in each line.
        poisson: whether gaps are those of independent events.
        seed: of the gaps.
        linger_ms: of the producer.
        warm_up: seconds from the first event on whose latencies are not counted: connections, first fetches.
        patience: seconds to wait for the last results.
        security: more options of both Kafka clients, in librdkafka's names.
    """

    bootstrap: str
    source: str
    result: str
    dead_letter: str
    run: str
    events: str
    poisson: bool = False
    seed: int = 1
    linger_ms: int = 5
    warm_up: float = 2.0
    patience: float = 30.0
    security: dict[str, str] | None = None

    def text(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def of_command_line(cls) -> "Settings":
        """What was given to this process."""
        return cls(**json.loads(sys.argv[1]))
