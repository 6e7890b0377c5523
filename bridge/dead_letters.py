"""Reads dead letters back: what they hold, why they died and where they came from."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from bridge.config import Pipeline
from bridge.errors import HeadraceError
from bridge.kafka import client_options, describe_topics, stop_client
from bridge.letters import PREFIX, WRITTEN

_SILENCE = 90.0  # longer than an open transaction may keep what stands behind it from a reader


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter.

    Attributes:
        partition: of the dead-letter topic.
        offset: in that partition.
        key: of the event.
        value: of the event, untouched.
        why: what the pipeline wrote, without its prefix: reason, error, topic, partition, offset, ...
        headers: the event's own headers.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    why: dict[str, str]
    headers: list[tuple[str, bytes | None]]

    @property
    def timestamp(self) -> int:
        """Of the event, milliseconds since 1970; -1 when it is not known."""
        return _number(self.why.get("timestamp"))

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


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are meant; None leaves a thing open.

    Attributes:
        pipeline: the pipeline that wrote it; several may share a dead-letter topic.
        reason: why it died.
        since: earliest timestamp of the event, milliseconds since 1970.
        until: and the first that is too late.
        model_version: the version that was asked; empty: none was.
        partition: of the event's topic.
        key: of the event.
    """

    pipeline: str | None = None
    reason: str | None = None
    since: int | None = None
    until: int | None = None
    model_version: str | None = None
    partition: int | None = None
    key: bytes | None = None

    def __contains__(self, letter: DeadLetter) -> bool:
        """Whether it is."""
        wanted = {
            "pipeline": self.pipeline,
            "reason": self.reason,
            "model-version": self.model_version,
            "partition": None if self.partition is None else str(self.partition),
        }
        return (
            all(value is None or letter.why.get(name) == value for name, value in wanted.items())
            and (self.key is None or letter.key == self.key)
            and (self.since is None or letter.timestamp >= self.since)
            and (self.until is None or letter.timestamp < self.until)
        )


class LetterReader:
    """The dead letters that there are at one moment.

    Attributes:
        first: partition of the dead-letter topic -> the first offset there is.
        last: partition -> one past the last.
    """

    def __init__(self, consumer: AIOKafkaConsumer, topic: str, first: dict[int, int], last: dict[int, int]) -> None:
        self._consumer = consumer
        self._topic = topic
        self.first = first
        self.last = last

    async def read(self, start: Mapping[int, int] | None = None) -> AsyncIterator[DeadLetter]:
        """Every dead letter, those of one partition in order.

        Args:
            start: partition -> the offset to begin at; the first one where it is not given.

        Raises:
            HeadraceError: a partition does not answer.
            KafkaError: the brokers cannot be reached.
        """
        consumer = self._consumer
        begin = {n: max(first, (start or {}).get(n, first)) for n, first in self.first.items()}
        left = {TopicPartition(self._topic, n) for n, offset in begin.items() if offset < self.last[n]}
        consumer.assign(sorted(left))
        for tp in left:
            consumer.seek(tp, begin[tp.partition])
        heard = time.monotonic()
        while left:
            polled = await consumer.getmany(timeout_ms=500, max_records=1000)
            if polled:
                heard = time.monotonic()
            elif time.monotonic() - heard > _SILENCE:
                silent = ", ".join(f"{tp.topic}/{tp.partition}" for tp in sorted(left))
                raise HeadraceError(f"nothing has come of {silent} for {_SILENCE:.0f} s; has it a leader?")
            for tp, records in polled.items():
                for record in records:
                    if record.offset < self.last[tp.partition]:
                        yield _letter(record)
            # The position also moves over transaction markers, which are no records.
            left = {tp for tp in left if await consumer.position(tp) < self.last[tp.partition]}

    async def at(self, partition: int, offset: int, timeout: float = 10.0) -> DeadLetter:
        """One dead letter by its place.

        Raises:
            HeadraceError: there is none there.
            KafkaError: the brokers cannot be reached.
        """
        if partition not in self.first:
            raise HeadraceError(f"{self._topic!r} has no partition {partition}; it has {len(self.first)}")
        tp, first, last = TopicPartition(self._topic, partition), self.first[partition], self.last[partition]
        if first <= offset < last:
            self._consumer.assign([tp])
            self._consumer.seek(tp, offset)
            until = time.monotonic() + timeout
            while time.monotonic() < until:
                for record in (await self._consumer.getmany(tp, timeout_ms=500, max_records=1)).get(tp, ()):
                    if record.offset == offset:
                        return _letter(record)
                    raise HeadraceError(f"{tp.topic}/{partition} has no record at offset {offset}")
        span = f"{first} to {last - 1}" if first < last else "none"
        raise HeadraceError(f"{tp.topic}/{partition} has no record at offset {offset}; offsets there: {span}")


@asynccontextmanager
async def letter_reader(config: Pipeline) -> AsyncIterator[LetterReader]:
    """Reads the dead letters of a pipeline, without a group.

    Raises:
        HeadraceError: there is no such topic.
        KafkaError: the brokers cannot be reached.
    """
    topic = config.dead_letter.topic
    found = (await describe_topics(config.kafka, [topic]))[topic]
    if found is None:
        raise HeadraceError(f"dead_letter.topic: there is no topic {topic!r}")
    consumer = AIOKafkaConsumer(
        **client_options(config.kafka),
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",  # where retention overtakes the reading
    )
    try:
        await consumer.start()
        partitions = [TopicPartition(topic, number) for number in range(found.partitions)]
        first, last = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        yield LetterReader(
            consumer,
            topic,
            {tp.partition: offset for tp, offset in first.items()},
            {tp.partition: offset for tp, offset in last.items()},
        )
    finally:
        await stop_client(consumer, 5.0)


def _letter(record: Any) -> DeadLetter:
    why = {name.removeprefix(PREFIX): (v or b"").decode() for name, v in record.headers if name in WRITTEN}
    own = [(name, value) for name, value in record.headers if name not in WRITTEN]
    return DeadLetter(record.partition, record.offset, record.key, record.value, why, own)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.lstrip("-").isdigit() else -1
