"""What tests do with real servers: topics, the bridge as a process, and waiting for what must come."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from bridge.config.model import Kafka
from headrace.rig.process import ServerProcess
from headrace.rig.topics import create_topics

_numbers = itertools.count()


class Broker:
    """A real Kafka, as tests use it."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def topics(self, partitions: int = 3, **configs: str) -> dict[str, str]:
        """Fresh topics for one pipeline: events, results, alerts, letters."""
        number = next(_numbers)
        names = {role: f"{role}-{os.getpid()}-{number}" for role in ("events", "results", "alerts", "letters")}
        counts = dict.fromkeys(names.values(), partitions) | {names["letters"]: 1}
        asyncio.run(create_topics(Kafka(bootstrap_servers=self.bootstrap), counts, configs))
        return names

    def produce(self, topic: str, records: Iterable[tuple[int, bytes | None, bytes | None]], **options: Any) -> None:
        """Write (partition, key, value) records."""

        async def write() -> None:
            producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, max_request_size=2**24, **options)
            await producer.start()
            try:
                waiting = []
                for partition, key, value in records:
                    waiting.append(
                        await producer.send(topic, value, key, partition, headers=[("trace", b"t-" + (key or b""))])
                    )
                await asyncio.gather(*waiting)
            finally:
                await producer.stop()

        asyncio.run(write())

    def read(self, topic: str) -> list[Any]:
        """Every record there is now, in order per partition."""

        async def consume() -> list[Any]:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.bootstrap, isolation_level="read_committed", max_partition_fetch_bytes=2**24
            )
            await consumer.start()
            try:
                partitions = [TopicPartition(topic, n) for n in sorted(await _partitions(self.bootstrap, topic))]
                end = await consumer.end_offsets(partitions)
                consumer.assign(partitions)
                for tp in partitions:
                    consumer.seek(tp, 0)
                records: list[Any] = []
                while any([await consumer.position(tp) < end[tp] for tp in partitions]):
                    for batch in (await consumer.getmany(timeout_ms=200)).values():
                        records += batch
                return sorted(records, key=lambda record: (record.partition, record.offset))
            finally:
                await consumer.stop()

        return asyncio.run(consume())

    def count(self, *topics: str) -> int:
        """How many records the topics hold."""

        async def ask() -> int:
            consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap)
            await consumer.start()
            try:
                total = 0
                for topic in topics:
                    partitions = [TopicPartition(topic, n) for n in await _partitions(self.bootstrap, topic)]
                    total += sum((await consumer.end_offsets(partitions)).values())
                return total
            finally:
                await consumer.stop()

        return asyncio.run(ask())

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Partition -> the offset that the group has committed."""

        async def ask() -> dict[int, int]:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
            await admin.start()
            try:
                while True:
                    try:
                        offsets = await admin.list_consumer_group_offsets(group)
                        break
                    except GroupCoordinatorNotAvailableError:
                        await asyncio.sleep(0.1)  # the first group of a broker: it makes the topic of offsets only now
                return {tp.partition: meta.offset for tp, meta in offsets.items() if tp.topic == topic}
            finally:
                await admin.close()

        return asyncio.run(ask())


async def _partitions(bootstrap: str, topic: str) -> list[int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        (found,) = [item for item in await admin.describe_topics() if item["topic"] == topic]
        return [item["partition"] for item in found["partitions"]]
    finally:
        await admin.close()


def until(true: Callable[[], Any], timeout: float = 60.0, what: str = "") -> Any:
    """Wait for something that must come; its value. Fails with `what` when it does not."""
    deadline = time.monotonic() + timeout
    while not (value := true()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:.0f} s: {what or true}")
        time.sleep(0.05)
    return value


def pipeline(broker: str, model_address: str, model: str, topics: dict[str, str], /, **sections: Any) -> dict[str, Any]:
    """A configuration for one pipeline; `sections` are merged in."""
    config: dict[str, Any] = {
        "name": topics["events"].replace("events", "pipeline"),
        "kafka": {"bootstrap_servers": broker},
        "source": {"topics": [topics["events"]]},
        "model": {"address": model_address, "name": model},
        "result": {"topic": topics["results"]},
        "dead_letter": {"topic": topics["letters"]},
        "observe": {"address": "127.0.0.1:0", "log": {"format": "json"}},
    }
    for key, value in sections.items():
        config[key] = config[key] | value if isinstance(config.get(key), dict) else value
    return config


class Bridge:
    """`headrace run` as a process."""

    def __init__(self, config: dict[str, Any], folder: Path, *options: str) -> None:
        self.config = config
        number = next(_numbers)
        self.path = folder / f"pipeline-{number}.yaml"
        self.path.write_text(yaml.safe_dump(config))
        self.log = folder / f"bridge-{number}.log"
        command = [sys.executable, "-m", "headrace", "run", str(self.path), *options]
        self.process = ServerProcess("the bridge", command, self.log, {**os.environ, "PYTHONUNBUFFERED": "1"})

    def wait_ready(self, timeout: float = 60.0) -> None:
        self.process.wait_ready(lambda: f"ready {self.config['name']}" in self.log.read_text(), timeout)

    def logs(self) -> list[dict[str, Any]]:
        """Its log lines that are JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def logged(self, event: str) -> bool:
        return any(line.get("event") == event for line in self.logs())

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of one of its HTTP endpoints."""
        mine = [line for line in self.logs() if line["event"] == "observing" and "worker" not in line]
        (address,) = [line["address"] for line in mine]
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample; -1 where there is none (yet)."""
        for line in self.get("/metrics")[1].splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.split("{")[0] == name and all(f'{key}="{text}"' in sample for key, text in labels.items()):
                return float(value)
        return -1.0

    def terminate(self, timeout: float = 60.0) -> int:
        """SIGTERM, and its exit code."""
        import signal

        self.process.signal(signal.SIGTERM)
        return self.process._process.wait(timeout)


@contextmanager
def running(config: dict[str, Any], folder: Path, *options: str, ready: bool = True) -> Iterator[Bridge]:
    """A bridge, ended at the end whatever happens."""
    bridge = Bridge(config, folder, *options)
    try:
        if ready:
            bridge.wait_ready()
        yield bridge
    finally:
        bridge.process.stop()


def headrace(
    *arguments: str, env: dict[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """The console command, as a user runs it."""
    command = [str(Path(sys.executable).parent / "headrace"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **(env or {})}
    )


def values(records: Sequence[Any]) -> list[Any]:
    """The parsed JSON of records."""
    return [json.loads(record.value) for record in records]


def header(record: Any, name: str) -> str:
    """A header's text."""
    return dict(record.headers)[name].decode()


@contextmanager
def serving_of(repository: Path) -> Iterator[str]:
    """Address of a server of TensorFlow Serving's API (tests/tfserving_server.py) for a model repository."""
    script = Path(__file__).parent / "tfserving_server.py"
    with subprocess.Popen(
        [sys.executable, str(script), str(repository)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("ready "), "the server has ended; it says why on standard error"
            yield f"127.0.0.1:{line.split()[1]}"
        finally:
            process.stdin.close()
            process.wait(30)
