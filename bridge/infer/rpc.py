"""Calls over gRPC to a model server, whatever it speaks: channels, deadlines, and what a failed call means."""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio

from bridge.config.model import Model, Tls
from bridge.errors import ConfigError
from bridge.infer.errors import Disposition, InferenceError
from bridge.tensors import TensorSpec

_DISPOSITIONS = {
    "INVALID_ARGUMENT": Disposition.DATA,
    "OUT_OF_RANGE": Disposition.DATA,
    "NOT_FOUND": Disposition.ABSENT,
    "FAILED_PRECONDITION": Disposition.ABSENT,
    "UNAUTHENTICATED": Disposition.STOP,
    "PERMISSION_DENIED": Disposition.STOP,
    "UNIMPLEMENTED": Disposition.STOP,
    "INTERNAL": Disposition.UNSURE,
    "UNKNOWN": Disposition.UNSURE,
}
"""Every other status is the server's trouble: retry."""

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.lb_policy_name", "round_robin"),
    # A connection that a middlebox has forgotten is given up 10 s after something was sent on it. No pings while no
    # call is under way: servers, Triton among them, take many of those for an attack and close the connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # Reconnects follow our own backoff; gRPC's own would wait up to two minutes after a long outage.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A server that has moved is found again this soon, where a name stands for its address; 30 s otherwise.
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    # Channels to one address share a connection otherwise, and leaving one that hangs would lead back to it.
    ("grpc.use_local_subchannel_pool", 1),
]

Methods = Mapping[str, tuple[str, Any]]
"""Our name of a method -> its path, and the message of its answer."""


def open_channel(address: str, tls: Tls) -> grpc.aio.Channel:
    """A channel to `address`, which connects when it is first used."""
    if not tls.enabled:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    try:
        ca, key, chain = (path.read_bytes() if path else None for path in (tls.ca_file, tls.key_file, tls.cert_file))
    except OSError as error:
        raise ConfigError(f"model.tls: {error.filename}: cannot be read: {error.strerror}") from None
    credentials = grpc.ssl_channel_credentials(ca, key, chain)
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)


class _Connection:
    """A channel and the methods on it."""

    def __init__(self, channel: grpc.aio.Channel, methods: Methods) -> None:
        self.channel = channel
        self.methods = {
            name: channel.unary_unary(
                path,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            for name, (path, answer) in methods.items()
        }


class Rpc:
    """The way to one model server.

    Args:
        config: the `model` section.
        methods: that it is asked by.
    """

    def __init__(self, config: Model, methods: Methods) -> None:
        self._config = config
        self._methods = methods
        self._connection = self._connect()
        self._left: set[asyncio.Task[None]] = set()
        version = "" if config.version == "latest" else f" version {config.version}"
        self.where = f"model {config.name!r}{version} at {config.address}"
        """The model and where it is, for sentences."""

    async def call(self, method: str, request: Any) -> Any:
        """The answer.

        Raises:
            InferenceError: there is none.
        """
        connection = self._connection
        try:
            return await connection.methods[method](request, timeout=self._config.timeout)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            if code == "DEADLINE_EXCEEDED":
                self._leave(connection)
            detail = " ".join((error.details() or "").split()) or code
            sentence = f"{self.where}: {code}: {detail}"
            raise InferenceError(_DISPOSITIONS.get(code, Disposition.RETRY), code, sentence) from None
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise InferenceError(Disposition.RETRY, "UNKNOWN", f"{self.where}: {error}") from error

    def broken(self, sentence: str) -> InferenceError:
        """The error of an answer that cannot be right: the server's fault, not an event's."""
        return InferenceError(Disposition.RETRY, "BAD_ANSWER", f"{self.where} {sentence}")

    def check(self, spec: TensorSpec, datatype: str, shape: tuple[int, ...], count: int) -> None:
        """Pass, where an output of this type and shape is what was promised for so many rows.

        Raises:
            InferenceError: it is not; nothing of such an answer is ever matched to an event.
        """
        if not shape or shape[0] != count:
            raise self.broken(f"answered output {spec.name!r} of shape {list(shape)} to {count} rows")
        row = shape[1:]
        fits = len(row) == len(spec.shape) and all(p in (-1, s) for p, s in zip(spec.shape, row, strict=True))
        if datatype != spec.datatype or not fits:
            got = TensorSpec(spec.name, datatype, row)
            sentence = f"{self.where} answered {got}, but had promised {spec}: its signature has changed"
            raise InferenceError(Disposition.STOP, "BAD_ANSWER", sentence)

    def row(self, name: str, datatype: str, shape: tuple[int, ...]) -> TensorSpec:
        """A tensor of the model's description, seen as rows.

        Raises:
            InferenceError: it has no batch dimension.
        """
        if not shape or shape[0] != -1:
            sentence = f"{self.where}: tensor {name} {datatype}{list(shape)} has no batch dimension"
            raise InferenceError(Disposition.STOP, "FAILED_PRECONDITION", sentence)
        return TensorSpec(name, datatype, shape[1:])

    async def close(self) -> None:
        """Let go of the connections."""
        await self._connection.channel.close(None)
        await asyncio.gather(*self._left)

    @property
    def state(self) -> str:
        """The connection's, as gRPC calls it."""
        return str(self._connection.channel.get_state().name)

    def _connect(self) -> _Connection:
        return _Connection(open_channel(self._config.address, self._config.tls), self._methods)

    def _leave(self, connection: _Connection) -> None:
        """The next call goes over a new connection: this one may hang. Calls under way on it may still be answered."""
        if connection is self._connection:
            self._connection = self._connect()
            closing = asyncio.ensure_future(connection.channel.close(self._config.timeout))
            self._left.add(closing)
            closing.add_done_callback(self._left.discard)
