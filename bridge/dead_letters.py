"""Reads dead letters back: what they hold, why they died and where they came from."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from bridge.config import Pipeline
from bridge.errors import HeadraceError
from bridge.kafka import client_options, describe_topics, stop_client
from bridge.letters import PREFIX


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter.

    Attributes:
        partition: of the dead-letter topic.
        offset: in that partition.
        key: of the event.
        value: of the event, untouched.
        why: the headrace- headers, without their prefix: reason, error, topic, partition, offset, ...
        headers: the event's own headers.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    why: dict[str, str]
    headers: list[tuple[str, bytes | None]]

    def as_json(self) -> dict[str, Any]:
        """For `--json`: bytes as text where they are text."""
        return {
            "partition": self.partition,
            "offset": self.offset,
            "key": None if self.key is None else self.key.decode(errors="backslashreplace"),
            "value": None if self.value is None else self.value.decode(errors="backslashreplace"),
            "why": self.why,
            "headers": {name: (value or b"").decode(errors="backslashreplace") for name, value in self.headers},
        }


async def read_dead_letters(config: Pipeline) -> AsyncIterator[DeadLetter]:
    """Every dead letter there is now, partition by partition, oldest first.

    Raises:
        HeadraceError: there is no such topic.
        KafkaError: the brokers cannot be reached.
    """
    async with _reader(config) as (consumer, assigned):
        last = await consumer.end_offsets(assigned)
        first = await consumer.beginning_offsets(assigned)
        left = {tp for tp in assigned if first[tp] < last[tp]}
        consumer.assign(sorted(left))
        for tp in left:
            consumer.seek(tp, first[tp])
        while left:
            for tp, records in (await consumer.getmany(timeout_ms=500)).items():
                for record in records:
                    if record.offset < last[tp]:
                        yield _letter(record)
            # The position also moves over transaction markers, which are no records.
            left = {tp for tp in left if await consumer.position(tp) < last[tp]}


async def read_dead_letter(config: Pipeline, partition: int, offset: int, timeout: float = 10.0) -> DeadLetter:
    """One dead letter by its place.

    Raises:
        HeadraceError: there is none there.
        KafkaError: the brokers cannot be reached.
    """
    async with _reader(config) as (consumer, assigned):
        tp = TopicPartition(config.dead_letter.topic, partition)
        if tp not in assigned:
            raise HeadraceError(f"{tp.topic!r} has no partition {partition}; it has {len(assigned)}")
        first, last = await consumer.beginning_offsets([tp]), await consumer.end_offsets([tp])
        if first[tp] <= offset < last[tp]:
            consumer.assign([tp])
            consumer.seek(tp, offset)
            until = time.monotonic() + timeout
            while time.monotonic() < until:
                for record in (await consumer.getmany(tp, timeout_ms=500, max_records=1)).get(tp, ()):
                    if record.offset == offset:
                        return _letter(record)
                    raise HeadraceError(f"{tp.topic}/{partition} has no record at offset {offset}")
        span = f"{first[tp]} to {last[tp] - 1}" if first[tp] < last[tp] else "none"
        raise HeadraceError(f"{tp.topic}/{partition} has no record at offset {offset}; offsets there: {span}")


@asynccontextmanager
async def _reader(config: Pipeline) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
    topic = config.dead_letter.topic
    found = (await describe_topics(config.kafka, [topic]))[topic]
    if found is None:
        raise HeadraceError(f"dead_letter.topic: there is no topic {topic!r}")
    consumer = AIOKafkaConsumer(
        **client_options(config.kafka), isolation_level="read_committed", enable_auto_commit=False
    )
    try:
        await consumer.start()
        yield consumer, [TopicPartition(topic, number) for number in range(found.partitions)]
    finally:
        await stop_client(consumer, 5.0)


def _letter(record: Any) -> DeadLetter:
    why = {name.removeprefix(PREFIX): (v or b"").decode() for name, v in record.headers if name.startswith(PREFIX)}
    own = [(name, value) for name, value in record.headers if not name.startswith(PREFIX)]
    return DeadLetter(record.partition, record.offset, record.key, record.value, why, own)
