"""From the bytes of a batch of events to the rows of the model's inputs. Pure.

A format stands behind `EventFormat`; an event that cannot be read becomes a reject, and never harms its neighbours.
"""

from collections.abc import Sequence
from typing import Protocol

from bridge.config import Pipeline
from bridge.decode.json import JsonFormat
from bridge.decode.raw import RawFormat
from bridge.mapping import InputPlan
from bridge.record import Decoded
from bridge.tensors import ModelSpec


class EventFormat(Protocol):
    """Reads events of one format."""

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """The rows and the rejects of a batch; every event is in exactly one of the two, by its place in `values`."""
        ...


def event_format(config: Pipeline, model: ModelSpec) -> EventFormat:
    """The format that the configuration names, compiled for `model`.

    Raises:
        ConfigError: the mapping does not fit the model.
    """
    if config.event.format == "raw":
        return RawFormat.compile(model)
    return JsonFormat(InputPlan.compile(model, config.model.inputs), config.result.copy_fields)


__all__ = ["EventFormat", "JsonFormat", "RawFormat", "event_format"]
