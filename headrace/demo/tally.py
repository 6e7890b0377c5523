"""The demo's book-keeping: what was sent, what came back, and whether anything is lost, doubled or out of order. Pure.

Nothing is taken on trust: every event is matched by its id, its key and its place in the source topic.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.quality import METRICS


@dataclass
class Tally:
    """What became of `events` events.

    Args:
        events: how many are sent; event i has the id i and the key `str(i)`.
        labels: the true answer of each event.
        topic: they are sent to.
    """

    events: int
    labels: npt.NDArray[np.float64]
    topic: str
    sent: int = 0
    results: int = 0
    dead_letters: int = 0
    out_of_order: int = 0
    wrong_keys: int = 0
    """Results on another event's key, or in another partition than their event."""
    versions: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._outcomes = np.zeros(self.events, dtype=np.uint16)
        self._latency = np.full(self.events, np.nan)
        self._scores = np.full(self.events, np.nan)
        self._made_by: dict[str, list[int]] = {}
        self._places: dict[int, tuple[int, int]] = {}  # event -> where the broker has put it
        self._sources: dict[int, tuple[int, int]] = {}  # event -> where its result says it came from
        self._last: dict[int, int] = {}

    def note_sent(self, event: int, partition: int, offset: int) -> None:
        """The broker has the event, there."""
        self._places[event] = (partition, offset)
        self.sent += 1

    def note_result(
        self, key: bytes, result: Mapping[str, Any], output: str, partition: int, source: str, latency: float
    ) -> None:
        """A result has been read back.

        Args:
            key: the record's key.
            result: its parsed value.
            output: the field that holds the model's answer.
            partition: it was read from.
            source: its `headrace-source` header.
            latency: seconds from the event's timestamp.
        """
        event = int(result["id"])
        version = str(result["model_version"])
        topic, place, number = source.rsplit("/", 2)
        offset = int(number)
        if key != str(event).encode() or topic != self.topic or int(place) != partition:
            self.wrong_keys += 1
        self._sources[event] = (partition, offset)
        if offset <= self._last.get(partition, -1) and not self._outcomes[event]:
            self.out_of_order += 1
        self._last[partition] = max(offset, self._last.get(partition, -1))
        self.results += 1
        self._outcomes[event] += 1
        self._latency[event] = latency
        self._scores[event] = float(result[output])
        self.versions[version] += 1
        self._made_by.setdefault(version, []).append(event)

    def note_dead_letter(self, key: bytes, reason: str) -> None:
        """A dead letter has been read back."""
        self.dead_letters += 1
        self.reasons[reason] += 1
        self._outcomes[int(key)] += 1

    @property
    def accounted(self) -> int:
        """Events with at least one outcome."""
        return int(np.count_nonzero(self._outcomes))

    @property
    def lost(self) -> int:
        """Events without any outcome."""
        return self.events - self.accounted

    @property
    def duplicated(self) -> int:
        """Outcomes beyond one of their event."""
        return self.results + self.dead_letters - self.accounted

    @property
    def mismatched(self) -> int:
        """Results on another event's key or place: must never happen."""
        return self.wrong_keys + sum(self._places.get(event) != place for event, place in self._sources.items())

    @property
    def good(self) -> bool:
        """Every event has exactly one outcome, in order, on its own key."""
        return not (self.lost or self.duplicated or self.out_of_order or self.mismatched)

    def latency_ms(self, quantile: float) -> float:
        """A quantile of the latency so far, in milliseconds."""
        seen = self._latency[~np.isnan(self._latency)]
        return float(np.quantile(seen, quantile) * 1000) if len(seen) else float("nan")

    def quality(self, metric: str) -> dict[str, float]:
        """The metric of each version on the events it answered."""
        return {
            version: METRICS[metric](self.labels[events], self._scores[events])
            for version, events in sorted(self._made_by.items())
        }
