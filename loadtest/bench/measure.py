"""One measurement: a subject drains a backlog, or keeps up with a fixed rate. Figures come from outside the subject."""

import asyncio
import contextlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import psutil
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from bridge.config.model import Kafka, Model
from bridge.errors import HeadraceError
from bridge.infer.triton import TritonServer
from headrace.rig.kafka import KafkaCluster
from headrace.rig.process import ServerProcess
from headrace.rig.topics import create_topics
from headrace.rig.triton import TritonRig
from loadtest.bench.quota import quota
from loadtest.bench.subjects import Job, Subject
from loadtest.bench.workload import Events, Workload, feed, write_backlog
from serving.control import TritonControl

_READY = re.compile(r"^ready\b", re.MULTILINE)
_STANDSTILL = 60.0
_NO_LEADER_YET = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)
_WARM = 0.1  # share of a backlog that is not measured: assignment, first fetches, a virtual machine that warms up
_LEAD = 2.0  # seconds of a fixed rate that are not measured


class BenchFailed(HeadraceError):
    """A subject did not do its job; one sentence."""


@dataclass
class Figures:
    """What one measurement found.

    Attributes:
        events_per_second: between a tenth of the way and the end; of a fixed rate, what was achieved.
        cpu_us: process (`subject`, `model`, `kafka`) -> microseconds of CPU, user and system, per event.
        rss_mib: the subject's memory at each tenth of the way.
        latency_ms: percentile (50, 99, 99.9) -> milliseconds from when an event was due until its result was read.
    """

    events_per_second: float
    cpu_us: dict[str, float]
    rss_mib: list[float] = field(default_factory=list)
    latency_ms: dict[str, float] = field(default_factory=dict)


