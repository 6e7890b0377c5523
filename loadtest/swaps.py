"""`make swaps`: model versions come and go under load, and what becomes of the events meanwhile.

    publish     headrace models publish
    drop in     a folder without a manifest, copied by hand, file after file, in pieces
    roll back   headrace models rollback

One after the other, again and again, while events flow at a fixed rate. Every version says in its answers which one it
is, so that a wrong stamp is seen. Prints what was found; exits 1 when an event was lost, doubled, out of order, in the
dead letters, or stamped wrongly.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from headrace.rig.kafka import KafkaCluster
from headrace.rig.served import ServedRepository
from loadtest.bench.measure import Servers
from loadtest.bench.subjects import Bridge
from loadtest.bench.workload import Workload, feed
from loadtest.trouble import read
from serving.marks import Mark, withdraw
from serving.publish import publish
from serving.repository import serving_order

_MODEL = "dense-30"
_QUIET = 8.0  # seconds between two swaps
_AFTER = 4.0  # of them that belong to the swap: after a rollback the version before is loaded for the next one
_PATIENCE = 60.0
_SIGNS = 6
"""As many different models; version n is a copy of one, and which is remembered."""

_MAKE = """
import sys, numpy as np, tensorflow as tf
class Signed(tf.Module):
    def __init__(self, sign):
        rng = np.random.default_rng(1)
        self.layers = [tf.Variable(rng.normal(0, a ** -0.5, (a, b)).astype("f")) for a, b in ((30, 64), (64, 1))]
        self.sign = sign
    @tf.function(input_signature=[tf.TensorSpec([None, 30], tf.float32, "features")])
    def score(self, features):
        score = tf.sigmoid(tf.nn.relu(features @ self.layers[0]) @ self.layers[1])[:, 0]
        return {"score": score, "sign": tf.fill([tf.shape(features)[0]], tf.constant(self.sign, tf.int32))}
for sign in range(int(sys.argv[2])):
    module = Signed(sign)
    tf.saved_model.save(module, f"{sys.argv[1]}/{sign}/model.savedmodel", signatures={"serving_default": module.score})
