"""Exactly once: the outcomes of a partition and its offset, in one transaction.

Each input partition has a producer of its own, whose transactional id names the partition. Starting it ends whatever
transaction an earlier owner left open and fences that owner, and only then is the committed offset read: so there is
always one owner, and it knows what was done.

    claim: producer.start()  ->  Source reads the committed offset and seeks
    lane:  begin -> write, all acknowledged -> ... for a commit interval ... -> offset -> epoch alive? -> commit

There is one way out of any failure, known or not: the epoch ends, a new one claims the partition again, which aborts
what is open, and the committed offset tells whether the last transaction took effect. Nothing is decided by hope.
"""

import asyncio
import random
from collections import defaultdict, deque
from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalOperation, InvalidProducerEpoch, KafkaError, ProducerFenced

from bridge.config import Pipeline
from bridge.errors import PipelineStopped
from bridge.kafka import FATAL, Topic, send_rows, sentence, stop_client, transactional_prefix, transactional_producer
from bridge.observe.telemetry import Telemetry
from bridge.offsets import PartitionEpoch
from bridge.retry import Backoff
from bridge.sink import BATCH_BYTES, Emission, Restart, Row
from bridge.sink.refusal import REFUSALS, after_refusal, check_partition

log = structlog.get_logger()

_FAILURES = (
    KafkaError,
    IllegalOperation,  # the client's word for a transaction that has ended by itself, by a fence found elsewhere
    TimeoutError,
    AssertionError,
)
_DEADLINE = 30.0  # of everything in one transaction; well below the broker's own
_STOP_TIMEOUT = 5.0
_FENCED_PAUSE = 6.0  # two heartbeats: by then a member that has lost its partitions knows it
_MOST_FENCES = 3
_FENCES_SECONDS = 60.0


