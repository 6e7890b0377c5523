"""The demo's two ends of the stream: what sends the events, and what reads every outcome back."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bridge.config import Pipeline
from bridge.emitter import SOURCE_HEADER
from bridge.kafka import client_options
from bridge.letters import PREFIX
from headrace.demo.tally import Tally

_BURST_SECONDS = 0.02


async def send(
    pipeline: Pipeline,
    events: Sequence[dict[str, Any]],
    partitions: int,
    rate: float,
    tally: Tally,
    before: Callable[[int], Awaitable[None]],
) -> None:
    """Send `tally.events` events, cycling through `events`, at `rate` a second (0: as fast as it goes).

    Args:
        before: awaited before each burst, with the number of its first event.
    """
    topic = pipeline.source.topics[0]
    burst = max(1, round(rate * _BURST_SECONDS)) if rate else 500
    producer = AIOKafkaProducer(**client_options(pipeline.kafka), enable_idempotence=True, linger_ms=2)
    await producer.start()
    try:
        due = time.monotonic()
        waiting: list[tuple[int, Any]] = []
        for start in range(0, tally.events, burst):
            await before(start)
            due = max(due, time.monotonic() - 1.0)  # after a pause, no rush to make up for it
            for number in range(start, min(start + burst, tally.events)):
                value = orjson.dumps({"id": number, **events[number % len(events)]})
                stamp = int(time.time() * 1000)
                sending = await producer.send(
                    topic, value, key=str(number).encode(), partition=number % partitions, timestamp_ms=stamp
                )
                waiting.append((number, sending))
            if len(waiting) >= 2000 or rate:
                await _settle(waiting, tally)
            due += burst / rate if rate else 0
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await _settle(waiting, tally)
    finally:
        await producer.stop()


async def _settle(waiting: list[tuple[int, Any]], tally: Tally) -> None:
    for number, sending in waiting:
        written = await sending
        tally.note_sent(number, written.partition, written.offset)
    waiting.clear()


async def read_back(
    pipeline: Pipeline, partitions: int, output: str, tally: Tally, patience: float, sent_all: asyncio.Event
) -> None:
    """Read results and dead letters until every event has an outcome, and a moment longer, to see duplicates.

    Args:
        output: the result's field that holds the model's answer.
        patience: seconds without any outcome, once all is sent, after which the rest counts as lost.
    """
    results = [TopicPartition(pipeline.result.topic, number) for number in range(partitions)]
    letters = TopicPartition(pipeline.dead_letter.topic, 0)
    consumer = AIOKafkaConsumer(**client_options(pipeline.kafka), isolation_level="read_committed")
    await consumer.start()
    try:
        consumer.assign([*results, letters])
        for tp in (*results, letters):
            consumer.seek(tp, 0)
        last = time.monotonic()
        while True:
            polled = await consumer.getmany(timeout_ms=200, max_records=2000)
            now = time.time()
            for tp, records in polled.items():
                for record in records:
                    if tp == letters:
                        tally.note_dead_letter(record.key, dict(record.headers)[f"{PREFIX}reason"].decode())
                    else:
                        source = dict(record.headers)[SOURCE_HEADER].decode()
                        document = orjson.loads(record.value)
                        tally.note_result(
                            record.key, document, output, tp.partition, source, now - record.timestamp / 1000
                        )
            if polled:
                last = time.monotonic()
            quiet = time.monotonic() - last
            if sent_all.is_set() and ((tally.lost == 0 and quiet > 1.0) or quiet > patience):
                return
    finally:
        await consumer.stop()