class Servers:
    """A Kafka and a model server for all measurements of a run.

    Args:
        kafka: the brokers.
        model: host:port of the model server.
        triton: the same, where it runs here and its CPU is to be measured.
        home: a folder for files that go away afterwards.
    """

    def __init__(self, kafka: KafkaCluster, model: str, triton: TritonRig | None, home: Path) -> None:
        self.kafka = kafka
        self.model = model
        self.triton = triton
        self._home = home
        self._filled: set[str] = set()
        # It outlives the brokers, and need not tell of it.
        self._admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
        self._number = 0

    def fill(self, workload: Events, events: int) -> str:
        """A topic with so many events of this kind, made when it is first asked for."""
        topic = workload.topic(events)
        if topic not in self._filled:
            self.create({topic: workload.partitions})
            write_backlog(self.kafka.bootstrap_servers, topic, workload, events)
            self._filled.add(topic)
        return topic

    def drain(self, subject: Subject, workload: Events, events: int, cores: float | None = None) -> Figures:
        """Have the subject work off a backlog, each of its processes on no more than so many cores.

        Raises:
            BenchFailed: it ended, stood still, or wrote more results than there were events.
        """
        source = self.fill(workload, events)
        with self.running(subject, workload, source) as (process, target), contextlib.ExitStack() as limits:
            if cores is not None:
                root = psutil.Process(process.pid)
                for found in root.children() or [root]:  # workers; their supervisor does next to nothing
                    limits.enter_context(quota(found.pid, cores))
            return self.watch(process, self.counter(subject, workload, source, target), events)

    def hold(
        self, subject: Subject, workload: Events, rate: float, seconds: float, swap: Workload | None = None
    ) -> Figures:
        """Have the subject keep up with a fixed rate; a new version of the model of `swap` loads when measuring begins.

        Raises:
            BenchFailed: it ended, results are missing at the end, or the last are not by the new version.
        """
        self._number += 1
        source = f"steady-{self._number}"
        self.create({source: workload.partitions})
        with self.running(subject, workload, source) as (process, target):
            stop = threading.Event()

            def swapped() -> str | None:
                return self._swap(swap) if swap is not None and not stop.wait(_LEAD) else None

            before, begun = self._cpu(process), time.monotonic()
            with ThreadPoolExecutor(2) as pool:
                length = seconds + _LEAD
                feeding = pool.submit(feed, self.kafka.bootstrap_servers, source, workload, rate, length, stop)
                swapping = pool.submit(swapped)
                try:
                    arrived: dict[int, float] = {}
                    last: dict[int, bytes] = {}  # partition -> its last result
                    wanted = int(rate * length)
                    for message, at in self.outcomes(process, target, workload, lambda: len(arrived) >= wanted):
                        arrived.setdefault(int(message.key()), at)
                        last[message.partition()] = message.value()
                    if not swapping.done():
                        raise BenchFailed("the new version takes longer to load; raise --seconds")
                finally:
                    stop.set()
            newest = swapping.result()
            made_by = {str(orjson.loads(value)["model_version"]) for value in last.values()} if newest else set()
            if newest and made_by != {newest}:
                raise BenchFailed(f"version {newest} is loaded, but the last results are by {', '.join(made_by)}")
            took, after = time.monotonic() - begun, self._cpu(process)
            memory = process_memory(process)
        first_due, events = feeding.result()
        waits = [(at - first_due - number / rate) * 1000 for number, at in arrived.items() if number >= rate * _LEAD]
        cpu = {name: (after[name] - before[name]) / events * 1e6 for name in before}
        return Figures(events / took, cpu, [memory], percentiles(waits))

    def _swap(self, workload: Workload) -> str:
        """Put the model's first version in once more, as its newest; its number, once it serves."""
        model = self._home / "models" / workload.model_name
        number = 1 + max(int(version.name) for version in model.iterdir() if version.name.isdigit())
        shutil.copytree(model / "1", model / str(number))
        control = TritonControl(self.model)
        try:
            control.load(workload.model_name)
        finally:
            control.close()
        return str(number)

    def call(self, workload: Workload, rows: int, seconds: float) -> Figures:
        """Ask the model alone, one call after the other, over the bridge's own client."""
        took = asyncio.run(_calls(self.model, workload, rows, seconds))
        return Figures(rows * len(took) / sum(took), {}, latency_ms=percentiles([1000 * second for second in took]))

    @contextlib.contextmanager
    def running(self, subject: Subject, workload: Events, source: str) -> Iterator[tuple[ServerProcess, str]]:
        """The subject at work, once it says that it is ready, and the topic of its results."""
        job = self.job(workload, source)
        with subject.start(job) as process:
            self.wait_ready(process)
            yield process, job.target

    def wait_ready(self, process: ServerProcess) -> None:
        """Until the subject says that it is ready."""
        process.wait_ready(lambda: _READY.search(process.log.read_text(errors="replace")) is not None, 120)

    def job(self, workload: Events, source: str) -> Job:
        """What is to be done with the events of a topic; the topics of their outcomes are made."""
        self._number += 1
        target = f"out-{self._number}"
        self.create({target: workload.partitions, f"{target}-alerts": workload.partitions, f"{target}-dead": 1})
        return Job(self.kafka.bootstrap_servers, self.model, workload, source, target, self._home)

    def create(self, topics: dict[str, int]) -> None:
        """Make topics with so many partitions each."""
        asyncio.run(create_topics(Kafka(bootstrap_servers=self.kafka.bootstrap_servers), topics))

    def watch(self, process: ServerProcess, count: Callable[[], int], events: int) -> Figures:
        """Figures from a tenth of the way to the end."""
        memory: list[float] = []
        start: tuple[float, int, dict[str, float]] | None = None
        last, moved = 0, time.monotonic()
        while True:
            done, now = count(), time.monotonic()
            if done >= events * _WARM and start is None:
                start = (now, done, self._cpu(process))
            if done >= events * (len(memory) + 1) // 10:
                memory.append(process_memory(process))
            if done > events:
                raise BenchFailed(f"{process.name} has made {done} results of {events} events")
            if done == events and start is not None:
                began, before, cpu = start
                if before == events:
                    raise BenchFailed(f"{events} events are too few for {process.name}; raise --events")
                used = self._cpu(process)
                rate = (events - before) / (now - began)
                return Figures(rate, {k: (used[k] - cpu[k]) / (events - before) * 1e6 for k in used}, memory)
            if done != last:
                last, moved = done, now
            self._check(process, now - moved, f"{done} of {events} events")
            time.sleep(0.02)

    def counter(self, subject: Subject, workload: Events, source: str, target: str) -> Callable[[], int]:
        """How many events have their outcome."""
        if subject.transactional:
            places = [TopicPartition(source, number) for number in range(workload.partitions)]
            asked = ConsumerGroupTopicPartitions(target, places)

            def committed() -> int:
                (future,) = self._admin.list_consumer_group_offsets([asked]).values()
                return sum(max(0, found.offset) for found in future.result(30).topic_partitions)

            return committed
        consumer = Consumer({"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": "bench"})
        ends = [TopicPartition(target, number) for number in range(workload.partitions)]
        if workload.poison:
            ends.append(TopicPartition(f"{target}-dead", 0))

        def written() -> int:
            try:
                return sum(consumer.get_watermark_offsets(place, timeout=30)[1] for place in ends)
            except KafkaException as error:
                if error.args[0].code() not in _NO_LEADER_YET:
                    raise BenchFailed(f"Kafka does not tell what {subject.name} has written: {error}") from None
                return 0  # the topic is new

        return written

    def outcomes(
        self, process: ServerProcess, target: str, workload: Events, finished: Callable[[], bool]
    ) -> Iterator[tuple[Message, float]]:
        """Each result as a read_committed reader has it, and when, in seconds since 1970; until it is finished.

        Raises:
            BenchFailed: the subject ended, or there has been no result for a minute.
        """
        consumer = Consumer(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "group.id": "bench",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 10,
                "enable.auto.commit": False,
            }
        )
        consumer.assign([TopicPartition(target, number, 0) for number in range(workload.partitions)])
        count, moved = 0, time.monotonic()
        try:
            while not finished():
                first = consumer.poll(0.02)  # to ask for many would wait for many
                now = time.time()
                found = [first, *consumer.consume(1_000, 0)] if first else []
                for message in found:
                    if message.error() is None:
                        count += 1
                        yield message, now
                if found:
                    moved = time.monotonic()
                self._check(process, time.monotonic() - moved, f"{count} results")
        finally:
            consumer.close()

    def _check(self, process: ServerProcess, still: float, where: str) -> None:
        if not process.running:
            raise BenchFailed(f"{process.name} has ended at {where}:\n{process.tail()}")
        if still > _STANDSTILL:
            raise BenchFailed(f"{process.name} stands still at {where}")

    def _cpu(self, subject: ServerProcess) -> dict[str, float]:
        """Seconds of CPU that each has used, with its children."""
        found = {"subject": subject, "kafka": self.kafka.node(1)}
        if self.triton:
            found["model"] = self.triton.process
        return {name: sum(sum(p.cpu_times()[:2]) for p in _tree(process)) for name, process in found.items()}


async def _calls(address: str, workload: Workload, rows: int, seconds: float) -> list[float]:
    """Seconds of each call."""
    server = TritonServer(Model(address=address, name=workload.model_name))
    took: list[float] = []
    try:
        model = await server.describe()
        row = np.zeros(workload.features, "<f4").tobytes()
        names = [spec.name for spec in model.outputs]
        begun = time.monotonic()
        while (started := time.monotonic()) - begun < seconds:
            await server.infer(model, {model.inputs[0].name: [row] * rows}, rows, names)
            took.append(time.monotonic() - started)
    finally:
        await server.close()
    return took


def percentiles(values: list[float]) -> dict[str, float]:
    """Those that are told."""
    return {p: float(np.percentile(values, float(p))) for p in ("50", "99", "99.9")}


def process_memory(process: ServerProcess) -> float:
    """MiB of resident memory, with its children."""
    return float(sum(found.memory_info().rss for found in _tree(process)) / 2**20)


def _tree(process: ServerProcess) -> list[psutil.Process]:
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]
