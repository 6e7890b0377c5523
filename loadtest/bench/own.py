"""A user's own pipeline and events, measured on a Kafka of this machine and against the model server they name."""

import asyncio
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError

from bridge.check import sample_events
from bridge.config import Pipeline
from bridge.errors import HeadraceError
from bridge.kafka import describe_topics, sentence
from loadtest.bench.subjects import Bridge, Job, merged

_SAMPLE = 2_000
_PARTITIONS = 6


@dataclass(frozen=True)
class OwnEvents:
    """`Events` out of a file or a topic, repeated.

    Attributes:
        sample: the events.
        partitions: of the local topics.
    """

    sample: tuple[bytes, ...]
    partitions: int
    poison: float = 0.0

    def topic(self, events: int) -> str:
        """See `Events`."""
        return f"own-{hashlib.sha256(b''.join(self.sample)).hexdigest()[:8]}-{events}"

    def values(self) -> list[bytes]:
        """See `Events`."""
        return list(self.sample)

    def poisoned(self, number: int) -> bool:
        """See `Events`."""
        return False

    @classmethod
    def of(cls, config: Pipeline, file: Path | None) -> "OwnEvents":
        """Events of `file`, one in each line, or else the last ones of the pipeline's first topic.

        Raises:
            HeadraceError: there are none, or the brokers do not answer.
        """
        if file is not None:
            try:
                lines = tuple(line for line in file.read_bytes().splitlines() if line.strip())
            except OSError as error:
                raise HeadraceError(f"--sample {file}: cannot be read: {error.strerror}") from None
            if not lines:
                raise HeadraceError(f"--sample {file}: there is no event in it; write one in each line")
            return cls(lines[:_SAMPLE], _PARTITIONS)
        topic = config.source.topics[0]

        async def ask() -> tuple[list[bytes | None], int]:
            found = (await describe_topics(config.kafka, [topic]))[topic]
            if found is None:
                raise HeadraceError(f"source.topics: there is no topic {topic!r}; give events with --sample FILE")
            return await sample_events(config, topic, found.partitions, _SAMPLE), found.partitions

        try:
            values, partitions = asyncio.run(ask())
        except KafkaError as error:
            raise HeadraceError(sentence(error, config.kafka)) from None
        events = tuple(value for value in values if value)
        if not events:
            raise HeadraceError(f"topic {topic!r} has no events to repeat; give some with --sample FILE")
        return cls(events, partitions)


@dataclass(frozen=True)
class OwnBridge(Bridge):
    """`headrace run` with the user's configuration, but for the brokers, the topics and the group.

    Attributes:
        base: their configuration.
    """

    base: Pipeline = field(kw_only=True)

    @property
    def _delivery(self) -> str:
        return self.base.delivery

    def config(self, job: Job) -> dict[str, Any]:
        """See `Bridge`."""
        local: dict[str, Any] = {
            "name": job.target,
            "source": {"topics": [job.source], "group": job.target, "instance_id": None, "start": "earliest"},
            "result": {"topic": job.target},
            "dead_letter": {"topic": f"{job.target}-dead"},
            "observe": {"address": "127.0.0.1:0"},
        }
        config = merged(merged(self.base.effective(), local), self.sections)
        config["kafka"] = {"bootstrap_servers": job.bootstrap}
        if config["result"]["alert"]:
            config["result"]["alert"]["topic"] = f"{job.target}-alerts"
        return config
