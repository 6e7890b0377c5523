"""The types of tensors that can be served, by TensorFlow's number."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np


@dataclass(frozen=True, slots=True)
class DataType:
    """One type.

    Attributes:
        name: as Triton's protocol spells it.
        numpy: the type of an array; strings are objects of `bytes`.
    """

    name: str
    numpy: Any


STRING: Final = 7
DATA_TYPES: Final = {
    1: DataType("FP32", np.float32),
    2: DataType("FP64", np.float64),
    3: DataType("INT32", np.int32),
    4: DataType("UINT8", np.uint8),
    5: DataType("INT16", np.int16),
    6: DataType("INT8", np.int8),
    STRING: DataType("BYTES", object),
    9: DataType("INT64", np.int64),
    10: DataType("BOOL", np.bool_),
    17: DataType("UINT16", np.uint16),
    19: DataType("FP16", np.float16),
    22: DataType("UINT32", np.uint32),
    23: DataType("UINT64", np.uint64),
}
"""TF_DataType, the enum DataType of TensorFlow -> the type."""
