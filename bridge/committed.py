"""What a group has committed, asked so that an error is an error.

The Kafka client reads an answer that refuses the whole request, as a coordinator gives that has moved or is still
loading, as "nothing is committed". A pipeline would then begin again from `source.start`: everything twice, or nothing
of what was waiting. Reaches into aiokafka's private parts; written against 0.14.
"""

from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.structs import OffsetAndMetadata

_MOVED = (NotCoordinatorForGroupError, GroupCoordinatorNotAvailableError)


class OffsetsConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """A consumer of a group whose committed offsets can be relied on."""

    async def all_committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        """What the group has committed for each of them; those without an offset are left out.

        Raises:
            KafkaError: the coordinator does not know, now or at all.
        """
        coordinator = self._coordinator
        await coordinator.ensure_coordinator_known()
        topics: dict[str, list[int]] = {}
        for tp in partitions:
            topics.setdefault(tp.topic, []).append(tp.partition)
        response = await coordinator._send_req(OffsetFetchRequest(coordinator.group_id, list(topics.items())))
        found: dict[TopicPartition, OffsetAndMetadata] = {}
        answers = [(t, *answer) for t, answered in response.topics for answer in answered]
        for code in (getattr(response, "error_code", 0), *(answer[-1] for answer in answers)):
            if code:
                error = for_code(code)
                if issubclass(error, _MOVED):
                    coordinator.coordinator_dead()
                raise error(coordinator.group_id if error is GroupAuthorizationFailedError else "committed offsets")
        for topic, partition, offset, metadata, _ in answers:
            if offset >= 0:
                found[TopicPartition(topic, partition)] = OffsetAndMetadata(offset, metadata)
        return found

    async def committed(self, tp: TopicPartition) -> int | None:
        """The offset that the group has committed for one partition, None when there is none.

        Raises:
            KafkaError: as `all_committed`.
        """
        found = (await self.all_committed([tp])).get(tp)
        return None if found is None else found.offset
