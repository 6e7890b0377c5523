"""The formats of models: what a version's folder holds, what can be asked of it, and how it is run.

model.savedmodel/    a SavedModel, run by TensorFlow's library
saved_model.pb       the same, in TensorFlow Serving's layout
model.onnx           an ONNX model, run by ONNX Runtime
"""

from pathlib import Path
from typing import ClassVar, Protocol

from serving.arrays import Arrays
from serving.errors import ServingError
from serving.formats.onnx import OnnxModel
from serving.formats.savedmodel import SavedModel
from serving.signature import DEFAULT_SIGNATURE, Signature


class Runner(Protocol):
    """A loaded model."""

    signature: Signature

    def run(self, inputs: Arrays) -> Arrays:
        """One call.

        Args:
            inputs: for each input of the signature an array; a trailing dimension of 1 is dropped where the signature
                has none.

        Returns:
            output tensor -> array; strings as objects of `bytes`.

        Raises:
            ModelError: the model refuses these inputs, or fails.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


class StoredModel(Protocol):
    """A model on disk.

    Attributes:
        platform: what Triton calls its format.
    """

    platform: ClassVar[str]

    @property
    def path(self) -> Path:
        """Of its folder or file."""
        ...

    def signature(self, name: str) -> Signature:
        """One of its signatures.

        Raises:
            ServingError: it cannot be read, has no such signature, or a tensor type that cannot be served.
        """
        ...

    def check_files(self) -> None:
        """Pass, where all the files it consists of are there, as far as the model itself can tell.

        Raises:
            ServingError: it has been copied in part.
        """
        ...

    def load(self, signature: str, threads: int) -> Runner:
        """Load it; see `load`."""
        ...


def stored_model(version: Path) -> StoredModel:
    """The model inside a version's folder.

    Raises:
        ServingError: there is none, or more than one.
    """
    saved = [
        SavedModel(path) for path in (version / "model.savedmodel", version) if (path / "saved_model.pb").is_file()
    ]
    onnx = [OnnxModel(path) for path in (version / "model.onnx",) if path.is_file()]
    found: list[StoredModel] = [*saved, *onnx]
    if len(found) > 1:
        raise ServingError(f"{version}: more than one model in it; which is meant cannot be told")
    if not found:
        raise ServingError(
            f"{version}: no SavedModel and no ONNX model; expected model.savedmodel/saved_model.pb, saved_model.pb "
            "or model.onnx in it"
        )
    return found[0]


def read_signature(version: Path, name: str = DEFAULT_SIGNATURE) -> Signature:
    """The signature `name` of the model in a version's folder; nothing is loaded for it.

    Raises:
        ServingError: no readable model, no such signature, or a tensor type that cannot be served.
    """
    return stored_model(version).signature(name)


def load(version: Path, signature: str = DEFAULT_SIGNATURE, threads: int = 0) -> Runner:
    """Load the model in a version's folder.

    Args:
        version: the folder.
        signature: which of its signatures to run.
        threads: of the framework in this process; 0 lets it choose.

    Raises:
        ServingError: it cannot be read or loaded, or what runs it is not installed.
    """
    return stored_model(version).load(signature, threads)
