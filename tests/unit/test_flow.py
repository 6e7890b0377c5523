"""The flow over fakes, in virtual time: order, dead letters, outages, drains and rebalances."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bridge.config import Pipeline, parse
from bridge.emitter import Emitter
from bridge.errors import PipelineStopped
from bridge.flow import Flow
from bridge.infer import Disposition, InferenceError
from bridge.infer.fake import FakeServer
from bridge.infer.predictor import Predictor
from bridge.kafka import Topic
from bridge.memory import FakeSink, FakeSource, MemoryBroker, MemoryRecord
from bridge.observe.health import Health
from bridge.observe.telemetry import Telemetry
from bridge.offsets import PartitionEpoch
from bridge.plan import Plan
from bridge.record import Outcome, Segment
from bridge.tensors import ModelSpec, TensorSpec

MODEL = ModelSpec("m", ["1"], [TensorSpec("x", "FP64", ())], [TensorSpec("y", "FP64", ())], None)
PARTITIONS = 3


def poison(arrays: Any) -> Any:
    """Doubles; refuses a batch with a negative number, as a model does that checks its input."""
    if (arrays["x"] < 0).any():
        raise InferenceError(Disposition.DATA, "INVALID_ARGUMENT", "negative")
    return {"y": arrays["x"] * 2}


@dataclass
class World:
    """Everything around one flow."""

    config: Pipeline
    broker: MemoryBroker
    source: FakeSource
    sink: FakeSink
    server: FakeServer
    telemetry: Telemetry
    health: Health
    flow: Flow

    def events(self, values: list[Any], partition: int = 0) -> None:
        for value in values:
            payload = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
            number = len(self.broker.log["events"][partition])
            key = f"{partition}-{number}".encode()
            self.broker.append("events", partition, (key, payload, 1000 + number, [("h", b"1")]))

    def results(self) -> list[tuple[bytes | None, Any]]:
        return [(record.key, json.loads(record.value or b"")["y"]) for record in self.broker.records("results")]

    def letters(self) -> list[tuple[bytes | None, str]]:
        return [(r.key, (dict(r.headers)["headrace-reason"] or b"").decode()) for r in self.broker.records("letters")]

    def committed(self) -> list[int]:
        return [self.broker.committed.get(("p", "events", n), 0) for n in range(PARTITIONS)]

    def metric(self, name: str, **labels: str) -> float:
        return self.telemetry.registry.get_sample_value(name, {"pipeline": "p", **labels}) or 0.0


def world(limits: dict[str, int] | None = None, **sections: Any) -> World:
    document: dict[str, Any] = {
        "name": "p",
        "kafka": {"bootstrap_servers": "memory:1"},
        "source": {"topics": ["events"]},
        "model": {"name": "m"},
        "batch": {"max_events": 8, "in_flight": 2},
        "result": {"topic": "results", "alert": {"when": "y >= 10", "topic": "alerts"}},
        "dead_letter": {"topic": "letters"},
    }
    for key, value in sections.items():
        document[key] = document[key] | value if isinstance(document.get(key), dict) else value
    config = parse(document, {})
    partitions = {"events": PARTITIONS, "results": PARTITIONS, "alerts": PARTITIONS, "letters": 1}
    broker = MemoryBroker(partitions)
    sink_group = "p" if config.delivery == "exactly_once" else None
    source, sink, server = FakeSource(broker, "p", ["events"]), FakeSink(broker, sink_group), FakeServer(MODEL, poison)
    telemetry, health = Telemetry("p"), Health()
    plan = Plan.compile(config, MODEL)
    predictor = Predictor(server, MODEL, plan.outputs, telemetry, health, random.Random(1))
    sizes = dict.fromkeys(partitions, 1_000_000) | (limits or {})
    topics = {name: Topic(name, count, sizes[name]) for name, count in partitions.items()}
    flow = Flow(config, plan, source, predictor, sink, topics, telemetry, health, clock=lambda: 2000.0)
    return World(config, broker, source, sink, server, telemetry, health, flow)


async def flowing(w: World, body: Callable[[], Awaitable[None]]) -> None:
    """Run the flow, do `body`, stop it, and wait for the drained end."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(w.flow.run(stop))
        await body()
        stop.set()
        await running


