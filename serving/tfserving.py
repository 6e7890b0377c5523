"""Tells a running TensorFlow Serving which versions to load, and which of them is the stable one.

It has no place for a check between loading a version and serving it to those who ask for the latest. So it is asked by
label: `stable` moves to a new version when that has given the answers of its golden requests.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import text_format

from serving._pb import tensorflow_serving_pb2 as pb
from serving.arrays import Arrays
from serving.completeness import VERSION
from serving.datatypes import BY_TENSORFLOW, STRING
from serving.errors import ServerAway, ServerBusy, ServingError
from serving.formats import read_signature, stored_model
from serving.formats.savedmodel import SavedModel
from serving.golden import ask_golden, read_golden
from serving.modelconfig import read_config
from serving.repository import models, serving_order

State = tuple[set[int], int | None]
"""The versions of a model, and the stable one."""

LABEL = "stable"
_AVAILABLE, _END = 30, 50
_METHODS = {
    "reload": ("/tensorflow.serving.ModelService/HandleReloadConfigRequest", pb.ReloadResponse),
    "status": ("/tensorflow.serving.ModelService/GetModelStatus", pb.StatusResponse),
    "metadata": ("/tensorflow.serving.PredictionService/GetModelMetadata", pb.MetadataResponse),
    "predict": ("/tensorflow.serving.PredictionService/Predict", pb.PredictResponse),
}
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_PATIENCE = 300.0  # seconds that a version may take to load


class TensorFlowServingControl:
    """`Control` of a TensorFlow Serving.

    Args:
        address: host:port of its gRPC service.
        root: its models, as the watcher sees them.
        base: the same folder, as the server sees it.
        clock: of the wait for a version.
        pause: between two looks at it.
    """

    def __init__(
        self,
        address: str,
        root: Path,
        base: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._address = address
        self._root = root
        self._base = base or root
        self._clock = clock
        self._pause = pause
        self._channel = grpc.insecure_channel(address)
        self._calls = {
            name: self._channel.unary_unary(
                path,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            for name, (path, answer) in _METHODS.items()
        }

    def load(self, model: str) -> None:
        """Load the versions that are there now; the newest becomes the stable one when it has proved itself.

        Raises:
            ServerAway: the server does not answer.
            ServingError: one cannot be loaded, or answers wrongly; what served before serves on.
        """
        states = {name: self._state(name) for name in self._models()}
        before, stable = states[model]
        wanted = self._there(model)
        try:
            self._reload(states | {model: (before | wanted, stable)})
            for version in sorted(wanted):
                if version not in before or version > (stable or 0):
                    self._wait(model, version)
                    self._prove(model, version)
            # A label may only go to a version that is available by now.
            self._reload(states | {model: (wanted, max(wanted, default=None))})
        except ServerAway:
            raise
        except ServingError:
            self._reload(states)
            raise

    def unload(self, model: str, versions: Set[int], remove: Callable[[], None]) -> None:
        """See `TritonControl`; the label moves first, while all the files are there."""
        states = {name: self._state(name) for name in self._models()}
        kept = states[model][0] - versions
        self._reload(states | {model: (kept, max(kept, default=None))})
        remove()

    def ready(self) -> dict[str, set[int]]:
        """See `TritonControl`; a version above the stable one has not proved itself, and does not count."""
        found = {}
        for model in self._models():
            available, stable = self._state(model)
            proved = {version for version in available if stable is not None and version <= stable}
            if proved:
                found[model] = proved
        return found

    def ask(self, model: str, version: int, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """See `TritonControl`."""
        spec = pb.ModelSpec(name=model, signature_name=read_config(self._root / model).signature)
        request = pb.PredictRequest(model_spec=spec, output_filter=outputs)
        request.model_spec.version.value = version
        for name, array in inputs.items():
            _fill(request.inputs[name], array)
        answer = self._call("predict", request)
        return {name: _array(answer.outputs[name]) for name in outputs if name in answer.outputs}

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()

    def _models(self) -> list[str]:
        return sorted(path.name for path in self._root.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _there(self, model: str) -> set[int]:
        return {int(path.name) for path in (self._root / model).iterdir() if VERSION.fullmatch(path.name)}

    def _state(self, model: str) -> State:
        """The versions that are available, and the stable one."""
        try:
            answer = self._call("status", pb.StatusRequest(model_spec=pb.ModelSpec(name=model)))
        except _NotFound:
            return set(), None
        available = {found.version for found in answer.model_version_status if found.state == _AVAILABLE}
        try:
            # The status of a label tells all versions; the metadata are of the one that it is on.
            spec = pb.ModelSpec(name=model, version_label=LABEL)
            told = self._call("metadata", pb.MetadataRequest(model_spec=spec, metadata_field=["signature_def"]))
            return available, told.model_spec.version.value
        except _NotFound:
            return available, None

    def _reload(self, states: Mapping[str, State]) -> None:
        """All models anew: what is not named is unloaded."""
        answer = self._call("reload", pb.ReloadRequest(config=_configuration(states, self._base)))
        if answer.status.error_code:
            raise ServingError(f"{self._address}: {answer.status.error_message}")

    def _wait(self, model: str, version: int) -> None:
        until = self._clock() + _PATIENCE
        while self._clock() < until:
            answer = self._call("status", pb.StatusRequest(model_spec=pb.ModelSpec(name=model)))
            for found in answer.model_version_status:
                if found.version == version and found.state == _AVAILABLE:
                    return
                if found.version == version and found.state == _END:
                    reason = found.status.error_message or "it was unloaded"
                    raise ServingError(f"{self._address}: model {model!r} cannot be loaded: {reason}")
            self._pause(0.1)
        raise ServingError(f"{self._address}: version {version} of model {model!r} does not load within 300 s")

    def _prove(self, model: str, version: int) -> None:
        folder = self._root / model / str(version)
        golden = read_golden(folder)
        if golden is not None:
            name = read_config(self._root / model).signature
            signature = read_signature(folder, name)
            ask_golden(golden, signature, lambda inputs: self.ask(model, version, inputs, list(golden.outputs)))

    def _call(self, method: str, request: Any) -> Any:
        try:
            # A configuration is taken when all that is new in it is available.
            return self._calls[method](request, timeout=_PATIENCE if method == "reload" else 30)
        except grpc.RpcError as error:
            code, details = error.code(), " ".join((error.details() or "").split())
            kind: type[ServingError] = ServingError
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                kind = ServerBusy
            elif code in _AWAY:
                kind = ServerAway
            elif code is grpc.StatusCode.NOT_FOUND or "servable version label" in details:
                kind = _NotFound
            raise kind(f"{self._address}: {code.name}: {details}") from None


def config_file(repository: Path, base: Path | None = None) -> str:
    """What --model_config_file of a TensorFlow Serving names: the versions that may serve now, and the stable one.

    Args:
        repository: of models, in its layout.
        base: the same folder, as the server sees it.

    Raises:
        ServingError: a version is in another layout, or something cannot be read.
    """
    states: dict[str, State] = {}
    for model in models(repository):
        order = list(islice(serving_order(model), read_config(model).keep))
        for number in order:
            version = model / str(number)
            stored = stored_model(version)
            if stored.platform != SavedModel.platform:
                raise ServingError(f"{version}: TensorFlow Serving serves SavedModels, and this is none")
            if stored.path != version:
                raise ServingError(
                    f"{version}: TensorFlow Serving reads saved_model.pb in the version's folder itself; "
                    "headrace models watch --kind tfserving fills a view with it"
                )
        states[model.name] = set(order), next(iter(order), None)
    return text_format.MessageToString(_configuration(states, base or repository.resolve()))


def _configuration(states: Mapping[str, State], base: Path) -> pb.ModelServerConfig:
    found = pb.ModelServerConfig()
    found.model_config_list.SetInParent()
    for model, (versions, stable) in sorted(states.items()):
        if not versions:
            continue
        config = found.model_config_list.config.add(
            name=model, base_path=str(base / model), model_platform="tensorflow"
        )
        config.model_version_policy.specific.versions.extend(sorted(versions))
        if stable is not None:
            config.version_labels[LABEL] = stable
    return found


class _NotFound(ServingError):
    """The server has never heard of the model, or of its label."""


def _fill(tensor: pb.Tensor, array: npt.NDArray[Any]) -> None:
    """Write an array into a message."""
    kind = next(kind for kind in BY_TENSORFLOW.values() if np.dtype(kind.numpy) == array.dtype)
    tensor.dtype = kind.tensorflow
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if kind.name == STRING:
        tensor.string_val.extend(v.encode() if isinstance(v, str) else v for v in array.ravel().tolist())
    else:
        tensor.tensor_content = array.tobytes()


_FIELDS = ("float_val", "double_val", "int_val", "int64_val", "bool_val", "uint32_val", "uint64_val")


def _array(tensor: pb.Tensor) -> npt.NDArray[Any]:
    """Read one; values that repeat may be left out at the end."""
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    kind = BY_TENSORFLOW[tensor.dtype]
    values: npt.NDArray[Any]
    if tensor.tensor_content:
        values = np.frombuffer(tensor.tensor_content, kind.numpy)
    elif kind.name == STRING:
        values = np.array(list(tensor.string_val), dtype=object)
    elif tensor.half_val:
        values = np.array(list(tensor.half_val), np.uint16).view(np.float16)
    else:
        values = np.array([v for field in _FIELDS for v in getattr(tensor, field)], dtype=kind.numpy)
    whole: npt.NDArray[Any] = np.concatenate([values, np.repeat(values[-1:], math.prod(shape) - len(values))])
    return whole.reshape(shape)
