"""Who is measured. Each is one process that takes every event of a topic to another topic, and prints `ready`."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from headrace.rig.process import ServerProcess
from loadtest.bench.workload import Workload

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "loadtest" / "peers"
ENVIRONMENTS = ROOT / ".peers"


@dataclass(frozen=True)
class Job:
    """What a subject has to do.

    Attributes:
        bootstrap: the brokers.
        model: host:port of the model server.
        workload: the events, and their model.
        source: topic of the events.
        target: topic of the results; with as many partitions. Also the name of the consumer group.
        home: a folder for its files; its log is `home`/TARGET.log.
    """

    bootstrap: str
    model: str
    workload: Workload
    source: str
    target: str
    home: Path


class Subject(Protocol):
    """Something to measure."""

    @property
    def name(self) -> str:
        """What it is called in a report; unique among those measured together."""
        ...

    @property
    def transactional(self) -> bool:
        """Whether the offsets of its results tell nothing of their number, because of transaction markers."""
        ...

    def start(self, job: Job) -> ServerProcess:
        """Start its process; a line that begins with `ready` follows on its output."""
        ...


@dataclass(frozen=True)
class Bridge:
    """`headrace run`.

    Attributes:
        name: in reports.
        sections: of the configuration, merged over what the job asks for.
        options: more arguments of `headrace run`.
    """

    name: str = "headrace"
    sections: Mapping[str, Mapping[str, Any] | str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def transactional(self) -> bool:
        """See `Subject`."""
        return self.sections.get("delivery") == "exactly_once"

    def start(self, job: Job) -> ServerProcess:
        """See `Subject`."""
        path = job.home / f"{job.target}.yaml"
        path.write_text(yaml.safe_dump(self.config(job)))
        command = [sys.executable, "-m", "headrace", "run", str(path), *self.options]
        return _process(self.name, command, job)

    def config(self, job: Job) -> dict[str, Any]:
        """Its configuration for this job."""
        workload = job.workload
        config: dict[str, Any] = {
            "name": job.target,
            "kafka": {"bootstrap_servers": job.bootstrap},
            "source": {"topics": [job.source]},
            "event": {"format": workload.form},
            "model": {"address": job.model, "name": workload.model_name},
            "result": {"topic": job.target},
            "dead_letter": {"topic": f"{job.target}-dead"},
            "observe": {"address": "127.0.0.1:0"},
        }
        if workload.form == "json":
            config["model"]["inputs"] = {"features": [f"f{n}" for n in range(workload.features)]}
        for key, section in self.sections.items():
            config[key] = {**config.get(key, {}), **section} if isinstance(section, Mapping) else section
        return config


@dataclass(frozen=True)
class Copy:
    """The copy limit: the bridge's own Kafka client, consuming and producing the records unchanged."""

    name: str = "copy"
    transactional: bool = False

    def start(self, job: Job) -> ServerProcess:
        """See `Subject`."""
        arguments = [job.bootstrap, job.source, job.target, job.target]
        return _process(self.name, [sys.executable, "-m", "loadtest.bench.copy_topic", *arguments], job)


@dataclass(frozen=True)
class Peer:
    """One of `loadtest/peers`, in an environment of its own that `make peers` has made.

    Its main.py is given the brokers, the two topics, the model's address and name, and the number of features.
    """

    name: str
    transactional: bool = False

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return ENVIRONMENTS / self.name / "bin" / "python"

    def start(self, job: Job) -> ServerProcess:
        """See `Subject`."""
        workload = job.workload
        arguments = [job.bootstrap, job.source, job.target, job.model, workload.model_name, str(workload.features)]
        return _process(self.name, [str(self.python), str(PEERS / self.name / "main.py"), *arguments], job)


def peers() -> dict[str, Peer]:
    """All peers by name, installed or not."""
    return {path.parent.name: Peer(path.parent.name) for path in sorted(PEERS.glob("*/main.py"))}


def _process(name: str, command: list[str], job: Job) -> ServerProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return ServerProcess(name, command, job.home / f"{job.target}.log", environment)