def slowly(w: World, seconds: Callable[[], float]) -> None:
    """Have the model take its time."""
    ask = w.server.infer

    async def late(*args: Any) -> Any:
        await asyncio.sleep(seconds())
        return await ask(*args)

    w.server.infer = late  # type: ignore[method-assign]


async def until(true: Callable[[], bool], seconds: float = 600) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def test_every_event_gets_its_result_in_order(virtual_time: asyncio.Runner) -> None:
    w = world()
    for partition in range(PARTITIONS):
        w.events([{"x": n} for n in range(50)], partition)

    async def body() -> None:
        await until(lambda: len(w.broker.records("results")) == 150)

    virtual_time.run(flowing(w, body))
    assert w.results() == [(f"{p}-{n}".encode(), 2.0 * n) for p in range(PARTITIONS) for n in range(50)]
    record = w.broker.log["results"][1][7]
    assert (record.timestamp, record.headers) == (1007, (("h", b"1"), ("headrace-source", b"events/1/7")))
    assert w.committed() == [50, 50, 50]
    assert len(w.broker.records("alerts")) == 3 * 45
    assert w.broker.records("alerts")[0].value == w.broker.log["results"][0][5].value
    assert w.metric("headrace_records_total", stage="sink", outcome="result") == 150
    assert w.metric("headrace_end_to_end_seconds_count") == 150


