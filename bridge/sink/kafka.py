"""Results to Kafka: whole batches per partition, in order, kept until the broker has acknowledged them.

Each partition has a writer with one batch on its way. What arrives meanwhile becomes the next batch, so batches grow by
themselves under load, and under light load nothing waits. This client's idempotent producer never recovers from some
errors; so after any failure a fresh producer is made, and the writer sends the same rows again, in the same order.
"""

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTimestampError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
)
from aiokafka.producer.message_accumulator import BatchBuilder

from bridge.config.model import Kafka
from bridge.errors import PipelineStopped
from bridge.kafka import FATAL, client_options, sentence, stop_client
from bridge.observe.telemetry import Telemetry
from bridge.receipt import Receipt
from bridge.retry import Backoff
from bridge.sink import Row, row_size

log = structlog.get_logger()

# Trying again would be refused again. Nothing is lost: the offsets stay uncommitted.
_REFUSALS = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    InvalidTopicError,
    InvalidTimestampError,
    PolicyViolationError,
    AssertionError,  # the client's word for a partition that the topic does not have
)

BATCH_BYTES = 512 * 1024
"""Most bytes of one produced batch, unless the topic takes less."""
_QUEUE_BYTES = 4 * BATCH_BYTES
_STOP_TIMEOUT = 10.0


class KafkaSink:
    """`Sink` over aiokafka.

    Args:
        kafka: how to reach the brokers.
        limits: topic -> its max.message.bytes.
        telemetry: where retries and the queue's length are counted.
    """

    def __init__(self, kafka: Kafka, limits: dict[str, int], telemetry: Telemetry) -> None:
        self._kafka = kafka
        self._batch_bytes = min([BATCH_BYTES, *limits.values()])
        self._telemetry = telemetry
        self._tasks: asyncio.TaskGroup | None = None
        self._producer: AIOKafkaProducer | None = None
        self._renewing = asyncio.Lock()
        self._writers: dict[tuple[str, int], _Writer] = {}
        self.queued = 0
        """Records that are not acknowledged yet."""

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """See `Sink`."""
        self._tasks = tasks
        await self.renew(None)

    async def write(self, topic: str, partition: int, rows: Sequence[Row], receipt: Receipt) -> None:
        """See `Sink`."""
        writer = self._writers.get((topic, partition))
        if writer is None:
            writer = self._writers[topic, partition] = _Writer(self, topic, partition)
            assert self._tasks is not None, "started"  # noqa: S101 - for the type checker
            writer.task = self._tasks.create_task(writer.run(), name=f"writer {topic}/{partition}")
        receipt.hold()
        self._count(len(rows))
        await writer.add(rows, receipt)

    async def stop(self, timeout: float) -> None:
        """See `Sink`."""
        for writer in self._writers.values():
            if writer.task:
                writer.task.cancel()
        await self._discard(timeout)

    async def send(self, topic: str, partition: int, chunks: Sequence["_Chunk"]) -> int:
        """Send as many of the first rows as one batch takes, until the broker acknowledges them.

        Returns:
            How many were sent.
        """
        backoff = Backoff(0.1, 5.0, random.Random())
        while True:
            producer = self._producer
            if producer is None:
                await self.renew(None)
                continue
            builder = producer.create_batch()
            count = _fill(builder, chunks)
            try:
                await (await producer.send_batch(builder, topic, partition=partition))
            except FATAL as error:
                raise PipelineStopped(sentence(error, self._kafka)) from error
            except _REFUSALS as error:
                detail = " ".join(str(error).split())
                raise PipelineStopped(f"{topic}/{partition} refuses what is to be written: {detail}") from error
            except KafkaError as error:
                self._telemetry.retry("produce")
                log.warning("produce_failed", topic=topic, partition=partition, error=sentence(error, self._kafka))
                await asyncio.sleep(backoff.next())
                await self.renew(producer)
            else:
                self._count(-count)
                return count

    async def renew(self, failed: AIOKafkaProducer | None) -> None:
        """Replace the producer `failed`, unless another writer already has; waits until the brokers answer."""
        async with self._renewing:
            if self._producer is not failed:
                return
            await self._discard(_STOP_TIMEOUT)
            backoff = Backoff(0.1, 5.0, random.Random())
            said = False
            while self._producer is None:
                producer = AIOKafkaProducer(
                    **client_options(self._kafka),
                    acks="all",
                    enable_idempotence=True,
                    max_batch_size=self._batch_bytes,
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

    async def _discard(self, timeout: float) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_client(producer, timeout)

    def _count(self, change: int) -> None:
        self.queued += change
        self._telemetry.queue("sink").set(self.queued)

    def __repr__(self) -> str:
        return f"<KafkaSink queued={self.queued} writers={list(self._writers.values())}>"


@dataclass(slots=True)
class _Chunk:
    """Rows that came together; those before `start` are acknowledged."""

    rows: Sequence[Row]
    receipt: Receipt
    size: int
    start: int = 0


class _Writer:
    """The queue and the sending task of one partition."""

    def __init__(self, sink: KafkaSink, topic: str, partition: int) -> None:
        self._sink = sink
        self._topic = topic
        self._partition = partition
        self._chunks: deque[_Chunk] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.task: asyncio.Task[None] | None = None

    async def add(self, rows: Sequence[Row], receipt: Receipt) -> None:
        await self._room.wait()
        size = sum(map(row_size, rows))
        self._chunks.append(_Chunk(rows, receipt, size))
        self._bytes += size
        self._filled.set()
        if self._bytes >= _QUEUE_BYTES:
            self._room.clear()

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            # What comes in from here on belongs to the next batch.
            self._acknowledge(await self._sink.send(self._topic, self._partition, tuple(self._chunks)))

    def _acknowledge(self, sent: int) -> None:
        while sent:
            chunk = self._chunks[0]
            left = len(chunk.rows) - chunk.start
            if left > sent:
                chunk.start += sent
                break
            sent -= left
            self._chunks.popleft()
            self._bytes -= chunk.size
            chunk.receipt.release()
        if not self._chunks:
            self._filled.clear()
        if self._bytes < _QUEUE_BYTES:
            self._room.set()

    def __repr__(self) -> str:
        return f"<{self._topic}/{self._partition} chunks={len(self._chunks)} bytes={self._bytes}>"


def _fill(builder: BatchBuilder, chunks: Sequence[_Chunk]) -> int:
    """Append rows until the batch is full; how many it took."""
    append = builder.append
    count = 0
    for chunk in chunks:
        for row in chunk.rows[chunk.start :] if chunk.start else chunk.rows:
            if append(timestamp=row[2], key=row[0], value=row[1], headers=row[3]) is None:
                return count
            count += 1
    return count
