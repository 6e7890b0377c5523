"""From the bytes of a batch of events to the rows of the model's inputs. Pure.

A format stands behind `EventFormat`; an event that cannot be read becomes a reject, and never harms its neighbours.
"""

from bridge.config import Pipeline
from bridge.decode.json import JsonFormat
from bridge.decode.limit import SizeLimit
from bridge.decode.raw import RawFormat
from bridge.mapping import InputPlan
from bridge.record import EventFormat
from bridge.tensors import ModelSpec


def event_format(config: Pipeline, model: ModelSpec) -> EventFormat:
    """The format that the configuration names, compiled for `model`.

    Raises:
        ConfigError: the mapping does not fit the model.
    """
    inner: EventFormat
    if config.event.format == "raw":
        inner = RawFormat.compile(model)
    else:
        inner = JsonFormat(InputPlan.compile(model, config.model.inputs), config.result.copy_fields)
    return SizeLimit(inner, config.batch.max_bytes)


__all__ = ["EventFormat", "JsonFormat", "RawFormat", "event_format"]