def test_bad_events_become_dead_letters_and_harm_nobody(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.events([{"x": 1}, b"no json", {"x": "2"}, None, {"x": 3}, b"[1", b"2]", {}])

    async def body() -> None:
        await until(lambda: w.committed()[0] == 8)

    virtual_time.run(flowing(w, body))
    assert w.results() == [(b"0-0", 2.0), (b"0-4", 6.0)]
    assert w.letters() == [
        (b"0-1", "decode"), (b"0-2", "mapping"), (b"0-3", "decode"), (b"0-5", "decode"), (b"0-6", "decode"),
        (b"0-7", "mapping"),
    ]  # fmt: skip
    letter = w.broker.records("letters")[1]
    headers = {name: (value or b"").decode() for name, value in letter.headers}
    assert letter.value == b'{"x": "2"}'
    assert headers == {
        "h": "1",
        "headrace-reason": "mapping",
        "headrace-error": "field 'x' is a string, but tensor 'x' (FP64) needs a number",
        "headrace-topic": "events",
        "headrace-partition": "0",
        "headrace-offset": "2",
        "headrace-timestamp": "1002",
        "headrace-model": "m",
        "headrace-model-version": "",
        "headrace-attempts": "0",
        "headrace-pipeline": "p",
    }
    assert w.metric("headrace_dead_letters_total", reason="decode") == 4


@pytest.mark.parametrize("place", range(8))
def test_one_refused_event_is_found_with_few_calls(virtual_time: asyncio.Runner, place: int) -> None:
    w = world()
    w.events([{"x": -1 if n == place else n} for n in range(8)])

    async def body() -> None:
        await until(lambda: w.committed()[0] == 8)

    virtual_time.run(flowing(w, body))
    assert w.results() == [(f"0-{n}".encode(), 2.0 * n) for n in range(8) if n != place]
    assert w.letters() == [(f"0-{place}".encode(), "model")]
    assert len(w.server.calls) <= 1 + 2 * 3


def test_a_changed_signature_stops_the_flow_instead_of_blaming_events(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.server.model = ModelSpec("m", ["2"], [TensorSpec("z", "FP64", ())], MODEL.outputs, None)
    w.events([{"x": -1}, {"x": 1}])
    with pytest.raises(PipelineStopped, match="changed its signature from x FP64"):
        virtual_time.run(w.flow.run(asyncio.Event()))
    assert w.letters() == []
    assert w.committed()[0] == 0


def test_an_outage_pauses_the_intake_and_costs_no_event(virtual_time: asyncio.Runner) -> None:
    w = world(batch={"max_events": 4, "in_flight": 2})
    w.server.available = False
    w.health.model_missing = ""

    async def body() -> None:
        for partition in range(PARTITIONS):
            w.events([{"x": n} for n in range(100)], partition)
        await asyncio.sleep(120)
        assert w.broker.records("results") == []
        assert w.letters() == []
        assert w.health.model_missing
        # Bounded: what is in flight, the queue, and one poll.
        assert w.metric("headrace_records_total", stage="source", outcome="consumed") <= 4 * 2 + 4 * 3 + 8
        assert w.metric("headrace_paused_partitions") == PARTITIONS
        assert len(w.server.calls) < 120
        assert w.metric("headrace_queue_records", stage="intake") >= 4 * 3
        w.server.available = True
        await until(lambda: len(w.broker.records("results")) == 300, 30)

    virtual_time.run(flowing(w, body))
    assert w.committed() == [100, 100, 100]
    assert not w.health.model_missing
    assert w.metric("headrace_retries_total", cause="model") > 10


def test_an_outage_takes_no_more_events_in(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.server.available = False
    w.events([{"x": 1}])

    async def body() -> None:
        await asyncio.sleep(120)
        w.events([{"x": n} for n in range(5)])
        await asyncio.sleep(10)
        assert w.metric("headrace_records_total", stage="source", outcome="consumed") == 1
        assert w.metric("headrace_paused_partitions") == PARTITIONS
        w.server.available = True
        await until(lambda: len(w.results()) == 6)

    virtual_time.run(flowing(w, body))


def test_an_outcome_that_lacks_an_event_is_never_matched_by_guess() -> None:
    w = world()
    epoch = PartitionEpoch("events", 0)
    records = [MemoryRecord("events", 0, n, 0, None, b"{}") for n in range(2)]
    emitter = Emitter(w.config, w.sink, {}, w.telemetry, lambda: None, lambda _: None)
    with pytest.raises(ValueError, match="zip"):
        emitter.emit(Segment(epoch, 0, records), Outcome([b"one"], None, []))


def test_answers_out_of_order_leave_in_order(virtual_time: asyncio.Runner) -> None:
    w = world(batch={"max_events": 2, "in_flight": 4})
    w.events([{"x": n} for n in range(40)])
    slowly(w, random.Random(3).random)

    async def body() -> None:
        await until(lambda: len(w.broker.records("results")) == 40)

    virtual_time.run(flowing(w, body))
    assert w.results() == [(f"0-{n}".encode(), 2.0 * n) for n in range(40)]


def test_nothing_is_committed_before_it_is_acknowledged(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.sink.open.clear()
    w.events([{"x": n} for n in range(20)])

    async def body() -> None:
        await asyncio.sleep(60)
        assert w.committed()[0] == 0
        w.sink.resume()
        await until(lambda: w.committed()[0] == 20)

    virtual_time.run(flowing(w, body))


def test_a_stop_finishes_what_is_in_flight_and_commits_it(virtual_time: asyncio.Runner) -> None:
    w = world(batch={"max_events": 4, "in_flight": 2})
    w.events([{"x": n} for n in range(100)])
    w.server.gate.clear()

    async def body() -> None:
        await until(lambda: len(w.server.calls) == 2)
        asyncio.get_running_loop().call_later(5, w.server.gate.set)

    virtual_time.run(flowing(w, body))
    assert len(w.results()) == 8
    assert w.committed()[0] == 8
    assert w.metric("headrace_in_flight_batches") == 0


def test_a_stop_during_an_outage_ends_within_the_drain_timeout(virtual_time: asyncio.Runner) -> None:
    w = world(drain_timeout="7s")
    w.server.available = False
    w.events([{"x": 1}])

    async def run() -> float:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        task = asyncio.ensure_future(w.flow.run(stop))
        await until(lambda: len(w.server.calls) > 0)
        stop.set()
        begun = loop.time()
        await task
        return loop.time() - begun

    assert virtual_time.run(run()) < 10
    assert w.committed()[0] == 0


def test_a_rebalance_drains_commits_and_goes_on_without_duplicates(virtual_time: asyncio.Runner) -> None:
    w = world(batch={"max_events": 4, "in_flight": 2})
    w.events([{"x": n} for n in range(60)])
    slowly(w, lambda: 1.0)

    async def body() -> None:
        for _ in range(5):
            await until(lambda: len(w.server.calls) > 0)
            w.server.calls.clear()
            await w.source.rebalance()
        await until(lambda: w.committed()[0] == 60)

    virtual_time.run(flowing(w, body))
    assert w.results() == [(f"0-{n}".encode(), 2.0 * n) for n in range(60)]


def test_a_rebalance_during_an_outage_drops_what_is_not_ours_any_more(virtual_time: asyncio.Runner) -> None:
    w = world(batch={"max_events": 4, "in_flight": 2})
    w.events([{"x": n} for n in range(20)])
    w.server.available = False

    async def body() -> None:
        await until(lambda: len(w.server.calls) >= 2)
        await w.source.rebalance(timeout=5)
        w.server.available = True
        await until(lambda: w.committed()[0] == 20)

    virtual_time.run(flowing(w, body))
    assert w.results() == [(f"0-{n}".encode(), 2.0 * n) for n in range(20)]


def test_a_rebalance_while_a_refused_batch_is_narrowed_during_an_outage(virtual_time: asyncio.Runner) -> None:
    w = world(batch={"max_events": 4, "in_flight": 2})
    w.events([{"x": -1}, {"x": 1}, {"x": 2}, {"x": 3}])
    refused: list[int] = []

    def refuse_once_then_go(arrays: Any) -> Any:
        refused.append(len(arrays["x"]))
        if len(refused) == 1:
            w.server.available = False
        return poison(arrays)

    w.server.function = refuse_once_then_go

    async def body() -> None:
        await until(lambda: len(w.server.calls) >= 3)
        await w.source.rebalance(timeout=5)
        w.server.available = True
        await until(lambda: w.committed()[0] == 4)

    virtual_time.run(flowing(w, body))
    assert [key for key, _ in w.results()] == [b"0-1", b"0-2", b"0-3"]
    assert w.letters() == [(b"0-0", "model")]


def test_an_abandoned_batch_lets_none_overtake(virtual_time: asyncio.Runner) -> None:
    w = world(batch={"max_events": 2, "in_flight": 4})
    w.events([{"x": 0}, {"x": 1}], partition=0)
    w.events([{"x": 8}, {"x": 9}], partition=1)
    ask = w.server.infer

    async def by_value(model: Any, rows: Any, count: int, outputs: Any) -> Any:
        first = np.frombuffer(rows["x"][0], "<f8")[0]
        if first == 8:
            w.source.epochs["events", 1].alive = False
            raise InferenceError(Disposition.RETRY, "UNAVAILABLE", "gone")
        await asyncio.sleep(5 if first == 0 else 0)
        return await ask(model, rows, count, outputs)

    w.server.infer = by_value  # type: ignore[method-assign]

    async def body() -> None:
        await until(lambda: w.metric("headrace_in_flight_batches") == 2)
        await asyncio.sleep(1)  # the second has been given up, the first is still under way
        w.events([{"x": 2}, {"x": 3}], partition=0)
        await until(lambda: len(w.broker.records("results")) == 4)

    virtual_time.run(flowing(w, body))
    assert [key for key, _ in w.results()] == [b"0-0", b"0-1", b"0-2", b"0-3"]


def test_results_that_come_after_their_partition_has_gone_are_dropped(virtual_time: asyncio.Runner) -> None:
    w = world(batch={"max_events": 4, "in_flight": 2})
    w.events([{"x": n} for n in range(20)])
    slowly(w, lambda: 10.0)

    async def body() -> None:
        await until(lambda: w.metric("headrace_in_flight_batches") == 2)
        await w.source.rebalance(timeout=1)
        await until(lambda: w.committed()[0] == 20)

    virtual_time.run(flowing(w, body))
    assert w.results() == [(f"0-{n}".encode(), 2.0 * n) for n in range(20)]
    assert w.metric("headrace_records_total", stage="source", outcome="dropped") == 8


def test_a_model_that_is_slow_to_fail_is_not_called_ready_in_between(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.health.model_missing = ""
    w.events([{"x": 1}])

    async def hang(*_: Any) -> Any:
        await asyncio.sleep(30)
        raise InferenceError(Disposition.RETRY, "DEADLINE_EXCEEDED", "too slow")

    w.server.infer = hang  # type: ignore[method-assign]

    async def body() -> None:
        await until(lambda: w.health.model_missing)
        for _ in range(200):
            await asyncio.sleep(1)
            assert w.health.model_missing

    virtual_time.run(flowing(w, body))


def test_a_failure_commits_what_is_finished_and_leaves(virtual_time: asyncio.Runner) -> None:
    w = world(commit_interval="1h")
    w.events([{"x": n} for n in range(8)])

    async def run() -> None:
        task = asyncio.ensure_future(w.flow.run(asyncio.Event()))
        await until(lambda: len(w.results()) == 8)
        w.server.script = [InferenceError(Disposition.STOP, "UNAUTHENTICATED", "who are you")]
        w.events([{"x": 1}])
        await task

    with pytest.raises(PipelineStopped, match="who are you"):
        virtual_time.run(run())
    assert w.committed()[0] == 8
    assert not w.source.assigned


def test_lost_commits_are_made_up_for(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.source.commits_fail = True
    w.events([{"x": n} for n in range(20)])

    async def body() -> None:
        await until(lambda: len(w.broker.records("results")) == 20)
        await asyncio.sleep(5)
        assert w.committed()[0] == 0
        w.source.commits_fail = False
        await until(lambda: w.committed()[0] == 20)

    virtual_time.run(flowing(w, body))


def test_too_large_events_and_results_are_dead_letters(virtual_time: asyncio.Runner) -> None:
    w = world(limits={"results": 1500}, batch={"max_bytes": "2KiB"}, result={"copy": ["pad"]})
    w.events([{"x": 1}, {"x": 2, "pad": "p" * 3000}, {"x": 3, "pad": "p" * 1200}, {"x": 4}])

    async def body() -> None:
        await until(lambda: w.committed()[0] == 4)

    virtual_time.run(flowing(w, body))
    assert [key for key, _ in w.results()] == [b"0-0", b"0-3"]
    assert sorted(w.letters()) == [(b"0-1", "too_large"), (b"0-2", "too_large")]


def test_a_letter_that_its_topic_would_not_take_stops_the_flow(virtual_time: asyncio.Runner) -> None:
    w = world(limits={"letters": 500})
    w.events([b"x" * 600])
    with pytest.raises(PipelineStopped, match="'letters' takes 500; raise its max.message.bytes"):
        virtual_time.run(w.flow.run(asyncio.Event()))
    assert w.committed()[0] == 0


def test_answers_that_are_no_numbers_are_output_letters(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.server.function = lambda arrays: {"y": np.log(np.maximum(arrays["x"], 0))}
    w.events([{"x": 1}, {"x": 0}, {"x": 1}])

    async def body() -> None:
        await until(lambda: w.committed()[0] == 3)

    with np.errstate(divide="ignore"):
        virtual_time.run(flowing(w, body))
    assert w.letters() == [(b"0-1", "output")]
    assert dict(w.broker.records("letters")[0].headers)["headrace-model-version"] == b"1"
    assert [key for key, _ in w.results()] == [b"0-0", b"0-2"]


def test_a_permanent_refusal_stops_with_its_sentence(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.server.script = [InferenceError(Disposition.STOP, "UNAUTHENTICATED", "who are you")]
    w.events([{"x": 1}])
    with pytest.raises(PipelineStopped, match="who are you"):
        virtual_time.run(w.flow.run(asyncio.Event()))
    assert w.letters() == []


def test_a_broken_answer_is_the_servers_fault_and_asked_again(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.server.function = lambda arrays: {"y": arrays["x"][:-1]}
    w.events([{"x": 1}, {"x": 2}])

    async def body() -> None:
        await asyncio.sleep(60)
        assert (w.results(), w.letters()) == ([], [])
        w.server.function = poison
        await until(lambda: w.committed()[0] == 2)

    virtual_time.run(flowing(w, body))
    assert w.results() == [(b"0-0", 2.0), (b"0-1", 4.0)]


def test_results_by_key_keep_together(virtual_time: asyncio.Runner) -> None:
    w = world(result={"partition": "key"})
    for n in range(60):
        w.broker.append("events", n % 3, (b"k%d" % (n % 5), b'{"x":%d}' % n, 0, []))

    async def body() -> None:
        await until(lambda: len(w.broker.records("results")) == 60)

    virtual_time.run(flowing(w, body))
    places: dict[bytes | None, set[int]] = {}
    for record in w.broker.records("results"):
        places.setdefault(record.key, set()).add(record.partition)
    assert all(len(found) == 1 for found in places.values())
    assert places[b"k0"] == {2}  # murmur2, as Kafka's own clients have it


def test_a_batch_waits_to_grow_when_asked(virtual_time: asyncio.Runner) -> None:
    w = world(batch={"max_events": 8, "max_wait": "500ms"})

    async def body() -> None:
        for n in range(3):
            w.events([{"x": n}])
            await asyncio.sleep(0.05)
        assert w.server.calls == []
        await until(lambda: len(w.results()) == 3)
        assert w.server.calls == [3]

    virtual_time.run(flowing(w, body))


def test_an_idle_pipeline_notices_that_the_model_is_gone_and_back(virtual_time: asyncio.Runner) -> None:
    w = world()

    async def body() -> None:
        await until(lambda: not w.health.model_missing)
        w.server.available = False
        await until(lambda: w.health.model_missing, 15)
        w.server.available = True
        await until(lambda: not w.health.model_missing, 15)

    virtual_time.run(flowing(w, body))


def test_the_flow_tells_its_state(virtual_time: asyncio.Runner) -> None:
    w = world()

    async def body() -> None:
        await until(lambda: w.health.assigned)

    virtual_time.run(flowing(w, body))
    assert "<Flow p open=0 <Batcher events=0" in repr(w.flow)


def test_a_failed_transaction_begins_again_without_loss_or_duplicate(virtual_time: asyncio.Runner) -> None:
    w = world(delivery="exactly_once", batch={"max_events": 4, "in_flight": 2})
    for partition in range(PARTITIONS):
        w.events([{"x": n} for n in range(60)], partition)
    slowly(w, lambda: 0.5)

    async def body() -> None:
        for _ in range(5):
            await until(lambda: w.sink.fail_next == 0)
            await asyncio.sleep(1.5)
            w.sink.fail_next = 2
        await until(lambda: w.committed() == [60, 60, 60])

    virtual_time.run(flowing(w, body))
    assert w.results() == [(f"{p}-{n}".encode(), 2.0 * n) for p in range(PARTITIONS) for n in range(60)]


def test_a_partition_that_is_not_acknowledged_halts_alone(virtual_time: asyncio.Runner) -> None:
    w = world(batch={"max_events": 4, "in_flight": 1})
    write, held = w.sink.write, []
    w.sink.write = lambda e: held.append(e) if e.segment.epoch.partition == 0 else write(e)  # type: ignore[method-assign]
    for partition in range(PARTITIONS):
        w.events([{"x": n} for n in range(9000)], partition)

    async def body() -> None:
        await until(lambda: w.committed()[1:] == [9000, 9000])
        assert w.committed()[0] == 0
        assert 4096 <= sum(len(e.segment.records) for e in held) <= 4096 + 16  # bounded
        await until(lambda: w.metric("headrace_paused_partitions") == 1, 5)
        for emission in held:
            write(emission)
        w.sink.write = write  # type: ignore[method-assign]
        await until(lambda: w.committed()[0] == 9000)

    virtual_time.run(flowing(w, body))


def test_events_past_their_deadline_become_letters(virtual_time: asyncio.Runner) -> None:
    w = world(model={"deadline": "1995s"})  # the clock says 2000 s, the events 1 s and a few milliseconds
    w.events([{"x": 1}, {"x": 2}])
    w.broker.append("events", 0, (b"fresh", b'{"x": 3}', 1_000_000, []))

    async def body() -> None:
        await until(lambda: w.committed()[0] == 3)

    virtual_time.run(flowing(w, body))
    assert w.letters() == [(b"0-0", "expired"), (b"0-1", "expired")]
    assert w.results() == [(b"fresh", 6.0)]
    assert sum(w.server.calls) == 1


def failing(code: Disposition, when: Callable[[Any], bool]) -> Callable[[Any], Any]:
    def function(arrays: Any) -> Any:
        if when(arrays["x"]):
            raise InferenceError(code, code.name, "it fails")
        return {"y": arrays["x"] * 2}

    return function


@pytest.mark.parametrize("code", [Disposition.DATA, Disposition.UNSURE])
def test_a_model_that_breaks_for_all_is_an_outage_and_blames_nobody(
    virtual_time: asyncio.Runner, code: Disposition
) -> None:
    w = world()
    w.events([{"x": n} for n in range(20)])

    async def body() -> None:
        await until(lambda: w.committed()[0] == 20)
        w.server.function = failing(code, lambda _: True)
        w.events([{"x": n} for n in range(20)])
        await asyncio.sleep(120)
        assert w.letters() == []
        assert w.committed()[0] == 20
        w.server.function = poison
        await until(lambda: w.committed()[0] == 40)

    virtual_time.run(flowing(w, body))
    assert w.letters() == []


def test_an_event_that_makes_the_server_fail_is_found_when_others_are_answered(virtual_time: asyncio.Runner) -> None:
    w = world(batch={"max_events": 8, "in_flight": 1})
    w.server.function = failing(Disposition.UNSURE, lambda x: bool((x == 5).any()))
    w.events([{"x": n} for n in range(8)])

    async def body() -> None:
        await until(lambda: w.committed()[0] == 8)

    virtual_time.run(flowing(w, body))
    assert w.letters() == [(b"0-5", "model")]
    assert [key for key, _ in w.results()] == [f"0-{n}".encode() for n in range(8) if n != 5]


def test_a_lone_failure_is_no_evidence_until_something_is_answered(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.server.function = failing(Disposition.UNSURE, lambda x: bool((x == 5).any()))
    w.events([{"x": 5}])

    async def body() -> None:
        await asyncio.sleep(60)
        assert w.letters() == []
        w.events([{"x": 1}], partition=1)
        await until(lambda: w.committed()[:2] == [1, 1])

    virtual_time.run(flowing(w, body))
    assert w.letters() == [(b"0-0", "model")]


def test_a_flood_of_dead_letters_stops_the_pipeline(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.events([{"x": "wrong"} for _ in range(2000)])
    with pytest.raises(PipelineStopped, match=r"1000 of the last 1000 events would be dead letters, more than dead_l"):
        virtual_time.run(w.flow.run(asyncio.Event()))
    assert len(w.letters()) < 1000
    assert w.committed()[0] < 1000


def test_a_letter_that_is_sent_back_counts_its_attempts_on(virtual_time: asyncio.Runner) -> None:
    w = world()
    w.events([{"x": -1}, {"x": 1}])

    async def body() -> None:
        await until(lambda: w.committed()[0] == 2)
        (letter,) = w.broker.records("letters")
        w.broker.append("events", 0, (letter.key, letter.value, letter.timestamp, list(letter.headers)))
        await until(lambda: w.committed()[0] == 3)

    virtual_time.run(flowing(w, body))
    first, second = (
        [value for name, value in r.headers if name == "headrace-attempts"] for r in w.broker.records("letters")
    )
    assert (first, second) == ([b"2"], [b"3"])  # one header each, and the sum
    names = [name for name, _ in w.broker.records("letters")[1].headers]
    assert len(names) == len(set(names))
