"""The small state machines that guard the flow: lanes, the breaker, the circuit and the watchdog."""

import asyncio
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import IllegalOperation, ProducerFenced
from aiokafka.producer.message_accumulator import BatchBuilder

from bridge.breaker import WINDOW, PoisonBreaker
from bridge.config import parse
from bridge.errors import PipelineStopped
from bridge.infer.circuit import BUDGET, Circuit
from bridge.lane import Lane
from bridge.memory import MemoryRecord
from bridge.observe.telemetry import Telemetry
from bridge.offsets import PartitionEpoch
from bridge.record import Outcome, Reject, Segment
from bridge.retry import Backoff
from bridge.sink import Emission, Write
from bridge.sink.transactional import TransactionalSink, _Transactions
from bridge.source.watchdog import ANSWER_SECONDS, JOIN_SECONDS, Watchdog
from tests.support import pipeline

NOTHING = Outcome([], None, [])


def segment(epoch: PartitionEpoch, start: int, count: int = 2) -> Segment:
    records = [MemoryRecord("t", 0, n, 0, None, b"12345") for n in range(start, start + count)]
    return Segment(epoch, start, records, 5 * count)


def test_a_lane_lets_out_in_order_and_only_once() -> None:
    epoch = PartitionEpoch("t", 0)
    lane = Lane(epoch, 100, 1000)
    parts = [segment(epoch, 2 * n) for n in range(4)]
    for part in parts:
        lane.reserve(part)
    assert lane.complete(parts[2], NOTHING) == []
    assert lane.complete(parts[1], NOTHING) == []
    assert [item[0].start for item in lane.complete(parts[0], NOTHING)] == [0, 2, 4]
    with pytest.raises(KeyError, match="the segment at 2 is not under way"):
        lane.complete(parts[1], NOTHING)
    assert [item[0].start for item in lane.complete(parts[3], NOTHING)] == [6]


@pytest.mark.parametrize(("events", "size"), [(4, 10_000), (10_000, 20)])
def test_a_full_lane_pauses_its_partition_until_something_is_settled(events: int, size: int) -> None:
    epoch = PartitionEpoch("t", 0)
    lane = Lane(epoch, events, size)
    lane.admit(2, 10)
    assert not epoch.paused
    lane.admit(2, 10)
    assert epoch.paused
    lane.settle(segment(epoch, 0))
    assert not epoch.paused


def reject(row: int, reason: str = "mapping") -> Reject:
    return Reject(row, reason, "field 'x' is missing")


def test_the_breaker_trips_when_most_of_the_last_events_are_dead() -> None:
    breaker = PoisonBreaker(0.5)
    for _ in range(10):
        breaker.count(100, [reject(n) for n in range(50)])
    with pytest.raises(
        PipelineStopped, match="of the last 1000 events would be dead letters.* because field .x. is missing"
    ):
        breaker.count(100, [reject(n) for n in range(60)])


def test_the_breaker_waits_for_a_window_and_forgives_old_trouble() -> None:
    breaker = PoisonBreaker(0.5)
    breaker.count(WINDOW - 1, [reject(n) for n in range(WINDOW - 1)])
    breaker = PoisonBreaker(0.5)
    breaker.count(400, [reject(n) for n in range(400)])
    for _ in range(20):
        breaker.count(100, [])
    breaker.count(400, [reject(n) for n in range(400)])


def test_late_events_and_a_share_of_one_never_trip_the_breaker() -> None:
    PoisonBreaker(0.5).count(2000, [reject(n, "expired") for n in range(2000)])
    PoisonBreaker(1.0).count(2000, [reject(n) for n in range(2000)])


def test_the_circuit_opens_when_the_budget_is_spent_and_probes_one_at_a_time(virtual_time: asyncio.Runner) -> None:
    circuit = Circuit(Backoff(1.0, 8.0, random.Random(1)))
    for _ in range(int(BUDGET)):
        assert not circuit.open
        circuit.failed()
    assert circuit.open
    inside: list[int] = []
    most: list[int] = []

    async def ask(number: int) -> None:
        async with circuit.turn():
            inside.append(number)
            most.append(len(inside))
            await asyncio.sleep(0.1)
            inside.remove(number)
            circuit.failed() if number < 3 else circuit.answered()

    async def run() -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.gather(*(ask(number) for number in range(6)))
        return loop.time() - begun

    seconds = virtual_time.run(run())
    assert max(most) == 1
    assert seconds > 0.5 + 1 + 2 + 4  # growing pauses before the first four
    assert not circuit.open


def test_answers_earn_back_what_failures_cost() -> None:
    circuit = Circuit(Backoff(1.0, 8.0, random.Random(1)))
    for _ in range(100):
        circuit.failed()
        circuit.answered()
        circuit.answered()
    assert not circuit.open


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_watchdog_tells_a_silent_partition_from_one_that_is_idle() -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    for tick in range(60):
        clock.now += 2
        assert watchdog.look(None, True, {"idle": tick, "other": tick}) is None
    found = []
    for tick in range(60, 120):
        clock.now += 2
        found.append(watchdog.look(None, True, {"idle": tick, "silent": 7}))
    first = next(place for place, text in enumerate(found) if text)
    assert ANSWER_SECONDS / 2 <= first <= ANSWER_SECONDS / 2 + 1
    assert "no sign of silent" in str(found[first])


