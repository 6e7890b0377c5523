"""The flow of events: intake, batches, calls to the model, emission in order, commits, and an orderly end.

    source.poll -> Batcher -> decode -> Predictor -> encode -> sink.write -> Receipt -> PartitionEpoch -> source.commit
                   (bounded)            (in_flight slots)      (bounded)     (acknowledged)

Results keep the order of their partition because batches are taken in order and emitted in that order, however their
answers arrive. A call that fails holds its slot; when all slots are held the queue fills, and then the source is not
asked any more: that is all there is to a pause.
"""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from bridge.batch import Batcher
from bridge.config import Pipeline
from bridge.emitter import Emitter
from bridge.errors import PipelineStopped, first_cause
from bridge.infer.predictor import Abandoned, Predictor
from bridge.observe.health import Health
from bridge.observe.telemetry import Telemetry
from bridge.partition import Partitioner
from bridge.plan import Plan
from bridge.record import Batch, Outcome, Segment
from bridge.sink import Sink
from bridge.source import Source

log = structlog.get_logger()

_POLL_SECONDS = 0.2
_COMMIT_TIMEOUT = 10.0
_INTAKE_END = 2.0


class Flow:
    """One pipeline at work.

    Args:
        config: the configuration.
        plan: compiled for the live model.
        source: where events come from.
        predictor: asks the model.
        sink: where outcomes go.
        partitioner: which partition an outcome goes to.
        limits: topic -> its max.message.bytes.
        telemetry: metrics.
        health: what the health endpoints tell.
        on_ready: called once, when partitions are assigned.
    """

    def __init__(
        self,
        config: Pipeline,
        plan: Plan,
        source: Source,
        predictor: Predictor,
        sink: Sink,
        partitioner: Partitioner,
        limits: dict[str, int],
        telemetry: Telemetry,
        health: Health,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._plan = plan
        self._source = source
        self._predictor = predictor
        self._sink = sink
        self._emitter = Emitter(config, sink, partitioner, limits, telemetry, self._opened)
        self._telemetry = telemetry
        self._health = health
        self._on_ready = on_ready
        self._batcher = Batcher(plan.max_events, config.batch.max_bytes, config.batch.max_wait)
        self._queue_events = plan.max_events * (config.batch.in_flight + 1)
        self._queue_bytes = config.batch.max_bytes * (config.batch.in_flight + 1)
        self._slots = asyncio.Semaphore(config.batch.in_flight)
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._left = False
        self._open = 0  # batches in flight and receipts not settled
        self._last: asyncio.Event | None = None  # set when the batch before has been emitted
        self._tasks: asyncio.TaskGroup | None = None
        self._flights: set[asyncio.Task[None]] = set()
        self._intake_ended = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; then drain: finish what is in flight, commit, leave the group.

        Raises:
            PipelineStopped: something that cannot heal by itself.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                work = tasks.create_task(self._work(), name="work")
                await stop.wait()
                await self._finish(work)
        except BaseExceptionGroup as group:
            raise first_cause(group) from None
        finally:
            if not self._left:
                await self._leave()

    async def drain(self, timeout: float) -> None:
        """Drop what is queued, and wait until everything in flight has its outcome acknowledged."""
        self._batcher.clear()
        self._queued()
        self._room.set()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            log.warning("drain_incomplete", open=self._open, after=timeout, effect="these events will be done again")

    async def _work(self) -> None:
        tasks = self._tasks
        assert tasks is not None, "running"  # noqa: S101 - for the type checker
        await self._sink.start(tasks)
        await self._source.start(tasks, self.drain)
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._commits(), name="commits")
            loops.create_task(self._watch(), name="watch")
            loops.create_task(self._predictor.watch(), name="watch model")
            loops.create_task(self._dispatch(tasks), name="dispatch")
            await self._intake()
            self._intake_ended.set()

    async def _finish(self, work: asyncio.Task[None]) -> None:
        log.info("draining")
        self._health.draining = True
        self._stopping = True
        self._room.set()
        if self._health.assigned:
            try:
                async with asyncio.timeout(_INTAKE_END):  # a poll during a rebalance has no end of its own
                    await self._intake_ended.wait()
            except TimeoutError:
                pass
            await self.drain(self._config.drain_timeout)
        work.cancel()
        for flight in self._flights:
            flight.cancel()
        await self._leave()
        log.info("drained")

    async def _leave(self) -> None:
        """Commit what is finished and leave the group, also after a failure: then the others need not wait for us."""
        self._left = True
        try:
            await self._source.commit(_COMMIT_TIMEOUT)
        except PipelineStopped as error:
            log.warning("commit_failed", error=str(error))
        await self._source.stop()
        await self._sink.stop(_COMMIT_TIMEOUT)

    async def _intake(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = True
        while not self._stopping:
            if self._batcher.events >= self._queue_events or self._batcher.bytes >= self._queue_bytes:
                self._room.clear()
                await self._room.wait()
                continue
            segments = await self._source.poll(self._plan.max_events * 2, _POLL_SECONDS)
            self._health.assigned = self._source.assigned
            if waiting and self._source.assigned:
                waiting = False
                self._on_ready()
            now = loop.time()
            for segment in segments:
                self._batcher.add(segment, now)
                self._telemetry.records("source", "consumed").inc(len(segment.records))
            if segments:
                self._queued()
                self._arrived.set()

    async def _dispatch(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._slots.acquire()
            batch = await self._next_batch()
            before, done = self._last, asyncio.Event()
            self._last = done
            self._opened(1)
            self._telemetry.in_flight.inc()
            flight = tasks.create_task(self._fly(batch, before, done), name="flight")
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)

    async def _next_batch(self) -> Batch:
        loop = asyncio.get_running_loop()
        while True:
            self._arrived.clear()
            now = loop.time()
            if self._batcher.ready(now):
                self._telemetry.batch_wait.observe(max(0.0, self._batcher.waited(now)))
                batch = self._batcher.take()
                self._telemetry.batch_records.observe(len(batch.records))
                self._queued()
                self._room.set()
                return batch
            wait = self._batcher.until_ready(now)
            try:
                async with asyncio.timeout(wait if wait != float("inf") else None):
                    await self._arrived.wait()
            except TimeoutError:
                pass

    async def _fly(self, batch: Batch, before: asyncio.Event | None, done: asyncio.Event) -> None:
        try:
            decoded = self._plan.decoder.decode([record.value for record in batch.records])
            self._telemetry.records("decode", "ok").inc(len(decoded.places))
            self._telemetry.records("decode", "rejected").inc(len(decoded.rejects))
            predicted = await self._predictor.predict(decoded, lambda: not _alive(batch.segments))
            outcome = self._plan.encoder.encode(len(batch.records), decoded, predicted.parts)
            if predicted.rejects:
                outcome = Outcome(outcome.values, outcome.alerts, [*outcome.rejects, *predicted.rejects])
            self._telemetry.records("infer", "ok").inc(len(decoded.places) - len(predicted.rejects))
            self._telemetry.records("infer", "rejected").inc(len(predicted.rejects))
            if before is not None:
                await before.wait()
            await self._emitter.emit(batch, outcome)
        except Abandoned:
            if before is not None:
                await before.wait()  # or the batch after this one would overtake the one before it
            self._telemetry.records("source", "dropped").inc(len(batch.records))
        finally:
            done.set()
            self._slots.release()
            self._telemetry.in_flight.dec()
            self._opened(-1)

    def _queued(self) -> None:
        self._telemetry.queue("intake").set(self._batcher.events)

    def _opened(self, change: int) -> None:
        self._open += change
        if self._open:
            self._idle.clear()
        else:
            self._idle.set()

    async def _commits(self) -> None:
        while True:
            await asyncio.sleep(self._config.commit_interval)
            await self._source.commit(_COMMIT_TIMEOUT)

    async def _watch(self) -> None:
        """Twice a second: the lag, and whether the intake is paused."""
        while True:
            await asyncio.sleep(0.5)
            lags = self._source.lag()
            self._telemetry.lags(lags)
            paused = not self._room.is_set() and self._batcher.events >= self._queue_events
            self._telemetry.paused_partitions.set(len(lags) if paused else 0)

    def __repr__(self) -> str:
        return f"<Flow {self._config.name} open={self._open} {self._batcher!r} {self._predictor!r} {self._source!r}>"


def _alive(segments: Iterable[Segment]) -> bool:
    return any(segment.epoch.alive for segment in segments)
