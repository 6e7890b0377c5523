"""`make bench`: a topic through a model, beside a plain copy of that topic, on this machine in one run.

Absolute figures differ from machine to machine; the ratio to the copy, taken in alternating rounds of the same run,
says something about the bridge. The events are JSON objects of 30 numbers (about 700 bytes), or raw rows of 30 floats;
the model is a dense network 30-64-1 on a real Triton; the broker is a real Kafka; all of them share the machine.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bridge.config.model import Kafka
from headrace.rig.kafka import KafkaCluster
from headrace.rig.process import ServerProcess
from headrace.rig.topics import create_topics
from headrace.rig.triton import TritonRig
from loadtest.rig import PARTITIONS, make_model, pipeline, start_bridge, write_events

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Round:
    """One measured pass over the topic."""

    subject: str
    events_per_second: float
    cpu_us_per_event: float
    rss_mib_first: float
    rss_mib_last: float


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", default="json,raw", help="of json, raw; separated by a comma")
    parser.add_argument("--out", type=Path, help="also write the rounds as JSON")
    arguments = parser.parse_args()
    console = Console()
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, Progress(console=console) as progress:
        home = Path(folder)
        formats = arguments.formats.split(",")
        task = progress.add_task("starting Kafka and Triton", total=1 + len(formats) * (1 + 2 * arguments.rounds))
        make_model(home / "models" / "dense")
        with KafkaCluster() as kafka, TritonRig(home / "models") as triton:
            progress.advance(task)
            for form in formats:
                progress.update(task, description=f"writing {arguments.events} {form} events")
                source = f"events-{form}"
                asyncio.run(write_events(kafka.bootstrap_servers, source, arguments.events, form))
                progress.advance(task)
                for number in range(arguments.rounds):
                    for subject in (f"copy {form}", f"headrace {form}"):
                        progress.update(task, description=f"round {number + 1}: {subject}")
                        target = f"{subject.replace(' ', '-')}-{number}"
                        start = _copy if subject.startswith("copy") else _bridge(triton.address, form, home)
                        rounds.append(
                            _measure(kafka.bootstrap_servers, source, target, subject, arguments, start, home)
                        )
                        progress.advance(task)
    _print(console, rounds, formats)
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(item) for item in rounds], indent=1) + "\n")


Start = Callable[[str, str, str, Path], ServerProcess]


def _copy(bootstrap: str, source: str, target: str, home: Path) -> ServerProcess:
    command = [sys.executable, "-m", "loadtest.copy_topic", bootstrap, source, target, target]
    return ServerProcess("the copy", command, home / f"{target}.log", {**os.environ, "PYTHONPATH": str(ROOT)})


def _bridge(model: str, form: str, home: Path) -> Start:
    def start(bootstrap: str, source: str, target: str, home: Path = home) -> ServerProcess:
        config = pipeline(bootstrap, model, source, target, {"event": {"format": form}})
        return start_bridge(config, home)

    return start


def _measure(
    bootstrap: str, source: str, target: str, subject: str, arguments: argparse.Namespace, start: Start, home: Path
) -> Round:
    asyncio.run(create_topics(Kafka(bootstrap_servers=bootstrap), {target: PARTITIONS, f"{target}-dead": 1}))
    with start(bootstrap, source, target, home) as process:
        said_ready = re.compile(rf"^ready( {target})?$", re.MULTILINE)
        process.wait_ready(lambda: said_ready.search(process.log.read_text()) is not None, 60)
        watched = psutil.Process(process.pid)
        before, begun = watched.cpu_times(), time.monotonic()
        memory = asyncio.run(_until(bootstrap, target, arguments.events, watched))
        seconds, after = time.monotonic() - begun, watched.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    return Round(subject, arguments.events / seconds, cpu / arguments.events * 1e6, memory[0], memory[-1])


async def _until(bootstrap: str, topic: str, events: int, process: psutil.Process) -> list[float]:
    """Until the topic holds so many records; the process's memory at each tenth of the way, in MiB."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    memory: list[float] = []
    last, progressed = 0, time.monotonic()
    try:
        while True:
            count = sum((await consumer.end_offsets(partitions)).values())
            if count >= events * (len(memory) + 1) // 10:
                memory.append(process.memory_info().rss / 2**20)
            if count > events:
                raise SystemExit(f"{topic} has {count} records for {events} events")
            if count == events:
                return memory
            if count != last:
                last, progressed = count, time.monotonic()
            if time.monotonic() - progressed > 60:
                raise SystemExit(f"{topic} stands still at {count} of {events}")
            await asyncio.sleep(0.02)
    finally:
        await consumer.stop()


def _print(console: Console, rounds: list[Round], formats: list[str]) -> None:
    table = Table(title="median (minimum to maximum) of the rounds", title_justify="left")
    for column in ("", "events/s", "CPU us/event", "RSS MiB first -> last tenth"):
        table.add_column(column, justify="right" if column else "left")
    medians: dict[str, tuple[float, float]] = {}
    for subject in dict.fromkeys(item.subject for item in rounds):
        chosen = [item for item in rounds if item.subject == subject]
        rates = sorted(item.events_per_second for item in chosen)
        costs = sorted(item.cpu_us_per_event for item in chosen)
        medians[subject] = (statistics.median(rates), statistics.median(costs))
        memory = max(chosen, key=lambda item: item.rss_mib_last / item.rss_mib_first)
        table.add_row(
            subject,
            f"{medians[subject][0]:,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})",
            f"{medians[subject][1]:.2f} ({costs[0]:.2f} to {costs[-1]:.2f})",
            f"{memory.rss_mib_first:.0f} -> {memory.rss_mib_last:.0f}",
        )
    console.print(table)
    for form in formats:
        rate, cost = (medians[f"headrace {form}"][n] / medians[f"copy {form}"][n] for n in (0, 1))
        console.print(f"{form}: headrace / copy = {rate:.2f} in events/s, {cost:.2f} in CPU per event")


if __name__ == "__main__":
    main()
