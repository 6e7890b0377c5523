"""What consumer, producer and admin client share: how to reach the brokers, and which errors cannot heal."""

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.abc import AbstractTokenProvider
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    BrokerResponseError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    InvalidTransactionTimeout,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)
from aiokafka.producer.message_accumulator import BatchBuilder

from bridge.config import Pipeline
from bridge.config.model import Kafka, Security
from bridge.errors import ConfigError, PipelineStopped

DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
"""Kafka's own default of a topic's max.message.bytes, taken where the broker does not let us ask."""

TRANSACTION_TIMEOUT = 60.0
"""After so many seconds the broker aborts a transaction whose producer is gone."""

FATAL = (
    AuthenticationFailedError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    TopicAuthorizationFailedError,
    GroupAuthorizationFailedError,
    ClusterAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    InvalidTransactionTimeout,
)
"""Errors that waiting does not cure."""


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]
    """OAUTHBEARER tokens from a file that something else keeps fresh; read at every login."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self) -> str:
        """The token of this moment."""
        return self._path.read_text().strip()


def client_options(kafka: Kafka) -> dict[str, Any]:
    """Arguments that every aiokafka client takes for these brokers."""
    security = kafka.security
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "security_protocol": security.protocol,
        "client_id": "headrace",
        # Some fetch errors ask for no new metadata; this bounds how long a moved leader goes unnoticed.
        "metadata_max_age_ms": 30_000,
    }
    if security.protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(security)
    if security.sasl:
        sasl = security.sasl
        options["sasl_mechanism"] = sasl.mechanism
        if sasl.token_file:
            options["sasl_oauth_token_provider"] = TokenFile(sasl.token_file)
        else:
            assert sasl.password_file is not None, "the configuration checks it"  # noqa: S101 - for the type checker
            options["sasl_plain_username"] = sasl.username
            options["sasl_plain_password"] = _secret(sasl.password_file)
    return options


def _ssl_context(security: Security) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(security.ca_file) if security.ca_file else None)
        context.check_hostname = security.verify_hostname
        if security.cert_file:
            context.load_cert_chain(str(security.cert_file), str(security.key_file))
    except OSError as error:
        files = ", ".join(str(f) for f in (security.ca_file, security.cert_file, security.key_file) if f)
        raise ConfigError(f"kafka.security: the certificates in {files} cannot be used: {error}") from None
    return context


def _secret(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"kafka.security.sasl.password_file: {path}: cannot be read: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the brokers describe it."""

    name: str
    partitions: int
    max_message_bytes: int


async def describe_topics(kafka: Kafka, names: list[str]) -> dict[str, Topic | None]:
    """Each topic, None where there is none; it is never created by asking.

    Raises:
        PipelineStopped: the brokers refuse the login, or show a certificate that is not trusted.
        KafkaError: the brokers cannot be reached.
    """
    admin = AIOKafkaAdminClient(**client_options(kafka), request_timeout_ms=10_000)
    try:
        try:
            await admin.start()
        except KafkaConnectionError:
            await _raise_refusal(kafka)
            raise
        # All topics: a question for single ones would make the broker create them where it creates topics by itself.
        listed = [item for item in await admin.describe_topics() if item["topic"] in names]
        partitions = {item["topic"]: len(item["partitions"]) for item in listed if item["error_code"] == 0}
        for item in listed:
            if item["error_code"] == TopicAuthorizationFailedError.errno:
                raise TopicAuthorizationFailedError(item["topic"])
        limits = await _max_message_bytes(admin, list(partitions))
        return {
            name: Topic(name, partitions[name], limits.get(name, DEFAULT_MAX_MESSAGE_BYTES))
            if name in partitions
            else None
            for name in names
        }
    finally:
        await admin.close()


async def refresh_topics(kafka: Kafka, topics: MutableMapping[str, Topic]) -> None:
    """Bring `topics` up to date in place; one that is not there any more keeps what was known of it.

    Raises:
        PipelineStopped, KafkaError: as `describe_topics`.
    """
    topics.update({name: topic for name, topic in (await describe_topics(kafka, list(topics))).items() if topic})


async def _raise_refusal(kafka: Kafka) -> None:
    """The client's bootstrap hides why a connection failed; ask once more, and stop if waiting cannot cure it."""
    names = ("security_protocol", "ssl_context", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password")
    options = {k: v for k, v in client_options(kafka).items() if k in (*names, "sasl_oauth_token_provider")}
    for address in kafka.bootstrap_servers.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            connection = await create_conn(host, int(port), request_timeout_ms=5_000, **options)
        except FATAL as error:
            raise PipelineStopped(sentence(error, kafka)) from error
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or str(error)
            raise PipelineStopped(f"Kafka at {address}: no trusted encrypted connection: {reason}") from error
        except (KafkaError, OSError):
            continue
        connection.close()


async def _max_message_bytes(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    if not names:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, {"max.message.bytes": None}) for name in names]
    limits: dict[str, int] = {}
    try:
        for answer in await admin.describe_configs(resources):
            for code, _, _, name, entries in (resource[:5] for resource in answer.resources):
                values = dict(entry[:2] for entry in entries)
                if code == 0 and "max.message.bytes" in values:
                    limits[name] = int(values["max.message.bytes"])
    except (KafkaError, ValueError):
        return {}  # not allowed to ask, or a broker that cannot say: the default holds
    return limits


