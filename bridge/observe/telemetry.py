"""Every metric of the bridge, declared once. Recorded per batch, never per event.

The names are a contract with dashboards and alerts; docs/telemetry.md is generated from here.
"""

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric

DEAD_LETTER_REASONS = ("decode", "mapping", "model", "output", "too_large", "expired")
RETRY_CAUSES = ("model", "kafka", "commit", "produce", "transaction")
STAGES = {
    "source": ("consumed", "out_of_range", "dropped"),
    "decode": ("ok", "rejected"),
    "infer": ("ok", "rejected"),
    "sink": ("result", "alert", "dead_letter"),
}
"""stage -> the outcomes that `records_total` counts there."""

_LATENCY = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
_AT_ONCE = 4096
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class BatchHistogram:
    """A histogram that takes a whole array at once; prometheus-client's own takes one number per call."""

    def __init__(self, name: str, doc: str, labels: dict[str, str], buckets: Sequence[float]) -> None:
        self._name = name
        self._doc = doc
        self._labels = labels
        self._bounds = np.asarray(buckets, dtype=np.float64)
        self._counts = np.zeros(len(buckets) + 1, dtype=np.int64)
        self._sum = 0.0
        self._fresh: list[npt.NDArray[np.float64]] = []  # not counted yet: many small arrays cost more than a large one
        self._waiting = 0
        self._lock = Lock()  # scrapes come from the HTTP thread

    def observe(self, values: npt.NDArray[np.float64]) -> None:
        """Count every value of the array; a negative one, as of a clock that was set back, counts as 0."""
        with self._lock:
            self._fresh.append(values)
            self._waiting += len(values)
            if self._waiting >= _AT_ONCE:
                self._count()

    def _count(self) -> None:
        if self._fresh:
            values = np.maximum(np.concatenate(self._fresh), 0.0)
            self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
            self._sum += float(values.sum())
            self._fresh, self._waiting = [], 0

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        with self._lock:
            self._count()
            totals = np.cumsum(self._counts).tolist()
            total = self._sum
        buckets = [(str(float(bound)), count) for bound, count in zip(self._bounds, totals, strict=False)]
        family = HistogramMetricFamily(self._name, self._doc, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), [*buckets, ("+Inf", totals[-1])], total)
        yield family


