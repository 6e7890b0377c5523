"""Dead letters: the event's own bytes, and headers that say why it got no result and where it came from. Pure."""

from bridge.config import Pipeline
from bridge.errors import PipelineStopped
from bridge.record import Record, Reject
from bridge.sink import BATCH_OVERHEAD, Row, row_size

PREFIX = "headrace-"


class LetterWriter:
    """Makes dead letters.

    Args:
        config: names the pipeline and the model.
        limit: max.message.bytes of the dead-letter topic.
    """

    def __init__(self, config: Pipeline, limit: int) -> None:
        self._pipeline = config.name
        self._model = config.model.name
        self._topic = config.dead_letter.topic
        self._limit = limit

    def letter(self, record: Record, reject: Reject) -> Row:
        """The dead letter of one event.

        Raises:
            PipelineStopped: the dead-letter topic would not take it; the event stays uncommitted.
        """
        fields = {
            "reason": reject.reason,
            "error": reject.error,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "model": self._model,
            "model-version": reject.version,
            "attempts": reject.attempts,
            "pipeline": self._pipeline,
        }
        headers = [*record.headers, *((PREFIX + name, str(value).encode()) for name, value in fields.items())]
        row = (record.key, record.value, record.timestamp, headers)
        size = row_size(row)
        if size > self._limit - BATCH_OVERHEAD:
            raise PipelineStopped(
                f"the event {record.topic}/{record.partition}/{record.offset} needs a dead letter of {size} bytes, but "
                f"{self._topic!r} takes {self._limit}; raise its max.message.bytes"
            )
        return row
