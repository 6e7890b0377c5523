"""At least once: whole batches per partition, in order, kept until the broker has acknowledged them.

Each partition has a writer with one batch on its way. What arrives meanwhile becomes the next batch, so batches grow by
themselves under load, and under light load nothing waits. This client's idempotent producer never recovers from some
errors; so after any failure a fresh producer is made, and the writer sends the same rows again, in the same order.
Every topic has a producer of its own: dead letters that cannot be written do not disturb results.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder

from bridge.config import Pipeline
from bridge.errors import PipelineStopped
from bridge.kafka import FATAL, Topic, append_rows, client_options, send_batch, sentence, stop_client
from bridge.observe.telemetry import Telemetry
from bridge.offsets import PartitionEpoch
from bridge.retry import Backoff
from bridge.sink import BATCH_BYTES, Emission, Restart, Row
from bridge.sink.refusal import REFUSALS, after_refusal, check_partition

log = structlog.get_logger()

_STOP_TIMEOUT = 10.0
_SEND_TIMEOUT = 90.0  # the client itself repeats a batch without end, also when its inner task has died


class KafkaSink:
    """`Sink` over aiokafka's idempotent producer.

    Args:
        config: the configuration.
        topics: the topics of the outcomes; looked up again when one refuses a batch.
        telemetry: where retries and the queue's length are counted.
    """

    def __init__(self, config: Pipeline, topics: MutableMapping[str, Topic], telemetry: Telemetry) -> None:
        self._config = config
        self._topics = topics
        self._telemetry = telemetry
        self._tasks: asyncio.TaskGroup | None = None
        self._producers: dict[str, _Producer] = {}
        self._writers: dict[tuple[str, int], _Writer] = {}
        self._restart: Restart | None = None
        self._halted: Counter[PartitionEpoch] = Counter()
        self._said: dict[tuple[str, int], str] = {}
        self.queued = 0
        """Records that are not acknowledged yet."""

    async def start(self, tasks: asyncio.TaskGroup, restart: Restart) -> None:
        """See `Sink`."""
        self._tasks = tasks
        self._restart = restart
        await self._producer(self._config.result.topic).renew(None)

    async def claim(self, epoch: PartitionEpoch) -> None:
        """See `Sink`."""
        await check_partition(self._config, self._topics, epoch)

    def release(self, epoch: PartitionEpoch) -> None:
        """See `Sink`; what waits for a dead epoch is dropped when its turn comes."""
        for writer in self._writers.values():
            writer.purge()

    def write(self, emission: Emission) -> None:
        """See `Sink`."""
        pending = _Pending(emission, len(emission.writes))
        for write in emission.writes:
            self.count(len(write.rows))
            self._writer(write.topic, write.partition).add(_Chunk(write.rows, pending))

    async def stop(self, timeout: float) -> None:
        """See `Sink`."""
        for writer in self._writers.values():
            if writer.task:
                writer.task.cancel()
        await asyncio.gather(*(producer.discard(timeout) for producer in self._producers.values()))

    async def send(self, topic: str, partition: int, chunks: Sequence["_Chunk"]) -> int:
        """Send as many of the first rows as one batch takes, until the broker acknowledges them.

        Returns:
            How many were sent; 0 when the partitions of these rows have to begin again.
        """
        backoff = Backoff(0.1, 5.0, random.Random())
        renewable = self._producer(topic)
        while chunks[0].pending.emission.segment.epoch.alive:
            producer = await renewable.get()
            builder = producer.create_batch()
            count = _fill(builder, chunks)
            try:
                async with asyncio.timeout(_SEND_TIMEOUT):
                    await (await send_batch(producer, builder, topic, partition))
            except REFUSALS as error:
                limit = renewable.limit
                after, because = await after_refusal(self._config, self._topics, topic, partition, limit, error)
                epochs = {chunk.pending.emission.segment.epoch for chunk in chunks}
                await renewable.renew(producer)  # a topic that takes less needs smaller batches
                if after == 0:
                    assert self._restart is not None, "started"  # noqa: S101 - for the type checker
                    for epoch in epochs:
                        self._restart(epoch, after, because)
                    return 0
                # Not begun again: what has been written already would be written once more with every try.
                await self._halt((topic, partition), {epoch for epoch in epochs if epoch.alive}, after, because)
            except FATAL as error:
                raise PipelineStopped(sentence(error, self._config.kafka)) from error
            except (KafkaError, TimeoutError) as error:
                self._telemetry.retry("produce")
                said = sentence(error, self._config.kafka)
                log.warning("produce_failed", topic=topic, partition=partition, error=said)
                await asyncio.sleep(backoff.next())
                await renewable.renew(producer)
            else:
                self._said.pop((topic, partition), None)
                return count
        return 0

    async def _halt(
        self, target: tuple[str, int], epochs: Collection[PartitionEpoch], seconds: float, because: str
    ) -> None:
        """These partitions wait for somebody to mend what refuses their rows; the others go on."""
        for epoch in epochs if self._said.get(target) != because else ():
            log.error("partition_halted", topic=epoch.topic, partition=epoch.partition, because=because)
        self._said[target] = because
        self._halted.update(epochs)
        self._telemetry.halted("sink", len(self._halted))
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until and any(e.alive for e in epochs):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.5)
        self._halted.subtract(epochs)
        self._halted += Counter()
        self._telemetry.halted("sink", len(self._halted))

    def count(self, change: int) -> None:
        """So many more records wait for their acknowledgement."""
        self.queued += change
        self._telemetry.queue("sink").set(self.queued)

    def _producer(self, topic: str) -> "_Producer":
        if topic not in self._producers:
            self._producers[topic] = _Producer(self._config, self._topics, topic, self._telemetry)
        return self._producers[topic]

    def _writer(self, topic: str, partition: int) -> "_Writer":
        writer = self._writers.get((topic, partition))
        if writer is None:
            writer = self._writers[topic, partition] = _Writer(self, topic, partition)
            assert self._tasks is not None, "started"  # noqa: S101 - for the type checker
            writer.task = self._tasks.create_task(writer.run(), name=f"writer {topic}/{partition}")
        return writer

    def __repr__(self) -> str:
        return f"<KafkaSink queued={self.queued} writers={list(self._writers.values())}>"


class _Producer:
    """The producer of one topic, replaced after a failure."""

    def __init__(self, config: Pipeline, topics: Mapping[str, Topic], topic: str, telemetry: Telemetry) -> None:
        self._kafka = config.kafka
        self._topics = topics
        self._topic = topic
        self.limit = 0
        """The topic's max.message.bytes that it was made for."""
        self._telemetry = telemetry
        self._producer: AIOKafkaProducer | None = None
        self._renewing = asyncio.Lock()

    async def get(self) -> AIOKafkaProducer:
        """The one in use; waits until the brokers answer."""
        if self._producer is None:
            await self.renew(None)
        return self._producer

    async def renew(self, failed: AIOKafkaProducer | None) -> None:
        """Replace the producer `failed`, unless another writer already has; waits until the brokers answer."""
        async with self._renewing:
            if self._producer is not failed:
                return
            await self.discard(_STOP_TIMEOUT)
            backoff = Backoff(0.1, 5.0, random.Random())
            said = False
            while self._producer is None:
                self.limit = self._topics[self._topic].max_message_bytes
                producer = AIOKafkaProducer(
                    **client_options(self._kafka),
                    acks="all",
                    enable_idempotence=True,
                    max_batch_size=min(BATCH_BYTES, self.limit),
                    max_request_size=64 * 2**20,
                    request_timeout_ms=30_000,
                )
                try:
                    await producer.start()
                    self._producer = producer
                except FATAL as error:
                    raise PipelineStopped(sentence(error, self._kafka)) from error
                except KafkaError as error:
                    self._telemetry.retry("kafka")
                    if not said:
                        log.warning("kafka_away", error=sentence(error, self._kafka), action="trying again")
                        said = True
                    await asyncio.sleep(backoff.next())
                finally:
                    if self._producer is not producer:
                        await stop_client(producer, _STOP_TIMEOUT)

    async def discard(self, timeout: float) -> None:
        """Disconnect."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_client(producer, timeout)


@dataclass(slots=True)
class _Pending:
    """An emission, and how many of its chunks are neither acknowledged nor dropped."""

    emission: Emission
    open: int
    dropped: bool = False

    def close(self) -> None:
        self.open -= 1
        if self.open == 0:
            if self.dropped:
                self.emission.drop()
            else:
                self.emission.acknowledge()


@dataclass(slots=True)
class _Chunk:
    """Rows of one write; those before `start` are acknowledged."""

    rows: Sequence[Row]
    pending: _Pending
    start: int = 0


class _Writer:
    """The queue and the sending task of one partition."""

    def __init__(self, sink: KafkaSink, topic: str, partition: int) -> None:
        self._sink = sink
        self._topic = topic
        self._partition = partition
        self._chunks: deque[_Chunk] = deque()
        self._filled = asyncio.Event()
        self._sending = False
        self.task: asyncio.Task[None] | None = None

    def add(self, chunk: _Chunk) -> None:
        self._chunks.append(chunk)
        self._filled.set()

    def purge(self) -> None:
        """Drop the chunks of dead epochs; what is on its way to the broker is left until that is known."""
        if self._sending:
            return
        kept: deque[_Chunk] = deque()
        for chunk in self._chunks:
            if chunk.pending.emission.segment.epoch.alive:
                kept.append(chunk)
            else:
                self._sink.count(chunk.start - len(chunk.rows))
                chunk.pending.dropped = True
                chunk.pending.close()
        self._chunks = kept
        if not kept:
            self._filled.clear()

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            # What comes in from here on belongs to the next batch.
            self._sending = True
            sent = await self._sink.send(self._topic, self._partition, tuple(self._chunks))
            self._sending = False
            self._acknowledge(sent)
            self.purge()

    def _acknowledge(self, sent: int) -> None:
        self._sink.count(-sent)
        while sent:
            chunk = self._chunks[0]
            left = len(chunk.rows) - chunk.start
            if left > sent:
                chunk.start += sent
                break
            sent -= left
            self._chunks.popleft()
            chunk.pending.close()
        if not self._chunks:
            self._filled.clear()

    def __repr__(self) -> str:
        return f"<{self._topic}/{self._partition} chunks={len(self._chunks)}>"


def _fill(builder: BatchBuilder, chunks: Sequence[_Chunk]) -> int:
    """Append rows until the batch is full; how many it took."""
    count = 0
    for chunk in chunks:
        rows = chunk.rows[chunk.start :] if chunk.start else chunk.rows
        count += append_rows(builder, rows)
        if builder.closed():
            break
    return count
