"""How a partition begins: claimed first, and only then asked where."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from bridge.config import parse
from bridge.observe.telemetry import Telemetry
from bridge.offsets import PartitionEpoch
from bridge.source import client
from bridge.source.client import GroupConsumer
from bridge.source.kafka import KafkaSource
from tests.support import pipeline

TP = TopicPartition("events-1", 0)
CONFIG = parse(
    pipeline("memory:1", "memory:2", "m", {"events": "events-1", "results": "results-1", "letters": "letters-1"}), {}
)


class Scripted:
    """A consumer and an owner that note what they are asked; the claim of an open transaction ends it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.offset: int | None = 5
        self.heard = 0.0

    async def claim(self, epoch: PartitionEpoch) -> None:
        self.asked.append("claim")
        self.offset = 9 if self.offset else None  # the transaction of the owner before took effect

    async def committed(self, tp: TopicPartition) -> int | None:
        self.asked.append("committed")
        return self.offset

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 3)

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        self.asked.append(("commit", offsets[TP]))

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.asked.append(("seek", offset))

    def released(self, epoch: PartitionEpoch) -> None:
        self.asked.append("released")


def begin(scripted: Scripted, revoking: bool = False, silent: float = 0.0) -> PartitionEpoch:
    async def run() -> PartitionEpoch:
        source = KafkaSource(CONFIG, Telemetry("p"))
        source._consumer._closed = True  # the real one has never been started
        source._consumer = source._owner = scripted
        scripted.heard = asyncio.get_running_loop().time() - silent
        source._revoking = revoking
        async with asyncio.TaskGroup() as tasks:
            source._tasks = tasks
            source._renew(TP, 0.0)
            if silent:
                await asyncio.sleep(0.1)
                assert scripted.asked == []
                scripted.heard = asyncio.get_running_loop().time()
        return source._epochs[TP]

    return asyncio.run(run())


def test_the_committed_offset_is_read_after_the_claim() -> None:
    scripted = Scripted()
    epoch = begin(scripted)
    assert scripted.asked == ["claim", "committed", ("seek", 9)]
    assert (epoch.ready, epoch.next_offset, epoch.committed) == (True, 9, 9)


def test_a_start_that_is_chosen_is_committed_before_anything_is_delivered() -> None:
    scripted = Scripted()
    scripted.offset = None
    begin(scripted)
    assert scripted.asked == ["claim", "committed", ("commit", 3), ("seek", 3)]


def test_nothing_begins_while_partitions_are_being_given_up() -> None:
    scripted = Scripted()
    assert not begin(scripted, revoking=True).ready
    assert ("seek", 9) not in scripted.asked


def test_a_member_that_does_not_hear_its_group_claims_nothing_until_it_does() -> None:
    scripted = Scripted()
    assert begin(scripted, silent=60.0).ready
    assert scripted.asked == ["claim", "committed", ("seek", 9)]


def test_fetches_from_one_broker_keep_a_distance_and_from_another_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PACE", 0.3)
    sent: list[tuple[int, float]] = []

    async def fetch(assignment: Any, node: int, request: Any) -> bool:
        sent.append((node, asyncio.get_running_loop().time()))
        return True

    async def run() -> None:
        consumer = GroupConsumer(CONFIG)
        consumer._closed = True  # it is never started
        consumer._fetcher = SimpleNamespace(_proc_fetch_request=fetch)
        consumer._pace_fetches()
        paced = consumer._fetcher._proc_fetch_request
        assert await paced(None, 1, None)
        await asyncio.gather(paced(None, 1, None), paced(None, 2, None))
        ended = asyncio.create_task(paced(None, 1, None))
        await asyncio.sleep(0)
        ended.cancel()
        assert await ended is False, "the client's close waits for it, and must not end there"

    asyncio.run(run())
    nodes, times = zip(*sent, strict=True)
    assert nodes == (1, 2, 1)
    assert times[2] - times[0] > 0.29
