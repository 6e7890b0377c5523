"""What every `Source` and `Sink` must do: one suite for the fakes and for a real Kafka."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import pytest

from bridge.config import parse
from bridge.errors import PipelineStopped, first_cause
from bridge.kafka import Topic
from bridge.memory import FakeSink, FakeSource, MemoryBroker, MemoryRecord
from bridge.observe.telemetry import Telemetry
from bridge.offsets import PartitionEpoch
from bridge.record import Segment
from bridge.sink import Emission, Row, Sink, Write
from bridge.sink.kafka import KafkaSink
from bridge.sink.transactional import TransactionalSink
from bridge.source import Source
from bridge.source.kafka import KafkaSource
from tests.support import Broker, pipeline, until

PARTITIONS = 3


class World(Protocol):
    """One kind of broker with a fresh topic `events` and a fresh topic `results`."""

    def produce(self, records: list[tuple[int, bytes, bytes]]) -> None: ...
    def source(self, start: str = "earliest") -> Source: ...
    def sink(self) -> Sink: ...
    def results(self) -> list[Any]: ...

    def letters(self) -> list[Any]: ...

    events_topic: str
    results_topic: str
    letters_topic: str


class Memory:
    """In the process."""

    events_topic, results_topic, letters_topic = "events", "results", "letters"

    def __init__(self, delivery: str) -> None:
        self.broker = MemoryBroker({"events": PARTITIONS, "results": PARTITIONS, "letters": 1})
        self.group = "g" if delivery == "exactly_once" else None

    def produce(self, records: list[tuple[int, bytes, bytes]]) -> None:
        for partition, key, value in records:
            self.broker.append("events", partition, (key, value, 5, [("trace", b"t-" + key)]))

    def source(self, start: str = "earliest") -> Source:
        return FakeSource(self.broker, "g", ["events"], start)

    def sink(self) -> Sink:
        return FakeSink(self.broker, self.group)

    def results(self) -> list[Any]:
        return self.broker.records("results")

    def letters(self) -> list[Any]:
        return self.broker.records("letters")


class Real:
    """On a real Kafka."""

    def __init__(self, broker: Broker, delivery: str) -> None:
        self._broker = broker
        self._delivery = delivery
        self.topics = broker.topics(PARTITIONS)
        self.events_topic, self.results_topic = self.topics["events"], self.topics["results"]
        self.letters_topic = self.topics["letters"]

    def produce(self, records: list[tuple[int, bytes, bytes]]) -> None:
        self._broker.produce(self.topics["events"], records)

    def source(self, start: str = "earliest") -> Source:
        return KafkaSource(self._config(start), Telemetry("p"))

    def sink(self) -> Sink:
        counts = {self.results_topic: PARTITIONS, self.letters_topic: 1}
        topics = {name: Topic(name, count, 1_000_000) for name, count in counts.items()}
        kind = TransactionalSink if self._delivery == "exactly_once" else KafkaSink
        return kind(self._config("earliest"), topics, Telemetry("p"))

    def results(self) -> list[Any]:
        return self._broker.read(self.results_topic)

    def letters(self) -> list[Any]:
        return self._broker.read(self.letters_topic)

    def _config(self, start: str) -> Any:
        document = pipeline(self._broker.bootstrap, "none:1", "m", self.topics, delivery=self._delivery)
        document["source"]["start"] = start
        return parse(document, {})


@pytest.fixture(params=["memory", "kafka"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def delivery() -> str:
    return "at_least_once"


@pytest.fixture
def world(kind: str, delivery: str, request: pytest.FixtureRequest) -> World:
    return Memory(delivery) if kind == "memory" else Real(request.getfixturevalue("broker"), delivery)


both = pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
"""For what sinks must do in either mode."""


class Nobody:
    """An owner with nothing in flight."""

    async def claim(self, epoch: PartitionEpoch) -> None: ...
    async def drain(self, timeout: float) -> None: ...
    def released(self, epoch: PartitionEpoch) -> None: ...


def consuming(make: Callable[[], Source], body: Callable[[Source], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        source = make()
        async with asyncio.TaskGroup() as tasks:
            try:
                await source.start(tasks, Nobody())
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
        assert all(segment.epoch.alive for segment in segments)
        return segments

    segments = consuming(world.source, body)
    for partition in range(PARTITIONS):
        assert flat(segments, partition) == [(k, v) for p, k, v in numbered(60) if p == partition]
    for segment in segments:
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


@both
def test_a_start_that_was_chosen_is_kept(world: World) -> None:
    """What was delivered before anything was finished comes again, though it was not there when the start was chosen."""
    world.produce(numbered(9))

    async def body(source: Source) -> list[Segment]:
        async with asyncio.timeout(30):
            while not source.assigned:
                assert await source.poll(10, 0.1) == []
        await asyncio.to_thread(world.produce, [(1, b"new", b"new")])
        (segment,) = await take(source, 1)
        source.restart(segment.epoch, 0.0, "the test")
        return await take(source, 1)

    segments = consuming(partial(world.source, "latest"), body)
    assert [(r.key, r.value) for s in segments for r in s.records] == [(b"new", b"new")]
    segments = consuming(partial(world.source, "latest"), lambda source: take(source, 1))
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


def seen(read: Callable[[], list[Any]], records: int) -> list[Any]:
    """All that a reader sees, once there is so much: a transaction shows a moment after it is acknowledged."""
    until(lambda: len(read()) >= records, 30, f"{records} records")
    return read()


async def writing(world: World, body: Callable[[Sink, list[PartitionEpoch]], Awaitable[Any]]) -> Any:
    """A sink with three claimed partitions that have a thousand events each."""
    async with asyncio.TaskGroup() as tasks:
        sink = world.sink()
        await sink.start(tasks, lambda epoch, after, because: pytest.fail(f"{epoch} failed: {because}"))
        epochs = [_epoch(world.events_topic, number) for number in range(PARTITIONS)]
        for epoch in epochs:
            await sink.claim(epoch)
        try:
            return await body(sink, epochs)
        finally:
            await sink.stop(10)


def emission(
    epoch: PartitionEpoch, start: int, count: int, writes: list[Write], settled: Callable[[bool], None]
) -> Emission:
    records = [MemoryRecord(epoch.topic, epoch.partition, n, 0, None, b"x") for n in range(start, start + count)]
    return Emission(Segment(epoch, start, records), writes, lambda _, done: settled(done))


@both
def test_writes_keep_their_order_and_are_settled_once(world: World) -> None:
    settled: list[tuple[int, bool]] = []

    async def body(sink: Sink, epochs: list[PartitionEpoch]) -> None:
        places = [0] * PARTITIONS
        for number in range(200):
            partition = number % PARTITIONS
            rows: list[Row] = [(b"k", b"%d-%d" % (number, n), 1000 + n, [("h", b"x")]) for n in range(number % 4 + 1)]
            write = Write(world.results_topic, partition, rows)
            segment = (epochs[partition], places[partition], len(rows))
            sink.write(emission(*segment, [write], lambda done, n=number: settled.append((n, done))))  # type: ignore[misc]
            places[partition] += len(rows)
        async with asyncio.timeout(30):
            while len(settled) < 200:
                await asyncio.sleep(0.01)
        for epoch, place in zip(epochs, places, strict=True):
            assert epoch.position == place

    asyncio.run(writing(world, body))
    assert sorted(settled) == [(n, True) for n in range(200)]
    results = seen(world.results, sum(n % 4 + 1 for n in range(200)))
    for partition in range(PARTITIONS):
        written = [record.value for record in results if record.partition == partition]
        expected = [b"%d-%d" % (n, m) for n in range(200) if n % PARTITIONS == partition for m in range(n % 4 + 1)]
        assert written == expected
    record = results[0]
    assert (record.key, record.timestamp, list(record.headers)) == (b"k", 1000, [("h", b"x")])


@both
def test_what_is_written_for_several_topics_settles_together(world: World) -> None:
    async def body(sink: Sink, epochs: list[PartitionEpoch]) -> None:
        settled = asyncio.Event()
        writes = [
            Write(world.results_topic, 0, [(b"k", b"result", 1, [])]),
            Write(world.letters_topic, 0, [(b"k", b"letter", 1, [])]),
        ]
        sink.write(emission(epochs[0], 0, 2, writes, lambda done: settled.set() if done else None))
        async with asyncio.timeout(30):
            await settled.wait()

    asyncio.run(writing(world, body))
    assert [record.value for record in seen(world.results, 1)] == [b"result"]
    assert [record.value for record in seen(world.letters, 1)] == [b"letter"]


@both
def test_what_is_written_after_a_release_is_dropped(world: World) -> None:
    settled: list[bool] = []

    async def body(sink: Sink, epochs: list[PartitionEpoch]) -> None:
        epochs[0].alive = False
        sink.release(epochs[0])
        sink.write(emission(epochs[0], 0, 1, [Write(world.results_topic, 0, [(b"k", b"late", 1, [])])], settled.append))
        async with asyncio.timeout(30):
            while not settled:
                await asyncio.sleep(0.01)

    asyncio.run(writing(world, body))
    assert settled == [False]
    assert world.results() == []


@both
def test_a_stop_ends_in_time_and_what_is_written_before_is_there(world: World) -> None:
    begun = 0.0

    async def body(sink: Sink, epochs: list[PartitionEpoch]) -> None:
        nonlocal begun
        done = asyncio.Event()
        write = Write(world.results_topic, 0, [(None, b"x", 1, [])])
        sink.write(emission(epochs[0], 0, 1, [write], lambda _: done.set()))
        await done.wait()
        begun = time.monotonic()

    asyncio.run(writing(world, body))
    assert time.monotonic() - begun < 10
    assert [record.value for record in seen(world.results, 1)] == [b"x"]


def _epoch(topic: str, partition: int) -> PartitionEpoch:
    epoch = PartitionEpoch(topic, partition)
    epoch.start_at(0)
    epoch.deliver(list(range(1000)))
    return epoch
