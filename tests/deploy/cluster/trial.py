"""make test-cluster: the chart on a real Kubernetes, under load, through everything that is done to a release.

Events flow all the while. After each change the reader waits until every event written so far has its outcome. Prints a
table, writes it as Markdown with --out, and exits 1 when an event was lost, doubled or out of order, or a step failed.
"""

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bridge.config.model import Kafka
from headrace.rig.kafka import KafkaCluster
from headrace.rig.topics import create_topics
from tests.deploy.cluster import node
from tests.deploy.cluster.__main__ import up
from tests.deploy.cluster.daemon import Failed, until
from tests.deploy.cluster.node import kubectl
from tests.deploy.cluster.release import (
    BRIDGE,
    NAMESPACE,
    RELEASE,
    SERVING,
    Release,
    copy_version,
    dry_run,
    first_pod,
    installed,
    leftovers,
    ready,
    restarts,
    rolled,
    stranger,
    volume,
)
from tests.deploy.cluster.traffic import PARTITIONS, Found, Traffic

HERE = Path(__file__).parent
OUTCOMES = {"fraud-scores": PARTITIONS, "fraud-dead-letters": 1}


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was done to the release.

    Attributes:
        what: in words.
        seconds: until it was done.
        found: what became of the events that were written meanwhile.
        note: what else was seen.
    """

    what: str
    seconds: float
    found: Found
    note: str


_SETTINGS = ("serving.replicas=2",)
"""What is set from the upgrade to two servers on."""
_BUSY = 3
"""So many times the rate keeps three bridges at a tenth of a core each."""


class Trial:
    """The steps, one after the other."""

    def __init__(self, release: Release, traffic: Traffic, console: Console) -> None:
        self.release = release
        self.traffic = traffic
        self.rows: list[Row] = []
        self._console = console

    def step(self, what: str, act: Callable[[], str | None], patience: float = 120.0) -> None:
        """Do something, and wait until every event written by then has its outcome."""
        self._console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {what} …")
        first, began, before = self.traffic.written, time.monotonic(), restarts()
        note = act() or ""
        seconds = time.monotonic() - began
        time.sleep(3)  # of calm, which belongs to it: what comes late comes now
        last = self.traffic.written
        self.traffic.wait(patience)
        crashed = restarts() - before
        if crashed > 0:
            note = f"{note}; {crashed} restarts" if note else f"{crashed} restarts"
        self.rows.append(Row(what, seconds, self.traffic.found(first, last), note))
        self._console.print(f"   {asdict(self.rows[-1].found)} {self.rows[-1].note}")


def steps(trial: Trial, events: int, rate: float) -> None:
    """All of them."""
    release, traffic = trial.release, trial.traffic

    def backlog() -> str:
        began = time.monotonic()
        traffic.burst(events)
        if not traffic.wait(1_800):
            raise Failed(f"of {events} events {traffic.seen} have a result after 30 minutes")
        return f"{events / (time.monotonic() - began):,.0f} events/s, writing them included"

    def upgrade_bridge() -> None:
        kubectl("-n", NAMESPACE, "rollout", "restart", BRIDGE)
        rolled(BRIDGE)

    def drop_in() -> str:
        copy_version("2")
        began = time.monotonic()
        traffic.versions.clear()
        until(lambda: traffic.versions["2"] > 0, "results of version 2", 120)
        return f"first result of version 2 after {time.monotonic() - began:.1f} s"

    def delete(component: str) -> None:
        wanted = ready(component)
        name = first_pod(component)
        kubectl("-n", NAMESPACE, "delete", "pod", name, "--wait=true", timeout=180)
        until(lambda: ready(component) >= wanted, f"{component} pods", 240)

    def scale() -> str:
        for count in (3, 1):
            kubectl("-n", NAMESPACE, "scale", BRIDGE, f"--replicas={count}")
            rolled(BRIDGE)
            until(lambda: ready("bridge") == count, f"{count} bridges", 240)  # noqa: B023 - awaited here
            time.sleep(5)
        return ""

    def refuse() -> str:
        broken = node.STATE / "volume" / "fraud" / "3" / "model.savedmodel"
        broken.mkdir(parents=True)
        (broken / "saved_model.pb").write_bytes(b"not a model")
        wanted = fewest = ready("serving")
        end = time.monotonic() + 30
        while time.monotonic() < end:
            fewest = min(fewest, ready("serving"))
            time.sleep(1)
        if fewest < wanted or "3" in traffic.versions:
            raise Failed(
                f"a version that is no model: {fewest} of {wanted} servers were left, {dict(traffic.versions)}"
            )
        said = kubectl("-n", NAMESPACE, "logs", SERVING, "-c", "watcher", "--tail=20")
        if "version refused" not in said:
            raise Failed(f"the watcher does not say that it refuses version 3:\n{said}")
        shutil.rmtree(broken.parent)
        return "all servers stay ready"

    def keda(lag: int, cpu: float, load: Callable[[], str], calm: Callable[[], None]) -> str:
        """By triggers at so much lag for each bridge and at such a share of a core."""
        # By its address: KEDA runs on the host here, which does not know the cluster's names.
        release.apply(
            f"pipeline.kafka.bootstrap_servers={node.HOST}:9092",
            "bridge.autoscaling.enabled=true",
            f"bridge.autoscaling.lagThreshold={lag}",
            f"bridge.autoscaling.cpu={cpu}",
            "bridge.autoscaling.maxReplicas=3",
            *_SETTINGS,
        )
        down = {"stabilizationWindowSeconds": 15, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]}
        behavior = {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": down}}}
        quick = json.dumps({"spec": {"advanced": behavior}})  # than the chart allows, since nobody waits here for it
        name = f"{RELEASE}-headrace-bridge"
        kubectl("-n", NAMESPACE, "patch", "scaledobject", name, "--type=merge", "-p", quick)
        until(lambda: ready("bridge") == 1, "1 bridge", 240)
        began = time.monotonic()
        loaded = load()
        until(lambda: ready("bridge") == 3, "3 bridges", 240)
        took = time.monotonic() - began
        calm()
        until(lambda: ready("bridge") == 1, "1 bridge again", 600)
        release.apply(*_SETTINGS)
        return f"3 bridges after {took:.0f} s of {loaded}, 1 again after {time.monotonic() - began:.0f} s"

    def follow_lag() -> str:
        def load() -> str:
            traffic.burst(600_000)
            return "a backlog of 600,000"

        return keda(5_000, 0.7, load, lambda: None)

    def follow_cpu() -> str:
        def load() -> str:
            traffic.rate(_BUSY * rate)
            return f"{_BUSY * rate:,.0f} events/s"

        traffic.rate(0)  # from before on, lest it is busy enough for two
        try:
            return keda(1_000_000_000, 0.1, load, lambda: traffic.rate(0))
        finally:
            traffic.rate(rate)

    def static() -> str:
        release.apply("bridge.staticMembership=true", "bridge.replicas=2", *_SETTINGS)
        target = f"statefulset/{RELEASE}-headrace-bridge"
        rolled(target)
        kubectl("-n", NAMESPACE, "rollout", "restart", target)
        rolled(target)
        release.apply(*_SETTINGS)
        return "a StatefulSet of two in place of the Deployment, its pods restarted, and back"

    def drain() -> str:
        where = kubectl("-n", NAMESPACE, "get", "pod", first_pod("bridge"), "-o", "jsonpath={.spec.nodeName}")
        try:
            kubectl("drain", where, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=400s", timeout=420)
            left = kubectl("-n", NAMESPACE, "get", "pods", "--field-selector", f"spec.nodeName={where}", "--no-headers")
            if left.strip():
                raise Failed(f"pods are left on {where}: {left}")
            until(lambda: ready("bridge") >= 1 and ready("serving") >= 2, "pods on the other node", 300)
        finally:
            kubectl("uncordon", where)
        return f"{where} emptied"

    trial.step(f"a backlog of {events:,} events", backlog)
    traffic.rate(rate)
    time.sleep(5)
    trial.step("nothing, for comparison", lambda: time.sleep(20))
    trial.step("rolling restart of the bridge", upgrade_bridge)
    trial.step("helm upgrade with a changed pipeline", lambda: release.apply("pipeline.batch.max_events=256"))
    trial.step("helm rollback", lambda: release.helm("rollback", RELEASE, "1", "--wait", "--timeout=8m") and None)
    trial.step("a bridge pod is deleted", lambda: delete("bridge"))
    trial.step("the only serving pod is deleted", lambda: delete("serving"), 300)
    trial.step("a model version is dropped into the volume", drop_in)
    trial.step("helm upgrade to two serving pods", lambda: release.apply(*_SETTINGS))
    trial.step("one of two serving pods is deleted", lambda: delete("serving"), 300)
    trial.step("a version that is no model is dropped in", refuse)
    trial.step("bridges 1 -> 3 -> 1 by hand", scale)
    trial.step("bridges 1 -> 3 -> 1 by KEDA, by lag", follow_lag, 300)
    trial.step("bridges 1 -> 3 -> 1 by KEDA, by CPU", follow_cpu, 300)
    trial.step("bridges as static members", static, 300)
    trial.step("a node is drained", drain, 300)


def main() -> None:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000, help="of the backlog")
    parser.add_argument("--rate", type=float, default=1_000, help="events/s while things are done")
    parser.add_argument("--out", type=Path, help="also write what was found, as a page in Markdown")
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 160)
    try:
        up()
        rows = _run(arguments, console)
    except Failed as error:
        sys.exit(str(error))
    if arguments.out:
        arguments.out.write_text(page(rows, arguments.rate))
    if any(row.found.lost or row.found.doubled or row.found.disordered or row.found.letters for row in rows):
        sys.exit("not every event had exactly one result, in order")


def _run(arguments: Any, console: Console) -> list[Row]:
    Release().helm("uninstall", RELEASE, "--ignore-not-found", "--wait")  # of a trial that was interrupted
    kubectl("apply", "-f", str(HERE / "namespace.yaml"))
    volume()
    listeners = {
        "listeners": f"PLAINTEXT://127.0.0.1:{{port}},PODS://{node.HOST}:9092,CONTROLLER://127.0.0.1:{{controller}}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{{port}},PODS://{node.HOST}:9092",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PODS:PLAINTEXT,CONTROLLER:PLAINTEXT",
    }
    with KafkaCluster(
        properties=lambda n: {k: v.format(port=n.port, controller=n.controller_port) for k, v in listeners.items()}
    ) as kafka:
        topics = {"pages": PARTITIONS, "fraud-alerts": PARTITIONS, **OUTCOMES}
        asyncio.run(create_topics(Kafka(bootstrap_servers=kafka.bootstrap_servers), topics))
        traffic = Traffic(kafka.bootstrap_servers, "pages", OUTCOMES)
        traffic.burst(1)  # for `headrace try` to send again
        trial = Trial(Release(), traffic, console)
        traffic.start()
        dry_run(trial.release)
        began = time.monotonic()
        try:
            with installed(trial.release):
                console.print(f"installed and tested in {time.monotonic() - began:.0f} s")
                console.print(f"a pod that nobody has named: {stranger()}")
                steps(trial, arguments.events, arguments.rate)
                traffic.rate(0)
                traffic.wait(120)
        finally:
            traffic.stop()
            _print(console, trial.rows)
        whole = traffic.found(0, traffic.written)
        console.print(f"all of it: {asdict(whole)}")
        trial.rows.append(Row("all of it", time.monotonic() - began, whole, ""))
        until(lambda: not leftovers(), "nothing left after helm uninstall", 120)
        console.print("helm uninstall left nothing behind")
        return trial.rows


_TITLES = ("what was done", "took", "events", "lost", "doubled", "out of order", "dead letters", "p99", "longest", "")


def _cells(row: Row) -> list[str]:
    found = row.found
    counts = (found.events, found.lost, found.doubled, found.disordered, found.letters)
    times = (f"{found.p99 / 1000:,.2f} s", f"{found.longest / 1000:,.2f} s")
    return [row.what, f"{row.seconds:.0f} s", *(f"{count:,}" for count in counts), *times, row.note]


def _print(console: Console, rows: list[Row]) -> None:
    table = Table(title="A release under load", title_justify="left")
    for name in _TITLES:
        table.add_column(name, justify="left" if name in ("what was done", "") else "right")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)


def page(rows: list[Row], rate: float) -> str:
    """docs/kubernetes-trial.md."""
    text = (HERE / "page.md.in").read_text()
    lines = [_TITLES, ["---"] * len(_TITLES), *map(_cells, rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    for name, value in (("RATE", f"{rate:,.0f}"), ("BUSY", f"{_BUSY * rate:,.0f}"), ("TABLE", table)):
        text = text.replace(f"@{name}@", value)
    return text


if __name__ == "__main__":
    main()
