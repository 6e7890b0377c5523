"""make test-cluster: the chart on a real Kubernetes, under load, through everything that is done to a release.

Events flow all the while. After each change the reader waits until every event written so far has its outcome. Prints a
table, writes it as Markdown with --out, and exits 1 when an event was lost, doubled or out of order, or a step failed.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from bridge.config.model import Kafka
from deploy.docker.build import VERSION
from headrace.rig.kafka import KafkaCluster
from headrace.rig.topics import create_topics
from tests.deploy.cluster import node
from tests.deploy.cluster.__main__ import up
from tests.deploy.cluster.daemon import Failed, until
from tests.deploy.cluster.node import kubectl
from tests.deploy.cluster.traffic import PARTITIONS, Found, Traffic

HERE = Path(__file__).parent
SOURCE = HERE.parents[2]
CHART = SOURCE / "deploy" / "helm" / "headrace"
EXAMPLE = SOURCE / "deploy" / "helm" / "examples" / "fraud.yaml"
MODELS = SOURCE / "model_repository"
NAMESPACE, RELEASE = "scoring", "fraud"
BRIDGE, SERVING = f"deployment/{RELEASE}-headrace-bridge", f"deployment/{RELEASE}-headrace-serving"
OUTCOMES = {"fraud-scores": PARTITIONS, "fraud-dead-letters": 1}
_OURS = f"app.kubernetes.io/instance={RELEASE}"


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


class Release:
    """The release under test."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = node.STATE / "trial.yaml"
        self._values.write_text(yaml.safe_dump(values))

    def helm(self, *arguments: str, timeout: float = 600) -> str:
        """What helm prints.

        Raises:
            Failed: with what it says.
        """
        command = [str(node.BIN / "helm"), f"--kubeconfig={node.KUBECONFIG}", "-n", NAMESPACE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
        if done.returncode:
            raise Failed(f"helm {' '.join(arguments)}: {done.stderr.strip()}\n{pods()}")
        refused = [line for line in done.stderr.splitlines() if "would violate PodSecurity" in line]
        if refused:
            raise Failed(f"helm {arguments[0]}: {refused[0]}")
        return done.stdout

    def apply(self, *settings: str, install: bool = False) -> None:
        """Install it; or upgrade it, and wait until it runs."""
        sets = [word for setting in settings for word in ("--set", setting)]
        given = [RELEASE, str(CHART), "-f", str(EXAMPLE), "-f", str(self._values), *sets]
        if install:
            self.helm("install", *given)  # waits for nothing: its bridge is ready once there is a model
        else:
            self.helm("upgrade", *given, "--wait", "--timeout=8m")


def pods() -> str:
    """The release's pods, for a person."""
    return kubectl("-n", NAMESPACE, "get", "pods", "-o", "wide", check=False)


def ready(component: str) -> int:
    """So many ready pods of a component."""
    listed = kubectl(
        "-n", NAMESPACE, "get", "pods", "-l", f"{_OURS},app.kubernetes.io/component={component}", "-o", "json"
    )
    return sum(
        not item["metadata"].get("deletionTimestamp")
        and any(c["type"] == "Ready" and c["status"] == "True" for c in item["status"].get("conditions", ()))
        for item in json.loads(listed)["items"]
    )


def first_pod(component: str) -> str:
    """Name of a pod of a component that is not about to end."""
    listed = kubectl(
        "-n", NAMESPACE, "get", "pods", "-l", f"{_OURS},app.kubernetes.io/component={component}", "-o", "json"
    )
    return next(
        i["metadata"]["name"] for i in json.loads(listed)["items"] if not i["metadata"].get("deletionTimestamp")
    )


def restarts() -> int:
    """How often containers of the release have been restarted."""
    items = json.loads(kubectl("-n", NAMESPACE, "get", "pods", "-o", "json"))["items"]
    return sum(status["restartCount"] for item in items for status in item["status"].get("containerStatuses", ()))


def volume() -> Path:
    """A folder of this machine as the volume that holds the model repository."""
    folder = node.STATE / "volume"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    kubectl("delete", "persistentvolume", "models", "--ignore-not-found")  # of a trial before: it is bound to its claim
    kubectl(
        "apply", "-f", "-",
        stdin=yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": "models"},
                "spec": {
                    "capacity": {"storage": "10Gi"},
                    "accessModes": ["ReadWriteMany"],
                    "storageClassName": "host",
                    "persistentVolumeReclaimPolicy": "Retain",
                    "hostPath": {"path": str(folder)},
                },
            }
        ),
    )  # fmt: skip
    return folder


def copy_version(version: str) -> None:
    """Drop a version into the volume, file after file."""
    target = node.STATE / "volume" / "fraud"
    for path in sorted((MODELS / "fraud" / version).rglob("*")):
        place = target / version / path.relative_to(MODELS / "fraud" / version)
        if path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())


VALUES = {
    "pipeline": {"delivery": "exactly_once"},
    "bridge": {
        "image": {"repository": "localhost/headrace/bridge", "pullPolicy": "Never"},
        "resources": {"requests": {"cpu": "100m"}},
    },
    "serving": {
        "image": {"repository": "localhost/headrace/serving", "pullPolicy": "Never"},
        "watcher": {"image": {"repository": "localhost/headrace/serving", "pullPolicy": "Never"}},
        "resources": {"requests": {"cpu": "100m"}},
    },
    "repository": {"pvc": {"accessModes": ["ReadWriteMany"], "storageClass": "host", "size": "1Gi", "keep": False}},
}

_SETTINGS = ("serving.replicas=2",)
"""What is set from the upgrade to two servers on."""


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


