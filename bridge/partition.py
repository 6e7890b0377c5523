"""Which partition an outcome goes to. Pure."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from aiokafka.partitioner import murmur2

from bridge.config import Pipeline
from bridge.kafka import Topic
from bridge.sink import Row, Write


class Partitioner:
    """Keeps the event's partition, or goes by its key as Kafka's default partitioner does.

    Args:
        config: `result.partition` and the dead-letter topic.
        topics: the topics of the outcomes as they are now.
    """

    def __init__(self, config: Pipeline, topics: Mapping[str, Topic]) -> None:
        self._by_key = config.result.partition == "key"
        self._topics = topics
        self._letters = config.dead_letter.topic

    def writes(self, topic: str, source: int, rows: Sequence[Row]) -> list[Write]:
        """The rows by partition of `topic`, each group in order; events without a key stay with `source`.

        Args:
            topic: where they go.
            source: the partition of their events.
            rows: at least one.
        """
        if not self._by_key:
            return [Write(topic, source, rows)]
        count = self._topics[topic].partitions
        groups: dict[int, list[Row]] = {}
        for row in rows:
            partition = source % count if row[0] is None else partition_of(bytes(row[0]), count)
            groups.setdefault(partition, []).append(row)
        return [Write(topic, number, group) for number, group in groups.items()]

    def letter(self, source: int) -> int:
        """The dead-letter topic's partition for events of partition `source`."""
        return source % self._topics[self._letters].partitions


def partition_of(key: bytes, count: int) -> int:
    """Where Kafka's default partitioner puts a key among so many partitions."""
    return _hash(key) % count


@lru_cache(maxsize=65_536)
def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF
