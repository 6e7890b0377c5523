"""What every `Source` and `Sink` must do: one suite for the fakes and for a real Kafka."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import pytest

from bridge.config import parse
from bridge.errors import PipelineStopped, first_cause
from bridge.memory import FakeSink, FakeSource, MemoryBroker
from bridge.observe.telemetry import Telemetry
from bridge.receipt import Receipt
from bridge.record import Segment
from bridge.sink import Row, Sink
from bridge.sink.kafka import KafkaSink
from bridge.source import Source
from bridge.source.kafka import KafkaSource
from tests.support import Broker, pipeline

PARTITIONS = 3


class World(Protocol):
    """One kind of broker with a fresh topic `events` and a fresh topic `results`."""

    def produce(self, records: list[tuple[int, bytes, bytes]]) -> None: ...
    def source(self, start: str = "earliest") -> Source: ...
    def sink(self) -> Sink: ...
    def results(self) -> list[Any]: ...

    results_topic: str


class Memory:
    """In the process."""

    results_topic = "results"

    def __init__(self) -> None:
        self.broker = MemoryBroker({"events": PARTITIONS, "results": PARTITIONS})

    def produce(self, records: list[tuple[int, bytes, bytes]]) -> None:
        for partition, key, value in records:
            self.broker.append("events", partition, (key, value, 5, [("trace", b"t-" + key)]))

    def source(self, start: str = "earliest") -> Source:
        return FakeSource(self.broker, "g", ["events"], start)

    def sink(self) -> Sink:
        return FakeSink(self.broker)

    def results(self) -> list[Any]:
        return self.broker.records("results")


class Real:
    """On a real Kafka."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.topics = broker.topics(PARTITIONS)
        self.results_topic = self.topics["results"]

    def produce(self, records: list[tuple[int, bytes, bytes]]) -> None:
        self._broker.produce(self.topics["events"], records)

    def source(self, start: str = "earliest") -> Source:
        return KafkaSource(self._config(start), Telemetry("p"))

    def sink(self) -> Sink:
        return KafkaSink(self._config("earliest").kafka, {self.results_topic: 1_000_000}, Telemetry("p"))

    def results(self) -> list[Any]:
        return self._broker.read(self.results_topic)

    def _config(self, start: str) -> Any:
        document = pipeline(self._broker.bootstrap, "none:1", "m", self.topics)
        document["source"]["start"] = start
        return parse(document, {})


@pytest.fixture(params=["memory", "kafka"])
def world(request: pytest.FixtureRequest) -> World:
    return Memory() if request.param == "memory" else Real(request.getfixturevalue("broker"))


async def no_drain(_: float) -> None:
    """Nothing is in flight."""


