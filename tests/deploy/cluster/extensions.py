"""What a cluster has beyond Kubernetes: KEDA, the resource metrics of pods, and the types of the Prometheus operator.

KEDA and the metrics server are processes of the host, which the API server reaches like any other extension.
"""

import json
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.deploy.cluster.daemon import Failed
from tests.deploy.cluster.node import BIN, HOST, KUBECONFIG, STATE, daemon, kubectl
from tests.deploy.tools.build import KEDA

_PKI = STATE / "pki"
_KEDA, _METRICS, _GRPC = 16443, 16444, 9666
NAMES = ("keda-operator", "keda-adapter", "metrics-server")


def up() -> None:
    """Bring them up.

    Raises:
        Failed: with the log of what does not come up.
    """
    types = (
        _module("github.com/prometheus-operator/prometheus-operator@v0.85.0") / "example" / "prometheus-operator-crd"
    )
    definitions = [
        _module(f"github.com/kedacore/keda/v2@{KEDA}") / "config" / "crd" / "bases",
        *(types / f"monitoring.coreos.com_{name}.yaml" for name in ("podmonitors", "prometheusrules")),
    ]
    for path in definitions:
        kubectl("apply", "--server-side", "-f", str(path))
    kubectl(
        "apply",
        "-f",
        "-",
        stdin=yaml.safe_dump_all([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "keda"}}]),
    )
    certificates = STATE / "keda"
    certificates.mkdir(exist_ok=True)
    for source, target in (("ca.pem", "ca.crt"), ("keda.pem", "tls.crt"), ("keda.key", "tls.key")):
        shutil.copy(_PKI / source, certificates / target)
    daemon("keda-operator").start(
        [BIN / "keda-operator", f"--kubeconfig={KUBECONFIG}", "--leader-elect=false", f"--cert-dir={certificates}",
         "--enable-cert-rotation=false", "--metrics-bind-address=127.0.0.1:18080",
         "--health-probe-bind-address=127.0.0.1:18081", f"--metrics-service-bind-address=127.0.0.1:{_GRPC}",
         "--zap-log-level=info"],
        env={"POD_NAMESPACE": "keda", "POD_NAME": "keda-operator", "WATCH_NAMESPACE": "",
            "KEDA_CLUSTER_OBJECT_NAMESPACE": "keda", "KEDA_HTTP_DEFAULT_TIMEOUT": "3000"},
    )  # fmt: skip
    served = (
        f"--tls-cert-file={_PKI / 'keda.pem'}",
        f"--tls-private-key-file={_PKI / 'keda.key'}",
        f"--bind-address={HOST}",
    )
    delegated = [f"--{name}-kubeconfig={KUBECONFIG}" for name in ("authentication", "authorization")]
    daemon("keda-adapter").start(
        [BIN / "keda-adapter", f"--kubeconfig={KUBECONFIG}", f"--lister-kubeconfig={KUBECONFIG}", *delegated, *served,
         f"--secure-port={_KEDA}", f"--metrics-service-address=localhost:{_GRPC}", f"--cert-dir={certificates}",
         "--port=18082"],
        env={"POD_NAMESPACE": "keda", "WATCH_NAMESPACE": "", "KEDA_HTTP_DEFAULT_TIMEOUT": "3000"},
    )  # fmt: skip
    _extension("external.metrics.k8s.io", "v1beta1", "keda", _KEDA)
    daemon("metrics-server").start(
        [BIN / "metrics-server", f"--kubeconfig={KUBECONFIG}", *delegated, *served, f"--secure-port={_METRICS}",
         "--kubelet-insecure-tls", "--kubelet-preferred-address-types=InternalIP", "--metric-resolution=15s",
         "--kubelet-use-node-status-port"]
    )  # fmt: skip
    _extension("metrics.k8s.io", "v1beta1", "kube-system", _METRICS)
    for name, group in (("keda-adapter", "external.metrics.k8s.io"), ("metrics-server", "metrics.k8s.io")):
        daemon(name).wait_ready(lambda: _available(group), 90)  # noqa: B023 - awaited here


def down() -> None:
    """End them."""
    for name in NAMES:
        daemon(name).stop()


def _module(path: str) -> Path:
    """The folder of a Go module."""
    done = subprocess.run(
        ["go", "mod", "download", "-json", path], cwd=BIN, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{path}: {done.stderr.strip() or done.stdout.strip()}")
    return Path(json.loads(done.stdout)["Dir"])


def _available(group: str) -> bool:
    condition = '{.status.conditions[?(@.type=="Available")].status}'
    return kubectl("get", "apiservice", f"v1beta1.{group}", "-o", f"jsonpath={condition}", check=False) == "True"


def _extension(group: str, version: str, namespace: str, port: int) -> None:
    """A Service whose only endpoint is the host, and the API behind it."""
    name = group.replace(".", "-")
    objects = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": port}],
            "endpoints": [{"addresses": [HOST], "conditions": {"ready": True}}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{version}.{group}"},
            "spec": {
                "group": group,
                "version": version,
                "service": {"name": name, "namespace": namespace, "port": 443},
                "insecureSkipTLSVerify": True,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    ]
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