class Telemetry:
    """The metrics of one pipeline, in a registry of their own.

    Args:
        pipeline: the pipeline's name, a label on every metric.
        version: of Headrace.
    """

    def __init__(self, pipeline: str, version: str = "") -> None:
        self.registry = CollectorRegistry()
        self._pipeline = pipeline
        self._known: dict[tuple[Any, ...], Any] = {}  # children by family and labels: finding one anew takes 3 us
        self._records = self._counter("records", "Events, by stage and what became of them there.", "stage", "outcome")
        self.batch_records = self._histogram("batch_records", "Events in a batch.", _COUNTS)
        self.batch_limit = self._gauge("batch_limit_records", "Most events of a batch, as batch.target_p99 allows now.")
        self.batch_wait = self._histogram("batch_wait_seconds", "Age of a batch's oldest event in the queue.", _LATENCY)
        self._inference = Histogram(
            "headrace_inference_seconds",
            "Time of one call to the model, by its status.",
            ("pipeline", "model", "version", "code"),
            registry=self.registry,
            buckets=_LATENCY,
        )
        self.end_to_end = BatchHistogram(
            "headrace_end_to_end_seconds",
            "From the event's timestamp to its acknowledged result.",
            {"pipeline": pipeline},
            _LATENCY,
        )
        self.registry.register(self.end_to_end)
        self.in_flight = self._gauge("in_flight_batches", "Batches between the queue and their emission.")
        self._queue = self._gauge_family("queue_records", "Events that wait, by stage.", "stage")
        self._retries = self._counter("retries", "Tries that had to be repeated, by cause.", "cause")
        self._dead_letters = self._counter("dead_letters", "Events that got a dead letter, by reason.", "reason")
        self.commit_seconds = self._histogram(
            "commit_seconds", "Time of one commit, or of a transaction's end.", _LATENCY
        )
        self._lag = self._gauge_family("consumer_lag_records", "Events not finished yet.", "topic", "partition")
        self._lagging: set[tuple[str, int]] = set()
        self.rebalances = self._counter("rebalances", "Assignments of partitions to this member.").labels(pipeline)
        self.paused_partitions = self._gauge("paused_partitions", "Partitions whose intake waits for a full queue.")
        self._halted_partitions = self._gauge(
            "halted_partitions", "Partitions that failed and wait to be tried again, perhaps for somebody to mend it."
        )
        self._halted: dict[str, int] = {}
        rebuilds = self._counter("consumer_rebuilds", "Times a stuck Kafka consumer was replaced.")
        self.rebuilds = rebuilds.labels(pipeline)
        self.last_progress = self._gauge("last_progress_timestamp_seconds", "When an event was last finished.")
        self.loop_lag = self._gauge("event_loop_lag_seconds", "How late the event loop last ran a timer.")
        build = self._gauge_family("build_info", "1, with the version as a label.", "version")
        build.labels(pipeline, version).set(1)
        self._start_at_zero()

    def records(self, stage: str, outcome: str) -> Counter:
        """The counter of events that had `outcome` at `stage`."""
        if outcome not in STAGES[stage]:
            raise ValueError(f"{outcome!r} is no outcome of stage {stage!r}")
        child: Counter = self._child(self._records, stage, outcome)
        return child

    def queue(self, stage: str) -> Gauge:
        """The gauge of events that wait at `stage`."""
        child: Gauge = self._child(self._queue, stage)
        return child

    def halted(self, stage: str, count: int) -> None:
        """So many partitions are halted at `stage`."""
        self._halted[stage] = count
        self._halted_partitions.set(sum(self._halted.values()))

    def inference(self, model: str, version: str, code: str) -> Histogram:
        """The histogram of one kind of call."""
        child: Histogram = self._child(self._inference, model, version, code)
        return child

    def retry(self, cause: str) -> None:
        """One more try for `cause`."""
        if cause not in RETRY_CAUSES:
            raise ValueError(f"{cause!r} is no cause of a retry")
        self._retries.labels(self._pipeline, cause).inc()

    def dead_letters(self, reason: str, count: int = 1) -> None:
        """Count dead letters that the broker has acknowledged."""
        if reason not in DEAD_LETTER_REASONS:
            raise ValueError(f"{reason!r} is no reason of a dead letter")
        self._dead_letters.labels(self._pipeline, reason).inc(count)

    def lags(self, lags: dict[tuple[str, int], int]) -> None:
        """Replace the lag of every partition; one that is not ours any more goes."""
        for topic, partition in self._lagging - set(lags):
            self._lag.remove(self._pipeline, topic, str(partition))
        self._lagging = set(lags)
        for (topic, partition), lag in lags.items():
            self._lag.labels(self._pipeline, topic, str(partition)).set(lag)

    def _child(self, family: Any, *labels: str) -> Any:
        key = (family, *labels)
        child = self._known.get(key)
        if child is None:
            child = self._known[key] = family.labels(self._pipeline, *labels)
        return child

    def _start_at_zero(self) -> None:
        for stage, outcomes in STAGES.items():
            for outcome in outcomes:
                self.records(stage, outcome)
        for stage in ("intake", "sink"):
            self.queue(stage)
        for cause in RETRY_CAUSES:
            self._retries.labels(self._pipeline, cause)
        for reason in DEAD_LETTER_REASONS:
            self._dead_letters.labels(self._pipeline, reason)

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(f"headrace_{name}", doc, ("pipeline", *labels), registry=self.registry)

    def _gauge_family(self, name: str, doc: str, *labels: str) -> Gauge:
        return Gauge(f"headrace_{name}", doc, ("pipeline", *labels), registry=self.registry)

    def _gauge(self, name: str, doc: str) -> Gauge:
        return self._gauge_family(name, doc).labels(self._pipeline)

    def _histogram(self, name: str, doc: str, buckets: Sequence[float]) -> Histogram:
        family = Histogram(f"headrace_{name}", doc, ("pipeline",), registry=self.registry, buckets=buckets)
        return family.labels(self._pipeline)