def transactional_prefix(config: Pipeline) -> str:
    """What the transactional ids of a pipeline begin with, as its access rules must allow."""
    return f"{config.name}-{config.group}-"


def transactional_producer(
    config: Pipeline, transactional_id: str, timeout: float = TRANSACTION_TIMEOUT, **options: Any
) -> AIOKafkaProducer:
    """A producer whose start fences whoever used the transactional id before, and ends what that one left open.

    Args:
        config: names the brokers.
        transactional_id: which.
        timeout: seconds after which the broker ends a transaction by itself.
        options: more arguments for the client.
    """
    return AIOKafkaProducer(
        **client_options(config.kafka),
        transactional_id=transactional_id,
        transaction_timeout_ms=int(timeout * 1000),
        acks="all",
        max_request_size=64 * 2**20,
        request_timeout_ms=10_000,
        **options,
    )


Produced = tuple[bytes | None, bytes | None, int, list[tuple[str, bytes | None]]]
"""Key, value, timestamp (ms since 1970), headers."""


async def send_rows(
    producer: AIOKafkaProducer,
    rows: Mapping[tuple[str, int], Sequence[Produced]],
    told: Callable[[str, int], None] = lambda topic, partition: None,
) -> None:
    """Send rows to their (topic, partition), in order and in whole batches, until every one is acknowledged.

    Args:
        producer: a transaction's commit would not notice what failed; this does.
        rows: at least one for each key.
        told: of each topic and partition that is about to be waited for, so that an error has a place.

    Raises:
        KafkaError: something was refused, or is not acknowledged.
        UnknownTopicOrPartitionError: the topic, or a partition of that number, does not exist.
    """
    left = dict(rows)
    while left:
        sent = []
        for place, waiting in list(left.items()):
            told(*place)
            builder = producer.create_batch()
            count = append_rows(builder, waiting)
            sent.append((place, await send_batch(producer, builder, *place)))
            if count == len(waiting):
                del left[place]
            else:
                left[place] = waiting[count:]
        outcomes = await asyncio.gather(*(future for _, future in sent), return_exceptions=True)
        for (place, _), outcome in zip(sent, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                told(*place)
                raise outcome


def append_rows(builder: BatchBuilder, rows: Iterable[Produced]) -> int:
    """Append rows until the batch is full; how many it took.

    As the builder's own `append` does, one by one, without its four calls in between for each.
    """
    append, first = builder._builder.append, builder._relative_offset
    number = first
    for key, value, timestamp, headers in rows:
        if append(number, timestamp, key, value, headers) is None:
            builder.close()
            break
        number += 1
    builder._relative_offset = number
    return int(number - first)


async def send_batch(producer: AIOKafkaProducer, builder: BatchBuilder, topic: str, partition: int) -> Any:
    """The client's own, whose word for a partition that the topic does not have is an assertion.

    Raises:
        KafkaError: it cannot be sent.
        UnknownTopicOrPartitionError: the topic, or a partition of that number, does not exist.
    """
    try:
        return await producer.send_batch(builder, topic, partition=partition)
    except AssertionError:
        raise UnknownTopicOrPartitionError(f"{topic}/{partition}") from None


async def stop_client(client: Any, timeout: float) -> str | None:
    """Stop a consumer or producer; what went wrong, or None.

    In a task of its own: the client's stop can hang, and lets a cancellation of its inner tasks out.
    """
    stopping = asyncio.create_task(client.stop(), name="stop client")
    await asyncio.wait({stopping}, timeout=timeout)
    if not stopping.done():
        stopping.cancel()
        return f"not within {timeout:.0f} s"
    error = None if stopping.cancelled() else stopping.exception()
    return None if error is None else str(error) or type(error).__name__


def sentence(error: BaseException, kafka: Kafka) -> str:
    """What a Kafka error means to a user, in one sentence."""
    where = f"Kafka at {kafka.bootstrap_servers}"
    match error:
        case SaslAuthenticationFailed() | AuthenticationFailedError():
            return f"{where} refused the login; check kafka.security.sasl"
        case UnsupportedSaslMechanismError():
            return f"{where} does not offer the mechanism of kafka.security.sasl.mechanism"
        case TopicAuthorizationFailedError():
            return f"{where} does not allow this user to use the topic {' '.join(map(str, error.args))}"
        case GroupAuthorizationFailedError():
            return f"{where} does not allow this user to use the consumer group {' '.join(map(str, error.args))}"
        case TransactionalIdAuthorizationFailed():
            return f"{where} does not allow this user the transactional id {' '.join(map(str, error.args))}"
        case InvalidTransactionTimeout():
            return (
                f"{where}: its transaction.max.timeout.ms is below the {TRANSACTION_TIMEOUT:.0f} s that transactions "
                "need here; raise it"
            )
        case UnknownTopicOrPartitionError():
            return f"{where} has no {' '.join(map(str, error.args)) or 'such topic or partition'}"
        case KafkaConnectionError():
            return f"{where} does not answer; is it running, and is kafka.bootstrap_servers right?"
        case _:
            detail = " ".join(str(error).split()) or type(error).__name__
            refused = isinstance(error, BrokerResponseError) and not error.retriable
            return f"{where} {'refused' if refused else 'does not answer'}: {detail}"
