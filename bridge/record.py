"""The small frozen types that stages hand to each other. No behaviour, no I/O.

Work is per batch: a batch is columns and slices, and nothing here is made once per event on the fast path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bridge.offsets import PartitionEpoch

Headers = Sequence[tuple[str, bytes | None]]


class Record(Protocol):
    """One event as the source delivers it; its topic and partition are its segment's epoch's.

    What the Kafka client parses fits as it is, so none is copied.
    """

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Milliseconds since 1970."""
        ...

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of one partition's records, in delivery order, and their place in that partition's tracker.

    Attributes:
        epoch: the assignment under which they were delivered.
        start: position of the first record in `epoch`.
        records: the records; record i has position `start + i`.
        size: bytes of their values.
        since: when they were taken in, in seconds of the event loop's clock.
    """

    epoch: PartitionEpoch
    start: int
    records: Sequence[Record]
    size: int = 0
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call to the model carries: segments of one or more partitions, in the order they were taken."""

    segments: Sequence[Segment]
    records: Sequence[Record]
    """All records of the segments, one after the other."""


class Reject(NamedTuple):
    """Why one event of a batch gets no result."""

    row: int
    """Its place in the batch."""
    reason: str
    """`decode`, `mapping`, `model`, `output`, `too_large` or `expired`."""
    error: str
    """One sentence."""
    version: str = ""
    """The model version that was asked; empty when none was."""
    attempts: int = 0
    """Calls to the model that carried the event."""


Rows = Mapping[str, Sequence[bytes]]
"""Input tensor -> the little-endian bytes of each row. Bytes, because that is what the wire carries."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The events of a batch as rows of the model's inputs.

    Attributes:
        rows: input tensor -> one chunk of bytes for each good event.
        places: for each of those rows, its place in the batch.
        copied: result field -> its JSON for each row; only the fields of `result.copy`.
        rejects: the other events, each with its reason.
    """

    rows: Rows
    places: Sequence[int]
    copied: Mapping[str, Sequence[bytes]]
    rejects: Sequence[Reject]


class EventFormat(Protocol):
    """Reads events of one format."""

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """The rows and the rejects of a batch; every event is in exactly one of the two, by its place in `values`."""
        ...


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer to one call.

    Attributes:
        outputs: tensor name -> array of shape (rows, ...); bytes tensors have dtype object.
        version: the version that made it.
    """

    outputs: Mapping[str, npt.NDArray[Any]]
    version: str


@dataclass(frozen=True, slots=True)
class Part:
    """The answer for a run of a batch's rows; most batches have one part.

    Attributes:
        rows: which of `Decoded.places` were asked.
        prediction: the answer, with `len(rows)` rows in every output.
        attempts: calls it took.
    """

    rows: range
    prediction: Prediction
    attempts: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a batch: for each event a result, or a reject.

    Attributes:
        values: for each event of the batch its result's bytes, None where it is rejected.
        alerts: for each event whether its result is also an alert; None where there is no alert.
        rejects: every event without a result.
    """

    values: Sequence[bytes | None]
    alerts: npt.NDArray[np.bool_] | None
    rejects: Sequence[Reject]
