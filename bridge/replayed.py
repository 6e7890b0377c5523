"""Remembers in Kafka what has been replayed: the offsets of a group of its own, with a `Ledger` beside each.

Written in the transaction of the events that are sent, and read only after the transactional producer has started: by
then whoever replayed before is fenced, and what it wrote is decided.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalOperation, KafkaError
from aiokafka.structs import OffsetAndMetadata

from bridge.committed import OffsetsConsumer
from bridge.config import Pipeline
from bridge.dead_letters import LetterReader
from bridge.errors import HeadraceError
from bridge.kafka import client_options, send_rows, stop_client, transactional_prefix, transactional_producer
from bridge.ledger import MOST_CHARACTERS, Ledger
from bridge.retry import Backoff
from bridge.sink import BATCH_BYTES, Row

DEADLINE = 10.0
"""Seconds that starting, or writing one chunk, may take."""
_TRANSACTION_TIMEOUT = 15.0  # after which the broker ends the transaction of a replay that was killed
_STOP_TIMEOUT = 5.0


def replay_group(config: Pipeline) -> str:
    """The group whose committed offsets tell what has been replayed."""
    return f"{config.group}-dlq-replay"


async def read_ledgers(config: Pipeline, reader: LetterReader) -> dict[int, Ledger]:
    """What has been replayed of each partition of the dead-letter topic.

    Raises:
        HeadraceError: the group's offsets are not a replay's.
        KafkaError: the brokers cannot be reached.
    """
    topic, group = config.dead_letter.topic, replay_group(config)
    wanted = [TopicPartition(topic, number) for number in reader.first]
    found = await _committed(config, group, wanted)
    ledgers = {}
    for tp in wanted:
        kept = found.get(tp)
        offset = kept.offset if kept is not None else -1
        try:
            # An offset beyond the end is of a topic that has been made again since.
            fresh = offset < 0 or offset > reader.last[tp.partition]
            ledger = Ledger() if kept is None or fresh else Ledger(offset, kept.metadata)
        except ValueError as error:
            raise HeadraceError(
                f"the offsets of group {group!r} in {topic}/{tp.partition} were not written by a replay: {error}; "
                "reset them to replay from the first letter"
            ) from None
        ledger.mark(0, reader.first[tp.partition])  # what retention has taken
        ledgers[tp.partition] = ledger
    return ledgers


async def _committed(
    config: Pipeline, group: str, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    consumer = OffsetsConsumer(**client_options(config.kafka), group_id=group, enable_auto_commit=False)
    backoff = Backoff(0.1, 1.0, random.Random())
    try:
        async with asyncio.timeout(DEADLINE):
            await consumer.start()
            while True:
                try:
                    return await consumer.all_committed(partitions)
                except KafkaError as error:
                    if not error.retriable:
                        raise
                    await asyncio.sleep(backoff.next())  # the coordinator has moved, or has never been asked before
    finally:
        await stop_client(consumer, _STOP_TIMEOUT)


def kept(topic: str, partition: int, ledger: Ledger) -> tuple[int, str]:
    """What is committed for a partition of the dead-letter topic: the position, and the text beside it.

    Raises:
        HeadraceError: the broker would not keep so long a text.
    """
    text = ledger.text
    if len(text) > MOST_CHARACTERS:
        raise HeadraceError(
            f"the letters left out of partition {partition} of {topic!r} lie too scattered among the others to be "
            "remembered; replay those too, with --to another topic if need be, and then these again"
        )
    return ledger.position, text


class ReplayWriter:
    """Writes events and, with them or at once after them, the ledgers."""

    def __init__(self, config: Pipeline, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer | None) -> None:
        self._topic = config.dead_letter.topic
        self._group = replay_group(config)
        self._producer = producer
        self._consumer = consumer

    async def write(self, rows: Mapping[tuple[str, int], Sequence[Row]], ledgers: Mapping[int, Ledger]) -> None:
        """All of it or, in a transaction, nothing.

        Args:
            rows: (topic, partition) -> events in order.
            ledgers: partition of the dead-letter topic -> what has been replayed of it once they are written.

        Raises:
            HeadraceError: a ledger has become too long to be kept; nothing is written.
            KafkaError, IllegalOperation, TimeoutError: it is not known whether it has been written; the ledgers in
                Kafka tell.
        """
        offsets = {TopicPartition(self._topic, n): kept(self._topic, n, ledger) for n, ledger in ledgers.items()}
        async with asyncio.timeout(DEADLINE):
            await self._write(rows, offsets)

    async def _write(
        self, rows: Mapping[tuple[str, int], Sequence[Row]], offsets: dict[TopicPartition, tuple[int, str]]
    ) -> None:
        if self._consumer is None:
            await self._producer.begin_transaction()
            try:
                await send_rows(self._producer, rows)
                await self._producer.send_offsets_to_transaction(offsets, self._group)
                await self._producer.commit_transaction()
            except BaseException:
                # Until it ends, an open transaction keeps what stands behind it from the pipeline's own reader.
                # The client has an assertion against it where there is none to end: it has been fenced, say.
                with contextlib.suppress(KafkaError, IllegalOperation, TimeoutError, AssertionError):
                    async with asyncio.timeout(_STOP_TIMEOUT):
                        await self._producer.abort_transaction()
                raise
        else:
            await send_rows(self._producer, rows)
            self._consumer.assign(list(offsets))  # or the client would not commit
            await self._consumer.commit(offsets)


@contextlib.asynccontextmanager
async def replay_writer(config: Pipeline, at_least_once: bool) -> AsyncIterator[ReplayWriter]:
    """A writer that is ready; whoever replayed under the same transactional id before is fenced.

    Args:
        config: of the pipeline.
        at_least_once: do without a transaction.

    Raises:
        KafkaError, TimeoutError: the brokers cannot be reached, or refuse.
    """
    options = client_options(config.kafka)
    sizes = {"max_batch_size": BATCH_BYTES}
    if at_least_once:
        producer = AIOKafkaProducer(
            **options, acks="all", enable_idempotence=True, max_request_size=64 * 2**20, **sizes
        )
        consumer = AIOKafkaConsumer(**options, group_id=replay_group(config), enable_auto_commit=False)
    else:
        producer = transactional_producer(config, transactional_id(config), _TRANSACTION_TIMEOUT, **sizes)
        consumer = None
    try:
        async with asyncio.timeout(DEADLINE):
            await producer.start()
            if consumer is not None:
                await consumer.start()
        yield ReplayWriter(config, producer, consumer)
    finally:
        for client in (producer, consumer):
            if client is not None:
                await stop_client(client, _STOP_TIMEOUT)


def transactional_id(config: Pipeline) -> str:
    """Of every replay of the pipeline, so that there is one at a time."""
    return f"{transactional_prefix(config)}dlq-replay"