def rolled(target: str) -> None:
    """Wait until a rollout is done."""
    kubectl("-n", NAMESPACE, "rollout", "status", target, "--timeout=480s", timeout=500)


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

    def follow_lag() -> str:
        # By its address: KEDA runs on the host here, which does not know the cluster's names.
        release.apply(
            f"pipeline.kafka.bootstrap_servers={node.HOST}:9092",
            "bridge.autoscaling.enabled=true",
            "bridge.autoscaling.lagThreshold=5000",
            "bridge.autoscaling.maxReplicas=3",
            *_SETTINGS,
        )
        down = {"stabilizationWindowSeconds": 15, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]}
        behavior = {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": down}}}
        quick = json.dumps({"spec": {"advanced": behavior}})  # than the chart allows, since nobody waits here for it
        name = f"{RELEASE}-headrace-bridge"
        kubectl("-n", NAMESPACE, "patch", "scaledobject", name, "--type=merge", "-p", quick)
        began = time.monotonic()
        traffic.burst(600_000)
        until(lambda: ready("bridge") == 3, "3 bridges", 240)
        up = time.monotonic() - began
        until(lambda: ready("bridge") == 1, "1 bridge again", 600)
        note = f"3 bridges after {up:.0f} s of a backlog of 600,000, 1 again after {time.monotonic() - began:.0f} s"
        release.apply(*_SETTINGS)
        return note

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
    trial.step("bridges 1 -> 3 -> 1 by KEDA", follow_lag, 300)
    trial.step("bridges as static members", static, 300)
    trial.step("a node is drained", drain, 300)


def stranger() -> str:
    """What a pod that nobody has named hears from the model server: it must not reach it.

    Raises:
        Failed: it does.
    """
    address = json.loads(kubectl("-n", NAMESPACE, "get", "pod", first_pod("serving"), "-o", "json"))["status"]["podIP"]
    script = f"""
import socket, sys
try:
    socket.create_connection(({address!r}, 8001), 5)
except OSError as error:
    sys.exit(f"{{error}}")
"""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger", "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "stranger",
                    "image": f"localhost/headrace/bridge:{VERSION}",
                    "imagePullPolicy": "Never",
                    "command": ["/opt/headrace/bin/python3", "-c", script],
                    "securityContext": security,
                }
            ],
        },
    }
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(pod))
    try:
        phase = ("-n", NAMESPACE, "get", "pod", "stranger", "-o", "jsonpath={.status.phase}")
        until(lambda: kubectl(*phase) in ("Failed", "Succeeded"), "the stranger", 60)
        if kubectl(*phase) == "Succeeded":
            raise Failed("a pod that nobody has named reaches the model server, in spite of the NetworkPolicies")
        return kubectl("-n", NAMESPACE, "logs", "stranger").strip()
    finally:
        kubectl("-n", NAMESPACE, "delete", "pod", "stranger", "--now")


def dry_run(release: Release) -> None:
    """Every example as the API server itself sees it: unknown fields, wrong types, Pod Security.

    Raises:
        Failed: it refuses one, or warns.
    """
    for example in sorted((CHART.parent / "examples").glob("*.yaml")):
        text = release.helm("template", "example", str(CHART), "-f", str(example), "--kube-version", "1.34.4")
        command = [str(node.BIN / "kubectl"), f"--kubeconfig={node.KUBECONFIG}", "-n", NAMESPACE, "apply"]
        options = ["--dry-run=server", "--validate=strict", "-f", "-"]
        done = subprocess.run([*command, *options], input=text, capture_output=True, text=True, check=False)
        if done.returncode or "Warning" in done.stderr:
            raise Failed(f"{example.name}: {done.stderr.strip()}")
        print(f"{example.name}: {len(done.stdout.splitlines())} objects that the API server takes", flush=True)


@contextmanager
def installed(release: Release) -> Iterator[None]:
    """The release, as a newcomer makes it (docs/kubernetes.md); removed in the end with all that came with it."""
    release.apply(install=True)
    rolled(SERVING)
    first = subprocess.run(
        ["tar", "-c", "-C", str(MODELS), "fraud/config.pbtxt", "fraud/1"], capture_output=True, check=True
    )
    unpack = ("tar", "-x", "--no-same-owner", "-C", "/repository")
    into = [str(node.BIN / "kubectl"), f"--kubeconfig={node.KUBECONFIG}", "-n", NAMESPACE, "exec", "-i", SERVING]
    subprocess.run([*into, "-c", "watcher", "--", *unpack], input=first.stdout, check=True, timeout=60)
    rolled(BRIDGE)
    release.helm("test", RELEASE)
    tried = ("exec", BRIDGE, "--", "headrace", "try", "/etc/headrace/pipeline.yaml")
    print(kubectl("-n", NAMESPACE, *tried), flush=True)
    try:
        yield
    finally:
        release.helm("uninstall", RELEASE, "--wait")


def leftovers() -> list[str]:
    """What an uninstalled release has left in its namespace and outside."""
    kinds = kubectl("api-resources", "--verbs=list", "-o", "name").split()
    wanted = [kind for kind in kinds if not kind.startswith("events")]
    listed = kubectl("get", ",".join(wanted), "-A", "-l", _OURS, "-o", "name", "--ignore-not-found")
    secrets = kubectl("-n", NAMESPACE, "get", "secrets", "-o", "name", "--ignore-not-found")
    return [*listed.split(), *secrets.split()]


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
    Release(VALUES).helm("uninstall", RELEASE, "--ignore-not-found", "--wait")  # of a trial that was interrupted
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
        traffic.burst(1)  # for helm test to take
        trial = Trial(Release(VALUES), traffic, console)
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
    return text.replace("@RATE@", f"{rate:,.0f}").replace("@TABLE@", table)


if __name__ == "__main__":
    main()
