"""`make trouble`: what the guarantees cost, and what trouble does to the rate, on this machine in one run.

    poison     100,000 events with 1,000 that the model refuses, beside 100,000 without
    delivery   exactly_once beside at_least_once: a backlog, and the latency at a fixed rate
    outage     the model server is killed for three minutes under load

Rounds alternate, and figures are medians with their spread. Broker, Triton and bridge are real and share the machine.
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import re
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from rich.console import Console
from rich.table import Table

from bridge.config.model import Kafka
from headrace.rig.kafka import KafkaCluster
from headrace.rig.process import ServerProcess
from headrace.rig.topics import create_topics
from headrace.rig.triton import TritonRig
from loadtest.rig import PARTITIONS, make_model, payloads, pipeline, start_bridge, write_events

_SAMPLE = re.compile(r"^(\w+)(\{.*\})? (\S+)$", re.MULTILINE)


@dataclass
class Rig:
    """The servers of a run."""

    kafka: KafkaCluster
    triton: TritonRig
    home: Path
    console: Console

    @contextlib.contextmanager
    def bridge(self, source: str, target: str, **sections: Any) -> Iterator[ServerProcess]:
        """A bridge from `source` to a new topic `target`, once it is ready."""
        bootstrap = self.kafka.bootstrap_servers
        counts = {target: PARTITIONS, f"{target}-dead": 1}
        asyncio.run(create_topics(Kafka(bootstrap_servers=bootstrap), counts))
        with start_bridge(pipeline(bootstrap, self.triton.address, source, target, sections), self.home) as process:
            process.wait_ready(lambda: f"ready {target}" in process.log.read_text(), 60)
            yield process

    async def done(self, group: str) -> int:
        """Events below the committed offsets."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap_servers)
        await admin.start()
        try:
            found = await admin.list_consumer_group_offsets(group)
            return sum(max(0, meta.offset) for meta in found.values())
        finally:
            await admin.close()

    def drain(self, group: str, events: int) -> float:
        """Seconds until so many events are committed."""

        async def wait() -> float:
            begun = moved = time.monotonic()
            last = 0
            while (count := await self.done(group)) < events:
                if count != last:
                    last, moved = count, time.monotonic()
                if time.monotonic() - moved > 120:
                    raise SystemExit(f"{group} stands still at {count} of {events}")
                await asyncio.sleep(0.02)
            return time.monotonic() - begun

        return asyncio.run(wait())

    def read(self, topic: str, partitions: int) -> list[Any]:
        """Every record that a read_committed reader sees, partition by partition."""

        async def consume() -> list[Any]:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.kafka.bootstrap_servers, isolation_level="read_committed"
            )
            await consumer.start()
            assigned = [TopicPartition(topic, number) for number in range(partitions)]
            last = await consumer.end_offsets(assigned)
            consumer.assign(assigned)
            for tp in assigned:
                consumer.seek(tp, 0)
            records: dict[TopicPartition, list[Any]] = {tp: [] for tp in assigned}
            while any([await consumer.position(tp) < last[tp] for tp in assigned]):
                for tp, found in (await consumer.getmany(timeout_ms=200)).items():
                    records[tp] += found
            await consumer.stop()
            return [record for tp in assigned for record in records[tp]]

        return asyncio.run(consume())


