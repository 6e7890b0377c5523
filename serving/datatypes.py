"""The types of tensors that can be served, by their names in Triton's protocol."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np


@dataclass(frozen=True, slots=True)
class DataType:
    """One type.

    Attributes:
        name: as Triton's protocol spells it.
        numpy: the type of an array; strings are objects of `bytes`.
        tensorflow: TF_DataType, TensorFlow's number of it.
        onnx: TensorProto.DataType, ONNX's number of it.
    """

    name: str
    numpy: Any
    tensorflow: int
    onnx: int


STRING: Final = "BYTES"
_ALL = (
    DataType("FP32", np.float32, 1, 1),
    DataType("FP64", np.float64, 2, 11),
    DataType("INT32", np.int32, 3, 6),
    DataType("UINT8", np.uint8, 4, 2),
    DataType("INT16", np.int16, 5, 5),
    DataType("INT8", np.int8, 6, 3),
    DataType(STRING, object, 7, 8),
    DataType("INT64", np.int64, 9, 7),
    DataType("BOOL", np.bool_, 10, 9),
    DataType("UINT16", np.uint16, 17, 4),
    DataType("FP16", np.float16, 19, 10),
    DataType("UINT32", np.uint32, 22, 12),
    DataType("UINT64", np.uint64, 23, 13),
)
DATA_TYPES: Final = {kind.name: kind for kind in _ALL}
BY_TENSORFLOW: Final = {kind.tensorflow: kind for kind in _ALL}
BY_ONNX: Final = {kind.onnx: kind for kind in _ALL}
