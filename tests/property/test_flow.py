"""The whole flow against a naive model: tracker, lanes, bisection and drain, through deliver / complete / fail / revoke /
assign / crash in any order.

Everything is real but the clients: the fakes of `bridge.memory` and a model server whose every call waits until the
machine answers it. The model of the machine is a list of events, each with the outcome it must have in the end.
"""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridge.config import Pipeline, parse
from bridge.flow import Flow
from bridge.infer import Disposition, InferenceError
from bridge.infer.predictor import Predictor
from bridge.kafka import Topic
from bridge.memory import FakeSink, FakeSource, MemoryBroker, MemoryRecord
from bridge.observe.health import Health
from bridge.observe.telemetry import Telemetry
from bridge.plan import Plan
from bridge.record import Prediction, Rows
from bridge.tensors import ModelSpec, TensorSpec
from tests.virtual_loop import VirtualLoop

MODEL = ModelSpec("m", ["1"], [TensorSpec("x", "FP64", ())], [TensorSpec("y", "FP64", ())], None)
PARTITIONS = 3
REFUSED, BREAKING = -1, -2
"""Values that the model refuses, and over which it fails."""
KINDS = {"good": None, "undecodable": "decode", "refused": "model", "breaking": "model"}
"""Kind of event -> the reason of its dead letter."""


class Held:
    """A model server that answers nothing by itself."""

    def __init__(self) -> None:
        self.by_itself = False
        self.waiting: list[tuple[asyncio.Future[None], np.ndarray[Any, Any]]] = []

    async def describe(self) -> ModelSpec:
        return MODEL

    async def infer(self, model: ModelSpec, rows: Rows, count: int, outputs: Any) -> Prediction:
        values = np.frombuffer(b"".join(rows["x"]), "<f8")
        if not self.by_itself:
            call = (asyncio.get_running_loop().create_future(), values)
            self.waiting.append(call)
            try:
                await call[0]
            finally:
                self.waiting = [one for one in self.waiting if one is not call]
        if (values == REFUSED).any():
            raise InferenceError(Disposition.DATA, "INVALID_ARGUMENT", "refused")
        if (values == BREAKING).any():
            raise InferenceError(Disposition.UNSURE, "INTERNAL", "broken")
        return Prediction({"y": values * 2}, "1")

    async def close(self) -> None: ...

    def answer_all(self) -> None:
        self.by_itself = True
        for waiting, _ in self.waiting:
            if not waiting.done():
                waiting.set_result(None)


def configure(delivery: str) -> Pipeline:
    return parse(
        {
            "name": "p",
            "kafka": {"bootstrap_servers": "memory:1"},
            "source": {"topics": ["events"]},
            "model": {"name": "m"},
            "batch": {"max_events": 4, "in_flight": 3},
            "result": {"topic": "results"},
            "dead_letter": {"topic": "letters", "max_share": 1},
            "delivery": delivery,
        },
        {},
    )


