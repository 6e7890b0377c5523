"""Tells a running Triton to load a model's versions, and asks which are loaded."""

from serving.errors import ServingError

try:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException
except ImportError:
    raise ServingError("the Triton client is not installed here; pip install 'headrace[serving]'") from None


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
            ServingError: it cannot be loaded; what served before serves on.
        """
        try:
            self._client.load_model(model)
        except InferenceServerException as error:
            raise ServingError(f"{self._address}: model {model!r} cannot be loaded: {error.message()}") from None

    def states(self) -> dict[tuple[str, str], str]:
        """(model, version) -> READY, LOADING, UNAVAILABLE or UNLOADING, with the reason if there is one.

        Raises:
            ServingError: the server does not answer.
        """
        try:
            index = self._client.get_model_repository_index()
        except InferenceServerException as error:
            raise ServingError(f"{self._address} does not answer: {error.message()}") from None
        return {
            (item.name, item.version): f"{item.state}: {item.reason}" if item.reason else item.state
            for item in index.models
        }

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()
