"""A pipeline under load that a test does things to, and the promise it is held to afterwards.

A producer writes unique, numbered events; bridges run as processes; a watcher notes committed offsets; faults are noted
with what was committed before. `settle` waits until everything written is done, and `verdict` reads results and dead
letters as a read_committed reader does and has the checker judge.
"""

import asyncio
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from bridge.kafka import stop_client
from tests.faults.history import Fault, History, Seen, Verdict, check
from tests.support import Bridge, Broker, header, pipeline, until


class World:
    """One run.

    Args:
        broker: a real Kafka, reached directly by the producer and the reader.
        model: address of the model server; its model doubles x, and refuses a negative one.
        folder: for logs.
        seed: printed with every failure.
        delivery: of the pipeline.
        partitions: of the topics.
        bridge_bootstrap: how bridges reach Kafka, perhaps through a proxy.
        model_name: of that model.
        sections: of the configuration.
    """

    def __init__(
        self,
        broker: Broker,
        model: str,
        folder: Path,
        /,
        seed: int = 1,
        delivery: str = "exactly_once",
        partitions: int = 3,
        bridge_bootstrap: str | None = None,
        model_name: str = "m",
        **sections: Any,
    ) -> None:
        self.broker = broker
        self.folder = folder
        self.seed = seed
        self.rng = random.Random(seed)
        self.delivery = delivery
        self.partitions = partitions
        self.topics = broker.topics(partitions)
        source = {"session_timeout": "6s"} | sections.pop("source", {})
        document = {
            "delivery": delivery,
            "model": {"inputs": {"x": "x"}, "outputs": {"y": "y"}, "timeout": "1s"} | sections.pop("model", {}),
            "result": {"copy": ["id"]} | sections.pop("result", {}),
            "batch": {"max_events": 64} | sections.pop("batch", {}),
            **sections,
        }
        self.config = pipeline(bridge_bootstrap or broker.bootstrap, model, model_name, self.topics, **document)
        self.config["source"] |= source
        self.bridges: list[Bridge] = []
        self.history = History()
        self._written = 0
        self._producing: threading.Thread | None = None
        self._failed = False
        self._stop = threading.Event()
        self._watching: threading.Thread | None = None
        self.began = time.monotonic()
        """When the run began."""
        self.window = 4608
        """See `check`; larger where the watcher may be cut off from the brokers for long."""
        self.poison: Callable[[int], bytes | None] = lambda _: None

    # --- events ---

    def write(self, count: int) -> None:
        """Write so many more events, and wait until they are."""
        asyncio.run(self._write(range(self._written, self._written + count)))
        self._written += count

    def start_writing(self, rate: int) -> None:
        """Write events at a steady rate, in the background."""
        self._stop.clear()

        def work() -> None:
            asyncio.run(self._stream(rate))

        self._producing = threading.Thread(target=work, daemon=True)
        self._producing.start()

    def stop_writing(self) -> None:
        """Until the last one is acknowledged."""
        self._stop.set()
        if self._producing:
            self._producing.join(120)
            assert not self._producing.is_alive(), "the producer hangs"
            self._producing = None

    async def _stream(self, rate: int) -> None:
        begun, first = time.monotonic(), self._written
        acknowledgements: set[asyncio.Task[None]] = set()
        producer: AIOKafkaProducer | None = None
        while not self._stop.is_set():
            if producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self.broker.bootstrap, acks="all", enable_idempotence=True, linger_ms=5
                )
                await producer.start()
                self._failed = False
            due = first + int((time.monotonic() - begun) * rate)
            try:
                while self._written < due and not self._failed:
                    number, self._written = self._written, self._written + 1
                    acknowledgement = await self._send(producer, number)
                    acknowledgements.add(acknowledgement)
                    acknowledgement.add_done_callback(acknowledgements.discard)
            except KafkaError:
                self._failed = True
            if self._failed:
                # This client's idempotent producer does not recover from every error.
                await stop_client(producer, 5.0)
                producer = None
            await asyncio.sleep(0.01)
        await asyncio.gather(*acknowledgements)
        if producer is not None:
            await producer.stop()

    async def _write(self, numbers: range) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.broker.bootstrap, acks="all", linger_ms=5)
        await producer.start()
        try:
            await asyncio.gather(*[await self._send(producer, number) for number in numbers])
        finally:
            await producer.stop()

    async def _send(self, producer: AIOKafkaProducer, number: int) -> "asyncio.Task[None]":
        value = self.poison(number) or json.dumps({"id": number, "x": number}).encode()
        self.history.writes[number] = "info"
        partition = number % self.partitions
        sent = await producer.send(self.topics["events"], value, b"%d" % number, partition)

        async def note() -> None:
            try:
                written = await sent
            except KafkaError:
                self._failed = True
                return  # it may be there or not: info
            self.history.writes[number] = "ok"
            self.history.places[number] = (partition, written.offset)

        return asyncio.ensure_future(note())

    @property
    def written(self) -> int:
        """Events handed to the producer so far."""
        return self._written

    # --- bridges ---

    def start(self, count: int = 1, ready: bool = True, **changes: Any) -> Bridge:
        """Start bridges; the last of them."""
        for _ in range(count):
            config = {**self.config, **changes}
            bridge = Bridge(config, self.folder)
            self.bridges.append(bridge)
        if ready:
            self.bridges[-1].wait_ready()
        return self.bridges[-1]

    def kill(self, bridge: Bridge) -> None:
        """SIGKILL, as a machine that is lost."""
        self.fault("kill -9")
        bridge.process.kill()
        self.bridges.remove(bridge)

    def freeze(self, bridge: Bridge) -> None:
        """SIGSTOP."""
        self.fault("SIGSTOP")
        bridge.process.signal(signal.SIGSTOP)

    def thaw(self, bridge: Bridge) -> None:
        """SIGCONT."""
        bridge.process.signal(signal.SIGCONT)

    def fault(self, name: str) -> None:
        """Note what is about to be done, and what was committed before."""
        # A note of half a second ago is surely not above what a fault of now may lead back to.
        self.history.faults.append(Fault(name, time.monotonic() - self.began, self._latest()))

    # --- the end ---

    def committed(self) -> dict[int, int]:
        """Partition -> committed offset, noted in the history."""
        found = self.broker.committed(self.config["name"], self.topics["events"])
        for partition, offset in found.items():
            if offset >= 0:
                self.history.committed[partition].append(offset)
        return found

    def _latest(self) -> dict[int, int]:
        return {partition: offsets[-1] for partition, offsets in list(self.history.committed.items()) if offsets}

    def results(self) -> int:
        """Events below the committed offsets; transaction markers are not counted, since they lie in other topics."""
        return sum(offset for offset in self.committed().values() if offset > 0)

    def until_done(self, count: int, timeout: float = 60.0) -> None:
        """Until so many events are below the committed offsets."""
        until(lambda: self.results() >= count, timeout, f"{count} events done; {self.report()}")

    def watch(self) -> None:
        """Note the committed offsets four times a second, in the background."""
        self._watching = threading.Thread(target=lambda: asyncio.run(self._watch()), daemon=True)
        self._watching.start()

    async def _watch(self) -> None:
        admin: AIOKafkaAdminClient | None = None
        while self._watching is not None:
            await asyncio.sleep(0.25)
            try:
                if admin is None:
                    admin = AIOKafkaAdminClient(bootstrap_servers=self.broker.bootstrap, request_timeout_ms=3000)
                    await admin.start()
                offsets = await admin.list_consumer_group_offsets(self.config["name"])
                for tp, meta in offsets.items():
                    if meta.offset >= 0:
                        self.history.committed[tp.partition].append(meta.offset)
            except (KafkaError, OSError, TimeoutError):
                if admin is not None:
                    await admin.close()
                admin = None
        if admin is not None:
            await admin.close()

    def settle(self, timeout: float = 90.0) -> None:
        """The faults have ended: until everything written is done."""
        self.stop_writing()
        ends = dict.fromkeys(range(self.partitions), 0)
        for partition, offset in self.history.places.values():
            ends[partition] = max(ends[partition], offset + 1)

        def done() -> bool:
            # Two that ask at the same time could note their answers the wrong way round.
            now = self.committed() if self._watching is None else self._latest()
            return all(now.get(partition, 0) >= end for partition, end in ends.items())

        until(done, timeout, f"I7: everything written is done; {self.report()}")

    def verdict(self) -> Verdict:
        """What a read_committed reader sees, judged."""
        self.history.seen = [
            *map(self._result, self.broker.read(self.topics["results"])),
            *map(self._letter, self.broker.read(self.topics["letters"])),
        ]
        verdict = check(self.history, self.delivery == "exactly_once", self.window)
        note = {"delivery": self.delivery} | asdict(verdict)
        (self.folder / f"verdict-{self.topics['events']}.json").write_text(json.dumps(note))
        return verdict

    def finish(self, timeout: float = 90.0, events: int | None = None) -> Verdict:
        """Settle, judge, and fail with the seed and the history when the promise was broken."""
        self.settle(timeout)
        verdict = self.verdict()
        assert not verdict.violations, f"{verdict.violations}; {self.report()}"
        if events is not None:
            assert verdict.events == events
        assert all(state == "ok" for state in self.history.writes.values())
        return verdict

    def report(self) -> str:
        """The seed, and the history in short."""
        faults = [f"{fault.at:.1f}s {fault.name}" for fault in self.history.faults]
        committed = {partition: offsets[-1:] for partition, offsets in self.history.committed.items()}
        logs = [str(bridge.log) for bridge in self.bridges]
        return f"seed={self.seed} written={self._written} faults={faults} committed={committed} logs={logs}"

    def close(self) -> None:
        """End everything that runs."""
        self._stop.set()
        watching, self._watching = self._watching, None
        if watching:
            watching.join(10)
        for bridge in self.bridges:
            if bridge.process.running:
                bridge.process.signal(signal.SIGCONT)
                bridge.process.terminate()
        for bridge in self.bridges:
            bridge.process.stop()
        if self._producing:
            self._producing.join(10)

    def _result(self, record: Any) -> Seen:
        value = json.loads(record.value)
        _, partition, offset = header(record, "headrace-source").rsplit("/", 2)
        right = record.key == b"%d" % value["id"] and value["y"] == 2 * value["id"]
        return Seen(record.partition, value["id"], (int(partition), int(offset)), right)

    def _letter(self, record: Any) -> Seen:
        place = int(header(record, "headrace-partition")), int(header(record, "headrace-offset"))
        number = int(record.key)
        return Seen(record.partition, number, place, right=True, letter=header(record, "headrace-reason"))


@contextmanager
def world(*arguments: Any, **options: Any) -> Iterator[World]:
    """A run, ended whatever happens."""
    made = World(*arguments, **options)
    try:
        yield made
    finally:
        made.close()