def test_the_watchdog_forgets_a_partition_that_is_not_asked_for() -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    for tick in range(100):
        clock.now += 2
        assert watchdog.look(None, True, {"p": 1} if tick % 10 else {}) is None


def test_the_watchdog_sees_ended_tasks_and_a_member_that_stays_outside() -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    assert watchdog.look("task of fetching", True, {}) == "its task of fetching has ended"
    assert watchdog.look(None, False, {}) is None
    clock.now += JOIN_SECONDS + 1
    assert "outside its group for 181 s" in str(watchdog.look(None, False, {}))
    assert watchdog.look(None, True, {}) is None


@pytest.mark.parametrize(("generations", "stops"), [((1, 1, 1), True), ((1, 2, 2), False), ((1, 2, 3), False)])
def test_a_producer_that_is_fenced_again_stops_only_while_the_group_leaves_it_the_partition(
    virtual_time: asyncio.Runner, generations: tuple[int, ...], stops: bool
) -> None:
    topics = {role: f"{role}-1" for role in ("events", "results", "letters")}
    config = parse(pipeline("memory:1", "memory:2", "m", topics, delivery="exactly_once"), {})

    async def run() -> list[float]:
        pauses: list[float] = []
        sink = TransactionalSink(config, {}, Telemetry("p"))
        await sink.start(asyncio.TaskGroup(), lambda epoch, after, because: pauses.append(after))
        for generation in generations:
            lane = SimpleNamespace(epoch=PartitionEpoch("t", 0, generation), limits={})
            await sink.failed(lane, "results-1", 0, ProducerFenced())
            await asyncio.sleep(7)
        return pauses

    if stops:
        with pytest.raises(PipelineStopped, match="has fenced this one 3 times in 14 s"):
            virtual_time.run(run())
    else:
        assert len(virtual_time.run(run())) == 3


class Producer:
    """A transactional producer that notes what it is asked; a test has it do something on the way.

    Args:
        on_send: called for each batch.
        on_offsets: called when the offsets are sent.
    """

    def __init__(
        self, on_send: Callable[[], None] = lambda: None, on_offsets: Callable[[], None] = lambda: None
    ) -> None:
        self.asked: list[str] = []
        self._on_send = on_send
        self._on_offsets = on_offsets

    async def begin_transaction(self) -> None:
        self.asked.append("begin")

    def create_batch(self) -> Any:
        return BatchBuilder(2**20, 0)

    async def send_batch(self, *_: Any, **__: Any) -> asyncio.Future[None]:
        self._on_send()
        sent = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent

    async def send_offsets_to_transaction(self, *_: Any) -> None:
        self.asked.append("offsets")
        self._on_offsets()

    async def commit_transaction(self) -> None:
        self.asked.append("commit")

    async def stop(self) -> None: ...


def transact(runner: asyncio.Runner, epoch: PartitionEpoch, producer: Producer) -> tuple[list[str], list[bool]]:
    """One transaction; why the partition begins again, and how its emission was settled."""
    topics = {role: f"{role}-1" for role in ("events", "results", "letters")}
    config = parse(pipeline("memory:1", "memory:2", "m", topics, delivery="exactly_once"), {})
    said: list[str] = []
    settled: list[bool] = []

    async def run() -> None:
        sink = TransactionalSink(config, {}, Telemetry("p"))
        await sink.start(asyncio.TaskGroup(), lambda epoch, after, because: said.append(because))
        epoch.start_at(0)
        epoch.deliver([0, 1])
        lane = _Transactions(sink, epoch, producer, config, {})
        write = Write("results-1", 0, [(None, b"v", 0, [])])
        lane.add(Emission(segment(epoch, 0), [write], lambda _, done: settled.append(done)))
        async with asyncio.TaskGroup() as tasks:
            lane.task = tasks.create_task(lane.run())
            await asyncio.sleep(5)
            await lane.close()

    runner.run(run())
    return said, settled


def test_a_transaction_sends_then_takes_the_offset_then_commits(virtual_time: asyncio.Runner) -> None:
    producer = Producer()
    assert transact(virtual_time, PartitionEpoch("t", 0), producer) == ([], [True])
    assert producer.asked == ["begin", "offsets", "commit"]


def test_a_transaction_that_ends_by_itself_begins_its_partition_again(virtual_time: asyncio.Runner) -> None:
    def ended() -> None:
        raise IllegalOperation("Can't send messages while not in transaction")

    (said,), settled = transact(virtual_time, PartitionEpoch("t", 0), Producer(on_send=ended))
    assert ("not in transaction" in said, settled) == (True, [False])


def test_a_partition_that_is_taken_away_meanwhile_is_not_committed(virtual_time: asyncio.Runner) -> None:
    epoch = PartitionEpoch("t", 0)
    producer = Producer(on_offsets=lambda: setattr(epoch, "alive", False))
    (said,), settled = transact(virtual_time, epoch, producer)
    assert ("has taken over" in said, settled) == (True, [False])
    assert producer.asked == ["begin", "offsets"]
