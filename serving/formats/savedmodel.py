"""SavedModels: what one says of itself, read from the protobuf alone, without TensorFlow."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from google.protobuf.message import DecodeError

from serving._pb import saved_model_pb2 as pb
from serving.datatypes import BY_TENSORFLOW
from serving.errors import ServingError
from serving.signature import Signature, Tensor

if TYPE_CHECKING:
    from serving.runtimes.tensorflow import SavedModelRunner

SERVE_TAG = "serve"
_SHARD = re.compile(r"variables\.data-(\d{5})-of-(\d{5})")


@dataclass(frozen=True, slots=True)
class SavedModel:
    """`StoredModel` of the folder that holds saved_model.pb."""

    path: Path
    platform: ClassVar[str] = "tensorflow_savedmodel"

    def signature(self, name: str) -> Signature:
        """See `StoredModel`."""
        path = self.path / "saved_model.pb"
        try:
            model = pb.SavedModel.FromString(path.read_bytes())
        except OSError as error:
            raise ServingError(f"{path}: cannot be read: {error.strerror}") from None
        except DecodeError:
            raise ServingError(f"{path}: not a SavedModel, or copied in part") from None
        graphs = [graph for graph in model.meta_graphs if SERVE_TAG in graph.meta_info_def.tags]
        if not graphs:
            raise ServingError(f"{path}: no graph with the tag {SERVE_TAG!r}")
        index = self.path / "variables" / "variables.index"
        if graphs[0].saver_def.restore_op_name and not index.is_file():
            # TensorFlow takes such a folder for a model without variables, and fails at every call.
            raise ServingError(f"{index}: missing; the SavedModel has been copied in part")
        signatures = graphs[0].signature_def
        if name not in signatures:
            known = ", ".join(sorted(key for key in signatures if not key.startswith("__"))) or "none"
            raise ServingError(f"{path}: no signature {name!r}; it has {known}")
        found = signatures[name]
        return Signature(name, _tensors(path, found.inputs), _tensors(path, found.outputs))

    def check_files(self) -> None:
        """See `StoredModel`."""
        folder = self.path / "variables"
        shards = [found for path in sorted(folder.glob("*.data-*")) if (found := _SHARD.fullmatch(path.name))]
        if (folder / "variables.index").is_file() and len(shards) != (int(shards[0][2]) if shards else 1):
            raise ServingError(f"{folder}: {len(shards)} of its data files are here; it has been copied in part")

    def load(self, signature: str, threads: int) -> "SavedModelRunner":
        """See `StoredModel`."""
        from serving.runtimes.tensorflow import SavedModelRunner

        return SavedModelRunner(self.path, self.signature(signature), threads)


def _tensors(path: Path, infos: Mapping[str, pb.TensorInfo]) -> tuple[Tensor, ...]:
    tensors = []
    for name, info in sorted(infos.items()):
        if info.dtype not in BY_TENSORFLOW:
            raise ServingError(f"{path}: tensor {name!r} has TensorFlow type {info.dtype}, which cannot be served")
        if info.tensor_shape.unknown_rank:
            raise ServingError(f"{path}: tensor {name!r} has no known rank; export it with a shape")
        shape = tuple(dim.size for dim in info.tensor_shape.dim)
        tensors.append(Tensor(name, BY_TENSORFLOW[info.dtype].name, shape, info.name))
    return tuple(tensors)
