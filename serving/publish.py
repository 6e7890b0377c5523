"""Puts a version into a repository: checked against the one before, described, whole or not at all."""

import contextlib
import os
import shutil
import time
import uuid
from pathlib import Path

from serving.completeness import MODEL, VERSION, check
from serving.errors import ServingError
from serving.files import copy_folder
from serving.formats import read_signature, stored_model
from serving.manifest import read_manifest, write_manifest
from serving.marks import withdrawn
from serving.modelconfig import read_config
from serving.repository import numbers, serving_order
from serving.signature import breaks

_ASIDE = ".incoming-"
_OLD = 86_400.0  # seconds


def publish(
    source: Path, repository: Path, model: str | None = None, version: int | None = None, new_contract: bool = False
) -> Path:
    """Put a version in.

    Args:
        source: a SavedModel, or a version's folder with what lies beside it: manifest.json, golden.json.
        repository: of models; made if need be.
        model: its name; the manifest's where none is given.
        version: its number; one more than the highest that there is, where none is given.
        new_contract: whether it may have other inputs and outputs than the version before.

    Returns:
        The version's folder in the repository.

    Raises:
        ServingError: it is no whole version, it breaks the contract, or it cannot be written.
    """
    if not source.is_dir():
        what = "a file" if source.exists() else "no such folder"
        raise ServingError(
            f"{source}: {what}; publish takes a SavedModel's folder, or a version's, in which an ONNX model lies as "
            "model.onnx"
        )
    manifest = read_manifest(source)
    name = model if model is not None else manifest.model if manifest else None
    if name is None:
        raise ServingError(f"{source}: no manifest.json that names its model; name it with --model")
    check_name(name)
    if version is not None and not VERSION.fullmatch(str(version)):
        raise ServingError(f"{version} cannot be a version: it takes a number from 1 that fits into 64 bits")
    folder = repository / name
    signature = read_config(folder).signature
    check(source, source, signature)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServingError(f"{folder}: cannot be written: {error.strerror}") from None
    if not new_contract:
        _check_contract(source, folder, signature)
    _clear(folder)
    aside = folder / f"{_ASIDE}{uuid.uuid4().hex[:12]}"
    try:
        _copy(source, aside)
        while True:
            number = version or 1 + max(numbers(folder) | set(withdrawn(folder)), default=0)
            write_manifest(
                aside,
                model=name,
                version=number,
                description=manifest.description if manifest else "",
                signature=signature,
                new_contract=new_contract,
                data=manifest.data if manifest else None,
                quality=manifest.quality if manifest else {},
                drift_reference=manifest.drift_reference if manifest else {},
            )
            for path in (*aside.rglob("*"), aside):
                _flush(path)
            target = folder / str(number)
            if _rename(aside, target):
                _flush(folder)
                return target
            if version is not None:
                raise ServingError(f"{target}: this version is there already; a version never changes")
    except OSError as error:
        raise ServingError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_name(model: str) -> None:
    """Pass, where this can be a model's name.

    Raises:
        ServingError: it cannot.
    """
    if not MODEL.fullmatch(model):
        raise ServingError(f"{model!r} cannot be a model's name: letters, digits, dots, hyphens and underscores can")


def _check_contract(source: Path, model: Path, signature: str) -> None:
    """Against the version that serves, or would."""
    newest = next(serving_order(model), None)
    if newest is None:
        return
    before = read_signature(model / str(newest), signature)
    problem = breaks(before, read_signature(source, signature))
    if problem:
        raise ServingError(
            f"{source}: not what version {newest} of {model.name!r} is asked for: {problem}; "
            "if the pipelines are ready for that, say --new-contract, in Python new_contract=True"
        )


def _copy(source: Path, aside: Path) -> None:
    """A version's folder as it is; a SavedModel into one."""
    inside = stored_model(source).path == source
    copy_folder(source, aside / "model.savedmodel" if inside else aside)
    if inside:
        for name in ("manifest.json", "golden.json", "card.md"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(aside / "model.savedmodel" / name, aside / name)  # noqa: PTH104


def _rename(aside: Path, target: Path) -> bool:
    """Whether the place was free; two that publish at once cannot both have it."""
    try:
        os.rename(aside, target)  # noqa: PTH104
    except OSError:
        if target.exists():
            return False
        raise
    return True


def _clear(model: Path) -> None:
    """What publishers have left behind that were killed: whoever still writes has done so within a day."""
    for path in model.glob(f"{_ASIDE}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _OLD:
                shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