class TransactionalSink:
    """`Sink` over one transactional producer for each input partition.

    Args:
        config: the configuration.
        topics: the topics of the outcomes; looked up again when one refuses a batch.
        telemetry: where commits and the queue's length are recorded.
    """

    def __init__(self, config: Pipeline, topics: MutableMapping[str, Topic], telemetry: Telemetry) -> None:
        self._config = config
        self._topics = topics
        self._telemetry = telemetry
        self._tasks: asyncio.TaskGroup | None = None
        self._restart: Restart | None = None
        self._lanes: dict[PartitionEpoch, _Transactions] = {}
        self._closing: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._fences: defaultdict[tuple[str, int], deque[tuple[int, float]]] = defaultdict(
            partial(deque, maxlen=_MOST_FENCES)
        )
        self._backoffs: dict[tuple[str, int], Backoff] = {}
        self.queued = 0
        """Records that are not acknowledged yet."""

    async def start(self, tasks: asyncio.TaskGroup, restart: Restart) -> None:
        """See `Sink`; producers start with their partitions."""
        self._tasks = tasks
        self._restart = restart

    async def claim(self, epoch: PartitionEpoch) -> None:
        """See `Sink`: fence whoever wrote for this partition before."""
        await check_partition(self._config, self._topics, epoch)
        place = (epoch.topic, epoch.partition)
        if place in self._closing:  # our own former producer, which would be fenced in the middle of its farewell
            await asyncio.wait({self._closing[place]})
        limits = {name: topic.max_message_bytes for name, topic in self._topics.items()}
        producer = transactional_producer(
            self._config, transactional_id(self._config, *place), max_batch_size=min(BATCH_BYTES, *limits.values())
        )
        started = False
        try:
            await producer.start()
            started = True
        finally:
            if not started:
                await asyncio.shield(stop_client(producer, _STOP_TIMEOUT))
        if not epoch.alive:
            await stop_client(producer, _STOP_TIMEOUT)
            return
        assert self._tasks is not None, "started"  # noqa: S101 - for the type checker
        lane = self._lanes[epoch] = _Transactions(self, epoch, producer, self._config, limits)
        lane.task = self._tasks.create_task(lane.run(), name=f"transactions {epoch.topic}/{epoch.partition}")

    def release(self, epoch: PartitionEpoch) -> None:
        """See `Sink`: drop what waits, and let the producer go."""
        lane = self._lanes.pop(epoch, None)
        if lane is not None:
            place = (epoch.topic, epoch.partition)
            # Not in the task group: partitions are also released when that has ended already. `stop` waits for it.
            closing = self._closing[place] = asyncio.create_task(lane.close(), name="close producer")
            closing.add_done_callback(partial(self._closed, place))

    def _closed(self, place: tuple[str, int], task: asyncio.Task[None]) -> None:
        if self._closing.get(place) is task:
            del self._closing[place]

    def write(self, emission: Emission) -> None:
        """See `Sink`."""
        lane = self._lanes.get(emission.segment.epoch)
        if lane is None:
            emission.drop()
        else:
            lane.add(emission)

    async def stop(self, timeout: float) -> None:
        """See `Sink`."""
        lanes = list(self._lanes.values())
        self._lanes.clear()
        await asyncio.gather(*(lane.close(timeout) for lane in lanes), *self._closing.values(), return_exceptions=True)

    def committed(self, epoch: PartitionEpoch, seconds: float) -> None:
        """A transaction has been committed in so many seconds."""
        place = (epoch.topic, epoch.partition)
        self._telemetry.commit_seconds.observe(seconds)
        self._backoffs.pop(place, None)

    async def failed(self, lane: "_Transactions", topic: str, partition: int, error: BaseException) -> None:
        """A transaction did not come to its end; begin again, unless nothing can cure it.

        Raises:
            PipelineStopped: nothing can.
        """
        after, because = await self._verdict(lane, topic, partition, error)
        self._telemetry.retry("transaction")
        assert self._restart is not None, "started"  # noqa: S101 - for the type checker
        self._restart(lane.epoch, after, because)

    async def _verdict(
        self, lane: "_Transactions", topic: str, partition: int, error: BaseException
    ) -> tuple[float, str]:
        place = (lane.epoch.topic, lane.epoch.partition)
        match error:
            case ProducerFenced() | InvalidProducerEpoch():
                now = asyncio.get_running_loop().time()
                fences = self._fences[place]
                fences.append((lane.epoch.generation, now))
                generation, first = fences[0]
                name = transactional_id(self._config, *place)
                # Once is a partition that has moved, which the group tells soon. Time and again, while the group leaves
                # it to us, is somebody who does not belong to the group.
                if (
                    len(fences) == _MOST_FENCES
                    and generation == lane.epoch.generation
                    and now - first < _FENCES_SECONDS
                ):
                    raise PipelineStopped(
                        f"another producer uses the transactional id {name!r} and has fenced this one {_MOST_FENCES} "
                        f"times in {now - first:.0f} s; is another pipeline running with the same name and group?"
                    ) from error
                return _FENCED_PAUSE, f"another producer has taken over the transactional id {name!r}"
            case _ if isinstance(error, REFUSALS):
                for name in error.args[0] if error.args and isinstance(error.args[0], set) else ():
                    topic = name  # the coordinator refuses topics before anything is sent to them
                limit = lane.limits.get(topic, 0)
                return await after_refusal(self._config, self._topics, topic, partition, limit, error)
            case _ if isinstance(error, FATAL):
                raise PipelineStopped(sentence(error, self._config.kafka)) from error
            case TimeoutError():
                because = f"a transaction did not end within {_DEADLINE:.0f} s"
            case _:
                because = sentence(error, self._config.kafka)
        backoff = self._backoffs.setdefault(place, Backoff(0.1, 5.0, random.Random()))
        return backoff.next(), because

    def count(self, change: int) -> None:
        """So many more records wait for their acknowledgement."""
        self.queued += change
        self._telemetry.queue("sink").set(self.queued)

    def __repr__(self) -> str:
        return f"<TransactionalSink queued={self.queued} lanes={list(self._lanes.values())}>"


