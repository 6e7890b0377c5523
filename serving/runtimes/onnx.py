"""Runs an ONNX model by ONNX Runtime: on a GPU where its wheel for GPUs is installed and there is one."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.arrays import Arrays, without_trailing_one
from serving.datatypes import DATA_TYPES, STRING
from serving.errors import ModelError, ServingError
from serving.signature import Signature

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # in the order of preference
_FATAL = 4  # an error of a request is that request's answer


class OnnxRunner:
    """`Runner` of a .onnx file.

    Args:
        path: of the file.
        signature: its inputs and outputs.
        threads: of ONNX Runtime in this process; 0 lets it choose.

    Raises:
        ServingError: it cannot be loaded, or ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, signature: Signature, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ServingError("ONNX Runtime is not installed here; pip install 'headrace[serving]'") from None
        self.signature = signature
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _FATAL
        # Waiting threads that spin take the cores from the requests beside them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        there = onnxruntime.get_available_providers()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[name for name in _PROVIDERS if name in there]
            )
        except Exception as error:  # noqa: BLE001 - its errors share no class of their own
            raise _model_error(error) from None
        self._names = [tensor.name for tensor in signature.outputs]

    def run(self, inputs: Arrays) -> Arrays:
        """See `Runner`."""
        feeds = {}
        for tensor in self.signature.inputs:
            array = without_trailing_one(inputs[tensor.name], len(tensor.shape))
            expected = np.dtype(DATA_TYPES[tensor.datatype].numpy)
            if array.dtype != expected:
                raise ModelError("INVALID_ARGUMENT", f"input {tensor.name!r}: {array.dtype} in place of {expected}")
            feeds[tensor.name] = _texts(tensor.name, array) if tensor.datatype == STRING else array
        try:
            found = self._session.run(self._names, feeds)
        except Exception as error:  # noqa: BLE001 - its errors share no class of their own
            raise _model_error(error) from None
        return {
            name: np.array([text.encode() for text in array.ravel()], object).reshape(array.shape)
            if array.dtype == object
            else array
            for name, array in zip(self._names, map(np.asarray, found), strict=True)
        }

    def close(self) -> None:
        """See `Runner`."""
        del self._session


def _texts(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    try:
        texts = [value.decode() if isinstance(value, bytes) else str(value) for value in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise ModelError("INVALID_ARGUMENT", f"input {name!r}: {error}") from None
    return np.array(texts, object).reshape(array.shape)


def _model_error(error: Exception) -> ModelError:
    """With the status of ONNX Runtime, which names its exceptions by it; what it is given counts as an argument."""
    name = type(error).__name__
    code = {"InvalidArgument": "INVALID_ARGUMENT", "NoSuchFile": "NOT_FOUND"}.get(name, "INTERNAL")
    return ModelError(code, " ".join(str(error).split()))
