"""What a model repository holds: models, their versions, and how to put a new version in."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ServingError
from serving.manifest import Manifest, read_manifest, verify
from serving.savedmodel import saved_model_folder


@dataclass(frozen=True, slots=True)
class Version:
    """One version on disk.

    Attributes:
        model: the model's name.
        number: the version's.
        folder: where it is.
        manifest: what it says of itself; None without one.
        size: bytes of its files.
        problems: a sentence for each thing that is wrong with it.
    """

    model: str
    number: int
    folder: Path
    manifest: Manifest | None
    size: int
    problems: tuple[str, ...]


def versions(repository: Path) -> Iterator[Version]:
    """Every version of every model, in order.

    Raises:
        ServingError: there is no such folder.
    """
    if not repository.is_dir():
        raise ServingError(f"{repository}: no such model repository; a repository is a folder of models")
    for model in sorted(path for path in repository.iterdir() if path.is_dir()):
        numbers = sorted(int(path.name) for path in model.iterdir() if path.is_dir() and path.name.isdigit())
        for number in numbers:
            yield _read(model.name, number, model / str(number))


def _read(model: str, number: int, folder: Path) -> Version:
    problems: list[str] = []
    manifest = None
    try:
        saved_model_folder(folder)
        manifest = read_manifest(folder)
        if manifest is not None:
            problems += verify(folder)
    except ServingError as error:
        problems.append(str(error))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Version(model, number, folder, manifest, size, tuple(problems))


def copy_version(source: Path, model: Path) -> Path:
    """Put the version folder `source` into the model folder `model`, whole or not at all.

    It is copied aside, flushed to disk and renamed, so that nobody ever sees a part of it.

    Raises:
        ServingError: the version is there already, or cannot be written.
    """
    target = model / source.name
    if target.exists():
        raise ServingError(f"{target}: this version is there already; a version never changes")
    aside = model / f".{source.name}.incoming"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        for path in (*aside.rglob("*"), aside):
            _flush(path)
        aside.rename(target)
        _flush(model)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise ServingError(f"{target}: cannot be written: {error.strerror or error}") from None
    return target


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
