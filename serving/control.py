"""Tells a running Triton to load a model's versions, asks which are loaded, and asks a version for answers."""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import grpc
import numpy as np

from serving.arrays import Arrays
from serving.errors import ServerAway, ServerBusy, ServingError

try:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException, np_to_triton_dtype
except ImportError:
    raise ServingError("the Triton client is not installed here; pip install 'headrace[serving]'") from None

_BUSY = str(grpc.StatusCode.DEADLINE_EXCEEDED)
_AWAY = {str(grpc.StatusCode.UNAVAILABLE), str(grpc.StatusCode.CANCELLED)}
_OWN = re.compile(r"(?:ServingError|ModelError): (.*?)(?: At: .*)?$")
LOAD_SECONDS = 600.0
"""What a version may take to load."""


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
            self._client.load_model(model, client_timeout=LOAD_SECONDS)
        except InferenceServerException as error:
            raise self._failed(error, f"model {model!r} cannot be loaded") from None

    def unload(self, model: str, versions: Set[int], remove: Callable[[], None]) -> None:
        """Serve these versions no more; `remove` takes their folders away, as soon as the server can bear it.

        Raises:
            ServerAway: the server does not answer.
            ServingError: it refuses.
        """
        remove()  # a version without a folder is what Triton unloads
        self.load(model)

    def states(self) -> dict[tuple[str, str], str]:
        """(model, version) -> READY, LOADING, UNAVAILABLE or UNLOADING, with the reason if there is one.

        Raises:
            ServerAway: the server does not answer.
        """
        try:
            index = self._client.get_model_repository_index(client_timeout=10)
        except InferenceServerException as error:
            raise self._failed(error, "it does not answer") from None
        return {
            (item.name, item.version): f"{item.state}: {item.reason}" if item.reason else item.state
            for item in index.models
        }

    def traffic(self) -> dict[tuple[str, str], int]:
        """(model, version) -> rows that it has answered since it was loaded, golden requests among them.

        Raises:
            ServerAway: the server does not answer.
        """
        try:
            found = self._client.get_inference_statistics(client_timeout=10)
        except InferenceServerException as error:
            raise self._failed(error, "it does not answer") from None
        return {(item.name, item.version): item.inference_count for item in found.model_stats}

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
        try:
            config = self._client.get_model_config(model, str(version), client_timeout=10).config
            shapes = {item.name: list(item.dims) for item in config.input}
            rows = len(next(iter(inputs.values())))
            most = config.max_batch_size or rows
            parts = [self._ask(model, version, inputs, outputs, shapes, at, most) for at in range(0, rows, most)]
        except InferenceServerException as error:
            raise self._failed(error, f"version {version} of model {model!r} does not answer") from None
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def _ask(
        self,
        model: str,
        version: int,
        inputs: Arrays,
        outputs: Sequence[str],
        shapes: Mapping[str, Sequence[int]],
        at: int,
        most: int,
    ) -> Arrays:
        """What it answers to the rows from `at` on."""
        tensors = []
        for name, array in inputs.items():
            part = array[at : at + most]
            if part.ndim == 1 and list(shapes.get(name, ())) == [1]:
                part = part[:, np.newaxis]  # Triton has no empty row shape: a scalar a row is declared as [1]
            tensor: Any = triton.InferInput(name, list(part.shape), np_to_triton_dtype(part.dtype))
            tensor.set_data_from_numpy(part)
            tensors.append(tensor)
        asked = [triton.InferRequestedOutput(name) for name in outputs]
        answer = self._client.infer(model, tensors, str(version), asked, client_timeout=30)
        return {name: answer.as_numpy(name) for name in outputs}

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _failed(self, error: Any, what: str) -> ServingError:
        status = error.status()
        message = " ".join(error.message().split())
        kind = ServerBusy if status == _BUSY else ServerAway if status in _AWAY else ServingError
        if "failed to poll from model repository" in message:
            kind, message = ServerBusy, "its model repository is another folder than the one that is filled here"
        own = _OWN.search(message)  # what our backend says, without Triton's words and Python's frames around it
        return kind(f"{self._address}: {what}: {own[1] if own else message}")
