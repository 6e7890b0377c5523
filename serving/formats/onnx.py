"""ONNX models: what one says of itself, read from the protobuf alone, without ONNX Runtime."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from google.protobuf.message import DecodeError

from serving._pb import onnx_pb2 as pb
from serving.datatypes import BY_ONNX
from serving.errors import ServingError
from serving.signature import DEFAULT_SIGNATURE, Signature, Tensor

if TYPE_CHECKING:
    from serving.runtimes.onnx import OnnxRunner


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """`StoredModel` of a .onnx file and of the files beside it that hold its weights."""

    path: Path
    platform: ClassVar[str] = "onnxruntime_onnx"

    def signature(self, name: str) -> Signature:
        """See `StoredModel`."""
        if name != DEFAULT_SIGNATURE:
            raise ServingError(f"{self.path}: no signature {name!r}; an ONNX model has one, {DEFAULT_SIGNATURE}")
        graph = self._graph()
        weights = {tensor.name for tensor in graph.initializer}  # models of old name them among the inputs
        return Signature(
            name,
            self._tensors(value for value in graph.input if value.name not in weights),
            self._tensors(graph.output),
        )

    def check_files(self) -> None:
        """See `StoredModel`."""
        for path, size in self._data().items():
            if not path.is_file():
                raise ServingError(f"{path}: missing; the ONNX model has been copied in part")
            if path.stat().st_size < size:
                raise ServingError(f"{path}: {path.stat().st_size} bytes where the ONNX model has {size} at least")

    def load(self, signature: str, threads: int) -> "OnnxRunner":
        """See `StoredModel`."""
        from serving.runtimes.onnx import OnnxRunner

        return OnnxRunner(self.path, self.signature(signature), threads)

    def files(self) -> list[Path]:
        """The files it consists of.

        Raises:
            ServingError: it cannot be read.
        """
        return [self.path, *self._data()]

    def _data(self) -> dict[Path, int]:
        """Each file with weights of its own -> the bytes it must have."""
        found: dict[Path, int] = {}
        for tensor in self._graph().initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if "location" in where:
                name = os.path.normpath(where["location"])
                if name.startswith(("..", "/")):  # by its name: where links may lead is for others to say
                    raise ServingError(f"{self.path}: weights in {where['location']}, which is not beside it")
                try:
                    size = int(where.get("offset", 0)) + int(where.get("length", 0))
                except ValueError:
                    raise ServingError(f"{self.path}: not an ONNX model, or copied in part") from None
                path = self.path.parent / name
                found[path] = max(found.get(path, 0), size)
        return found

    def _graph(self) -> pb.Graph:
        try:
            model = pb.Model.FromString(self.path.read_bytes())
        except OSError as error:
            raise ServingError(f"{self.path}: cannot be read: {error.strerror}") from None
        except DecodeError:
            model = pb.Model()
        if not model.graph.output:  # anything short enough can be read as a protobuf
            raise ServingError(f"{self.path}: not an ONNX model, or copied in part")
        return model.graph

    def _tensors(self, values: Iterable[pb.Value]) -> tuple[Tensor, ...]:
        tensors = []
        for value in sorted(values, key=lambda value: value.name):
            kind = value.type.WhichOneof("value")
            if kind != "tensor_type":
                told = (kind or "unknown type").removesuffix("_type")
                raise ServingError(f"{self.path}: {value.name!r} is a {told}, which cannot be served; export a tensor")
            tensor = value.type.tensor_type
            if tensor.elem_type not in BY_ONNX:
                raise ServingError(
                    f"{self.path}: {value.name!r} has ONNX type {tensor.elem_type}, which cannot be served"
                )
            if not tensor.HasField("shape"):
                raise ServingError(f"{self.path}: tensor {value.name!r} has no known rank; export it with a shape")
            shape = tuple(d.dim_value if d.WhichOneof("value") == "dim_value" else -1 for d in tensor.shape.dim)
            tensors.append(Tensor(value.name, BY_ONNX[tensor.elem_type].name, shape, value.name))
        return tuple(tensors)
