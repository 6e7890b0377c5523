"""The flow of events: intake, batches, calls to the model, emission in order, commits, and an orderly end.

    source.poll -> Batcher -> decode -> Predictor -> encode -> Lane -> sink.write -> Emission -> PartitionEpoch
                   (bounded)            (in_flight slots)      (bounded)             (acknowledged)

Results keep the order of their partition because its lane lets them out in that order, however their answers arrive. A
call that fails holds its slot; when all slots are held the queue fills, and then the source is not asked any more. A
partition whose outcomes are not acknowledged fills its own lane only, and is then left out of what is asked for.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog

from bridge.batch import Batcher
from bridge.config import Pipeline
from bridge.emitter import Emitter, split, unanswered
from bridge.errors import PipelineStopped, first_cause
from bridge.infer.predictor import Abandoned, Predictor
from bridge.kafka import Topic
from bridge.lane import Lane
from bridge.observe.health import Health
from bridge.observe.telemetry import Telemetry
from bridge.offsets import PartitionEpoch
from bridge.plan import Plan
from bridge.record import Batch, Outcome, Record, Reject, Segment
from bridge.sink import Sink
from bridge.source import Source
from bridge.steer import Steering

log = structlog.get_logger()

_POLL_SECONDS = 0.2
_COMMIT_TIMEOUT = 10.0
_INTAKE_END = 2.0


class Flow:
    """One pipeline at work; the `Owner` of the partitions its source is given.

    Args:
        config: the configuration.
        plan: compiled for the live model.
        source: where events come from.
        predictor: asks the model.
        sink: where outcomes go.
        topics: the topics of the outcomes, kept up to date by whoever passes it.
        telemetry: metrics.
        health: what the health endpoints tell.
        on_ready: called once, when partitions are assigned.
        clock: seconds since 1970, for `model.deadline`.
    """

    def __init__(
        self,
        config: Pipeline,
        plan: Plan,
        source: Source,
        predictor: Predictor,
        sink: Sink,
        topics: dict[str, Topic],
        telemetry: Telemetry,
        health: Health,
        on_ready: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._plan = plan
        self._source = source
        self._predictor = predictor
        self._sink = sink
        self._emitter = Emitter(config, sink, topics, telemetry, lambda: self._opened(1), self._settled)
        self._telemetry = telemetry
        self._health = health
        self._on_ready = on_ready
        self._clock = clock
        self._batcher = Batcher(plan.max_events, config.batch.max_bytes, config.batch.max_wait)
        self._lanes: dict[PartitionEpoch, Lane] = {}
        self._queue_bytes = config.batch.max_bytes * (config.batch.in_flight + 1)
        self._lane_events = max(_LANE_EVENTS, 2 * plan.max_events * (config.batch.in_flight + 1))
        self._lane_bytes = 2 * self._queue_bytes
        self._flying = 0
        self._landed = asyncio.Event()
        self._steering = Steering(plan.max_events, config.batch.in_flight, config.batch.target_p99)
        self._steered()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._left = False
        self._open = 0  # batches in flight and emissions not settled
        self._tasks: asyncio.TaskGroup | None = None
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

    async def claim(self, epoch: PartitionEpoch) -> None:
        """See `Owner`."""
        await self._sink.claim(epoch)

    async def drain(self, timeout: float) -> None:
        """See `Owner`."""
        self._batcher.clear()
        self._queued()
        self._room.set()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            log.warning("drain_incomplete", open=self._open, after=timeout, effect="these events will be done again")

    def released(self, epoch: PartitionEpoch) -> None:
        """See `Owner`."""
        self._lanes.pop(epoch, None)
        self._sink.release(epoch)
        self._room.set()

    async def _work(self) -> None:
        tasks = self._tasks
        assert tasks is not None, "running"  # noqa: S101 - for the type checker
        await self._sink.start(tasks, self._source.restart)
        await self._source.start(tasks, self)
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._commits(), name="commits")
            loops.create_task(self._watch(), name="watch")
            loops.create_task(self._predictor.watch(), name="watch model")
            loops.create_task(self._dispatch(), name="dispatch")
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
            if self._full() or self._predictor.paused:
                self._room.clear()
                # Looks again by itself, since the breaker of the model closes without a word to us.
                await _within(_POLL_SECONDS, self._room.wait())
                continue
            segments = await self._source.poll(self._steering.events * 2, _POLL_SECONDS)
            self._health.assigned = self._source.assigned
            if waiting and self._source.assigned:
                waiting = False
                self._on_ready()
            now = loop.time()
            for segment in segments:
                size = self._batcher.add(segment, now)
                self._lane(segment.epoch).admit(len(segment.records), size)
                self._telemetry.records("source", "consumed").inc(len(segment.records))
            if segments:
                self._queued()
                self._arrived.set()

    def _full(self) -> bool:
        most = self._steering.events * (self._steering.slots + 1)
        return self._batcher.events >= most or self._batcher.bytes >= self._queue_bytes

    def _lane(self, epoch: PartitionEpoch) -> Lane:
        lane = self._lanes.get(epoch)
        if lane is None:
            lane = self._lanes[epoch] = Lane(epoch, self._lane_events, self._lane_bytes)
        return lane

    async def _dispatch(self) -> None:
        async with asyncio.TaskGroup() as flights:
            while True:
                while self._flying >= self._steering.slots:
                    self._landed.clear()
                    await self._landed.wait()
                batch = await self._next_batch()
                self._flying += 1
                self._steering.left(self._batcher.events > 0 or len(batch.records) >= self._steering.events)
                for segment in batch.segments:
                    if segment.epoch in self._lanes:
                        self._lanes[segment.epoch].reserve(segment)
                self._opened(1)
                self._telemetry.in_flight.inc()
                flights.create_task(self._fly(batch), name="flight")

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
            await _within(wait if wait != float("inf") else None, self._arrived.wait())

    async def _fly(self, batch: Batch) -> None:
        try:
            values = [record.value for record in batch.records]
            late = self._expired(batch.records)
            for place in late:
                values[place] = None  # taken out before the model is asked: nothing to a decoder
            decoded = self._plan.decoder.decode(values)
            self._telemetry.records("decode", "ok").inc(len(decoded.places))
            self._telemetry.records("decode", "rejected").inc(len(decoded.rejects))
            predicted = await self._predictor.predict(decoded, lambda: not _alive(batch.segments))
            outcome = self._plan.encoder.encode(len(batch.records), decoded, predicted.parts)
            if predicted.rejects or late:
                rejects = [late.get(reject.row, reject) for reject in (*outcome.rejects, *predicted.rejects)]
                outcome = Outcome(outcome.values, outcome.alerts, rejects)
            self._telemetry.records("infer", "ok").inc(len(decoded.places) - len(predicted.rejects))
            self._telemetry.records("infer", "rejected").inc(len(predicted.rejects))
            self._emit(split(batch, outcome))
        except Abandoned:
            self._emit(unanswered(batch))
        finally:
            self._flying -= 1
            self._landed.set()
            self._telemetry.in_flight.dec()
            self._opened(-1)

    def _emit(self, parts: Iterable[tuple[Segment, Outcome]]) -> None:
        for segment, outcome in parts:
            lane = self._lanes.get(segment.epoch)
            if lane is None or not segment.epoch.alive:
                self._telemetry.records("source", "dropped").inc(len(segment.records))  # the next owner does them
                continue
            for ready in lane.complete(segment, outcome):
                self._emitter.emit(*ready)

    def _expired(self, records: Iterable[Record]) -> dict[int, Reject]:
        """Place -> reject, for the events whose deadline has passed."""
        deadline = self._config.model.deadline
        if deadline is None:
            return {}
        now = self._clock()
        ages = ((place, now - record.timestamp / 1000) for place, record in enumerate(records))
        sentence = "the event was {:.1f} s old when its turn came, but model.deadline is {:g} s"
        return {
            place: Reject(place, "expired", sentence.format(age, deadline)) for place, age in ages if age > deadline
        }

    def _queued(self) -> None:
        self._telemetry.queue("intake").set(self._batcher.events)

    def _settled(self, segment: Segment, acknowledged: bool) -> None:
        lane = self._lanes.get(segment.epoch)
        if lane is not None:
            lane.settle(segment)
        now = asyncio.get_running_loop().time()
        if acknowledged and self._steering.settled(len(segment.records), segment.since, now):
            self._steered()
        self._room.set()
        self._opened(-1)

    def _steered(self) -> None:
        self._batcher.max_events = self._steering.events
        self._telemetry.batch_limit.set(self._steering.events)
        self._landed.set()  # perhaps one more may be under way

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
        """Twice a second: the lag, and what is paused."""
        while True:
            await asyncio.sleep(0.5)
            lags = self._source.lag()
            self._telemetry.lags(lags)
            paused = self._full() or self._predictor.paused
            self._telemetry.paused_partitions.set(
                len(lags) if paused else sum(lane.epoch.paused for lane in self._lanes.values())
            )

    def __repr__(self) -> str:
        return f"<Flow {self._config.name} open={self._open} {self._batcher!r} {self._predictor!r} {self._source!r}>"


_LANE_EVENTS = 4096
"""Least events of a partition that may wait for their acknowledgement: a commit interval's worth at full speed."""


async def _within(seconds: float | None, waiting: Coroutine[Any, Any, Any]) -> None:
    """Wait, but no longer than so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        pass


def _alive(segments: Iterable[Segment]) -> bool:
    return any(segment.epoch.alive for segment in segments)
