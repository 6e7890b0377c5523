"""Tells a running Triton to load a model's versions, asks which are loaded, and asks a version for answers."""

from collections.abc import Sequence
from typing import Any

import grpc

from serving.errors import ServerAway, ServingError
from serving.joining import Arrays

try:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException
except ImportError:
    raise ServingError("the Triton client is not installed here; pip install 'headrace[serving]'") from None

_AWAY = {str(grpc.StatusCode.UNAVAILABLE), str(grpc.StatusCode.DEADLINE_EXCEEDED), str(grpc.StatusCode.CANCELLED)}


class TritonControl:
    """The model-repository API of one Triton.

    Args:
        address: host:port of its gRPC service.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = triton.InferenceServerClient(address)

    def load(self, model: str) -> None:
        """Load what the repository now holds of `model`; versions that are loaded serve on meanwhile.

        Raises:
            ServerAway: the server does not answer.
            ServingError: it cannot be loaded; what served before serves on.
        """
        try:
            self._client.load_model(model)
        except InferenceServerException as error:
            raise self._failed(error, f"model {model!r} cannot be loaded") from None

    def states(self) -> dict[tuple[str, str], str]:
        """(model, version) -> READY, LOADING, UNAVAILABLE or UNLOADING, with the reason if there is one.

        Raises:
            ServerAway: the server does not answer.
        """
        try:
            index = self._client.get_model_repository_index(client_timeout=10)
        except InferenceServerException as error:
            raise self._failed(error, "no list of models") from None
        return {
            (item.name, item.version): f"{item.state}: {item.reason}" if item.reason else item.state
            for item in index.models
        }

    def ready(self) -> dict[str, set[int]]:
        """Model -> its versions that serve.

        Raises:
            ServerAway: the server does not answer.
        """
        found: dict[str, set[int]] = {}
        for (model, version), state in self.states().items():
            if state == "READY":
                found.setdefault(model, set()).add(int(version))
        return found

    def ask(self, model: str, version: int, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """What a version answers.

        Args:
            model: its name.
            version: its number.
            inputs: tensor -> array of shape (rows, ...).
            outputs: the tensors to answer with.

        Raises:
            ServerAway: the server does not answer.
            ServingError: the version fails.
        """
        tensors = []
        for name, array in inputs.items():
            tensor: Any = triton.InferInput(name, list(array.shape), _type_of(array))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        asked = [triton.InferRequestedOutput(name) for name in outputs]
        try:
            answer = self._client.infer(model, tensors, str(version), asked, client_timeout=30)
        except InferenceServerException as error:
            raise self._failed(error, f"version {version} of model {model!r} does not answer") from None
        return {name: answer.as_numpy(name) for name in outputs}

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _failed(self, error: Any, what: str) -> ServingError:
        kind = ServerAway if error.status() in _AWAY else ServingError
        return kind(f"{self._address}: {what}: {' '.join(error.message().split())}")


def _type_of(array: Any) -> str:
    from tritonclient.utils import np_to_triton_dtype

    return str(np_to_triton_dtype(array.dtype))
