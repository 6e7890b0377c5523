"""What a topic that refuses outcomes means: for one partition, or for the pipeline.

A topic that takes smaller records than before gives dead letters instead of results. Where letters cannot be written,
the partitions that need one halt and the others go on. Where results cannot be written, nothing can go on; but a topic
that the brokers do not know may only just have been moved or made.
"""

from collections.abc import MutableMapping

from aiokafka.errors import (
    InvalidTimestampError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from bridge.config import Pipeline
from bridge.errors import PartitionHalted, PipelineStopped
from bridge.kafka import Topic, refresh_topics, sentence
from bridge.offsets import PartitionEpoch
from bridge.retry import HALTED_SECONDS

_UNKNOWN_SECONDS = 2.0
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
REFUSALS = (
    *_TOO_LARGE,
    InvalidTopicError,
    InvalidTimestampError,
    PolicyViolationError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
"""Errors of a write that trying again does not cure. Nothing is lost: the offsets stay uncommitted."""


async def after_refusal(
    config: Pipeline, topics: MutableMapping[str, Topic], topic: str, partition: int, limit: int, error: BaseException
) -> tuple[float, str]:
    """When the partitions whose outcomes were refused begin again, and why.

    Args:
        config: the configuration.
        topics: brought up to date where it matters.
        topic: what refused.
        partition: of it.
        limit: the max.message.bytes that the refused batch was made for.
        error: the refusal.

    Returns:
        Seconds to wait before, and the reason in a sentence.

    Raises:
        PipelineStopped: no outcome at all can be written.
    """
    if isinstance(error, _TOO_LARGE):
        try:
            await refresh_topics(config.kafka, topics)
        except KafkaError as away:
            return _UNKNOWN_SECONDS, sentence(away, config.kafka)
        now = topics[topic].max_message_bytes
        if now < limit:
            return 0.0, f"topic {topic!r} takes {now} bytes now instead of {limit}"
    detail = " ".join(str(error).split()) or type(error).__name__
    said = sentence(error, config.kafka) if isinstance(error, TopicAuthorizationFailedError) else detail
    because = f"{topic}/{partition} refuses what is to be written: {said}"
    if topic == config.dead_letter.topic:
        return HALTED_SECONDS, because
    if isinstance(error, UnknownTopicOrPartitionError):
        return _UNKNOWN_SECONDS, because
    raise PipelineStopped(because) from error


async def check_partition(config: Pipeline, topics: MutableMapping[str, Topic], epoch: PartitionEpoch) -> None:
    """Whether results have a partition to go to, which a source topic that has grown may lack.

    Raises:
        PartitionHalted: they have none.
    """
    if config.result.partition != "source":
        return
    names = [config.result.topic, *([config.result.alert.topic] if config.result.alert else [])]
    if any(topics[name].partitions <= epoch.partition for name in names):
        await refresh_topics(config.kafka, topics)
    for name in names:
        if topics[name].partitions <= epoch.partition:
            raise PartitionHalted(
                f"{epoch.topic} has a partition {epoch.partition}, but {name!r} has only {topics[name].partitions} "
                "partitions, and results keep their event's partition; add partitions to it"
            )
