"""Who is measured. Each is one process that takes every event of a topic to another topic, and prints `ready`."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from bridge.config.load import PREFIX
from headrace.rig.process import ServerProcess
from loadtest.bench.workload import Events, Workload

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
    workload: Events
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
        return self.sections.get("delivery", self._delivery) == "exactly_once"

    @property
    def _delivery(self) -> str:
        return "at_least_once"

    def start(self, job: Job) -> ServerProcess:
        """See `Subject`."""
        path = job.home / f"{job.target}.yaml"
        path.write_text(yaml.safe_dump(self.config(job)))
        return _module(self.name, ["headrace", "run", str(path), *self.options], job)

    def config(self, job: Job) -> dict[str, Any]:
        """Its configuration for this job."""
        workload = _synthetic(job)
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
        return merged(config, self.sections)


@dataclass(frozen=True)
class Copy:
    """The copy limit: the bridge's own Kafka client, consuming and producing the records unchanged."""

    name: str = "copy"
    transactional: bool = False

    def start(self, job: Job) -> ServerProcess:
        """See `Subject`."""
        arguments = [job.bootstrap, job.source, job.target, job.target]
        return _module(self.name, ["loadtest.bench.copy_topic", *arguments], job)


@dataclass(frozen=True)
class Peer:
    """One of `loadtest/peers`, in an environment of its own that `make peers` has made.

    It is given the brokers, the two topics, the model's address, name, number of features and folder.

    Attributes:
        name: in reports.
        folder: of its program, below `loadtest/peers`.
        options: more arguments.
    """

    name: str
    folder: str
    options: tuple[str, ...] = ()
    transactional: bool = False

    @property
    def program(self) -> list[str]:
        """How its program begins; the first word, or the folder of its jars, is there once it is installed."""
        home = ENVIRONMENTS / self.folder
        if (PEERS / self.folder / "pom.xml").exists():
            return ["java", *_JAVA, "-cp", f"{home}/*:{home}/lib/*", "Main"]
        return [str(home / "bin" / "python"), str(PEERS / self.folder / "main.py")]

    @property
    def installed(self) -> bool:
        """Whether it can be started."""
        home = ENVIRONMENTS / self.folder
        return (home / "bin" / "python").exists() or (home / "lib").exists()

    def start(self, job: Job) -> ServerProcess:
        """See `Subject`."""
        workload = _synthetic(job)
        folder = job.home / "models" / workload.model_name / "1" / "model.savedmodel"
        arguments = [job.bootstrap, job.source, job.target, job.model, workload.model_name, str(workload.features)]
        return _process(self.name, [*self.program, *arguments, str(folder), *self.options], job, os.environ)


_JAVA = ("-Xmx2g", *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("util", "lang", "time")))
_VARIANTS = {"flink": {"flink": ("1",), "flink_batched": ("256",)}}


IN_PROCESS = ("kafka_streams", "mlserver")
"""Peers with the model in their own process: no server can die on them."""


def peers() -> dict[str, Peer]:
    """All peers by name, installed or not."""
    folders = sorted(path.parent.name for name in ("main.py", "pom.xml") for path in PEERS.glob(f"*/{name}"))
    variants = ((folder, _VARIANTS.get(folder, {folder: ()})) for folder in folders)
    return {name: Peer(name, folder, options) for folder, found in variants for name, options in found.items()}


def merged(config: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with what `sections` says laid over it."""
    over = dict(config)
    for key, section in sections.items():
        over[key] = {**over.get(key, {}), **section} if isinstance(section, Mapping) else section
    return over


def _module(name: str, arguments: list[str], job: Job) -> ServerProcess:
    """A module of ours at work on a job."""
    # What the environment says of a pipeline would be laid over the configuration made for the job.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    return _process(name, [sys.executable, "-m", *arguments], job, {**clean, "PYTHONPATH": str(ROOT)})


def _process(name: str, command: list[str], job: Job, environment: Mapping[str, str]) -> ServerProcess:
    return ServerProcess(name, command, job.home / f"{job.target}.log", {**environment, "PYTHONUNBUFFERED": "1"})


def _synthetic(job: Job) -> Workload:
    assert isinstance(job.workload, Workload), "its fields and its model are known"
    return job.workload
