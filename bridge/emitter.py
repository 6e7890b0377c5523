"""From the outcome of a batch to records in the sink, segment by segment. Counts what has been acknowledged."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat

import numpy as np

from bridge.breaker import PoisonBreaker
from bridge.config import Pipeline
from bridge.kafka import Topic
from bridge.letters import LetterWriter
from bridge.observe.telemetry import Telemetry
from bridge.partition import Partitioner
from bridge.record import Batch, Outcome, Reject, Segment
from bridge.sink import BATCH_OVERHEAD, Emission, Row, Sink, Write, row_size

SOURCE_HEADER = "headrace-source"


class Emitter:
    """Writes outcomes.

    Args:
        config: names the topics and the pipeline.
        sink: where records go.
        topics: the topics of the outcomes as they are now; kept up to date by whoever passes it.
        telemetry: counts what is acknowledged.
        opened: told of each emission that is under way.
        settled: told of each that no longer is.
    """

    def __init__(
        self,
        config: Pipeline,
        sink: Sink,
        topics: Mapping[str, Topic],
        telemetry: Telemetry,
        opened: Callable[[], None],
        settled: Callable[[Segment], None],
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
        prefix = f"{segment.epoch.topic}/{segment.epoch.partition}/".encode()
        rows: list[Row | None] = [
            None
            if value is None
            else (r.key, value, r.timestamp, [*r.headers, (SOURCE_HEADER, prefix + b"%d" % r.offset)])
            for r, value in zip(segment.records, outcome.values, strict=True)
        ]
        sizes = [0 if row is None else row_size(row) for row in rows]
        letters = {reject.row: reject for reject in outcome.rejects}
        largest = self._largest()
        if max(sizes) > largest:
            for place, size in enumerate(sizes):
                if size > largest:
                    rows[place], sizes[place] = None, 0
                    sentence = f"the result has {size} bytes with its key and headers, more than its topic takes"
                    letters[place] = Reject(place, "too_large", sentence)
        rejects = [letters[place] for place in sorted(letters)]
        self._breaker.count(len(rows), rejects)
        writes = self._writes(segment, rows, sizes, outcome, rejects)
        alerts = sum(len(write.rows) for write in writes if write.topic == self._alert)
        self._opened()
        self._sink.write(Emission(segment, writes, partial(self._settled, alerts, [r.reason for r in rejects])))

    def _writes(
        self,
        segment: Segment,
        rows: Sequence[Row | None],
        sizes: Sequence[int],
        outcome: Outcome,
        rejects: Sequence[Reject],
    ) -> list[Write]:
        source = segment.epoch.partition
        results = [row for row in rows if row is not None] if rejects else rows
        writes = self._partitioner.writes(self._result, source, results, sum(sizes)) if results else []  # type: ignore[arg-type]
        if self._alert and outcome.alerts is not None and outcome.alerts.any():
            hits = [row for row, hit in zip(rows, outcome.alerts.tolist(), strict=True) if hit and row]
            if hits:
                writes += self._partitioner.writes(self._alert, source, hits, sum(map(row_size, hits)))
        if rejects:
            limit = self._topics[self._dead_letter].max_message_bytes
            dead = [self._letters.letter(segment.records[reject.row], reject, limit) for reject in rejects]
            target = self._partitioner.letter(source)
            writes.append(Write(self._dead_letter, target, dead, sum(map(row_size, dead))))
        return writes

    def _largest(self) -> int:
        names = (self._result, self._alert) if self._alert else (self._result,)
        return min(self._topics[name].max_message_bytes for name in names) - BATCH_OVERHEAD

    def _settled(self, alerts: int, reasons: Sequence[str], emission: Emission, acknowledged: bool) -> None:
        records = emission.segment.records
        if acknowledged:
            self._telemetry.records("sink", "result").inc(len(records) - len(reasons))
            self._telemetry.records("sink", "alert").inc(alerts)
            self._telemetry.records("sink", "dead_letter").inc(len(reasons))
            for reason in reasons:
                self._telemetry.dead_letters(reason)
            stamps = np.array([record.timestamp for record in records], dtype=np.float64)
            now = time.time()
            self._telemetry.end_to_end.observe(np.maximum(now - stamps / 1000, 0.0))
            self._telemetry.last_progress.set(now)
        else:
            self._telemetry.records("source", "dropped").inc(len(records))
        self._done(emission.segment)


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
