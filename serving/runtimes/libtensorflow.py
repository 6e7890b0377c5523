"""TensorFlow through the C API of its own wheel: arrays to tensors, tensors to arrays. Needs no `import tensorflow`.

The Python package takes seconds and hundreds of MB to import, and a model that has been trained needs none of it.
Functions and constants are those of tensorflow/c/c_api.h, tf_tensor.h and tf_tstring.h.
"""

import ctypes
import functools
import importlib.util
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.datatypes import BY_TENSORFLOW, STRING, DataType
from serving.errors import ModelError, ServingError

_STRING_BYTES = 24  # sizeof(TF_TString)
_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip

_Deallocator = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class Output(ctypes.Structure):
    """One output of one operation of a graph (TF_Output)."""

    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


_POINTER, _INT, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    # name: (what it returns, what it takes …)
    "TF_NewStatus": (_POINTER,),
    "TF_DeleteStatus": (None, _POINTER),
    "TF_GetCode": (_INT, _POINTER),
    "TF_Message": (_TEXT, _POINTER),
    "TF_NewTensor": (
        _POINTER, _INT, ctypes.POINTER(ctypes.c_int64), _INT, _POINTER, _SIZE, _Deallocator, _POINTER,
    ),
    "TF_DeleteTensor": (None, _POINTER),
    "TF_TensorType": (_INT, _POINTER),
    "TF_NumDims": (_INT, _POINTER),
    "TF_Dim": (ctypes.c_int64, _POINTER, _INT),
    "TF_TensorData": (_POINTER, _POINTER),
    "TF_TensorByteSize": (_SIZE, _POINTER),
    "TF_StringInit": (None, _POINTER),
    "TF_StringCopy": (None, _POINTER, _TEXT, _SIZE),
    "TF_StringDealloc": (None, _POINTER),
    "TF_StringGetDataPointer": (_POINTER, _POINTER),
    "TF_StringGetSize": (_SIZE, _POINTER),
    "TF_NewGraph": (_POINTER,),
    "TF_DeleteGraph": (None, _POINTER),
    "TF_GraphOperationByName": (_POINTER, _POINTER, _TEXT),
    "TF_NewSessionOptions": (_POINTER,),
    "TF_DeleteSessionOptions": (None, _POINTER),
    "TF_SetConfig": (None, _POINTER, _TEXT, _SIZE, _POINTER),
    "TF_LoadSessionFromSavedModel": (
        _POINTER, _POINTER, _POINTER, _TEXT, ctypes.POINTER(_TEXT), _INT, _POINTER, _POINTER, _POINTER,
    ),
    "TF_CloseSession": (None, _POINTER, _POINTER),
    "TF_DeleteSession": (None, _POINTER, _POINTER),
    "TF_SessionRun": (
        None, _POINTER, _POINTER,
        ctypes.POINTER(Output), ctypes.POINTER(_POINTER), _INT,
        ctypes.POINTER(Output), ctypes.POINTER(_POINTER), _INT,
        ctypes.POINTER(_POINTER), _INT, _POINTER, _POINTER,
    ),
}  # fmt: skip


@functools.cache
def library() -> Any:
    """The functions of the C API, loaded once.

    Raises:
        ServingError: TensorFlow is not installed here.
    """
    found = importlib.util.find_spec("tensorflow")
    if found is None or not found.submodule_search_locations:
        raise ServingError("TensorFlow is not installed here; pip install 'headrace[serving]'")
    folder = Path(found.submodule_search_locations[0])
    try:
        parts = [
            ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
            for name in ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")
        ]
    except OSError as error:
        raise ServingError(f"{folder}: TensorFlow's library cannot be loaded: {error}") from None
    functions = type("Library", (), {})
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = next(getattr(part, name) for part in reversed(parts) if hasattr(part, name))
        function.restype, function.argtypes = result, arguments
        setattr(functions, name, staticmethod(function))
    return functions


class Status:
    """A TF_Status for one call: `with Status() as status: function(…, status)` raises what the call reports."""

    def __enter__(self) -> Any:
        self._pointer = library().TF_NewStatus()
        return self._pointer

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            code = library().TF_GetCode(self._pointer)
            if code and kind is None:
                name = _CODES[code] if code < len(_CODES) else "UNKNOWN"
                raise ModelError(name, library().TF_Message(self._pointer).decode(errors="replace"))
        finally:
            library().TF_DeleteStatus(self._pointer)


class _Held:
    """Memory that tensors use, kept alive until TensorFlow lets go of it, which may be after the call."""

    def __init__(self) -> None:
        self._buffers: dict[int, tuple[object, int]] = {}
        self._lock = threading.Lock()
        self._number = 0
        self.release = _Deallocator(self._release)

    def keep(self, buffer: object, strings: int = 0) -> int:
        """A number under which TensorFlow releases it; `strings` of them are in it."""
        with self._lock:
            self._number += 1
            self._buffers[self._number] = (buffer, strings)
            return self._number

    def _release(self, address: int, _: int, number: int) -> None:
        with self._lock:
            _buffer, strings = self._buffers.pop(number)
        for place in range(strings):
            library().TF_StringDealloc(address + place * _STRING_BYTES)


_held = _Held()


