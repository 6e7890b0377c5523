"""NVIDIA Triton, and other servers of the V2 protocol, over gRPC with raw tensors."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.config.model import Model
from bridge.infer._pb import inference_v2_pb2 as pb
from bridge.infer.errors import Disposition, InferenceError
from bridge.infer.rpc import Rpc
from bridge.record import Prediction, Rows
from bridge.tensors import DATA_TYPES, ModelSpec, decode_bytes

SERVICE = "/inference.GRPCInferenceService/"
_METHODS = {
    "infer": (SERVICE + "ModelInfer", pb.ModelInferResponse),
    "metadata": (SERVICE + "ModelMetadata", pb.ModelMetadataResponse),
    "config": (SERVICE + "ModelConfig", pb.ModelConfigResponse),
    "ready": (SERVICE + "ModelReady", pb.ModelReadyResponse),
}


class TritonServer:
    """`ModelServer` for a Triton.

    Args:
        config: the `model` section.
    """

    def __init__(self, config: Model) -> None:
        self._config = config
        self._version = "" if config.version == "latest" else str(config.version)
        self._rpc = Rpc(config, _METHODS)

    async def describe(self) -> ModelSpec:
        """See `ModelServer`."""
        name, version = self._config.name, self._version
        ready = await self._rpc.call("ready", pb.ModelReadyRequest(name=name, version=version))
        if not ready.ready:
            raise InferenceError(Disposition.ABSENT, "NOT_FOUND", f"{self._rpc.where} is not ready on the server")
        metadata = await self._rpc.call("metadata", pb.ModelMetadataRequest(name=name, version=version))
        try:
            answer = await self._rpc.call("config", pb.ModelConfigRequest(name=name, version=version))
            limit = answer.config.max_batch_size
        except InferenceError as error:
            if error.code != "UNIMPLEMENTED":
                raise
            limit = None  # not Triton: no configuration to ask for
        return ModelSpec(
            name=metadata.name,
            versions=sorted(metadata.versions, key=lambda v: (len(v), v)),
            inputs=[self._rpc.row(item.name, item.datatype, tuple(item.shape)) for item in metadata.inputs],
            outputs=[self._rpc.row(item.name, item.datatype, tuple(item.shape)) for item in metadata.outputs],
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
        response = await self._rpc.call("infer", request)
        return Prediction(self._arrays(model, response, count, outputs), response.model_version)

    async def close(self) -> None:
        """See `ModelServer`."""
        await self._rpc.close()

    def _arrays(
        self, model: ModelSpec, response: pb.ModelInferResponse, count: int, outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[Any]]:
        promised = {spec.name: spec for spec in model.outputs}
        tensors = dict(zip((item.name for item in response.outputs), response.outputs, strict=True))
        payloads = dict(zip(tensors, response.raw_output_contents, strict=False))
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name in outputs:
            if name not in payloads:
                raise self._rpc.broken(f"answered without the output {name!r}")
            shape = tuple(tensors[name].shape)
            self._rpc.check(promised[name], tensors[name].datatype, shape, count)
            arrays[name] = self._array(name, tensors[name].datatype, shape, payloads[name])
        return arrays

    def _array(self, name: str, datatype: str, shape: tuple[int, ...], payload: bytes) -> npt.NDArray[Any]:
        try:
            if datatype == "BYTES":
                return decode_bytes(payload).reshape(shape)
            array = np.frombuffer(payload, dtype=DATA_TYPES[datatype].numpy)
            if array.size != math.prod(shape):
                raise ValueError(f"{array.size} elements for shape {list(shape)}")  # noqa: TRY301
            return array.reshape(shape)
        except (KeyError, ValueError) as error:
            raise self._rpc.broken(f"answered output {name!r} ({datatype}) that cannot be read: {error}") from None

    def __repr__(self) -> str:
        return f"<TritonServer {self._config.address} model={self._config.name} {self._rpc.state}>"
