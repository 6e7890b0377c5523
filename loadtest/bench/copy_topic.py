"""The copy limit: the same client consuming a topic and producing its records unchanged. No bridge can be faster.

python -m loadtest.bench.copy_topic BOOTSTRAP SOURCE TARGET GROUP; prints `ready` and runs until it is terminated.
"""

import asyncio
import signal
import sys
from typing import Any

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

BATCH_BYTES = 512 * 1024


async def copy(bootstrap: str, source: str, target: str, group: str) -> None:
    """Copy until SIGTERM, each partition to the partition of its number; commits ten times a second."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    consumer = AIOKafkaConsumer(
        source,
        bootstrap_servers=bootstrap,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=250,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, max_batch_size=BATCH_BYTES
    )
    await consumer.start()
    await producer.start()
    print("ready", flush=True)
    on_its_way: dict[TopicPartition, asyncio.Future[object]] = {}
    done: dict[TopicPartition, int] = {}
    committed = asyncio.get_running_loop().time()
    while not stop.is_set():
        polled = await consumer.getmany(timeout_ms=200, max_records=2000)
        for tp, records in polled.items():
            builder = producer.create_batch()
            for record in records:
                if append(builder, record) is None:
                    builder = await _send(producer, builder, target, tp, on_its_way)
                    append(builder, record)
            await _send(producer, builder, target, tp, on_its_way)
            done[tp] = records[-1].offset + 1
        now = asyncio.get_running_loop().time()
        if done and now - committed > 0.1:
            await asyncio.gather(*on_its_way.values())
            await consumer.commit(done)
            done, committed = {}, now
    await consumer.stop()
    await producer.stop()


def append(builder: Any, record: Any) -> Any:
    """One record into the batch; None when it is full."""
    return builder.append(timestamp=record.timestamp, key=record.key, value=record.value, headers=[*record.headers])


async def _send(
    producer: AIOKafkaProducer,
    builder: Any,
    target: str,
    tp: TopicPartition,
    on_its_way: dict[TopicPartition, asyncio.Future[object]],
) -> Any:
    if tp in on_its_way:
        await on_its_way[tp]
    on_its_way[tp] = await producer.send_batch(builder, target, partition=tp.partition)
    return producer.create_batch()


if __name__ == "__main__":
    uvloop.run(copy(*sys.argv[1:5]))
