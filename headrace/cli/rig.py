"""kafka and serve: real servers on this machine, in the foreground."""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from headrace.cli.repository import RepositoryArgument
from headrace.rig.process import Rig, die_with_parent


def _port(what: str) -> Any:
    return typer.Option(min=0, max=65535, help=what)


def add(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(kafka)
    app.command()(serve)


def kafka(
    port: Annotated[int, _port("Port of the first broker; 0 takes a free one.")] = 9092,
    data: Annotated[Path | None, typer.Option(help="Keep the topics in this folder; else they go away.")] = None,
    brokers: Annotated[int, typer.Option(min=1, max=9, help="How many brokers.")] = 1,
    topic: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:PARTITIONS", help="Create this topic; may be given several times."),
    ] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Only get what is needed to start later, then exit.")] = False,
) -> None:
    """Run a real Apache Kafka on this machine. Prints `ready HOST:PORT` once clients can use it.

    It stays in the foreground, and ends with the shell that started it unless that used nohup. Where no Java can run
    it falls back to a mock, and says so.
    """
    from bridge.config.model import Kafka as KafkaSection
    from headrace.rig.kafka import KafkaCluster, KafkaUnavailable, fetch_jars, java, mock_cluster
    from headrace.rig.topics import create_topics

    status = Console(stderr=True)
    topics = dict(_topic(text) for text in topic or ())
    try:
        with status.status("Kafka: resolving its jars (once, about 45 MB)"):
            java()
            fetch_jars()
    except KafkaUnavailable as error:
        if fetch:
            raise
        _mock(str(error), mock_cluster, status)
        return
    if fetch:
        status.print("Kafka: its jars are here")
        return
    cluster = KafkaCluster(port=port, brokers=brokers, data=data)

    def created() -> str:
        if topics:
            kafka = KafkaSection(bootstrap_servers=cluster.bootstrap_servers)
            asyncio.run(create_topics(kafka, topics, existing_ok=True))
        return cluster.bootstrap_servers

    _serve("Kafka", cluster, created, status)


def serve(
    repository: RepositoryArgument,
    grpc_port: Annotated[int, _port("Port of the gRPC service; 0 takes a free one.")] = 8001,
    http_port: Annotated[int, _port("Port of HTTP and health; 0 takes a free one.")] = 8000,
    metrics_port: Annotated[int, _port("Port of Triton's own metrics; 0 takes a free one.")] = 8002,
) -> None:
    """Run a real Triton over a model repository. Prints `ready HOST:PORT` (gRPC) once every model is loaded.

    Versions dropped into the repository later are loaded too, once they are whole; one that is wrong is refused
    with its reason, and what served before serves on. It stays in the foreground, and ends with the shell that started
    it unless that used nohup.
    """
    from bridge.config.model import Log
    from bridge.observe.logs import configure
    from headrace.rig.served import ServedRepository

    configure(Log())
    rig = ServedRepository(repository, grpc_port, http_port, metrics_port)
    _serve("Triton", rig, lambda: rig.address, Console(stderr=True))


def _end_with_parent() -> None:
    """A server that a terminal or a script has started ends with it; nohup says that it should not."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        die_with_parent()


class _Stopped(BaseException):
    """SIGTERM or Ctrl-C; no Exception, so that nothing on the way takes it for a failure."""


def _serve(name: str, server: Rig, address: Callable[[], str], status: Console) -> None:
    def stopped(*_: object) -> None:
        # From here on, signals wait: the end must not be interrupted half-way.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise _Stopped

    _end_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopped)
    try:
        with status.status(f"{name}: starting"):
            server.launch()
            server.wait_ready()
        print(f"ready {address()}", flush=True)
        server.wait()
    except _Stopped:
        status.print(f"{name}: stopping")
    finally:
        server.stop()


def _topic(text: str) -> tuple[str, int]:
    name, _, partitions = text.rpartition(":")
    if not name or not partitions.isdigit() or int(partitions) < 1:
        raise typer.BadParameter(f"{text!r} is not NAME:PARTITIONS, such as events:6", param_hint="--topic")
    return name, int(partitions)


def _mock(why: str, mock_cluster: Callable[[], AbstractContextManager[str]], status: Console) -> None:
    status.print(
        f"NOTICE: this is NOT a real Kafka. {why}.\n"
        "In its place runs librdkafka's mock cluster: no transactions, nothing on disk, a port of its own (--port, "
        "--data, --brokers and --topic do nothing), and not every request is known. Good for a first look, "
        "for nothing else.",
        style="bold red",
    )
    _end_with_parent()
    until = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: until.set())
    with mock_cluster() as address:
        print(f"ready {address}", flush=True)
        until.wait()
    sys.exit(0)
