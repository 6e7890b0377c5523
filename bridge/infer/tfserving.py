"""TensorFlow Serving over gRPC: Predict, with batches as `tensor_content`; metadata and status."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.config.model import Model
from bridge.config.types import Label
from bridge.infer._pb import tensorflow_serving_pb2 as pb
from bridge.infer.errors import Disposition, InferenceError
from bridge.infer.rpc import Rpc
from bridge.record import Prediction, Rows
from bridge.tensors import DATA_TYPES, ModelSpec, TensorSpec, decode_bytes

_METHODS = {
    "predict": ("/tensorflow.serving.PredictionService/Predict", pb.PredictResponse),
    "metadata": ("/tensorflow.serving.PredictionService/GetModelMetadata", pb.MetadataResponse),
    "status": ("/tensorflow.serving.ModelService/GetModelStatus", pb.StatusResponse),
}
_AVAILABLE = 30
_SIGNATURE = "serving_default"

# TensorFlow's DataType enum -> the type's name here, and the field that holds its values where there is no content.
_TYPES = {
    1: ("FP32", "float_val"),
    2: ("FP64", "double_val"),
    3: ("INT32", "int_val"),
    4: ("UINT8", "int_val"),
    5: ("INT16", "int_val"),
    6: ("INT8", "int_val"),
    7: ("BYTES", "string_val"),
    9: ("INT64", "int64_val"),
    10: ("BOOL", "bool_val"),
    17: ("UINT16", "int_val"),
    19: ("FP16", "half_val"),
    22: ("UINT32", "uint32_val"),
    23: ("UINT64", "uint64_val"),
}
_NUMBERS = {name: number for number, (name, _) in _TYPES.items()}


class TensorFlowServing:
    """`ModelServer` for a TensorFlow Serving.

    Args:
        config: the `model` section.
    """

    def __init__(self, config: Model) -> None:
        self._config = config
        self._rpc = Rpc(config, _METHODS)
        self._signature = config.signature or _SIGNATURE

    async def describe(self) -> ModelSpec:
        """See `ModelServer`."""
        asked = pb.MetadataRequest(model_spec=self._spec(), metadata_field=["signature_def"])
        answer = await self._call("metadata", asked)
        signatures = pb.Signatures.FromString(answer.metadata["signature_def"].value).signature_def
        if self._signature not in signatures:
            known = ", ".join(sorted(name for name in signatures if not name.startswith("__"))) or "none"
            sentence = f"{self._rpc.where}: no signature {self._signature!r}; it has {known}"
            raise InferenceError(Disposition.STOP, "NOT_FOUND", sentence)
        signature = signatures[self._signature]
        return ModelSpec(
            name=self._config.name,
            versions=[str(number) for number in await self._versions(answer.model_spec.version.value)],
            inputs=[self._row(name, info) for name, info in sorted(signature.inputs.items())],
            outputs=[self._row(name, info) for name, info in sorted(signature.outputs.items())],
            max_batch_size=None,
        )

    async def infer(self, model: ModelSpec, rows: Rows, count: int, outputs: Sequence[str]) -> Prediction:
        """See `ModelServer`."""
        request = pb.PredictRequest(model_spec=self._spec(signature=self._signature), output_filter=outputs)
        for spec in model.inputs:
            tensor = request.inputs[spec.name]
            tensor.dtype = _NUMBERS[spec.datatype]
            for size in (count, *spec.shape):
                tensor.tensor_shape.dim.add(size=size)
            if spec.datatype == "BYTES":
                tensor.string_val.extend(decode_bytes(b"".join(rows[spec.name])).tolist())
            else:
                tensor.tensor_content = b"".join(rows[spec.name])
        response = await self._call("predict", request)
        promised = {spec.name: spec for spec in model.outputs}
        arrays = {}
        for name in outputs:
            if name not in response.outputs:
                raise self._rpc.broken(f"answered without the output {name!r}")
            arrays[name] = self._array(promised[name], response.outputs[name], count)
        return Prediction(arrays, str(response.model_spec.version.value))

    async def close(self) -> None:
        """See `ModelServer`."""
        await self._rpc.close()

    async def _call(self, method: str, request: Any) -> Any:
        try:
            return await self._rpc.call(method, request)
        except InferenceError as error:
            if isinstance(self._config.version, Label) and "servable version label" in str(error):
                # The server blames the request; but the label may not have been given to a version yet.
                raise InferenceError(Disposition.ABSENT, error.code, str(error)) from None
            raise

    async def _versions(self, described: int) -> list[int]:
        """Those that may answer: the one that was described, or where the latest is asked, all that are available."""
        if self._config.version != "latest":
            return [described]
        try:
            status = await self._rpc.call("status", pb.StatusRequest(model_spec=pb.ModelSpec(name=self._config.name)))
        except InferenceError as error:
            if error.code != "UNIMPLEMENTED":
                raise
            return [described]
        return sorted(found.version for found in status.model_version_status if found.state == _AVAILABLE)

    def _spec(self, signature: str = "") -> pb.ModelSpec:
        spec = pb.ModelSpec(name=self._config.name, signature_name=signature)
        version = self._config.version
        if isinstance(version, Label):
            spec.version_label = version
        elif version != "latest":
            spec.version.value = version
        return spec

    def _row(self, name: str, info: pb.TensorInfo) -> TensorSpec:
        if info.dtype not in _TYPES or info.tensor_shape.unknown_rank:
            what = "no known rank" if info.dtype in _TYPES else f"TensorFlow type {info.dtype}"
            sentence = f"{self._rpc.where}: tensor {name} has {what}, which cannot be fed"
            raise InferenceError(Disposition.STOP, "FAILED_PRECONDITION", sentence)
        return self._rpc.row(name, _TYPES[info.dtype][0], tuple(dim.size for dim in info.tensor_shape.dim))

    def _array(self, spec: TensorSpec, tensor: pb.Tensor, count: int) -> npt.NDArray[Any]:
        datatype, field = _TYPES.get(tensor.dtype, (f"type {tensor.dtype}", ""))
        shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
        self._rpc.check(spec, datatype, shape, count)
        size = math.prod(shape)
        if datatype == "BYTES":
            array = np.empty(len(tensor.string_val), dtype=object)
            array[:] = tensor.string_val
        elif tensor.tensor_content:
            try:
                array = np.frombuffer(tensor.tensor_content, dtype=DATA_TYPES[datatype].numpy)
            except ValueError as error:
                raise self._rpc.broken(f"answered output {spec.name!r} that cannot be read: {error}") from None
        elif datatype == "FP16":
            array = np.array(tensor.half_val, dtype="<u2").view("<f2")
        else:
            array = np.array(getattr(tensor, field), dtype=DATA_TYPES[datatype].numpy)
        if 0 < array.size < size and not tensor.tensor_content:
            # As TensorFlow writes repeated values: the last one stands for all that follow.
            array = np.concatenate([array, np.repeat(array[-1:], size - array.size)])
        if array.size != size:
            raise self._rpc.broken(f"answered {array.size} elements for output {spec.name!r} of shape {list(shape)}")
        return array.reshape(shape)

    def __repr__(self) -> str:
        return f"<TensorFlowServing {self._config.address} model={self._config.name} {self._rpc.state}>"
