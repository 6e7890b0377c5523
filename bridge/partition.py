"""Which partition an outcome goes to. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from aiokafka.partitioner import murmur2

from bridge.config import Pipeline
from bridge.sink import Row


class Partitioner:
    """Keeps the event's partition, or goes by its key as Kafka's default partitioner does.

    Args:
        config: `result.partition` and the dead-letter topic.
        partitions: topic -> number of its partitions.
    """

    def __init__(self, config: Pipeline, partitions: Mapping[str, int]) -> None:
        self._by_key = config.result.partition == "key"
        self._partitions = partitions
        self._letters = partitions[config.dead_letter.topic]

    def groups(self, topic: str, source: int, rows: Sequence[Row]) -> Iterable[tuple[int, Sequence[Row]]]:
        """The rows by partition of `topic`, each group in order; events without a key stay with `source`."""
        if not self._by_key:
            return [(source, rows)]
        count = self._partitions[topic]
        groups: dict[int, list[Row]] = {}
        for row in rows:
            partition = source % count if row[0] is None else _hash(bytes(row[0])) % count
            groups.setdefault(partition, []).append(row)
        return groups.items()

    def letter(self, source: int) -> int:
        """The dead-letter topic's partition for events of partition `source`."""
        return source % self._letters


@lru_cache(maxsize=65_536)
def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF
