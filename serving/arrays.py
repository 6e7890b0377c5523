"""The arrays of one call: tensor name -> array, and what is made of them for every kind of model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.datatypes import DATA_TYPES, STRING
from serving.signature import Signature

Arrays = Mapping[str, npt.NDArray[Any]]


def without_trailing_one(array: npt.NDArray[Any], dimensions: int) -> npt.NDArray[Any]:
    """Triton has no empty row shape: a scalar a row comes as [rows, 1], where the signature has [rows]."""
    return array.reshape(array.shape[:-1]) if array.ndim == dimensions + 1 and array.shape[-1] == 1 else array


def zeros(signature: Signature, rows: int) -> Arrays:
    """Zeros and empty strings for every input; dimensions that vary are `rows` first, 1 elsewhere."""
    found = {}
    for tensor in signature.inputs:
        shape = [rows if place == 0 and size < 0 else max(size, 1) for place, size in enumerate(tensor.shape)]
        empty = b"" if tensor.datatype == STRING else 0
        found[tensor.name] = np.full(shape, empty, dtype=DATA_TYPES[tensor.datatype].numpy)
    return found