class FlowMachine(RuleBasedStateMachine):
    """`events[p][n]` is the kind of the event at offset n of partition p."""

    delivery = "exactly_once"

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.events: list[list[str]] = [[] for _ in range(PARTITIONS)]
        self.before = [0] * PARTITIONS
        self.windows: list[list[tuple[int, float]]] = [[] for _ in range(PARTITIONS)]  # of events that may be repeated
        self.step(self.launch)

    def step(self, body: Callable[[], Awaitable[None]]) -> None:
        """Do it, and let everything that can run do so."""

        async def run() -> None:
            if not hasattr(self, "broker"):
                self.broker = MemoryBroker({"events": PARTITIONS, "results": PARTITIONS, "letters": 1})
            await body()
            await asyncio.sleep(0.3)
            if self.flow.done():
                self.flow.result()

        self.runner.run(run())

    async def launch(self) -> None:
        config = configure(self.delivery)
        plan = Plan.compile(config, MODEL)
        self.server = Held()
        self.source = FakeSource(self.broker, "p", ["events"])
        self.sink = FakeSink(self.broker, "p" if self.delivery == "exactly_once" else None)
        topics = {"results": Topic("results", PARTITIONS, 10**6), "letters": Topic("letters", 1, 10**6)}
        telemetry, health = Telemetry("p"), Health()
        predictor = Predictor(self.server, MODEL, plan.outputs, telemetry, health, random.Random(1))
        # As after a first answer: before one, a failure over one event alone is taken for an outage, which may last.
        predictor._good = {"x": [np.float64(1).tobytes()]}
        flow = Flow(config, plan, self.source, predictor, self.sink, topics, telemetry, health)
        self.stop = asyncio.Event()
        self.flow = asyncio.ensure_future(flow.run(self.stop))

    def unclean(self, lasting: bool = False) -> None:
        """What is there and not committed may be done again; also what comes later, where the trouble lasts."""
        for partition, committed in enumerate(self.committed()):
            end = float("inf") if lasting else len(self.events[partition])
            self.windows[partition].append((committed, end))

    # --- what may happen ---

    @rule(partition=st.integers(0, PARTITIONS - 1), kinds=st.lists(st.sampled_from(list(KINDS)), max_size=9))
    def deliver(self, partition: int, kinds: list[str]) -> None:
        async def body() -> None:
            for kind in kinds:
                number = len(self.events[partition])
                x = {"refused": REFUSED, "breaking": BREAKING}.get(kind, partition * 1000 + number)
                value = b"{" if kind == "undecodable" else json.dumps({"x": x}).encode()
                self.broker.append("events", partition, (b"%d/%d" % (partition, number), value, 1000, []))
                self.events[partition].append(kind)

        self.step(body)

    @precondition(lambda self: self.server.waiting)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        """Some call is answered, not the oldest first."""
        waiting, _ = data.draw(st.sampled_from(self.server.waiting))

        async def body() -> None:
            if not waiting.done():
                waiting.set_result(None)

        self.step(body)

    @precondition(lambda self: self.server.waiting)
    @rule(data=st.data(), disposition=st.sampled_from([Disposition.RETRY, Disposition.ABSENT]))
    def fail(self, data: st.DataObject, disposition: Disposition) -> None:
        """Some call finds the model away."""
        waiting, _ = data.draw(st.sampled_from(self.server.waiting))

        async def body() -> None:
            if not waiting.done():
                waiting.set_exception(InferenceError(disposition, disposition.name, "away"))

        self.step(body)

    @rule(seconds=st.sampled_from([1, 20]))
    def wait(self, seconds: float) -> None:
        self.step(lambda: asyncio.sleep(seconds))

    @rule()
    def hold_the_acknowledgements(self) -> None:
        async def body() -> None:
            self.sink.open.clear()

        self.step(body)

    @rule()
    def acknowledge(self) -> None:
        async def body() -> None:
            self.sink.resume()

        self.step(body)

    @rule(count=st.integers(1, 2))
    def fail_writes(self, count: int) -> None:
        self.unclean(lasting=True)

        async def body() -> None:
            self.sink.fail_next = count

        self.step(body)

    @rule()
    def lose_commits(self) -> None:
        self.unclean(lasting=True)

        async def body() -> None:
            self.source.commits_fail = not self.source.commits_fail

        self.step(body)

    @rule(drained=st.booleans())
    def revoke_and_assign(self, drained: bool) -> None:
        """With the model answering in time, or not."""
        if not drained or self.source.commits_fail or self.sink.fail_next:
            self.unclean()

        async def body() -> None:
            if drained:
                self.sink.resume()
                self.server.answer_all()
            await self.source.rebalance(30.0 if drained else 0.5)
            self.server.by_itself = False

        self.step(body)

    @rule()
    def crash(self) -> None:
        self.unclean()

        async def body() -> None:
            self.source.commits_fail = True
            self.sink.open.clear()
            self.flow.cancel()
            await asyncio.gather(self.flow, return_exceptions=True)
            await self.launch()

        self.step(body)

    @rule()
    def stop_and_start(self) -> None:
        """In order: nothing is repeated."""
        if self.source.commits_fail or self.sink.fail_next:
            self.unclean()

        async def body() -> None:
            self.sink.resume()
            self.server.answer_all()
            self.stop.set()
            await self.flow
            await self.launch()

        self.step(body)

    # --- what must hold ---

    def committed(self) -> list[int]:
        return [self.broker.committed.get(("p", "events", number), 0) for number in range(PARTITIONS)]

    def place(self, record: MemoryRecord) -> tuple[int, int]:
        partition, number = (record.key or b"").split(b"/")
        return int(partition), int(number)

    def outcomes(self) -> Counter[tuple[int, int]]:
        return Counter(self.place(record) for topic in ("results", "letters") for record in self.broker.records(topic))

    @invariant()
    def nothing_below_the_committed_offset_is_without_its_outcome(self) -> None:
        outcomes = self.outcomes()
        for partition, offset in enumerate(self.committed()):
            assert all((partition, number) in outcomes for number in range(offset)), (partition, offset)

    @invariant()
    def the_committed_offset_never_goes_back(self) -> None:
        now = self.committed()
        assert all(after >= before for before, after in zip(self.before, now, strict=True))
        self.before = now

    @invariant()
    def every_outcome_is_the_right_one(self) -> None:
        for record in self.broker.records("results"):
            partition, number = self.place(record)
            assert record.partition == partition
            assert self.events[partition][number] == "good"
            assert json.loads(record.value or b"")["y"] == 2 * (partition * 1000 + number)
        for record in self.broker.records("letters"):
            partition, number = self.place(record)
            reason = (dict(record.headers)["headrace-reason"] or b"").decode()
            assert KINDS[self.events[partition][number]] == reason, (partition, number)

    @invariant()
    def outcomes_stand_in_order_and_once(self) -> None:
        for partition in range(PARTITIONS):
            numbers = [self.place(record)[1] for record in self.broker.log["results"][partition]]
            for before, after in itertools.pairwise(numbers):
                assert after > before or self.may_repeat(partition, after), (partition, before, after)
        for (partition, number), count in self.outcomes().items():
            assert count == 1 or self.may_repeat(partition, number), (partition, number, count)

    def may_repeat(self, partition: int, number: int) -> bool:
        return self.delivery == "at_least_once" and any(low <= number < end for low, end in self.windows[partition])

    def teardown(self) -> None:
        """The faults end: everything gets its outcome."""
        if not hasattr(self, "flow"):
            return

        async def heal() -> None:
            self.source.commits_fail = False
            self.sink.resume()
            self.server.answer_all()
            for partition in range(PARTITIONS):
                # A failure over one event is blamed on it only when another one has been answered.
                value = json.dumps({"x": partition * 1000 + len(self.events[partition])}).encode()
                key = b"%d/%d" % (partition, len(self.events[partition]))
                self.broker.append("events", partition, (key, value, 1000, []))
                self.events[partition].append("good")
            async with asyncio.timeout(300):
                while self.committed() != [len(events) for events in self.events]:
                    await asyncio.sleep(0.1)
                    if self.flow.done():
                        self.flow.result()
            self.stop.set()
            await self.flow

        try:
            self.step(heal)
            self.nothing_below_the_committed_offset_is_without_its_outcome()
            self.every_outcome_is_the_right_one()
            self.outcomes_stand_in_order_and_once()
        finally:
            self.runner.close()


class AtLeastOnceMachine(FlowMachine):
    """The same, where some things may be done again."""

    delivery = "at_least_once"


TestExactlyOnce = FlowMachine.TestCase
TestAtLeastOnce = AtLeastOnceMachine.TestCase
TestExactlyOnce.settings = TestAtLeastOnce.settings = settings(
    settings.get_profile("suite"), max_examples=60, stateful_step_count=30
)
