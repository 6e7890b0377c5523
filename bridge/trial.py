"""`headrace try`: one event through everything that runs, and the outcome it gets."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from bridge.config import Pipeline
from bridge.emitter import SOURCE_HEADER
from bridge.errors import HeadraceError
from bridge.kafka import Topic, client_options, describe_topics, sentence
from bridge.letters import PREFIX

_TAIL = 10  # records of a partition that are looked at for its newest event

KEY = b"headrace-try"
"""Key of events that are tried, by which their outcomes are told from others."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of the event.

    Attributes:
        source: where it was written: topic/partition/offset.
        outcome: result or dead_letter.
        topic: of the outcome.
        value: the result; of a dead letter the event itself.
        why: of a dead letter: its reason and error.
        seconds: from writing it until its outcome was read.
    """

    source: str
    outcome: str
    topic: str
    value: str
    why: dict[str, str]
    seconds: float


async def try_event(config: Pipeline, value: bytes | None, timeout: float) -> Trial:
    """Write an event to the first source topic, and read until its outcome comes.

    Args:
        config: of the pipeline, which runs elsewhere.
        value: of the event; None takes the newest event of the topic again.
        timeout: seconds to wait for the outcome.

    Raises:
        HeadraceError: there is no event to take, Kafka refuses, or no outcome came in time.
    """
    try:
        return await _tried(config, value, timeout)
    except KafkaError as error:
        raise HeadraceError(sentence(error, config.kafka)) from error


async def _tried(config: Pipeline, value: bytes | None, timeout: float) -> Trial:
    names = [config.source.topics[0], config.result.topic, config.dead_letter.topic]
    topics = await describe_topics(config.kafka, names)
    missing = [name for name, topic in topics.items() if topic is None]
    if missing:
        raise HeadraceError(f"Kafka has no topic {', '.join(map(repr, missing))}")
    consumer = AIOKafkaConsumer(
        **client_options(config.kafka), isolation_level="read_committed", enable_auto_commit=False
    )
    producer = AIOKafkaProducer(**client_options(config.kafka), acks="all")
    await consumer.start()
    try:
        if value is None:
            value = await _last(consumer, names[0], topics[names[0]], timeout)
        outcomes = [TopicPartition(name, number) for name in names[1:] for number in _partitions(topics[name])]
        consumer.assign(outcomes)
        for place, end in (await consumer.end_offsets(outcomes)).items():
            consumer.seek(place, end)
        await producer.start()
        began = time.monotonic()
        written = await producer.send_and_wait(names[0], value, key=KEY)
        source = f"{written.topic}/{written.partition}/{written.offset}"
        try:
            async with asyncio.timeout(timeout):
                record, why = await _outcome(consumer, source)
        except TimeoutError:
            raise HeadraceError(
                f"no outcome of {source} after {timeout:g} s; does the bridge run, is it ready, and has it no lag?"
            ) from None
        return Trial(
            source=source,
            outcome="dead_letter" if why else "result",
            topic=record.topic,
            value=(record.value or b"").decode(errors="backslashreplace"),
            why=why,
            seconds=time.monotonic() - began,
        )
    finally:
        await producer.stop()
        await consumer.stop()


def _partitions(topic: Topic | None) -> range:
    return range(topic.partitions if topic else 0)


async def _last(consumer: AIOKafkaConsumer, name: str, topic: Topic | None, timeout: float) -> bytes:
    """The value of the newest event of a topic, by its timestamp."""
    places = [TopicPartition(name, number) for number in _partitions(topic)]
    begins, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    # Under transactions the last offset may be a marker: the few before it are looked at as well.
    first = {place: max(begins[place], ends[place] - _TAIL) for place in places if ends[place] > begins[place]}
    newest: Any = None
    if first:
        consumer.assign(list(first))
        for place, offset in first.items():
            consumer.seek(place, offset)
        until = time.monotonic() + timeout
        while time.monotonic() < until and any([await consumer.position(place) < ends[place] for place in first]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    if record.value is not None and (newest is None or record.timestamp >= newest.timestamp):
                        newest = record
    if newest is None:
        raise HeadraceError(f"topic {name!r} has no event to take again; give one with --event")
    return bytes(newest.value)


async def _outcome(consumer: AIOKafkaConsumer, source: str) -> tuple[Any, dict[str, str]]:
    """The record, and why there is no result when it is a dead letter."""
    async for record in consumer:
        headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
        if headers.get(SOURCE_HEADER) == source:
            return record, {}
        if "/".join(headers.get(PREFIX + part, "") for part in ("topic", "partition", "offset")) == source:
            return record, {"reason": headers[PREFIX + "reason"], "error": headers[PREFIX + "error"]}
    raise AssertionError("a consumer does not end by itself")
