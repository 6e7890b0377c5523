"""The demo from start to end: servers, bridge, stream, swap, check."""

import asyncio
import gzip
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live

from bridge.config import Pipeline, parse
from bridge.errors import HeadraceError, first_cause
from headrace.demo.stream import read_back, send
from headrace.demo.tally import Tally
from headrace.demo.view import View, print_summary
from headrace.rig.kafka import KafkaCluster
from headrace.rig.process import ServerProcess, free_port
from headrace.rig.topics import create_topics
from headrace.rig.triton import TritonRig
from serving.control import TritonControl
from serving.manifest import read_manifest
from serving.publish import publish

PIPELINES = Path(__file__).parent / "pipelines"
PARTITIONS = 6
OUTPUTS = {"fraud": "score", "maintenance": "score", "personalization": "rating", "credit": "score"}
"""The result's field with the answer that the labels are compared with."""
_PATIENCE = 30.0


@dataclass(frozen=True)
class Servers:
    """Everything that runs for the demo."""

    kafka: KafkaCluster
    triton: TritonRig
    bridge: ServerProcess
    pipeline: Pipeline
    config: Path
    repository: Path


def demo(model: str, events: int, rate: float, keep: bool, as_json: bool, repository: Path) -> bool:
    """Run it.

    Args:
        model: one of `OUTPUTS`.
        events: how many to stream.
        rate: events a second; 0 streams as fast as it goes.
        keep: leave everything running at the end, until Ctrl-C.
        as_json: end with one JSON object on standard output.
        repository: the model repository to take the model from.

    Returns:
        Whether every event got exactly one outcome, in order.
    """
    source = repository / model
    if not (source / "1").is_dir() or not (source / "2").is_dir():
        raise HeadraceError(f"{source}: no versions 1 and 2 of the model; run the demo from a clone of the repository")
    console = Console(stderr=as_json)
    rows = [orjson.loads(line) for line in gzip.decompress((source / "events.jsonl.gz").read_bytes()).splitlines()]
    labels = np.array([row.pop("label") for row in rows], dtype=np.float64)[np.arange(events) % len(rows)]
    manifest = read_manifest(source / "1")
    if manifest is None:
        raise HeadraceError(f"{source / '1'}: no manifest; run make models")
    metric = next(iter(manifest.quality))
    tally = Tally(events, labels, _pipeline(model, {}).source.topics[0])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: everything is stopped and removed
    with _servers(model, source, console) as servers:
        try:
            seconds = asyncio.run(_stream(servers, model, rows, rate, source, tally, console))
        except BaseExceptionGroup as group:
            raise first_cause(group) from None
        summary = _summary(tally, metric, seconds)
        print_summary(console, summary, metric)
        if as_json:
            print(orjson.dumps(summary).decode(), flush=True)
        if keep:
            _keep(servers, console)
    return tally.good


@contextmanager
def _servers(model: str, source: Path, console: Console) -> Iterator[Servers]:
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        repository = home / "models"
        (repository / model).mkdir(parents=True)
        shutil.copy2(source / "config.pbtxt", repository / model)
        publish(source / "1", repository, model)
        kafka, triton = KafkaCluster(), TritonRig(repository)
        stack.callback(kafka.stop)
        stack.callback(triton.stop)
        with console.status("starting a real Kafka and a real Triton"):
            triton.launch()
            kafka.launch()
            kafka.wait_ready()
            triton.wait_ready()
        console.print(f"Kafka at {kafka.bootstrap_servers}, Triton at {triton.address} with version 1 of {model}")
        observe = f"127.0.0.1:{free_port()}"
        env = {
            "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "HEADRACE_MODEL__ADDRESS": triton.address,
            "HEADRACE_OBSERVE__ADDRESS": observe,
        }
        config = PIPELINES / f"{model}.yaml"
        pipeline = _pipeline(model, env)
        asyncio.run(create_topics(pipeline.kafka, _topics(pipeline)))
        bridge = stack.enter_context(
            ServerProcess(
                "the bridge",
                [sys.executable, "-m", "headrace", "run", str(config)],
                home / "bridge.log",
                {**{k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}, **env},
            )
        )
        with console.status("starting the bridge"):
            bridge.wait_ready(lambda: f"ready {pipeline.name}" in bridge.tail(), 60)
        yield Servers(kafka, triton, bridge, pipeline, config, repository)


def _pipeline(model: str, env: dict[str, str]) -> Pipeline:
    return parse(yaml.safe_load((PIPELINES / f"{model}.yaml").read_text()), env)


def _topics(pipeline: Pipeline) -> dict[str, int]:
    topics = {pipeline.source.topics[0]: PARTITIONS, pipeline.result.topic: PARTITIONS, pipeline.dead_letter.topic: 1}
    if pipeline.result.alert:
        topics[pipeline.result.alert.topic] = PARTITIONS
    return topics