def to_tensor(array: npt.NDArray[Any], kind: DataType) -> int:
    """A TF_Tensor of `array`, whose memory it shares where that is aligned; TF_DeleteTensor lets go of it.

    Args:
        array: of any shape; of `bytes` or `str` objects where `kind` is that of strings.
        kind: of the tensor.

    Raises:
        ModelError: INVALID_ARGUMENT when the array's type is another.
    """
    functions = library()
    shape = array.shape  # of a scalar, numpy makes a row below
    dims = (ctypes.c_int64 * len(shape))(*shape)
    if kind.name == STRING:
        if not all(isinstance(value, str | bytes) for value in array.ravel().tolist()):
            raise ModelError("INVALID_ARGUMENT", f"{array.dtype} in place of texts")
        size = _STRING_BYTES * array.size
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        for place, value in enumerate(array.ravel().tolist()):
            data = value.encode() if isinstance(value, str) else value
            functions.TF_StringInit(address + place * _STRING_BYTES)
            functions.TF_StringCopy(address + place * _STRING_BYTES, data, len(data))
        number = _held.keep(buffer, array.size)
    else:
        expected = np.dtype(kind.numpy)
        if array.dtype != expected:
            raise ModelError("INVALID_ARGUMENT", f"{array.dtype} in place of {expected}")
        array = np.ascontiguousarray(array)
        address, size = array.ctypes.data, array.nbytes
        number = _held.keep(array)
    return int(functions.TF_NewTensor(kind.tensorflow, dims, len(shape), address, size, _held.release, number))


def delete_tensor(tensor: int) -> None:
    """Let go of a TF_Tensor that has not been fed."""
    library().TF_DeleteTensor(tensor)


def to_array(tensor: int) -> npt.NDArray[Any]:
    """A copy of a TF_Tensor; strings as objects of `bytes`.

    Raises:
        ModelError: its type has no equal in numpy.
    """
    functions = library()
    number = functions.TF_TensorType(tensor)
    if number not in BY_TENSORFLOW:
        raise ModelError("UNIMPLEMENTED", f"a tensor of TensorFlow type {number} cannot be read")
    kind = BY_TENSORFLOW[number]
    shape = tuple(functions.TF_Dim(tensor, place) for place in range(functions.TF_NumDims(tensor)))
    address = functions.TF_TensorData(tensor)
    count = math.prod(shape)
    if kind.name == STRING:
        array = np.empty(count, dtype=object)
        for place in range(count):
            at = address + place * _STRING_BYTES
            array[place] = ctypes.string_at(functions.TF_StringGetDataPointer(at), functions.TF_StringGetSize(at))
        return array.reshape(shape)
    if not count:
        return np.empty(shape, kind.numpy)
    memory = (ctypes.c_char * functions.TF_TensorByteSize(tensor)).from_address(address)
    return np.frombuffer(memory, kind.numpy, count).reshape(shape).copy()


class Session:
    """The graph of a SavedModel, its variables restored and its tables filled.

    Args:
        folder: that holds saved_model.pb.
        tag: of the graph in it.
        threads: that compute; 0 lets TensorFlow choose.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(self, folder: Path, tag: str, threads: int) -> None:
        functions = library()
        self._graph = functions.TF_NewGraph()
        options = functions.TF_NewSessionOptions()
        try:
            if threads:
                # A ConfigProto: intra_op_parallelism_threads is its field 2, inter_op_parallelism_threads its field 5.
                config = bytes((2 << 3, *_varint(threads), 5 << 3, 1))
                with Status() as status:
                    functions.TF_SetConfig(options, config, len(config), status)
            tags = (ctypes.c_char_p * 1)(tag.encode())
            with Status() as status:
                self._session = functions.TF_LoadSessionFromSavedModel(
                    options, None, str(folder).encode(), tags, 1, self._graph, None, status
                )
        except ModelError:
            functions.TF_DeleteGraph(self._graph)
            raise
        finally:
            functions.TF_DeleteSessionOptions(options)

    def output(self, name: str) -> Output:
        """The output of an operation that is called `operation:index`.

        Raises:
            ModelError: there is none.
        """
        operation, _, index = name.rpartition(":")
        found = library().TF_GraphOperationByName(self._graph, operation.encode())
        if not found:
            raise ModelError("NOT_FOUND", f"the graph has no operation {operation!r}")
        return Output(found, int(index))

    def run(self, feeds: Sequence[tuple[Output, int]], fetches: Sequence[Output]) -> list[npt.NDArray[Any]]:
        """One call.

        Args:
            feeds: TF_Tensors and where they go in; they are deleted.
            fetches: what to compute.

        Raises:
            ModelError: the model refuses, or cannot be run.
        """
        functions = library()
        tensors = (ctypes.c_void_p * len(feeds))(*(tensor for _, tensor in feeds))
        found = (ctypes.c_void_p * len(fetches))()
        try:
            with Status() as status:
                functions.TF_SessionRun(
                    self._session, None,
                    (Output * len(feeds))(*(place for place, _ in feeds)), tensors, len(feeds),
                    (Output * len(fetches))(*fetches), found, len(fetches),
                    None, 0, None, status,
                )  # fmt: skip
            return [to_array(tensor) for tensor in found]  # type: ignore[arg-type]  # no null without an error
        finally:
            for tensor in (*tensors, *found):
                if tensor:
                    functions.TF_DeleteTensor(tensor)

    def close(self) -> None:
        """Free the model's memory."""
        functions = library()
        with Status() as status:
            functions.TF_CloseSession(self._session, status)
        with Status() as status:
            functions.TF_DeleteSession(self._session, status)
        functions.TF_DeleteGraph(self._graph)


def _varint(number: int) -> list[int]:
    """Base 128, least significant first, as protocol buffers write a number."""
    found = []
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return [*found, number]
