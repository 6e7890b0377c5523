"""NVIDIA Triton, and other servers of the V2 protocol, over gRPC with raw tensors."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from bridge.config.model import Model, Tls
from bridge.errors import ConfigError
from bridge.infer._pb import inference_v2_pb2 as pb
from bridge.infer.errors import Disposition, InferenceError
from bridge.record import Prediction, Rows
from bridge.tensors import DATA_TYPES, ModelSpec, TensorSpec, decode_bytes

SERVICE = "/inference.GRPCInferenceService/"

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
    # Channels to one address share a connection otherwise, and leaving one that hangs would lead back to it.
    ("grpc.use_local_subchannel_pool", 1),
]


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

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.infer = self._method("ModelInfer", pb.ModelInferResponse)
        self.metadata = self._method("ModelMetadata", pb.ModelMetadataResponse)
        self.model_config = self._method("ModelConfig", pb.ModelConfigResponse)
        self.ready = self._method("ModelReady", pb.ModelReadyResponse)

    def _method(self, name: str, answer: Any) -> Any:
        return self.channel.unary_unary(
            SERVICE + name,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )


class TritonServer:
    """`ModelServer` for a Triton.

    Args:
        config: the `model` section.
    """

    def __init__(self, config: Model) -> None:
        self._config = config
        self._version = "" if config.version == "latest" else str(config.version)
        self._connection = _Connection(open_channel(config.address, config.tls))
        self._left: set[asyncio.Task[None]] = set()

    async def describe(self) -> ModelSpec:
        """See `ModelServer`."""
        name, version = self._config.name, self._version
        ready = await self._call("ready", pb.ModelReadyRequest(name=name, version=version))
        if not ready.ready:
            raise InferenceError(Disposition.ABSENT, "NOT_FOUND", f"{self._where()} is not ready on the server")
        metadata = await self._call("metadata", pb.ModelMetadataRequest(name=name, version=version))
        try:
            answer = await self._call("model_config", pb.ModelConfigRequest(name=name, version=version))
            limit = answer.config.max_batch_size
        except InferenceError as error:
            if error.code != "UNIMPLEMENTED":
                raise
            limit = None  # not Triton: no configuration to ask for
        return ModelSpec(
            name=metadata.name,
            versions=sorted(metadata.versions, key=lambda v: (len(v), v)),
            inputs=[self._spec(item) for item in metadata.inputs],
            outputs=[self._spec(item) for item in metadata.outputs],
            max_batch_size=limit or None,
        )

    async def infer(self, model: ModelSpec, rows: Rows, count: int, outputs: Sequence[str]) -> Prediction:
        """See `ModelServer`."""
        request = pb.ModelInferRequest(model_name=self._config.name, model_version=self._version)
        for spec in model.inputs:
            request.inputs.add(name=spec.name, datatype=spec.datatype, shape=(count, *spec.shape))
            request.raw_input_contents.append(b"".join(rows[spec.name]))
        for name in outputs:
            request.outputs.add(name=name)
        response = await self._call("infer", request)
        return Prediction(self._arrays(model, response, count, outputs), response.model_version)

    async def close(self) -> None:
        """See `ModelServer`."""
        await self._connection.channel.close(None)
        await asyncio.gather(*self._left)

    async def _call(self, method: str, request: Any) -> Any:
        connection = self._connection
        try:
            return await getattr(connection, method)(request, timeout=self._config.timeout)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            if code == "DEADLINE_EXCEEDED":
                self._leave(connection)
            detail = " ".join((error.details() or "").split()) or code
            sentence = f"{self._where()}: {code}: {detail}"
            raise InferenceError(_DISPOSITIONS.get(code, Disposition.RETRY), code, sentence) from None
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise InferenceError(Disposition.RETRY, "UNKNOWN", f"{self._where()}: {error}") from error

    def _leave(self, connection: "_Connection") -> None:
        """The next call goes over a new connection: this one may hang. Calls under way on it may still be answered."""
        if connection is self._connection:
            self._connection = _Connection(open_channel(self._config.address, self._config.tls))
            closing = asyncio.ensure_future(connection.channel.close(self._config.timeout))
            self._left.add(closing)
            closing.add_done_callback(self._left.discard)

    def _where(self) -> str:
        version = f" version {self._version}" if self._version else ""
        return f"model {self._config.name!r}{version} at {self._config.address}"

    def _spec(self, item: Any) -> TensorSpec:
        shape = tuple(item.shape)
        if not shape or shape[0] != -1:
            sentence = f"{self._where()}: tensor {item.name} {item.datatype}{list(shape)} has no batch dimension"
            raise InferenceError(Disposition.STOP, "FAILED_PRECONDITION", sentence)
        return TensorSpec(item.name, item.datatype, shape[1:])

    def _arrays(
        self, model: ModelSpec, response: pb.ModelInferResponse, count: int, outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[Any]]:
        promised = {spec.name: spec for spec in model.outputs}
        tensors = dict(zip((item.name for item in response.outputs), response.outputs, strict=True))
        payloads = dict(zip(tensors, response.raw_output_contents, strict=False))
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name in outputs:
            if name not in payloads:
                raise self._broken(f"answered without the output {name!r}")
            shape = tuple(tensors[name].shape)
            if not shape or shape[0] != count:
                raise self._broken(f"answered output {name!r} of shape {list(shape)} to {count} rows")
            self._check_promise(promised[name], tensors[name].datatype, shape[1:])
            arrays[name] = self._array(name, tensors[name].datatype, shape, payloads[name])
        return arrays

    def _check_promise(self, spec: TensorSpec, datatype: str, shape: tuple[int, ...]) -> None:
        fits = len(shape) == len(spec.shape) and all(p in (-1, s) for p, s in zip(spec.shape, shape, strict=True))
        if datatype != spec.datatype or not fits:
            got = TensorSpec(spec.name, datatype, shape)
            sentence = f"{self._where()} answered {got}, but had promised {spec}: its signature has changed"
            raise InferenceError(Disposition.STOP, "BAD_ANSWER", sentence)

    def _array(self, name: str, datatype: str, shape: tuple[int, ...], payload: bytes) -> npt.NDArray[Any]:
        try:
            if datatype == "BYTES":
                return decode_bytes(payload).reshape(shape)
            array = np.frombuffer(payload, dtype=DATA_TYPES[datatype].numpy)
            if array.size != math.prod(shape):
                raise ValueError(f"{array.size} elements for shape {list(shape)}")  # noqa: TRY301
            return array.reshape(shape)
        except (KeyError, ValueError) as error:
            raise self._broken(f"answered output {name!r} ({datatype}) that cannot be read: {error}") from None

    def _broken(self, sentence: str) -> InferenceError:
        # The server's fault, not an event's: nothing of such an answer is ever matched to an event.
        return InferenceError(Disposition.RETRY, "BAD_ANSWER", f"{self._where()} {sentence}")

    def __repr__(self) -> str:
        state = self._connection.channel.get_state().name
        return f"<TritonServer {self._config.address} model={self._config.name} {state}>"