class _Transactions:
    """The transactions of one partition under one epoch."""

    def __init__(
        self,
        sink: TransactionalSink,
        epoch: PartitionEpoch,
        producer: AIOKafkaProducer,
        config: Pipeline,
        limits: Mapping[str, int],
    ) -> None:
        self._sink = sink
        self.epoch = epoch
        self._producer = producer
        self._group = config.group
        self._interval = config.commit_interval
        self.limits = limits
        """Topic -> the max.message.bytes that its batches are made for."""
        self._waiting: deque[Emission] = deque()
        self._taken: list[Emission] = []
        self._filled = asyncio.Event()
        self._writing = ("", 0)
        self._ending = 0.0  # when the last write was acknowledged, and the end of the transaction began
        self.task: asyncio.Task[None] | None = None

    def add(self, emission: Emission) -> None:
        self._sink.count(sum(len(write.rows) for write in emission.writes))
        self._waiting.append(emission)
        self._filled.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await self._filled.wait()
            began = loop.time()
            try:
                async with asyncio.timeout(_DEADLINE):
                    await self._transaction(max(due, began))
            except _FAILURES as error:
                await self._sink.failed(self, *self._writing, error)
                return
            due = loop.time() + self._interval
            self._sink.committed(self.epoch, loop.time() - self._ending)

    async def _transaction(self, until: float) -> None:
        """Everything that comes until then, and what has been done with it, or nothing of it."""
        producer, epoch = self._producer, self.epoch
        loop = asyncio.get_running_loop()
        await producer.begin_transaction()
        while True:
            chunk = list(self._waiting)
            self._waiting.clear()
            self._filled.clear()
            self._taken += chunk
            await self._write(chunk)
            left = until - loop.time()
            if left <= 0:
                break
            if not self._waiting:
                try:
                    async with asyncio.timeout(left):
                        await self._filled.wait()
                except TimeoutError:
                    break
        self._ending = loop.time()
        last = self._taken[-1].segment.records[-1].offset
        tp = TopicPartition(epoch.topic, epoch.partition)
        await producer.send_offsets_to_transaction({tp: last + 1}, self._group)
        if not epoch.alive:
            raise ProducerFenced  # the group has taken the partition away: whoever has it now fences us
        await producer.commit_transaction()
        done, self._taken = self._taken, []
        epoch.committed = last + 1
        self._settle(done, True)

    async def _write(self, emissions: Sequence[Emission]) -> None:
        """Send all their rows, and wait until every one is acknowledged; a commit alone would not notice a failure."""
        rows: dict[tuple[str, int], list[Row]] = {}
        for emission in emissions:
            for write in emission.writes:
                rows.setdefault((write.topic, write.partition), []).extend(write.rows)
        await send_rows(self._producer, rows, self._note)

    def _note(self, topic: str, partition: int) -> None:
        self._writing = (topic, partition)

    async def close(self, timeout: float = _STOP_TIMEOUT) -> None:
        """Drop what waits, and let the producer go; a transaction that is open is ended by the next claim."""
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
        dropped, self._taken = [*self._taken, *self._waiting], []
        self._waiting.clear()
        self._settle(dropped, False)
        await stop_client(self._producer, timeout)

    def _settle(self, emissions: Sequence[Emission], committed: bool) -> None:
        for emission in emissions:
            self._sink.count(-sum(len(write.rows) for write in emission.writes))
            if committed:
                emission.acknowledge()
            else:
                emission.drop()

    def __repr__(self) -> str:
        return f"<{self.epoch.topic}/{self.epoch.partition} waiting={len(self._waiting)} taken={len(self._taken)}>"


def transactional_id(config: Pipeline, topic: str, partition: int) -> str:
    """The transactional id of a partition: the same for whoever owns it, so that a new owner fences the old one."""
    return f"{transactional_prefix(config)}{topic}-{partition}"
