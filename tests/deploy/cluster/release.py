"""The chart's example as a release on the cluster: installed as a newcomer does it, looked at, and removed."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deploy.docker.build import VERSION
from tests.deploy.cluster import node
from tests.deploy.cluster.daemon import Failed, until
from tests.deploy.cluster.node import kubectl

SOURCE = Path(__file__).parents[3]
CHART = SOURCE / "deploy" / "helm" / "headrace"
EXAMPLE = SOURCE / "deploy" / "helm" / "examples" / "fraud.yaml"
MODELS = SOURCE / "model_repository"
NAMESPACE, RELEASE = "scoring", "fraud"
BRIDGE, SERVING = f"deployment/{RELEASE}-headrace-bridge", f"deployment/{RELEASE}-headrace-serving"
_OURS = f"app.kubernetes.io/instance={RELEASE}"

_VALUES = {
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


class Release:
    """The release under test."""

    def __init__(self) -> None:
        self._values = node.STATE / "trial.yaml"
        self._values.write_text(yaml.safe_dump(_VALUES))

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
        sets = [word for setting in settings for word in ("--set-json", _typed(setting))]
        given = [RELEASE, str(CHART), "-f", str(EXAMPLE), "-f", str(self._values), *sets]
        if install:
            self.helm("install", *given)  # waits for nothing: its bridge is ready once there is a model
        else:
            self.helm("upgrade", *given, "--wait", "--timeout=8m")


def _typed(setting: str) -> str:
    """For --set-json, since --set takes a fraction for a text."""
    key, _, value = setting.partition("=")
    return f"{key}={json.dumps(yaml.safe_load(value))}"


def pods() -> str:
    """The release's pods, for a person."""
    return kubectl("-n", NAMESPACE, "get", "pods", "-o", "wide", check=False)


def _alive(component: str) -> list[dict[str, Any]]:
    """Pods of a component that are not about to end."""
    selector = f"{_OURS},app.kubernetes.io/component={component}"
    items = json.loads(kubectl("-n", NAMESPACE, "get", "pods", "-l", selector, "-o", "json"))["items"]
    return [item for item in items if not item["metadata"].get("deletionTimestamp")]


def ready(component: str) -> int:
    """So many ready pods of a component."""
    conditions = [item["status"].get("conditions", ()) for item in _alive(component)]
    return sum(any(c["type"] == "Ready" and c["status"] == "True" for c in found) for found in conditions)


def first_pod(component: str) -> str:
    """Name of a pod of a component that is not about to end."""
    alive = _alive(component)
    if not alive:
        raise Failed(f"there is no {component} pod\n{pods()}")
    return str(alive[0]["metadata"]["name"])


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


def rolled(target: str) -> None:
    """Wait until a rollout is done."""
    kubectl("-n", NAMESPACE, "rollout", "status", target, "--timeout=480s", timeout=500)


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
