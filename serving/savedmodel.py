"""What a SavedModel says of itself: its signatures. Read from the protobuf alone, without TensorFlow."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from serving._pb import saved_model_pb2 as pb
from serving.datatypes import DATA_TYPES
from serving.errors import ServingError

SERVE_TAG = "serve"
DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a signature.

    Attributes:
        name: its name in the signature.
        datatype: as Triton's protocol spells it, such as FP32 or BYTES.
        shape: with the batch dimension; -1 where it varies.
        source: its name in the graph, operation:index.
        number: the TF_DataType.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    source: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature: what can be asked of a SavedModel.

    Attributes:
        name: such as `serving_default`.
        inputs: sorted by name.
        outputs: sorted by name.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def batches(self) -> bool:
        """Whether the first dimension of every tensor varies, so that requests can be joined along it."""
        return all(tensor.shape[:1] == (-1,) for tensor in (*self.inputs, *self.outputs))


def breaks(before: Signature, after: Signature) -> str | None:
    """What those who ask by one signature would miss in another; None when nothing. New outputs break nothing."""
    old, new = ({t.name: str(t) for t in s.inputs} for s in (before, after))
    missing = sorted(set(old) - set(new)) or sorted(set(new) - set(old))
    if missing:
        return f"its inputs are {', '.join(new) or 'none'} in place of {', '.join(old) or 'none'}"
    kept = {t.name: str(t) for t in before.outputs}
    found = {t.name: str(t) for t in after.outputs}
    for name in kept:
        if name not in found:
            return f"it has no output {name}"
    for name, text in (old | kept).items():
        other = (new | found)[name]
        if other != text:
            return f"{other} in place of {text}"
    return None


def saved_model_folder(version: Path) -> Path:
    """The SavedModel inside a version folder: Triton's layout (`model.savedmodel/`) or TensorFlow Serving's.

    Raises:
        ServingError: there is none.
    """
    for folder in (version / "model.savedmodel", version):
        if (folder / "saved_model.pb").is_file():
            return folder
    raise ServingError(f"{version}: no SavedModel; expected model.savedmodel/saved_model.pb or saved_model.pb in it")


def read_signature(folder: Path, name: str = DEFAULT_SIGNATURE) -> Signature:
    """The signature `name` of the SavedModel in `folder`.

    Raises:
        ServingError: no readable SavedModel, no such signature, or a tensor type that cannot be served.
    """
    path = folder / "saved_model.pb"
    try:
        model = pb.SavedModel.FromString(path.read_bytes())
    except OSError as error:
        raise ServingError(f"{path}: cannot be read: {error.strerror}") from None
    except DecodeError:
        raise ServingError(f"{path}: not a SavedModel, or copied in part") from None
    graphs = [graph for graph in model.meta_graphs if SERVE_TAG in graph.meta_info_def.tags]
    if not graphs:
        raise ServingError(f"{path}: no graph with the tag {SERVE_TAG!r}")
    index = folder / "variables" / "variables.index"
    if graphs[0].saver_def.restore_op_name and not index.is_file():
        # TensorFlow takes such a folder for a model without variables, and fails at every call.
        raise ServingError(f"{index}: missing; the SavedModel has been copied in part")
    signatures = graphs[0].signature_def
    if name not in signatures:
        known = ", ".join(sorted(key for key in signatures if not key.startswith("__"))) or "none"
        raise ServingError(f"{path}: no signature {name!r}; it has {known}")
    found = signatures[name]
    return Signature(name, _tensors(path, found.inputs), _tensors(path, found.outputs))


def _tensors(path: Path, infos: Mapping[str, pb.TensorInfo]) -> tuple[Tensor, ...]:
    tensors = []
    for name, info in sorted(infos.items()):
        if info.dtype not in DATA_TYPES:
            raise ServingError(f"{path}: tensor {name!r} has TensorFlow type {info.dtype}, which cannot be served")
        if info.tensor_shape.unknown_rank:
            raise ServingError(f"{path}: tensor {name!r} has no known rank; export it with a shape")
        shape = tuple(dim.size for dim in info.tensor_shape.dim)
        tensors.append(Tensor(name, DATA_TYPES[info.dtype].name, shape, info.name, info.dtype))
    return tuple(tensors)
