"""Tensor types of the V2 inference protocol, and what a model says of its inputs and outputs. Pure."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class DataType:
    """One tensor type: its wire name, its `struct` code and numpy type (both little-endian)."""

    name: str
    code: str
    numpy: str

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return struct.calcsize("<" + self.code)


DATA_TYPES = {
    item.name: item
    for item in (
        DataType("BOOL", "?", "|b1"),
        DataType("UINT8", "B", "|u1"),
        DataType("UINT16", "H", "<u2"),
        DataType("UINT32", "I", "<u4"),
        DataType("UINT64", "Q", "<u8"),
        DataType("INT8", "b", "|i1"),
        DataType("INT16", "h", "<i2"),
        DataType("INT32", "i", "<i4"),
        DataType("INT64", "q", "<i8"),
        DataType("FP16", "e", "<f2"),
        DataType("FP32", "f", "<f4"),
        DataType("FP64", "d", "<f8"),
    )
}
"""The types of fixed size; `BYTES` (strings) is apart, each element with its length before it."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: the tensor's name.
        datatype: a key of `DATA_TYPES`, or `BYTES`.
        shape: of one row, without the batch dimension; -1 where it varies.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Elements of one row; only for a fixed shape."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def fixed(self) -> bool:
        """Whether every row has the same shape."""
        return all(size >= 0 for size in self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; only for a fixed shape and type."""
        return self.elements * DATA_TYPES[self.datatype].size

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}[{', '.join(map(str, ('rows', *self.shape)))}]"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model server says of a model.

    Attributes:
        name: the model's name.
        versions: the versions that are ready, oldest first.
        inputs: its input tensors.
        outputs: its output tensors.
        max_batch_size: most rows in one call; None where the server sets no limit.
    """

    name: str
    versions: Sequence[str]
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    max_batch_size: int | None


def encode_bytes(items: Sequence[bytes]) -> bytes:
    """A BYTES tensor's elements for the wire: each with its length (4 bytes, little-endian) before it."""
    return b"".join([part for item in items for part in (len(item).to_bytes(4, "little"), item)])


def decode_bytes(payload: bytes) -> npt.NDArray[Any]:
    """The elements of a BYTES tensor, as an array of `bytes` objects.

    Raises:
        ValueError: the lengths do not add up.
    """
    items: list[bytes] = []
    at = 0
    while at < len(payload):
        end = at + 4 + int.from_bytes(payload[at : at + 4], "little")
        if at + 4 > len(payload) or end > len(payload):
            raise ValueError("a BYTES tensor ends in the middle of an element")
        items.append(payload[at + 4 : end])
        at = end
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array