def consuming(make: Callable[[], Source], body: Callable[[Source], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        source = make()
        async with asyncio.TaskGroup() as tasks:
            try:
                await source.start(tasks, no_drain)
                return await body(source)
            finally:
                await source.stop()

    try:
        return asyncio.run(run())
    except BaseExceptionGroup as group:
        raise first_cause(group) from None


async def take(source: Source, count: int) -> list[Segment]:
    """Segments with at least `count` records."""
    segments: list[Segment] = []
    async with asyncio.timeout(30):
        while sum(len(segment.records) for segment in segments) < count:
            segments += await source.poll(10, 0.2)
    return segments


def flat(segments: list[Segment], partition: int) -> list[tuple[bytes | None, bytes | None]]:
    return [(r.key, r.value) for s in segments for r in s.records if s.epoch.partition == partition]


def numbered(count: int) -> list[tuple[int, bytes, bytes]]:
    return [(n % PARTITIONS, b"k%d" % n, b"v%d" % n) for n in range(count)]


def test_everything_is_delivered_in_order_with_its_place(world: World) -> None:
    world.produce(numbered(60))

    async def body(source: Source) -> list[Segment]:
        segments = await take(source, 60)
        assert source.assigned
        return segments

    segments = consuming(world.source, body)
    for partition in range(PARTITIONS):
        assert flat(segments, partition) == [(k, v) for p, k, v in numbered(60) if p == partition]
    for segment in segments:
        assert segment.epoch.alive
        assert list(segment.records[0].headers) == [("trace", b"t-" + (segment.records[0].key or b""))]
        assert [r.offset for r in segment.records] == list(range(segment.start, segment.start + len(segment.records)))


def test_a_poll_brings_no_more_than_asked_for(world: World) -> None:
    world.produce(numbered(60))

    async def body(source: Source) -> None:
        async with asyncio.timeout(30):
            seen = 0
            while seen < 60:
                polled = await source.poll(7, 0.2)
                assert sum(len(segment.records) for segment in polled) <= 7
                seen += sum(len(segment.records) for segment in polled)

    consuming(world.source, body)


def test_the_next_member_goes_on_after_the_finished_prefix(world: World) -> None:
    world.produce(numbered(30))

    async def finish_some(source: Source) -> None:
        segments = await take(source, 30)
        for segment in segments:
            # Of partition 0 all is finished, of 1 all but the fifth, of 2 nothing.
            for place, record in enumerate(segment.records, segment.start):
                if segment.epoch.partition == 0 or (segment.epoch.partition == 1 and record.offset != 4):
                    segment.epoch.complete(place, place + 1)
        await source.commit(10)

    async def read_on(source: Source) -> list[Segment]:
        return await take(source, 6 + 10)

    consuming(world.source, finish_some)
    segments = consuming(world.source, read_on)
    assert [len(flat(segments, partition)) for partition in range(PARTITIONS)] == [0, 6, 10]
    assert flat(segments, 1)[0] == (b"k13", b"v13")


def test_a_dead_epoch_is_never_committed(world: World) -> None:
    world.produce(numbered(3))

    async def body(source: Source) -> None:
        for segment in await take(source, 3):
            segment.epoch.complete(segment.start, segment.start + len(segment.records))
            segment.epoch.alive = False
        await source.commit(10)

    consuming(world.source, body)
    segments = consuming(world.source, lambda source: take(source, 3))
    assert sum(len(segment.records) for segment in segments) == 3


def test_latest_begins_at_the_end(world: World) -> None:
    world.produce(numbered(9))

    async def body(source: Source) -> list[Segment]:
        async with asyncio.timeout(30):
            while not source.assigned:
                assert await source.poll(10, 0.1) == []
        await asyncio.to_thread(world.produce, [(1, b"new", b"new")])
        return await take(source, 1)

    segments = consuming(partial(world.source, "latest"), body)
    assert [(r.key, r.value) for s in segments for r in s.records] == [(b"new", b"new")]


def test_fail_refuses_to_choose(world: World) -> None:
    async def body(source: Source) -> None:
        async with asyncio.timeout(30):
            while True:
                await source.poll(10, 0.1)

    with pytest.raises(PipelineStopped, match="has no offset there"):
        consuming(partial(world.source, "fail"), body)


def test_the_lag_counts_what_is_not_finished(world: World) -> None:
    world.produce(numbered(30))

    async def body(source: Source) -> None:
        segments = await take(source, 30)
        assert sum(source.lag().values()) == 30
        for segment in segments:
            segment.epoch.complete(segment.start, segment.start + len(segment.records))
        assert sum(source.lag().values()) == 0

    consuming(world.source, body)


def test_writes_keep_their_order_and_are_acknowledged_once(world: World) -> None:
    settled: list[int] = []

    async def run() -> None:
        sink = world.sink()
        async with asyncio.TaskGroup() as tasks:
            await sink.start(tasks)
            for number in range(200):
                epoch = _epoch()
                receipt = Receipt(Segment(epoch, 0, [None]), lambda _, n=number: settled.append(n))  # type: ignore[list-item,misc]
                rows: list[Row] = [
                    (b"k", b"%d-%d" % (number, n), 1000 + n, [("h", b"x")]) for n in range(number % 4 + 1)
                ]
                await sink.write(world.results_topic, number % PARTITIONS, rows, receipt)
                receipt.release()
            async with asyncio.timeout(30):
                while len(settled) < 200:
                    await asyncio.sleep(0.01)
            await sink.stop(10)

    asyncio.run(run())
    assert sorted(settled) == list(range(200))
    for partition in range(PARTITIONS):
        written = [record.value for record in world.results() if record.partition == partition]
        expected = [b"%d-%d" % (n, m) for n in range(200) if n % PARTITIONS == partition for m in range(n % 4 + 1)]
        assert written == expected
    record = world.results()[0]
    assert (record.key, record.timestamp, list(record.headers)) == (b"k", 1000, [("h", b"x")])


def test_a_stop_ends_in_time_and_what_is_written_before_is_there(world: World) -> None:
    async def run() -> float:
        sink = world.sink()
        async with asyncio.TaskGroup() as tasks:
            await sink.start(tasks)
            done = asyncio.Event()
            receipt = Receipt(Segment(_epoch(), 0, [None]), lambda _: done.set())  # type: ignore[list-item]
            await sink.write(world.results_topic, 0, [(None, b"x", 1, [])], receipt)
            receipt.release()
            await done.wait()
            begun = time.monotonic()
            await sink.stop(10)
        return time.monotonic() - begun

    assert asyncio.run(run()) < 10
    assert [record.value for record in world.results()] == [b"x"]


def _epoch() -> Any:
    from bridge.offsets import PartitionEpoch

    epoch = PartitionEpoch("t", 0)
    epoch.start_at(0)
    epoch.deliver([0])
    return epoch