async def _stream(
    servers: Servers,
    model: str,
    rows: list[dict[str, Any]],
    rate: float,
    source: Path,
    tally: Tally,
    console: Console,
) -> float:
    """Stream, swap and read back; the seconds from the first event to the last outcome."""
    swap, swapped, sent_all = asyncio.Event(), asyncio.Event(), asyncio.Event()
    half, held = tally.events // 2, tally.events - tally.events // 4
    view = View(f"headrace demo: {model}", tally)
    started = time.monotonic()

    async def before(number: int) -> None:
        # From the half on events flow while version 2 loads; the last quarter waits for it, to be seen by it.
        if number >= half:
            swap.set()
        if number >= held:
            await swapped.wait()

    async def sender() -> None:
        await send(servers.pipeline, rows, PARTITIONS, rate, tally, before)
        sent_all.set()

    async def swapper() -> None:
        await swap.wait()
        view.note = "version 2 is loading while version 1 serves on"
        begun = time.monotonic()
        await asyncio.to_thread(_publish, servers, model, source)
        view.note = f"version 2 serves; it took {time.monotonic() - begun:.1f} s to load, while version 1 served on"
        swapped.set()

    with Live(view, console=console, refresh_per_second=5) if console.is_terminal else nullcontext():
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_watch(servers, view, tally, console))
            tasks.create_task(sender())
            tasks.create_task(swapper())
            reading = tasks.create_task(
                read_back(servers.pipeline, PARTITIONS, OUTPUTS[model], tally, _PATIENCE, sent_all)
            )
            await reading
            watching.cancel()
    return time.monotonic() - started


def _publish(servers: Servers, model: str, source: Path) -> None:
    publish(source / "2", servers.repository, model)
    control = TritonControl(servers.triton.address)
    try:
        control.load(model)
    finally:
        control.close()


async def _watch(servers: Servers, view: View, tally: Tally, console: Console) -> None:
    before, then = 0, time.monotonic()
    batches = [(0.0, 0.0)]
    while True:
        await asyncio.sleep(1.0)
        if not servers.bridge.running:
            raise HeadraceError(f"the bridge ended:\n{servers.bridge.tail()}")
        now = time.monotonic()
        view.rate = (tally.accounted - before) / (now - then)
        before, then = tally.accounted, now
        batches.append(await asyncio.to_thread(_batches, str(servers.pipeline.observe.address)))
        (count, events), (new_count, new_events) = batches[-2:]
        view.batch_size = (new_events - events) / (new_count - count) if new_count > count else view.batch_size
        if not console.is_terminal:
            console.print(view.line(), soft_wrap=True, highlight=False)


def _batches(address: str) -> tuple[float, float]:
    """How many batches the bridge has made so far, and of how many events."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    totals = {
        sample.name.removeprefix("headrace_batch_records_"): sample.value
        for family in text_string_to_metric_families(text)
        if family.name == "headrace_batch_records"
        for sample in family.samples
        if sample.name.endswith(("_sum", "_count"))
    }
    return totals["count"], totals["sum"]


def _summary(tally: Tally, metric: str, seconds: float) -> dict[str, Any]:
    return {
        "events": tally.events,
        "results": tally.results,
        "dead_letters": tally.dead_letters,
        "lost": tally.lost,
        "duplicated": tally.duplicated,
        "out_of_order": tally.out_of_order,
        "mismatched": tally.mismatched,
        "versions": dict(sorted(tally.versions.items())),
        "p50_ms": round(tally.latency_ms(0.5), 2),
        "p99_ms": round(tally.latency_ms(0.99), 2),
        "events_per_second": round(tally.accounted / seconds, 1),
        "quality": {version: round(value, 4) for version, value in tally.quality(metric).items()},
    }


def _keep(servers: Servers, console: Console) -> None:
    pipeline = servers.pipeline
    environment = " ".join(
        f"HEADRACE_{name}={value}"
        for name, value in (
            ("KAFKA__BOOTSTRAP_SERVERS", pipeline.kafka.bootstrap_servers),
            ("MODEL__ADDRESS", pipeline.model.address),
            ("OBSERVE__ADDRESS", pipeline.observe.address),
        )
    )
    console.print(
        f"Everything runs on until Ctrl-C.\n"
        f"  topics         {pipeline.source.topics[0]} -> {pipeline.result.topic}, {pipeline.dead_letter.topic}\n"
        f"  metrics        http://{pipeline.observe.address}/metrics\n"
        f"  models         {servers.repository}\n"
        f"  pipeline       {servers.config}\n"
        f"  ask it         {environment} headrace check {servers.config}",
        soft_wrap=True,
        highlight=False,
    )
    try:
        servers.bridge.wait()
    except KeyboardInterrupt:
        console.print("stopping")