"""


@dataclass
class Swap:
    """One change.

    Attributes:
        kind: what was done.
        version: that serves from then on.
        begun: when, in seconds since 1970.
        done: when the first result of that version was read.
    """

    kind: str
    version: str
    begun: float
    done: float = 0.0


@dataclass
class Reader:
    """Reads results as they come, and remembers what was wrong with them.

    Attributes:
        signs: version -> what its answers say.
        seen: results of each event.
        arrived: (event, when its result was read).
        version: of the newest result.
    """

    bootstrap: str
    topic: str
    partitions: int
    signs: dict[str, int]
    seen: Counter[int] = field(default_factory=Counter)
    arrived: list[tuple[int, float]] = field(default_factory=list)
    out_of_order: int = 0
    wrong_stamp: int = 0
    version: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `stop` is set."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "swaps",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 10,
                "enable.auto.commit": False,
            }
        )
        consumer.assign([TopicPartition(self.topic, number, 0) for number in range(self.partitions)])
        last = [-1] * self.partitions
        while not self.stop.is_set():
            first = consumer.poll(0.02)
            now = time.time()
            for message in [first, *consumer.consume(1_000, 0)] if first else []:
                if message.error() is not None:
                    continue
                number, result = int(message.key()), orjson.loads(message.value())
                self.seen[number] += 1
                self.arrived.append((number, now))
                self.out_of_order += number < last[message.partition()]
                last[message.partition()] = number
                self.version = result["model_version"]
                self.wrong_stamp += self.signs.get(self.version) != result["sign"]
        consumer.close()


def swap_again_and_again(
    reader: Reader, repository: Path, made: Path, count: int, told: Any, signs: dict[str, int]
) -> list[Swap]:
    """So many changes, each waited for until its version makes results."""
    swaps = []
    kinds = itertools.cycle(("publish", "drop in", "publish", "roll back"))
    for number, kind in zip(range(count), kinds, strict=False):
        told(number)
        time.sleep(_QUIET)
        model = repository / _MODEL
        newest = max(int(path.name) for path in model.iterdir() if path.name.isdigit())
        sign = (newest + 1) % _SIGNS
        swap = Swap(kind, str(newest + 1), time.time())
        if kind == "publish":
            signs[swap.version] = sign
            publish(made / str(sign), repository, _MODEL)
        elif kind == "drop in":
            signs[swap.version] = sign
            _copy_slowly(made / str(sign), model / swap.version)
            swap.begun = time.time()
        else:
            order = list(serving_order(model))
            swap.version = str(order[1])
            withdraw(model, order[0], Mark(by="rollback", reason="swaps", at=time.time()))
        until = time.monotonic() + _PATIENCE
        while reader.version != swap.version:
            if time.monotonic() > until:
                raise SystemExit(f"version {swap.version} makes no results {_PATIENCE:.0f} s after: {kind}")
            time.sleep(0.005)
        swap.done = time.time()
        swaps.append(swap)
    return swaps


def _copy_slowly(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as old, place.open("wb") as new:
            while piece := old.read(16_384):
                new.write(piece)
                new.flush()
                time.sleep(0.02)


def verdict(reader: Reader, swaps: Sequence[Swap], events: int, letters: int, first: float, rate: float) -> Any:
    """What was found, for programs and for the table."""
    waits = np.array([(at - first - number / rate) * 1000 for number, at in reader.arrived])
    due = np.array([first + number / rate for number, _ in reader.arrived])
    swapping = np.zeros(len(due), bool)
    warm = due >= first + _QUIET / 2
    for swap in swaps:
        swapping |= (due >= swap.begun) & (due <= swap.done + _AFTER)
    kinds = {
        kind: sorted(round(swap.done - swap.begun, 2) for swap in swaps if swap.kind == kind)
        for kind in dict.fromkeys(swap.kind for swap in swaps)
    }
    return {
        "events": events,
        "swaps": len(swaps),
        "lost": sum(number not in reader.seen for number in range(events)),
        "doubled": sum(reader.seen.values()) - len(reader.seen),
        "out_of_order": reader.out_of_order,
        "dead_letters": letters,
        "wrong_stamp": reader.wrong_stamp,
        "latency_ms": {
            name: {p: round(float(np.percentile(chosen, float(p))), 1) for p in ("50", "99", "99.9")}
            for name, chosen in (("without", waits[warm & ~swapping]), ("during", waits[swapping]))
            if len(chosen)
        },
        "seconds_until_first_result": kinds,
    }


def main() -> None:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--rate", type=float, default=5_000.0, help="events/s")
    parser.add_argument("--delivery", choices=("exactly_once", "at_least_once"), default="exactly_once")
    parser.add_argument("--out", type=Path, help="also write what was found as JSON")
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 120)
    with tempfile.TemporaryDirectory(prefix="headrace-swaps-") as folder:
        home = Path(folder)
        made = home / "made"
        subprocess.run([sys.executable, "-c", _MAKE, str(made), str(_SIGNS)], check=True, capture_output=True)
        repository = home / "repository"
        (repository / _MODEL).mkdir(parents=True)
        shutil.copytree(made / "1", repository / _MODEL / "1")
        with KafkaCluster() as kafka, ServedRepository(repository) as served:
            servers = Servers(kafka, served.address, served.triton, home)
            found = _run(servers, repository, made, arguments, console)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    _print(console, found)
    wrong = ("lost", "doubled", "out_of_order", "dead_letters", "wrong_stamp")
    if any(found[name] for name in wrong):
        sys.exit("not every event had exactly one right outcome, in order")


def _run(servers: Servers, repository: Path, made: Path, arguments: Any, console: Console) -> Any:
    workload, source, rate = Workload(), "swaps", arguments.rate
    servers.create({source: workload.partitions})
    signs = {"1": 1}
    bridge = Bridge(sections={"delivery": arguments.delivery})
    with servers.running(bridge, workload, source) as (process, target), ThreadPoolExecutor(2) as pool:
        reader = Reader(servers.kafka.bootstrap_servers, target, workload.partitions, signs)
        stop = threading.Event()
        reading = pool.submit(reader.run)
        feeding = pool.submit(feed, servers.kafka.bootstrap_servers, source, workload, rate, 36_000.0, stop)
        try:
            with _progress(console, arguments.swaps) as told:
                swaps = swap_again_and_again(reader, repository, made, arguments.swaps, told, signs)
            time.sleep(_AFTER)
            stop.set()
            first, events = feeding.result()
            until = time.monotonic() + _PATIENCE
            while len(reader.seen) < events and time.monotonic() < until and process.running:
                time.sleep(0.1)
            time.sleep(1.0)  # for what may come twice
        finally:
            stop.set()
            reader.stop.set()
        reading.result()
        letters = sum(1 for _ in read(servers, f"{target}-dead", 1))
    return verdict(reader, swaps, events, letters, first, rate)


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Any]:
    with Progress(console=console) as bar:
        task = bar.add_task("swaps", total=total)
        yield lambda number: bar.update(task, completed=number)
        bar.update(task, completed=total)


def _print(console: Console, found: Any) -> None:
    table = Table(title=f"{found['swaps']} swaps under load", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for name in ("events", "lost", "doubled", "out_of_order", "dead_letters", "wrong_stamp"):
        table.add_row(name.replace("_", " "), f"{found[name]:,}")
    for name, values in found["latency_ms"].items():
        table.add_row(f"{name} a swap: p50, p99, p99.9", ", ".join(f"{value:,.1f} ms" for value in values.values()))
    for kind, seconds in found["seconds_until_first_result"].items():
        middle = seconds[len(seconds) // 2]
        table.add_row(f"{kind}: until its first result", f"{middle:.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f})")
    console.print(table)


if __name__ == "__main__":
    main()
