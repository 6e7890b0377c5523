"""`headrace check`: what in a configuration does not fit the live model, topics and events."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import InvalidTransactionTimeout, KafkaError

from bridge.config import Pipeline
from bridge.errors import ConfigError, PipelineStopped
from bridge.infer import Disposition, InferenceError, ModelServer
from bridge.kafka import (
    FATAL,
    client_options,
    describe_topics,
    sentence,
    stop_client,
    transactional_prefix,
    transactional_producer,
)
from bridge.plan import Plan, check_topics

SAMPLE = 20
"""Events looked at in each source topic."""
_TRANSACTION_TIMEOUT = 15.0


@dataclass
class Report:
    """What was found.

    Attributes:
        facts: what is as it should be, a sentence each.
        warnings: what works, but may not be meant.
        problems: what does not fit: the configuration must change.
        unreachable: what could not be asked.
    """

    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """2 when the configuration is wrong, 1 when something does not answer, else 0."""
        return 2 if self.problems else 1 if self.unreachable else 0


async def check(config: Pipeline, server: ModelServer) -> Report:
    """Ask the model and the brokers, and compare."""
    report = Report()
    plan = await _check_model(config, server, report)
    await _check_kafka(config, plan, report)
    return report


async def _check_model(config: Pipeline, server: ModelServer, report: Report) -> Plan | None:
    try:
        model = await server.describe()
    except InferenceError as error:
        if error.disposition is Disposition.RETRY:
            report.unreachable.append(f"model.address: {error}")
        else:
            key = "model.name" if config.model.version == "latest" else "model.version"
            report.problems.append(f"{key}: {error}")
        return None
    tensors = f"inputs {', '.join(map(str, model.inputs))}; outputs {', '.join(map(str, model.outputs))}"
    report.facts.append(f"model {model.name!r} is ready in version {', '.join(model.versions) or '?'}: {tensors}")
    try:
        plan = Plan.compile(config, model)
    except ConfigError as error:
        report.problems += error.sentences
        return None
    if plan.max_events < config.batch.max_events:
        report.warnings.append(
            f"batch.max_events is {config.batch.max_events}, but model {model.name!r} takes at most {plan.max_events} "
            f"rows in a call (max_batch_size): batches are capped at {plan.max_events}"
        )
    return plan


async def _check_kafka(config: Pipeline, plan: Plan | None, report: Report) -> None:
    alert = config.result.alert
    names = [*config.source.topics, config.result.topic, config.dead_letter.topic, *([alert.topic] if alert else [])]
    try:
        topics = await describe_topics(config.kafka, names)
        problems = check_topics(config, topics)
        report.problems += problems
        report.facts += [f"topic {t.name!r}: partitions {t.partitions}" for t in topics.values() if t is not None]
        if plan is not None:
            for name in config.source.topics:
                topic = topics[name]
                if topic is not None:
                    _check_events(plan, name, await sample_events(config, name, topic.partitions), report)
        if config.delivery == "exactly_once":
            await _check_transactions(config, report)
    except PipelineStopped as error:
        report.unreachable.append(f"kafka: {error}")
    except KafkaError as error:
        report.unreachable.append(f"kafka.bootstrap_servers: {sentence(error, config.kafka)}")


async def _check_transactions(config: Pipeline, report: Report) -> None:
    """Whether the brokers do what exactly_once needs: begin a transaction, take the group's offset into it, end it."""
    prefix = transactional_prefix(config)
    producer = transactional_producer(config, f"{prefix}check")
    try:
        async with asyncio.timeout(_TRANSACTION_TIMEOUT):
            await producer.start()
            await producer.begin_transaction()
            # It is aborted, so that no offset of the pipeline moves.
            await producer.send_offsets_to_transaction({TopicPartition(config.source.topics[0], 0): 0}, config.group)
            await producer.abort_transaction()
        report.facts.append(f"transactions: the brokers begin and end them for transactional ids {prefix}*")
    except TimeoutError:
        report.unreachable.append(
            f"delivery exactly_once: the brokers did not begin and end a transaction within {_TRANSACTION_TIMEOUT:.0f} "
            "s; they may lack the replicas that transaction.state.log.replication.factor and .min.isr ask for"
        )
    except InvalidTransactionTimeout as error:
        report.problems.append(f"delivery exactly_once: {sentence(error, config.kafka)}")
    except FATAL as error:
        report.problems.append(
            f"delivery exactly_once: {sentence(error, config.kafka)}; allow the transactional ids {prefix}* and the "
            "group"
        )
    finally:
        await stop_client(producer, 5.0)


def _check_events(plan: Plan, topic: str, values: Sequence[bytes | None], report: Report) -> None:
    if not values:
        report.facts.append(f"topic {topic!r} is empty: no event to try the mapping on")
        return
    rejects = plan.decoder.decode(values).rejects
    if not rejects:
        report.facts.append(f"the last {len(values)} events of {topic!r} fit the model")
        return
    (error, count), *_ = Counter(reject.error for reject in rejects).most_common(1)
    text = (
        f"model.inputs: {len(rejects)} of the last {len(values)} events of {topic!r} do not fit model "
        f"{plan.model.name!r}, {count} of them because {error}"
    )
    (report.problems if len(rejects) == len(values) else report.warnings).append(text)


async def sample_events(config: Pipeline, topic: str, partitions: int, most: int = SAMPLE) -> list[bytes | None]:
    """The values of the last events of a topic, read without a group; about `most`, and no more.

    Raises:
        KafkaError: the brokers do not answer.
    """
    consumer = AIOKafkaConsumer(
        **client_options(config.kafka), isolation_level="read_committed", enable_auto_commit=False
    )
    values: list[bytes | None] = []
    try:
        await consumer.start()
        assigned = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(assigned)
        first, last = await consumer.beginning_offsets(assigned), await consumer.end_offsets(assigned)
        for tp in assigned:
            consumer.seek(tp, max(first[tp], last[tp] - most))
        for _ in range(5 if any(last[tp] > first[tp] for tp in assigned) else 0):
            for records in (await consumer.getmany(timeout_ms=500, max_records=most)).values():
                values += [record.value for record in records]
            if len(values) >= most:
                break
    finally:
        await stop_client(consumer, 5.0)
    return values[:most]
