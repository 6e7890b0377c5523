"""Builds what the chart's and the cluster's tests run, from source, into .cluster/bin: make chart-tools, make cluster-tools.

Versions are those of the modules beside this file; what is there already is not built again. Debian's own programs
(containerd, buildah, promtool, …) are installed as packages.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BIN = HERE.parents[2] / ".cluster" / "bin"
KUBERNETES = "1.34.4"
KEDA = "v2.21.0"


@dataclass(frozen=True, slots=True)
class Program:
    """One program.

    Attributes:
        package: its Go package.
        module: folder of the module here that pins its version; or
        version: its version, where it can be installed as it is.
        flags: more of the linker's flags.
    """

    package: str
    module: str = ""
    version: str = ""
    flags: str = ""


def _kubernetes(name: str) -> Program:
    major, minor, _ = KUBERNETES.split(".")
    stamps = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor}
    # Without the stamps Helm refuses any chart that names the versions it is for.
    flags = " ".join(f"-X k8s.io/component-base/version.{key}={value}" for key, value in stamps.items())
    return Program(f"k8s.io/kubernetes/cmd/{name}", module="kubernetes", flags=flags)


CHART = {
    "helm": Program("helm.sh/helm/v3/cmd/helm", version="v3.22.0"),
    "helm-unittest": Program("github.com/helm-unittest/helm-unittest/cmd/helm-unittest", module="helm-unittest"),
}
_NAMES = ("kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
CLUSTER = {
    **CHART,
    **{name: _kubernetes(name) for name in _NAMES},
    "etcd": Program("go.etcd.io/etcd/server/v3", module="etcd"),
    "coredns": Program("github.com/coredns/coredns", version="v1.15.0"),
    "kube-router": Program("github.com/cloudnativelabs/kube-router/v2/cmd/kube-router", version="v2.1.0"),
    "metrics-server": Program("sigs.k8s.io/metrics-server/cmd/metrics-server", version="v0.9.0"),
    "keda-operator": Program("github.com/kedacore/keda/v2/cmd/operator", module="keda"),
    "keda-adapter": Program("github.com/kedacore/keda/v2/cmd/adapter", module="keda"),
}
DEBIAN = {
    "chart": {"promtool": "prometheus"},
    "cluster": {
        "containerd": "containerd",
        "runc": "runc",
        "iptables": "iptables",
        "ipset": "ipset",
        "conntrack": "conntrack",
        "buildah": "buildah",
        "mmdebstrap": "mmdebstrap",
        "promtool": "prometheus",
        "/usr/lib/cni/bridge": "containernetworking-plugins",
    },
}


def build(name: str, program: Program) -> None:
    """Build one program, unless it is there."""
    target = BIN / name
    if target.exists():
        return
    began = time.monotonic()
    flags = ["-trimpath", "-ldflags", f"-s -w {program.flags}"]
    environment = {**os.environ, "GOBIN": str(BIN), "CGO_ENABLED": "0"}
    if program.version:
        command = ["go", "install", *flags, f"{program.package}@{program.version}"]
        folder = BIN
    else:
        command = ["go", "build", *flags, "-o", str(target), program.package]
        folder = HERE / program.module
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} cannot be built:\n{done.stderr[-2000:]}")
    print(f"{name}  {time.monotonic() - began:.0f} s", flush=True)


def install(packages: set[str]) -> None:
    """Debian packages, as root."""
    if packages:
        command = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *sorted(packages)]
        print(" ".join(command), flush=True)
        subprocess.run(["apt-get", "update", "--quiet"], check=True, stdout=subprocess.DEVNULL)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    """Bring what is missing of one of the two sets."""
    which = sys.argv[1]
    if shutil.which("go") is None:
        sys.exit("Go is not installed here; these programs are built from source")
    install({package for program, package in DEBIAN[which].items() if shutil.which(program) is None})
    BIN.mkdir(parents=True, exist_ok=True)
    for name, program in {"chart": CHART, "cluster": CLUSTER}[which].items():
        build(name, program)


if __name__ == "__main__":
    main()
