"""Everything that depends on both the configuration and the live model, compiled before the first event. Pure."""

from dataclasses import dataclass

import numpy as np

from bridge.config import Pipeline
from bridge.decode import EventFormat, event_format
from bridge.encode import ResultEncoder
from bridge.errors import ConfigError
from bridge.expression import Expression
from bridge.kafka import Topic
from bridge.mapping import compile_outputs
from bridge.tensors import DATA_TYPES, ModelSpec, TensorSpec


@dataclass(frozen=True, slots=True)
class Plan:
    """How events of this pipeline become rows of this model, and its answers results.

    Attributes:
        model: the model it was made for.
        decoder: reads events.
        encoder: writes results.
        outputs: the tensors to ask for.
        max_events: most events in one call, under the model's own limit.
    """

    model: ModelSpec
    decoder: EventFormat
    encoder: ResultEncoder
    outputs: tuple[str, ...]
    max_events: int

    @classmethod
    def compile(cls, config: Pipeline, model: ModelSpec) -> "Plan":
        """The plan for `model`.

        Raises:
            ConfigError: a sentence for each thing in the configuration that does not fit the model.
        """
        problems: list[str] = []
        try:
            decoder = event_format(config, model)
        except ConfigError as error:
            problems += error.sentences
        try:
            outputs = compile_outputs(model, config.model.outputs, config.result.copy_fields)
            alert = _alert(config, model, outputs)
        except ConfigError as error:
            problems += error.sentences
        if problems:
            raise ConfigError(*problems)
        return cls(
            model=model,
            decoder=decoder,
            encoder=ResultEncoder(model.name, outputs, config.result.copy_fields, alert),
            outputs=tuple(dict.fromkeys(spec.name for spec in outputs.values())),
            max_events=min(config.batch.max_events, model.max_batch_size or config.batch.max_events),
        )


def _alert(config: Pipeline, model: ModelSpec, outputs: dict[str, TensorSpec]) -> Expression | None:
    if config.result.alert is None:
        return None
    alert = Expression.parse(config.result.alert.when)
    unknown = alert.names - set(outputs)
    if unknown:
        raise ConfigError(
            f"result.alert.when uses {', '.join(sorted(unknown))}, but the outputs of model {model.name!r} are "
            f"{', '.join(outputs)}"
        )
    columns = {}
    for field in alert.names:
        spec = outputs[field]
        if not spec.fixed:
            raise ConfigError(f"result.alert.when: the tensor {spec} has no fixed row shape to compare")
        shape = spec.shape
        column = (
            np.full((1, *shape), b"", dtype=object)
            if spec.datatype == "BYTES"
            else np.zeros((1, *shape), dtype=DATA_TYPES[spec.datatype].numpy)
        )
        columns[field] = column.reshape(1) if column.size == 1 else column
    try:
        alert.evaluate(columns)
    except ValueError as error:
        raise ConfigError(f"result.alert.when: {error}") from None
    return alert


def check_topics(config: Pipeline, topics: dict[str, Topic | None]) -> list[str]:
    """A sentence for each topic of the pipeline that is missing or has too few partitions."""
    problems: list[str] = []
    outputs = {"result": config.result.topic, "dead_letter": config.dead_letter.topic}
    if config.result.alert:
        outputs["result.alert"] = config.result.alert.topic
    problems += [f"source.topics: there is no topic {name!r}" for name in config.source.topics if not topics.get(name)]
    widest = max((t.partitions for name in config.source.topics if (t := topics.get(name))), default=0)
    largest = max((t.max_message_bytes for name in config.source.topics if (t := topics.get(name))), default=0)
    for key, name in outputs.items():
        topic = topics.get(name)
        if topic is None:
            problems.append(f"{key}.topic: there is no topic {name!r}")
        elif key != "dead_letter" and config.result.partition == "source" and topic.partitions < widest:
            problems.append(
                f"{key}.topic: {name!r} has {topic.partitions} partitions, but results keep their event's partition "
                f"and {' and '.join(config.source.topics)} has {widest}; add partitions or set result.partition: key"
            )
        elif key == "dead_letter" and topic.max_message_bytes < largest:
            problems.append(
                f"{key}.topic: {name!r} takes at most {topic.max_message_bytes} bytes (max.message.bytes), but the "
                f"events' topic takes {largest}: an event could be too large for its dead letter; raise it"
            )
    return problems
