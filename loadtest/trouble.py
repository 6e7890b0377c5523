"""`make trouble`: what trouble does to the rate, on this machine in one run, and whether every event gets its outcome.

    poison     100,000 events with 1,000 that the model refuses, beside 100,000 without
    outage     the model server is killed for three minutes under load

Rounds alternate, and figures are medians with their spread. Broker, Triton and bridge are real and share the machine.
"""

import argparse
import json
import math
import re
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Message, TopicPartition
from rich.console import Console
from rich.table import Table

from headrace.rig.kafka import KafkaCluster
from headrace.rig.process import ServerProcess
from headrace.rig.triton import TritonRig
from loadtest.bench.measure import Servers, process_memory
from loadtest.bench.subjects import Bridge
from loadtest.bench.workload import Workload, feed, make_models

_SAMPLE = re.compile(r"^(\w+)(\{.*\})? (\S+)$", re.MULTILINE)
_ONCE = Bridge("exactly_once", {"delivery": "exactly_once"})


def metrics(process: ServerProcess) -> dict[str, float]:
    """Each metric's samples, summed over their labels."""
    (address,) = re.findall(r'"address": "([^"]+)", "event": "observing"', process.log.read_text())
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    sums: dict[str, float] = {}
    for name, _, value in _SAMPLE.findall(text):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def read(servers: Servers, topic: str, partitions: int) -> Iterator[Message]:
    """Every record that a read_committed reader sees now, in the order of each partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers.kafka.bootstrap_servers,
            "group.id": "trouble",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    ended = 0
    try:
        while ended < partitions:
            for message in consumer.consume(1_000, 1.0):
                if message.error() is None:
                    yield message
                else:
                    ended += 1  # its end: nothing writes there any more
    finally:
        consumer.close()


def spread(values: list[float], form: str = ",.0f") -> str:
    """Median (minimum to maximum)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def poison(servers: Servers, rounds: int, console: Console, events: int = 100_000) -> dict[str, Any]:
    """Throughput with and without poison, and the calls it takes to find it."""
    workloads = {"without poison": Workload(model="picky"), "with 1 % poison": Workload(model="picky", poison=0.01)}
    rates: dict[str, list[float]] = {name: [] for name in workloads}
    extra: list[float] = []
    bounds: list[float] = []
    for name, workload in list(workloads.items()) * rounds:
        bridge, source = Bridge(), servers.fill(workload, events)
        with servers.running(bridge, workload, source) as (process, target):
            count = servers.counter(bridge, workload, source, target)
            rates[name].append(servers.watch(process, count, events).events_per_second)
            found = metrics(process)
        bad = {number for number in range(events) if workload.poisoned(number)}
        letters = [int(message.key()) for message in read(servers, f"{target}-dead", 1)]
        assert sorted(letters) == sorted(bad), "each poison event has its letter"
        results: dict[int, list[int]] = {number: [] for number in range(workload.partitions)}
        for message in read(servers, target, workload.partitions):
            results[message.partition()].append(int(message.key()))
        for number, keys in results.items():
            wanted = [n for n in range(number, events, workload.partitions) if n not in bad]
            assert keys == wanted, "every other event its result, in order"
        if bad:
            batches, calls = found["headrace_batch_records_count"], found["headrace_inference_seconds_count"]
            extra.append(calls - batches)
            share = len(bad) / batches  # poison events in a batch, on the average; the bound is concave in it
            bounds.append(batches * 2 * share * (1 + math.log2(events / batches / share)))
    table = Table(title=f"{events // 100:,} poison events among {events:,}", title_justify="left")
    for column in ("", "events/s", "extra calls", "bound 2k(1 + log2(n/k))"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("without poison", spread(rates["without poison"]), "", "")
    table.add_row("with 1 % poison", spread(rates["with 1 % poison"]), spread(extra), spread(bounds))
    console.print(table)
    return {"rates": rates, "extra_calls": extra, "bounds": bounds}


def outage(servers: Servers, seconds: float, console: Console, rate: int = 4_000) -> dict[str, Any]:
    """The model server is killed under load, and comes back."""
    workload, source = Workload(model="picky"), "outage"
    servers.create({source: workload.partitions})
    stop, written = threading.Event(), []

    def write() -> None:
        written.append(feed(servers.kafka.bootstrap_servers, source, workload, rate, 3600, stop)[1])

    with servers.running(_ONCE, workload, source) as (process, target):
        writing = threading.Thread(target=write)
        writing.start()
        time.sleep(15)
        before = metrics(process)
        memory = [process_memory(process)]
        assert servers.triton is not None, "it runs here"
        servers.triton.process.kill_all()
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            time.sleep(5)
            memory.append(process_memory(process))
        during = metrics(process)
        servers.triton.launch()
        servers.triton.wait_ready()
        committed = servers.counter(_ONCE, workload, source, target)
        behind = metrics(process)["headrace_consumer_lag_records"]
        back, done = time.monotonic(), committed()
        while metrics(process)["headrace_consumer_lag_records"] > rate:
            time.sleep(0.2)
            memory.append(process_memory(process))
        caught_up = time.monotonic() - back
        rate_after = (committed() - done) / caught_up
        stop.set()
        writing.join()
        until = time.monotonic() + 120
        while committed() < written[0]:
            assert time.monotonic() < until, "it catches up"
            time.sleep(0.1)
        after = metrics(process)
    keys = [message.key() for message in read(servers, target, workload.partitions)]
    found = {
        "seconds": seconds,
        "rate": rate,
        "events": written[0],
        "results": len(keys),
        "distinct_results": len(set(keys)),
        "dead_letters": after["headrace_dead_letters_total"],
        "rebalances": after["headrace_rebalances_total"] - before["headrace_rebalances_total"],
        "calls_to_the_model_meanwhile": during["headrace_inference_seconds_count"]
        - before["headrace_inference_seconds_count"],
        "rss_mib_before": memory[0],
        "rss_mib_most": max(memory),
        "behind_when_the_model_is_back": behind,
        "seconds_to_catch_up": caught_up,
        "events_per_second_meanwhile": rate_after,
    }
    table = Table(title=f"the model server is away for {seconds:.0f} s at {rate:,} events/s", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,.0f}")
    console.print(table)
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["poison", "outage"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=180.0, help="how long the outage is")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - {"poison", "outage"}
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are poison and outage")
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="headrace-trouble-") as folder:
        home = Path(folder)
        make_models(home / "models", [Workload(model="picky")])
        with KafkaCluster() as kafka, TritonRig(home / "models") as triton:
            servers = Servers(kafka, triton.address, triton, home)
            for part in arguments.parts:
                console.print(f"{part} …")
                if part == "poison":
                    found[part] = poison(servers, arguments.rounds, console)
                else:
                    found[part] = outage(servers, arguments.seconds, console)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
