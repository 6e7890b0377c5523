"""From the outcome of a batch to records in the sink, and from their acknowledgements to the offsets tracker.

Every segment of the batch gets one receipt for all that is written for it: results, alerts and dead letters.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from bridge.config import Pipeline
from bridge.letters import LetterWriter
from bridge.observe.telemetry import Telemetry
from bridge.partition import Partitioner
from bridge.receipt import Receipt
from bridge.record import Batch, Outcome, Reject, Segment
from bridge.sink import BATCH_OVERHEAD, Row, Sink, row_size

SOURCE_HEADER = "headrace-source"


@dataclass(slots=True)
class _Written:
    """What a segment became; counted once it is acknowledged."""

    results: int
    alerts: int
    letters: Sequence[str]


class Emitter:
    """Writes outcomes.

    Args:
        config: names the topics and the pipeline.
        sink: where records go.
        partitioner: which partition they go to.
        limits: topic -> its max.message.bytes.
        telemetry: counts what is acknowledged.
        opened: told of each receipt that is open (1) and settled (-1).
    """

    def __init__(
        self,
        config: Pipeline,
        sink: Sink,
        partitioner: Partitioner,
        limits: dict[str, int],
        telemetry: Telemetry,
        opened: Callable[[int], None],
    ) -> None:
        self._result = config.result.topic
        self._alert = config.result.alert.topic if config.result.alert else None
        self._dead_letter = config.dead_letter.topic
        self._largest = min(limits[name] for name in (self._result, self._alert) if name) - BATCH_OVERHEAD
        self._letters = LetterWriter(config, limits[self._dead_letter])
        self._sink = sink
        self._partitioner = partitioner
        self._telemetry = telemetry
        self._opened = opened

    async def emit(self, batch: Batch, outcome: Outcome) -> None:
        """Hand every outcome of the batch to the sink, each segment with its receipt."""
        rejects = {reject.row: reject for reject in outcome.rejects}
        at = 0
        for segment in batch.segments:
            count = len(segment.records)
            if not segment.epoch.alive:
                self._telemetry.records("source", "dropped").inc(count)  # the next owner does them
                at += count
                continue
            values = outcome.values[at : at + count]
            alerts = None if outcome.alerts is None else outcome.alerts[at : at + count]
            letters = {row - at: reject for row, reject in rejects.items() if at <= row < at + count}
            await self._emit_segment(segment, values, alerts, letters)
            at += count

    async def _emit_segment(
        self,
        segment: Segment,
        values: Sequence[bytes | None],
        alerts: npt.NDArray[np.bool_] | None,
        letters: dict[int, Reject],
    ) -> None:
        prefix = f"{segment.epoch.topic}/{segment.epoch.partition}/".encode()
        rows: list[Row | None] = [
            None
            if value is None
            else (r.key, value, r.timestamp, [*r.headers, (SOURCE_HEADER, prefix + b"%d" % r.offset)])
            for r, value in zip(segment.records, values, strict=True)
        ]
        sizes = [0 if row is None else row_size(row) for row in rows]
        if max(sizes) > self._largest:
            for place, size in enumerate(sizes):
                if size > self._largest:
                    rows[place] = None
                    sentence = f"the result has {size} bytes with its key and headers, more than its topic takes"
                    letters[place] = Reject(place, "too_large", sentence)
        results = [row for row in rows if row is not None]
        alarming = (
            [] if alerts is None else [row for row, hit in zip(rows, alerts.tolist(), strict=True) if hit and row]
        )
        dead = [self._letters.letter(segment.records[place], letters[place]) for place in sorted(letters)]
        self._opened(1)
        written = _Written(len(results), len(alarming), [reject.reason for reject in letters.values()])
        receipt = Receipt(segment, partial(self._settled, written))
        if results:
            await self._write(self._result, segment, results, receipt)
        if alarming and self._alert:
            await self._write(self._alert, segment, alarming, receipt)
        if dead:
            partition = self._partitioner.letter(segment.epoch.partition)
            await self._sink.write(self._dead_letter, partition, dead, receipt)
        receipt.release()

    async def _write(self, topic: str, segment: Segment, rows: list[Row], receipt: Receipt) -> None:
        for partition, group in self._partitioner.groups(topic, segment.epoch.partition, rows):
            await self._sink.write(topic, partition, group, receipt)

    def _settled(self, written: "_Written", receipt: Receipt) -> None:
        self._telemetry.records("sink", "result").inc(written.results)
        self._telemetry.records("sink", "alert").inc(written.alerts)
        self._telemetry.records("sink", "dead_letter").inc(len(written.letters))
        for reason in written.letters:
            self._telemetry.dead_letters(reason)
        stamps = np.array([record.timestamp for record in receipt.segment.records], dtype=np.float64)
        now = time.time()
        self._telemetry.end_to_end.observe(np.maximum(now - stamps / 1000, 0.0))
        self._telemetry.last_progress.set(now)
        self._opened(-1)
