"""What a failed call means for the events it carried."""

from enum import Enum


class Disposition(Enum):
    """Every failed call ends in one of these."""

    RETRY = "retry"
    """The server cannot answer now: wait and try again, without end. No event is to blame."""
    UNSURE = "unsure"
    """The server failed while it answered: perhaps by itself, perhaps over some event of the batch. Try a few times,
    then find out."""
    ABSENT = "absent"
    """The model is not loaded: wait longer between tries; no event is to blame."""
    DATA = "data"
    """The server refused what it was sent: some event of the batch is to blame."""
    STOP = "stop"
    """It cannot heal by itself: stop with a sentence."""


class InferenceError(Exception):
    """A call that failed; `str()` is one sentence.

    Attributes:
        disposition: what to do.
        code: the status for the metric's label, such as UNAVAILABLE.
    """

    def __init__(self, disposition: Disposition, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.disposition = disposition
        self.code = code
