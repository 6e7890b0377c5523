"""From the outcome of a batch to records in the sink, segment by segment. Counts what has been acknowledged."""

import time
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from functools import partial
from itertools import repeat
from operator import attrgetter

import numpy as np
import orjson

from bridge.breaker import PoisonBreaker
from bridge.config import Pipeline
from bridge.kafka import Topic
from bridge.letters import LetterWriter
from bridge.observe.telemetry import Telemetry
from bridge.partition import Partitioner
from bridge.record import Batch, Outcome, Reject, Segment
from bridge.sink import BATCH_OVERHEAD, Emission, Row, Sink, Write, row_size

SOURCE_HEADER = "headrace-source"

_key, _timestamp, _offset, _headers = map(attrgetter, ("key", "timestamp", "offset", "headers"))


class Emitter:
    """Writes outcomes.

    Args:
        config: names the topics and the pipeline.
        sink: where records go.
        topics: the topics of the outcomes as they are now; kept up to date by whoever passes it.
        telemetry: counts what is acknowledged.
        opened: told of each emission that is under way.
        settled: told of each that no longer is, and whether it is acknowledged, or else dropped.
    """

    def __init__(
        self,
        config: Pipeline,
        sink: Sink,
        topics: Mapping[str, Topic],
        telemetry: Telemetry,
        opened: Callable[[], None],
        settled: Callable[[Segment, bool], None],
    ) -> None:
        self._result = config.result.topic
        self._alert = config.result.alert.topic if config.result.alert else None
        self._dead_letter = config.dead_letter.topic
        self._breaker = PoisonBreaker(config.dead_letter.max_share)
        self._letters = LetterWriter(config)
        self._sink = sink
        self._topics = topics
        self._partitioner = Partitioner(config, topics)
        self._telemetry = telemetry
        self._opened = opened
        self._done = settled

    def emit(self, segment: Segment, outcome: Outcome) -> None:
        """Hand the outcome of a segment to the sink.

        Args:
            segment: of an epoch that is alive.
            outcome: its own part of a batch's outcome.

        Raises:
            PipelineStopped: too many of the last events are dead letters, or a letter is too large for its topic.
        """
        records = segment.records
        stamps = [*map(_timestamp, records)]
        rows = self._rows(segment, outcome, stamps)
        letters = {reject.row: reject for reject in outcome.rejects}
        for place in letters:
            rows[place] = None
        letters |= self._too_large(rows)
        rejects = [letters[place] for place in sorted(letters)]
        self._breaker.count(len(rows), rejects)
        writes = self._writes(segment, rows, outcome, rejects)
        alerts = sum(len(write.rows) for write in writes if write.topic == self._alert)
        reasons = [reject.reason for reject in rejects]
        self._opened()
        self._sink.write(Emission(segment, writes, partial(self._settled, stamps, alerts, reasons)))

    def _rows(self, segment: Segment, outcome: Outcome, stamps: Sequence[int]) -> list[Row | None]:
        """The results as records, column by column."""
        records = segment.records
        prefix = f"{segment.epoch.topic}/{segment.epoch.partition}/".encode()
        offsets = orjson.dumps([*map(_offset, records)])[1:-1].split(b",")
        own = zip(repeat(SOURCE_HEADER), map(prefix.__add__, offsets), strict=False)
        theirs = [*map(_headers, records)]
        headers = [[*a, b] for a, b in zip(theirs, own, strict=False)] if any(theirs) else [[item] for item in own]
        return [*zip(map(_key, records), outcome.values, stamps, headers, strict=True)]

    def _too_large(self, rows: MutableSequence[Row | None]) -> dict[int, Reject]:
        """Takes out what the topic would not take; place -> reject."""
        largest = self._largest()
        rejects: dict[int, Reject] = {}
        for place, row in enumerate(rows):
            if row is not None and (size := row_size(row)) > largest:
                sentence = f"the result has {size} bytes with its key and headers, more than its topic takes"
                rejects[place] = Reject(place, "too_large", sentence)
                rows[place] = None
        return rejects

    def _writes(
        self, segment: Segment, rows: Sequence[Row | None], outcome: Outcome, rejects: Sequence[Reject]
    ) -> list[Write]:
        source = segment.epoch.partition
        results = [row for row in rows if row is not None] if rejects else rows
        writes = self._partitioner.writes(self._result, source, results) if results else []  # type: ignore[arg-type]
        if self._alert and outcome.alerts is not None and outcome.alerts.any():
            hits = [row for row, hit in zip(rows, outcome.alerts.tolist(), strict=True) if hit and row]
            if hits:
                writes += self._partitioner.writes(self._alert, source, hits)
        if rejects:
            limit = self._topics[self._dead_letter].max_message_bytes
            records, epoch = segment.records, segment.epoch
            dead = [self._letters.letter(epoch, records[reject.row], reject, limit) for reject in rejects]
            writes.append(Write(self._dead_letter, self._partitioner.letter(source), dead))
        return writes

    def _largest(self) -> int:
        names = (self._result, self._alert) if self._alert else (self._result,)
        return min(self._topics[name].max_message_bytes for name in names) - BATCH_OVERHEAD

    def _settled(
        self, stamps: Sequence[int], alerts: int, reasons: Sequence[str], emission: Emission, acknowledged: bool
    ) -> None:
        if acknowledged:
            self._telemetry.records("sink", "result").inc(len(stamps) - len(reasons))
            self._telemetry.records("sink", "alert").inc(alerts)
            self._telemetry.records("sink", "dead_letter").inc(len(reasons))
            for reason in reasons:
                self._telemetry.dead_letters(reason)
            now = time.time()
            self._telemetry.end_to_end.observe(now - np.array(stamps, dtype=np.float64) * 0.001)
            self._telemetry.last_progress.set(now)
        else:
            self._telemetry.records("source", "dropped").inc(len(stamps))
        self._done(emission.segment, acknowledged)


def split(batch: Batch, outcome: Outcome) -> Iterable[tuple[Segment, Outcome]]:
    """Each segment of the batch with its own part of the outcome."""
    if len(batch.segments) == 1:
        yield batch.segments[0], outcome
        return
    at = 0
    for segment in batch.segments:
        end = at + len(segment.records)
        rejects = [reject._replace(row=reject.row - at) for reject in outcome.rejects if at <= reject.row < end]
        alerts = None if outcome.alerts is None else outcome.alerts[at:end]
        yield segment, Outcome(outcome.values[at:end], alerts, rejects)
        at = end


def unanswered(batch: Batch) -> Iterable[tuple[Segment, Outcome]]:
    """The same for a batch that was given up, whose epochs are all dead: nothing."""
    return zip(batch.segments, repeat(Outcome([], None, [])))
