"""Dead letters: the event's own bytes, and headers that say why it got no result and where it came from. Pure."""

from bridge.config import Pipeline
from bridge.errors import PipelineStopped
from bridge.offsets import PartitionEpoch
from bridge.record import Headers, Record, Reject
from bridge.sink import BATCH_OVERHEAD, Row, row_size

PREFIX = "headrace-"
ATTEMPTS = PREFIX + "attempts"
"""On an event that is a dead letter sent back: the attempts made before."""
LETTER = PREFIX + "letter"
"""On the same: the place of the letter, topic/partition/offset."""
WRITTEN = {
    PREFIX + name
    for name in ("reason", "error", "topic", "partition", "offset", "timestamp", "model", "model-version", "pipeline")
} | {ATTEMPTS, LETTER}
"""What is the pipeline's own of a dead letter's headers; the others are the event's."""


class LetterWriter:
    """Makes dead letters.

    Args:
        config: names the pipeline and the model.
    """

    def __init__(self, config: Pipeline) -> None:
        self._pipeline = config.name
        self._model = config.model.name
        self._topic = config.dead_letter.topic

    def letter(self, epoch: PartitionEpoch, record: Record, reject: Reject, limit: int) -> Row:
        """The dead letter of one event.

        A dead letter that was sent back as an event keeps counting: its earlier attempts are added.

        Args:
            epoch: names the event's topic and partition.
            record: the event.
            reject: why it has no result.
            limit: max.message.bytes of the dead-letter topic.

        Raises:
            PipelineStopped: the dead-letter topic would not take it; the event stays uncommitted.
        """
        fields = {
            "reason": reject.reason,
            "error": reject.error,
            "topic": epoch.topic,
            "partition": epoch.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "model": self._model,
            "model-version": reject.version,
            "attempts": reject.attempts + earlier_attempts(record.headers),
            "pipeline": self._pipeline,
        }
        own = [header for header in record.headers if header[0] not in WRITTEN]
        headers = [*own, *((PREFIX + name, str(value).encode()) for name, value in fields.items())]
        row = (record.key, record.value, record.timestamp, headers)
        size = row_size(row)
        if size > limit - BATCH_OVERHEAD:
            raise PipelineStopped(
                f"the event {epoch.topic}/{epoch.partition}/{record.offset} needs a dead letter of {size} bytes, but "
                f"{self._topic!r} takes {limit}; raise its max.message.bytes"
            )
        return row


def earlier_attempts(headers: Headers) -> int:
    """Calls to the model that carried the event when it was a dead letter before."""
    for name, value in headers:
        if name == ATTEMPTS and value and value.isdigit():
            return int(value)
    return 0