def metrics(process: ServerProcess) -> dict[str, float]:
    """Each metric's samples, summed over their labels."""
    (address,) = re.findall(r'"address": "([^"]+)", "event": "observing"', process.log.read_text())
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    sums: dict[str, float] = {}
    for name, _, value in _SAMPLE.findall(text):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def spread(values: list[float], form: str = ",.0f") -> str:
    """Median (minimum to maximum)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def poison(rig: Rig, rounds: int, events: int = 100_000, bad: int = 1_000) -> dict[str, Any]:
    """Throughput with and without poison, and the calls it takes to find it."""
    places = set(random.Random(1).sample(range(events), bad))
    bootstrap = rig.kafka.bootstrap_servers
    asyncio.run(write_events(bootstrap, "clean", events))
    asyncio.run(write_events(bootstrap, "poison", events, poison=places))
    rates: dict[str, list[float]] = {"clean": [], "poison": []}
    extra: list[float] = []
    bounds: list[float] = []
    for number in range(rounds):
        for source in rates:
            target = f"{source}-scores-{number}"
            with rig.bridge(source, target, model={"address": rig.triton.address, "name": "picky"}) as process:
                rates[source].append(events / rig.drain(target, events))
                found = metrics(process)
            results, letters = rig.read(target, PARTITIONS), rig.read(f"{target}-dead", 1)
            expected = places if source == "poison" else set()
            assert {int(record.key) for record in letters} == expected, "each poison event has its letter"
            assert len(letters) == len(expected)
            wanted = [n for part in range(PARTITIONS) for n in range(part, events, PARTITIONS) if n not in expected]
            assert [int(record.key) for record in results] == wanted, "every other event its result, in order"
            if source == "poison":
                batches, calls = found["headrace_batch_records_count"], found["headrace_inference_seconds_count"]
                extra.append(calls - batches)
                share = bad / batches  # poison events in a batch, on the average; the bound is concave in it
                bounds.append(batches * 2 * share * (1 + math.log2(events / batches / share)))
    table = Table(title=f"{bad:,} poison events among {events:,}", title_justify="left")
    for column in ("", "events/s", "extra calls", "bound 2k(1 + log2(n/k))"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("without poison", spread(rates["clean"]), "", "")
    table.add_row("with poison", spread(rates["poison"]), spread(extra), spread(bounds))
    rig.console.print(table)
    return {"rates": rates, "extra_calls": extra, "bounds": bounds}


def delivery(rig: Rig, rounds: int, events: int = 400_000, rate: int = 2_000, seconds: float = 20.0) -> dict[str, Any]:
    """A backlog, and the latency at a fixed rate, in both modes."""
    modes = ("at_least_once", "exactly_once")
    asyncio.run(write_events(rig.kafka.bootstrap_servers, "backlog", events))
    rates: dict[str, list[float]] = {mode: [] for mode in modes}
    costs: dict[str, list[float]] = {mode: [] for mode in modes}
    medians: dict[str, list[float]] = {mode: [] for mode in modes}
    tails: dict[str, list[float]] = {mode: [] for mode in modes}
    for number in range(rounds):
        for mode in modes:
            target = f"{mode}-{number}"
            with rig.bridge("backlog", target, delivery=mode) as process:
                watched = psutil.Process(process.pid)
                before = watched.cpu_times()
                rates[mode].append(events / rig.drain(target, events))
                after = watched.cpu_times()
            costs[mode].append((after.user + after.system - before.user - before.system) / events * 1e6)
            source = f"steady-{mode}-{number}"
            asyncio.run(create_topics(Kafka(bootstrap_servers=rig.kafka.bootstrap_servers), {source: PARTITIONS}))
            with rig.bridge(source, f"{source}-scores", delivery=mode):
                latencies = asyncio.run(_steady(rig, source, f"{source}-scores", rate, seconds))
            medians[mode].append(float(np.percentile(latencies, 50)))
            tails[mode].append(float(np.percentile(latencies, 99)))
    table = Table(title=f"a backlog of {events:,}; latency at {rate:,} events/s", title_justify="left")
    for column in ("", "events/s", "CPU us/event", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right" if column else "left")
    for mode in modes:
        row = (
            spread(rates[mode]),
            spread(costs[mode], ".1f"),
            spread(medians[mode], ".0f"),
            spread(tails[mode], ".0f"),
        )
        table.add_row(mode, *row)
    rig.console.print(table)
    ratio = statistics.median(b / a for a, b in zip(rates[modes[0]], rates[modes[1]], strict=True))
    rig.console.print(f"exactly_once / at_least_once = {ratio:.2f} in events/s")
    return {"rates": rates, "cpu_us": costs, "p50_ms": medians, "p99_ms": tails, "ratio": ratio}


async def _steady(rig: Rig, source: str, target: str, rate: int, seconds: float) -> list[float]:
    """Milliseconds from when each event was due to when a read_committed reader has its result."""
    bootstrap = rig.kafka.bootstrap_servers
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", fetch_max_wait_ms=20)
    await consumer.start()
    consumer.assign([TopicPartition(target, number) for number in range(PARTITIONS)])
    await consumer.seek_to_beginning()
    latencies: list[float] = []
    writing = asyncio.create_task(_write(bootstrap, source, rate, seconds))
    try:
        while not writing.done() or len(latencies) < writing.result():
            for records in (await consumer.getmany(timeout_ms=50)).values():
                now = time.time() * 1000
                latencies += [now - record.timestamp for record in records]
    finally:
        await consumer.stop()
    return latencies[rate:]  # without the first second


async def _write(bootstrap: str, topic: str, rate: int, seconds: float, stop: threading.Event | None = None) -> int:
    """Events at a fixed rate, stamped with when they were due; how many."""
    values = payloads()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=2)
    await producer.start()
    begun, number = time.time(), 0
    try:
        while time.time() - begun < seconds and not (stop and stop.is_set()):
            due = int((time.time() - begun) * rate)
            while number < due:
                stamp = int((begun + number / rate) * 1000)
                key, value = b"%d" % number, values[number % len(values)]
                await producer.send(topic, value, key, number % PARTITIONS, stamp)
                number += 1
            await asyncio.sleep(0.002)
    finally:
        await producer.stop()
    return number


def outage(rig: Rig, seconds: float, rate: int = 4_000) -> dict[str, Any]:
    """The model server is killed under load, and comes back."""
    bootstrap = rig.kafka.bootstrap_servers
    asyncio.run(create_topics(Kafka(bootstrap_servers=bootstrap), {"outage": PARTITIONS}))
    stop, written = threading.Event(), []
    writing = threading.Thread(
        target=lambda: written.append(asyncio.run(_write(bootstrap, "outage", rate, 3600, stop)))
    )
    with rig.bridge("outage", "outage-scores", delivery="exactly_once") as process:
        watched = psutil.Process(process.pid)
        writing.start()
        time.sleep(15)
        before = metrics(process)
        memory = [watched.memory_info().rss / 2**20]
        stubs = psutil.Process(rig.triton.process.pid).children(recursive=True)
        rig.triton.process.kill()
        for stub in stubs:  # they would outlive it
            with contextlib.suppress(psutil.NoSuchProcess):
                stub.kill()
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            time.sleep(5)
            memory.append(watched.memory_info().rss / 2**20)
        during = metrics(process)
        rig.triton.launch()
        rig.triton.wait_ready()
        behind = metrics(process)["headrace_consumer_lag_records"]
        back = time.monotonic()
        done = asyncio.run(rig.done("outage-scores"))
        while metrics(process)["headrace_consumer_lag_records"] > rate:
            time.sleep(0.2)
            memory.append(watched.memory_info().rss / 2**20)
        caught_up = time.monotonic() - back
        rate_after = (asyncio.run(rig.done("outage-scores")) - done) / caught_up
        stop.set()
        writing.join()
        rig.drain("outage-scores", written[0])
        after = metrics(process)
    found = {
        "seconds": seconds,
        "rate": rate,
        "events": written[0],
        "dead_letters": after["headrace_dead_letters_total"],
        "rebalances": after["headrace_rebalances_total"] - before["headrace_rebalances_total"],
        "calls_to_the_model_meanwhile": during["headrace_inference_seconds_count"]
        - before["headrace_inference_seconds_count"],
        "rss_mib_before": memory[0],
        "rss_mib_most": max(memory),
        "behind_when_the_model_is_back": behind,
        "seconds_to_catch_up": caught_up,
        "events_per_second_meanwhile": rate_after,
        "results": len({record.key for record in rig.read("outage-scores", PARTITIONS)}),
    }
    table = Table(title=f"the model server is away for {seconds:.0f} s at {rate:,} events/s", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,.0f}")
    rig.console.print(table)
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["poison", "delivery", "outage"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=180.0, help="how long the outage is")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - {"poison", "delivery", "outage"}
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are poison, delivery and outage")
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="headrace-trouble-") as folder:
        home = Path(folder)
        make_model(home / "models" / "dense")
        make_model(home / "models" / "picky", picky=True)
        with KafkaCluster() as kafka, TritonRig(home / "models") as triton:
            rig = Rig(kafka, triton, home, console)
            for part in arguments.parts:
                console.print(f"{part} …")
                match part:
                    case "poison":
                        found[part] = poison(rig, arguments.rounds)
                    case "delivery":
                        found[part] = delivery(rig, arguments.rounds)
                    case "outage":
                        found[part] = outage(rig, arguments.seconds)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
