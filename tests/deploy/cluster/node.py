"""A real Kubernetes on this machine: control plane, two nodes, network, DNS, and nothing outside of it.

Each node has a containerd and a kubelet of its own; pods of both share a bridge, whose address is the host's. Only root
can make it. Everything is in .cluster/, and goes with `down`, but for the programs and the images.
"""

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import yaml

from tests.certificates import Authority
from tests.deploy.cluster.daemon import Daemon, Failed, until

ROOT = Path(__file__).parents[3] / ".cluster"
BIN = ROOT / "bin"
IMAGES = ROOT / "images"
STATE = ROOT / "state"
HOST = "10.244.0.1"
"""The bridge: the host as pods see it."""
DNS = "10.96.0.10"
NODES = ("node-1", "node-2")
KUBECONFIG = STATE / "kubeconfig"
_BRIDGE = "headrace0"
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_API = 6443
_ETCD = 22379
_TOKEN = "test-cluster-admin"  # of a cluster that only this machine reaches


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 120.0) -> str:
    """What kubectl prints.

    Raises:
        Failed: with what it says, unless `check` is false.
    """
    command = [str(BIN / "kubectl"), f"--kubeconfig={KUBECONFIG}", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode:
        raise Failed(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def up() -> None:
    """Bring it up, or what is missing of it.

    Raises:
        Failed: with the log of what does not come up.
    """
    if os.geteuid() != 0:
        raise Failed("only root can make a cluster: its nodes need namespaces, mounts and a bridge")
    STATE.mkdir(parents=True, exist_ok=True)
    _network()
    _control_plane()
    for number, name in enumerate(NODES, 1):
        _node(number, name)
    daemon("kube-proxy").start(
        [BIN / "kube-proxy", f"--config={_written('kube-proxy.yaml', _PROXY)}", f"--hostname-override={NODES[0]}"]
    )
    until(lambda: kubectl("get", "nodes", "--no-headers").count(" Ready") == len(NODES), "nodes")
    _policies()
    _dns()


def load(archive: Path, image: str) -> None:
    """Bring an image into both nodes, unless they have it.

    Args:
        archive: of `buildah push … docker-archive:`.
        image: its name there.
    """
    stamp = STATE / f"{image.replace('/', '_')}.loaded"
    if stamp.exists() and stamp.stat().st_mtime_ns >= archive.stat().st_mtime_ns:
        return
    for name in NODES:
        _ctr(name, "images", "import", str(archive))
    stamp.touch()


def down() -> None:
    """Remove it."""
    for name in ("kube-scheduler", "kube-controller-manager", "kube-router", "kube-proxy"):
        daemon(name).stop()
    for name in NODES:
        daemon(f"kubelet-{name}").stop()
        if daemon(f"containerd-{name}").running:
            for container in _ctr(name, "containers", "list", "--quiet", check=False).split():
                _ctr(name, "tasks", "kill", "--signal", "SIGKILL", container, check=False)
            for container in _ctr(name, "containers", "list", "--quiet", check=False).split():
                _ctr(name, "tasks", "delete", "--force", container, check=False)
                _ctr(name, "containers", "delete", container, check=False)
        daemon(f"containerd-{name}").stop()
    _end_shims()
    daemon("kube-apiserver").stop()
    daemon("etcd").stop()
    if (BIN / "kube-proxy").exists():
        _run(str(BIN / "kube-proxy"), "--cleanup", check=False)
    for table in ("filter", "nat", "mangle"):
        _forget_chains(table)
    if (BIN / "kube-router").exists():
        _run(str(BIN / "kube-router"), "--cleanup-config", check=False)
    for name in _run("ipset", "list", "-name", check=False).split():
        if name.startswith("KUBE-"):
            _run("ipset", "destroy", name, check=False)
    _run("ip", "link", "delete", _BRIDGE, check=False)
    if (STATE / "ip_forward").exists():
        _FORWARD.write_text((STATE / "ip_forward").read_text())
    for link in Path("/var/log/containers").glob("*.log"):
        if link.readlink().is_relative_to(STATE):
            link.unlink()
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        path = line.split()[1]
        if path.startswith(str(STATE)):
            _run("umount", "--lazy", path, check=False)
    for hierarchy in _hierarchies():
        for number in range(1, len(NODES) + 1):
            top = hierarchy / f"headrace-{number}"
            for folder in (*sorted(top.rglob("*/"), reverse=True), top):
                with contextlib.suppress(OSError):
                    folder.rmdir()
    shutil.rmtree(STATE, ignore_errors=True)


def daemon(name: str) -> Daemon:
    """A process of the cluster."""
    return Daemon(STATE / "logs", name)


def _run(*command: str, check: bool = True) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        if check:
            raise Failed(f"{command[0]} is not installed; make cluster-tools brings it") from None
        return ""
    if check and done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _ctr(node: str, *arguments: str, check: bool = True) -> str:
    return _run(
        "ctr", "--address", str(STATE / node / "containerd.sock"), "--namespace", "k8s.io", *arguments, check=check
    )


def _written(name: str, content: object) -> Path:
    path = STATE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    if not path.exists() or path.read_text() != text:  # kube-proxy ends when its file is written
        path.write_text(text)
    return path


def _network() -> None:
    if not Path("/sys/class/net", _BRIDGE).exists():
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{HOST}/24", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
    if not (STATE / "ip_forward").exists():
        (STATE / "ip_forward").write_text(_FORWARD.read_text())
    _FORWARD.write_text("1")
    # What goes from pod to pod over the bridge is seen by the rules of Services and NetworkPolicies too.
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("1")


def _control_plane() -> None:
    pki = STATE / "pki"
    if not (pki / "front-proxy.pem").exists():
        pki.mkdir(parents=True, exist_ok=True)
        authority = Authority(pki)
        authority.issue("apiserver", "kubernetes.default.svc", (HOST, "10.96.0.1"))
        authority.issue("service-account")
        authority.issue("keda", "localhost", (HOST,))
        authority.issue("front-proxy")
    _written("tokens.csv", f'{_TOKEN},admin,admin,"system:masters"\n')
    _written("kubeconfig", _kubeconfig(pki / "ca.pem"))
    etcd = daemon("etcd")
    client, peer = f"http://127.0.0.1:{_ETCD}", f"http://127.0.0.1:{_ETCD + 1}"
    etcd.start(
        [BIN / "etcd", f"--data-dir={STATE / 'etcd'}", f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
         f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
         "--unsafe-no-fsync", "--log-level=warn"]
    )  # fmt: skip
    api = daemon("kube-apiserver")
    api.start(
        [BIN / "kube-apiserver", f"--etcd-servers={client}", f"--bind-address={HOST}", f"--advertise-address={HOST}",
         f"--secure-port={_API}", f"--tls-cert-file={pki / 'apiserver.pem'}",
         f"--tls-private-key-file={pki / 'apiserver.key'}", f"--token-auth-file={STATE / 'tokens.csv'}",
         "--authorization-mode=Node,RBAC", "--service-cluster-ip-range=10.96.0.0/16",
         "--service-account-issuer=https://kubernetes.default.svc",
         f"--service-account-key-file={pki / 'service-account.pem'}",
         f"--service-account-signing-key-file={pki / 'service-account.key'}",
         f"--requestheader-client-ca-file={pki / 'ca.pem'}", "--requestheader-allowed-names=front-proxy",
         "--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
         "--requestheader-username-headers=X-Remote-User",
         f"--proxy-client-cert-file={pki / 'front-proxy.pem'}", f"--proxy-client-key-file={pki / 'front-proxy.key'}",
         "--kubelet-preferred-address-types=InternalIP", "--enable-aggregator-routing=true",
         "--feature-gates=ImageVolume=true"]
    )  # fmt: skip
    api.wait_ready(lambda: kubectl("get", "--raw", "/readyz", check=False) == "ok")
    daemon("kube-controller-manager").start(
        [BIN / "kube-controller-manager", f"--kubeconfig={KUBECONFIG}", "--leader-elect=false",
         f"--service-account-private-key-file={pki / 'service-account.key'}", f"--root-ca-file={pki / 'ca.pem'}",
         "--use-service-account-credentials=false", "--horizontal-pod-autoscaler-sync-period=5s",
         "--bind-address=127.0.0.1"]
    )  # fmt: skip
    daemon("kube-scheduler").start(
        [BIN / "kube-scheduler", f"--kubeconfig={KUBECONFIG}", "--leader-elect=false", "--bind-address=127.0.0.1"]
    )


def _kubeconfig(ca: Path) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "headrace",
        "clusters": [
            {"name": "headrace", "cluster": {"server": f"https://{HOST}:{_API}", "certificate-authority": str(ca)}}
        ],
        "users": [{"name": "admin", "user": {"token": _TOKEN}}],
        "contexts": [{"name": "headrace", "context": {"cluster": "headrace", "user": "admin"}}],
    }


def _node(number: int, name: str) -> None:
    folder = STATE / name
    socket = folder / "containerd.sock"
    first = 10 + 100 * (number - 1)
    _written(
        f"{name}/cni/10-bridge.conflist",
        json.dumps(
            {
                "cniVersion": "1.0.0",
                "name": "headrace",
                "plugins": [
                    {
                        "type": "bridge",
                        "bridge": _BRIDGE,
                        "isDefaultGateway": True,
                        "hairpinMode": True,
                        "ipam": {
                            "type": "host-local",
                            "dataDir": str(folder / "ipam"),
                            "ranges": [
                                [
                                    {
                                        "subnet": "10.244.0.0/24",
                                        "rangeStart": f"10.244.0.{first}",
                                        "rangeEnd": f"10.244.0.{first + 99}",
                                        "gateway": HOST,
                                    }
                                ]
                            ],
                        },
                    },
                    {"type": "portmap", "capabilities": {"portMappings": True}},
                ],
            }
        ),
    )
    config = _written(f"{name}/containerd.toml", _CONTAINERD.format(folder=folder, cni=folder / "cni"))
    containerd = daemon(f"containerd-{name}")
    containerd.start(["containerd", "--config", config])
    containerd.wait_ready(lambda: bool(_ctr(name, "version", check=False)))
    pause = IMAGES / "pause.tar"
    stamp = folder / "pause"
    if not stamp.exists():
        _ctr(name, "images", "import", str(pause))
        stamp.touch()
    _cgroup(f"headrace-{number}")
    kubelet = _written(f"{name}/kubelet.yaml", _kubelet(number, socket))
    daemon(f"kubelet-{name}").start(
        [BIN / "kubelet", f"--config={kubelet}", f"--kubeconfig={KUBECONFIG}", f"--hostname-override={name}",
         f"--node-ip={HOST}", f"--root-dir={folder / 'kubelet'}", f"--cert-dir={folder / 'certificates'}",
         f"--node-labels=topology.kubernetes.io/zone={name}"]
    )  # fmt: skip


def _kubelet(number: int, socket: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": HOST,
        "port": 10250 + number,
        "healthzPort": 10350 + number,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{socket}",
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(_written("resolv.conf", "")),
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": True,
        "cgroupRoot": f"/headrace-{number}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "localStorageCapacityIsolation": False,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "registerWithTaints": [],
        "shutdownGracePeriod": "0s",
        "podLogsDir": str(STATE / f"node-{number}" / "pod-logs"),
    }


def _cgroup(name: str) -> None:
    """The parent of all that a node runs, in every hierarchy of this machine."""
    for hierarchy in _hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        for key in ("cpuset.cpus", "cpuset.mems"):
            if (folder / key).exists() and not (folder / key).read_text().strip():
                (folder / key).write_text((hierarchy / key).read_text())


def _hierarchies() -> list[Path]:
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():
        return [top]
    return [path for path in top.iterdir() if path.is_dir() and not path.is_symlink()]


def _policies() -> None:
    """NetworkPolicies, enforced for the pods of both nodes, which have one address: without this nobody would."""
    daemon("kube-router").start(
        [BIN / "kube-router", f"--kubeconfig={KUBECONFIG}", "--run-firewall=true", "--run-router=false",
         "--run-service-proxy=false", "--run-loadbalancer=false", f"--hostname-override={NODES[0]}",
         "--service-cluster-ip-range=10.96.0.0/16", "--health-port=0", "--metrics-port=0"]
    )  # fmt: skip


def _dns() -> None:
    load(IMAGES / "coredns.tar", "coredns")
    kubectl("apply", "-f", str(Path(__file__).parent / "coredns.yaml"))
    kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")


def _end_shims() -> None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "containerd-shim" in words[0] and any(word.startswith(str(STATE)) for word in words):
                os.kill(int(entry.name), 9)


def _forget_chains(table: str) -> None:
    """kube-proxy --cleanup leaves what the kubelets made."""
    saved = _run("iptables-save", "-t", table, check=False)
    kept = [line for line in saved.splitlines() if "KUBE-" not in line and "CNI-" not in line]
    if len(kept) != len(saved.splitlines()):
        subprocess.run(["iptables-restore", "-T", table], input="\n".join(kept) + "\n", text=True, check=False)


_PROXY = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "mode": "iptables",
    "clientConnection": {"kubeconfig": str(KUBECONFIG)},
    "healthzBindAddress": "127.0.0.1:10356",
    "metricsBindAddress": "127.0.0.1:10349",
    "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    "clusterCIDR": "10.244.0.0/24",
    "nodePortAddresses": ["127.0.0.0/8"],
}

_CONTAINERD = """\
version = 2
root = "{folder}/containerd"
state = "{folder}/run"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
"""
