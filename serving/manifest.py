"""What a version says of itself: manifest.json beside the model, and golden requests with their answers."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from serving.errors import ServingError
from serving.formats import read_signature
from serving.signature import DEFAULT_SIGNATURE, Signature

FILE = "manifest.json"


class Section(BaseModel):
    """What all parts of a manifest share."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorEntry(Section):
    """One tensor of the signature; the shape has the batch dimension, -1 where it varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class SignatureEntry(Section):
    """The signature that is served."""

    name: str
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]


class DataEntry(Section):
    """What the version was trained on."""

    name: str
    source: str
    licence: str
    training_rows: int
    held_out_rows: int


class Histogram(Section):
    """How one feature was distributed in training: `counts[i]` values lay between `edges[i]` and `edges[i + 1]`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Manifest(Section):
    """A version's own description.

    Attributes:
        new_contract: whether its inputs and outputs may be others than those of the version before.
        files: path below the version's folder -> sha256.
        quality: metric on held-out data -> value.
        drift_reference: feature -> its distribution in training.
    """

    model: str
    version: int
    description: str = ""
    signature: SignatureEntry
    new_contract: bool = False
    data: DataEntry | None = None
    quality: dict[str, float] = {}
    drift_reference: dict[str, Histogram] = {}
    files: dict[str, str]


def read_manifest(version: Path) -> Manifest | None:
    """The manifest of a version folder, None where it has none.

    Raises:
        ServingError: it is there, but cannot be read.
    """
    path = version / FILE
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise ServingError(f"{path}: {where}: {first['msg']}") from None


def verify(version: Path) -> list[str]:
    """A sentence for each file of the manifest that is missing, changed, or not listed; none when all is well."""
    manifest = read_manifest(version)
    if manifest is None:
        return [f"{version}: no {FILE}"]
    found = file_hashes(version)
    problems = [f"{version / name}: missing" for name in manifest.files if name not in found]
    problems += [f"{version / name}: not in the manifest" for name in found if name not in manifest.files]
    problems += [
        f"{version / name}: its content is not what the manifest says"
        for name, digest in manifest.files.items()
        if found.get(name, digest) != digest
    ]
    return problems


def file_hashes(version: Path) -> dict[str, str]:
    """Path below `version` -> sha256, for every file but the manifest itself."""
    return {
        str(path.relative_to(version)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(version.rglob("*"))
        if path.is_file() and path != version / FILE
    }


def write_manifest(
    folder: Path,
    *,
    model: str,
    version: int,
    description: str = "",
    signature: str = DEFAULT_SIGNATURE,
    new_contract: bool = False,
    data: DataEntry | None = None,
    quality: Mapping[str, float] | None = None,
    drift_reference: Mapping[str, Histogram] | None = None,
) -> Manifest:
    """Describe the version in `folder`, which holds all its files by now.

    Args:
        folder: of the version, wherever it is.
        model: it is a version of.
        version: its number.
        description: one sentence for a person.
        signature: that is served.
        new_contract: whether its inputs and outputs may be others than those of the version before.
        data: what it was trained on.
        quality: metric on held-out data -> value.
        drift_reference: feature -> its distribution in training.
    """
    manifest = Manifest(
        model=model,
        version=version,
        description=description,
        signature=_signature_entry(read_signature(folder, signature)),
        new_contract=new_contract,
        data=data,
        quality={name: round(value, 4) for name, value in (quality or {}).items()},
        drift_reference=dict(drift_reference or {}),
        files=file_hashes(folder),
    )
    (folder / FILE).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _signature_entry(signature: Signature) -> SignatureEntry:
    def entries(tensors: Any) -> tuple[TensorEntry, ...]:
        return tuple(TensorEntry(name=t.name, datatype=t.datatype, shape=t.shape) for t in tensors)

    return SignatureEntry(name=signature.name, inputs=entries(signature.inputs), outputs=entries(signature.outputs))


def histogram(values: npt.NDArray[Any]) -> Histogram:
    """How values are distributed, in ten parts of as many values each."""
    edges = np.unique(np.quantile(values.astype(np.float64), np.linspace(0, 1, 11)))
    if len(edges) == 1:
        edges = np.array([edges[0], edges[0] + 1])
    counts, _ = np.histogram(values, bins=edges)
    return Histogram(edges=tuple(edges.round(6).tolist()), counts=tuple(counts.tolist()))
